"""Prune a layer 2:4 so that its outputs change least: the weights that stay make up for those that go.

SparseGPT (Frantar & Alistarh 2023, arXiv:2301.00774), after Optimal Brain Surgeon (Hassibi & Stork 1993): one pass over the
input columns of a weight with the second moments of the layer's inputs, one shot, no training. Works on arrays; which
layers and whose inputs is not known here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from workbench.graph.editing import attribute
from workbench.graph.linear_layers import WeightLayer
from workbench.graph.pruned import Pruned

_GROUP, _KEPT = 4, 2
# SparseGPT's: a share of the mean diagonal, added so that inputs which never vary leave the moments invertible.
_DAMPING = 0.01
_BLOCK = 128


def columns_of(layer: WeightLayer) -> tuple[int, int]:
    """Return how many groups a layer has, and how many inputs a sum in each."""
    groups = attribute(layer.node, "group", 1) if layer.node.op_type == "Conv" else 1
    return groups, layer.weight.size // layer.weight.shape[layer.output_axis]


def unfolded(layer: WeightLayer, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what a layer multiplies with its weights, one row a sum: (groups, rows, columns), channels fastest.

    Args:
        inputs: the layer's first input.
    """
    if layer.node.op_type != "Conv":
        return inputs.reshape(1, -1, inputs.shape[-1])
    kernel = layer.weight.shape[2:]
    strides, dilations = (attribute(layer.node, name, [1] * len(kernel)) for name in ("strides", "dilations"))
    spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    padded = np.pad(inputs, [(0, 0), (0, 0), *_pads(layer.node, inputs.shape[2:], spans, strides)])
    axes = tuple(range(2, inputs.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)  # type: ignore[call-overload]
    taken = (slice(None), slice(None), *(slice(None, None, step) for step in (*strides, *dilations)))
    windows = windows[taken]
    groups, columns = columns_of(layer)
    split = windows.reshape(windows.shape[0], groups, -1, *windows.shape[2:])
    places = len(kernel)
    # (N, group, channel, place..., kernel...) -> (group, N, place..., kernel..., channel)
    order = (1, 0, *range(3, 3 + 2 * places), 2)
    return split.transpose(order).reshape(groups, -1, columns)


def prune(layer: WeightLayer, moments: NDArray[np.float64]) -> Pruned:
    """Prune a layer 2:4 along its input axis, and correct what stays for what was taken away.

    Args:
        moments: (groups, columns, columns), X^T X of what `unfolded` gives over all samples.
    """
    rows = np.moveaxis(layer.weight, (layer.output_axis, layer.input_axis), (0, -1))
    groups, columns = columns_of(layer)
    matrix = rows.reshape(groups, -1, columns)
    solved = np.stack([_sparse_gpt(part, moment) for part, moment in zip(matrix, moments, strict=True)])
    restored = np.moveaxis(solved.reshape(rows.shape), (0, -1), (layer.output_axis, layer.input_axis))
    weight = np.ascontiguousarray(restored, dtype=np.float32)
    return Pruned(weight, output_error(layer, weight, moments))


def output_error(layer: WeightLayer, weight: NDArray[np.float32], moments: NDArray[np.float64]) -> float:
    """Return the energy of the change of a layer's outputs over the energy of the outputs, on the observed inputs."""
    groups, columns = columns_of(layer)
    energies = []
    for values in (layer.weight - weight, layer.weight):
        rows = np.moveaxis(values, (layer.output_axis, layer.input_axis), (0, -1)).reshape(groups, -1, columns)
        energies.append(float(np.einsum("gok,gkl,gol->", rows, moments, rows, optimize=True)))
    return energies[0] / energies[1] if energies[1] > 0 else 0.0


def _sparse_gpt(weight: NDArray[np.float32], moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Prune (outputs, columns), four neighbouring columns at a time; each removal is spread over the columns to come."""
    work = weight.astype(np.float64)
    columns = work.shape[1]
    mean = float(np.trace(moments)) / columns
    damped = moments + np.eye(columns) * (_DAMPING * mean if mean > 0 else 1.0)
    factor = np.linalg.cholesky(
        np.linalg.inv(damped)
    ).T  # upper: row i holds what column i's removal does to later ones
    diagonal = np.diag(factor)
    for first in range(0, columns, _BLOCK):
        last = min(first + _BLOCK, columns)
        errors = np.zeros((len(work), last - first))
        for column in range(first, last):
            if column % _GROUP == 0:
                four = slice(column, column + _GROUP)
                losses = np.square(work[:, four] / diagonal[four])
                gone = np.argsort(losses, axis=1, kind="stable")[:, : _GROUP - _KEPT]
                mask = np.zeros((len(work), _GROUP), bool)
                np.put_along_axis(mask, gone, True, axis=1)
            removed = np.where(mask[:, column % _GROUP], work[:, column], 0.0)
            error = removed / diagonal[column]
            work[:, column] -= removed
            work[:, column + 1 : last] -= np.outer(error, factor[column, column + 1 : last])
            errors[:, column - first] = error
        work[:, last:] -= errors @ factor[first:last, last:]
    return work


def _pads(
    node: onnx.NodeProto, sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """Return the zeros before and after each spatial axis of a convolution's input."""
    kind = attribute(node, "auto_pad", b"NOTSET")
    if kind in (b"SAME_UPPER", b"SAME_LOWER"):
        needed = [
            max((-(-size // step) - 1) * step + span - size, 0)
            for size, span, step in zip(sizes, spans, strides, strict=True)
        ]
        halves = [(total // 2, total - total // 2) for total in needed]
        return halves if kind == b"SAME_UPPER" else [(after, before) for before, after in halves]
    pads = attribute(node, "pads", [0] * (2 * len(sizes))) if kind == b"NOTSET" else [0] * (2 * len(sizes))
    return list(zip(pads[: len(sizes)], pads[len(sizes) :], strict=True))
