"""2:4 structured sparsity: zero the two smallest of every four weights along the input channels, layer by layer.

The pattern of NVIDIA's sparse tensor cores (Mishra et al. 2021, arXiv:2104.08378): for each output channel and each
position of a kernel, at most two of four neighbouring input channels are not zero. Knows nothing of engines.
"""

from __future__ import annotations

import time

import numpy as np
import onnx

from workbench.graph.editing import Context, Graph
from workbench.graph.linear_layers import WeightLayer, weight_layers
from workbench.recipes import Sparsify
from workbench.records import Skipped, StepReport

GROUP, KEPT = 4, 2
_NOTES = (
    "Weights were pruned by magnitude without retraining, so accuracy is a lower bound of what 2:4 sparsity costs.",
    "Only NVIDIA GPUs from Ampere on, with the builder's SPARSE_WEIGHTS flag, skip the zeros; elsewhere they cost "
    "what other weights do.",
)


def apply(model: onnx.ModelProto, step: Sparsify, context: Context) -> StepReport:
    """Prune the constant weights of Conv, Gemm and MatMul in place.

    Returns:
        A report. Its details have under `layers`, by node name, `zeroed` (share of the weights) and `energy_removed`
        (share of the sum of squared weights), and the same two over all layers. Layers whose input channels are no
        multiple of four are skipped.
    """
    started = time.perf_counter()
    graph = Graph(model)
    layers: dict[str, dict[str, float]] = {}
    skipped: list[Skipped] = []
    shared: dict[tuple[str, int], str] = {}
    totals = np.zeros(4)
    for layer in weight_layers(graph, ("Conv", "Gemm", "MatMul"), step.exclude, context):
        if isinstance(layer, Skipped):
            skipped.append(layer)
        elif layer.weight.shape[layer.input_axis] % GROUP:
            channels = layer.weight.shape[layer.input_axis]
            skipped.append(Skipped(layer.name, f"it has {channels} input channels (a group), no multiple of {GROUP}"))
        else:
            pruned = prune_2_4(layer.weight, layer.input_axis)
            _store(graph, layer, pruned, shared)
            counts = _counts(layer.weight, pruned)
            totals += counts
            layers[layer.name] = _shares(counts)
    graph.finish()
    return StepReport(
        kind="sparsify",
        seconds=time.perf_counter() - started,
        changed=tuple(layers),
        skipped=tuple(skipped),
        notes=_NOTES if layers else ("No layer has weights that can be pruned 2:4.",),
        details={"layers": layers, **_shares(totals)},
    )


def prune_2_4(weight: np.ndarray, axis: int) -> np.ndarray:
    """Return a copy with the two smallest magnitudes of every four along `axis` set to zero.

    Of equal magnitudes the earlier is pruned. The axis must be a multiple of four long.
    """
    axis %= weight.ndim
    groups = _groups(weight, axis)
    sizes = np.abs(groups)
    pruned = np.zeros_like(groups)
    # Counting who is larger takes a dozen comparisons, where sorting every four took several times as long.
    for index in range(GROUP):
        before = sum((sizes[other] > sizes[index]).astype(np.int8) for other in range(index))
        after = sum((sizes[other] >= sizes[index]).astype(np.int8) for other in range(index + 1, GROUP))
        pruned[index] = np.where(before + after < KEPT, groups[index], 0.0)
    return np.ascontiguousarray(np.moveaxis(pruned, 0, axis + 1).reshape(weight.shape))


def is_2_4(array: np.ndarray, axis: int) -> bool:
    """Return whether at most two of every four neighbours along `axis` are not zero; False where four do not fit."""
    if array.shape[axis] % GROUP:
        return False
    return bool((np.count_nonzero(_groups(array, axis), axis=0) <= KEPT).all())


def _groups(array: np.ndarray, axis: int) -> np.ndarray:
    """View the first, second, ... of every four neighbours as entries of a new first axis."""
    axis %= array.ndim
    split = (*array.shape[:axis], array.shape[axis] // GROUP, GROUP, *array.shape[axis + 1 :])
    return np.moveaxis(array.reshape(split), axis + 1, 0)


def _store(graph: Graph, layer: WeightLayer, pruned: np.ndarray, shared: dict[tuple[str, int], str]) -> None:
    key = (layer.node.input[1], layer.input_axis)
    if key in shared:
        graph.set_input(layer.node, 1, shared[key])
    else:
        shared[key] = graph.give_constant(layer.node, 1, pruned)


def _counts(weight: np.ndarray, pruned: np.ndarray) -> np.ndarray:
    energy = float(np.sum(np.square(weight, dtype=np.float64)))
    kept = float(np.sum(np.square(pruned, dtype=np.float64)))
    return np.array([np.count_nonzero(pruned == 0), weight.size, energy - kept, energy])


def _shares(counts: np.ndarray) -> dict[str, float]:
    zeros, size, removed, energy = (float(value) for value in counts)
    return {"zeroed": zeros / max(size, 1.0), "energy_removed": removed / energy if energy else 0.0}
