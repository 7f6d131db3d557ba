"""2:4 structured sparsity: zero two of every four weights along the input channels, layer by layer.

Which two, and what makes up for them, comes from calibration samples (`reconstruction`); without any, the two smallest go.
The pattern of NVIDIA's sparse tensor cores (Mishra et al. 2021, arXiv:2104.08378): for each output channel and each
position of a kernel, at most two of four neighbouring input channels are not zero. Knows nothing of engines.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping

import numpy as np
import onnx

from workbench.graph.editing import Context, Graph, attribute
from workbench.graph.linear_layers import WeightLayer, weight_layers
from workbench.recipes import Sparsify
from workbench.records import Skipped, StepReport

GROUP, KEPT = 4, 2
_WHERE = (
    "Only NVIDIA GPUs from Ampere on, with the builder's SPARSE_WEIGHTS flag, skip the zeros, and not in FP32, for which "
    "there are no sparse tensor cores; elsewhere they cost what other weights do."
)
_CORRECTED = (
    "{} layers were pruned in one shot for calibration samples (SparseGPT: the weights that stay make up for those that "
    "go), without training."
)
_BY_MAGNITUDE = (
    "{} layers were pruned by magnitude, without samples and without training, which loses far more: top-1 of "
    "digits_resnet falls from 99.8 % to 50.3 % so, and to 99.6 % with samples (benchmarks/results/sparsity.json)."
)


def apply(model: onnx.ModelProto, step: Sparsify, context: Context) -> StepReport:
    """Prune the constant weights of Conv, Gemm and MatMul in place.

    Args:
        context: its `pruned` holds the weights to take, unless the step asks for magnitudes.

    Returns:
        A report. Its details have under `layers`, by node name, `zeroed` (share of the weights), `energy_removed`
        (1 - sum of squared weights now over before) and, where samples were seen, `output_error` (energy of the change
        of the layer's outputs over theirs), and the first two over all layers. Layers whose input channels are no multiple
        of four are skipped.
    """
    started = time.perf_counter()
    graph = Graph(model)
    layers: dict[str, dict[str, float]] = {}
    skipped: list[Skipped] = []
    shared: dict[tuple[str, int], str] = {}
    totals = np.zeros(4)
    for layer in _layers(graph, step, context):
        if isinstance(layer, Skipped):
            skipped.append(layer)
            continue
        known = context.pruned.get(layer.name) if step.method == "reconstruct" else None
        pruned = prune_2_4(layer.weight, layer.input_axis) if known is None else known.weight
        _store(graph, layer, pruned, shared)
        counts = _counts(layer.weight, pruned)
        totals += counts
        layers[layer.name] = _shares(counts) | ({} if known is None else {"output_error": known.output_error})
    graph.finish()
    return StepReport(
        kind="sparsify",
        seconds=time.perf_counter() - started,
        changed=tuple(layers),
        skipped=tuple(skipped),
        notes=_notes(layers),
        details={"layers": layers, **_shares(totals)},
    )


def reconstructible(model: onnx.ModelProto, step: Sparsify, context: Context) -> list[WeightLayer]:
    """Return the layers whose weights can be pruned for samples: those to prune, each weight of one layer alone."""
    graph = Graph(model)
    found = [layer for layer in _layers(graph, step, context) if isinstance(layer, WeightLayer)]
    uses = Counter(name for node in graph.nodes for name in node.input)
    turned = {id(layer.node) for layer in found if layer.node.op_type == "Gemm" and attribute(layer.node, "transA", 0)}
    return [layer for layer in found if uses[layer.node.input[1]] == 1 and id(layer.node) not in turned]


def _layers(graph: Graph, step: Sparsify, context: Context) -> Iterator[WeightLayer | Skipped]:
    for layer in weight_layers(graph, ("Conv", "Gemm", "MatMul"), step.exclude, context):
        if isinstance(layer, WeightLayer) and layer.weight.shape[layer.input_axis] % GROUP:
            channels = layer.weight.shape[layer.input_axis]
            yield Skipped(layer.name, f"it has {channels} input channels (a group), no multiple of {GROUP}")
        else:
            yield layer


def _notes(layers: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    if not layers:
        return ("No layer has weights that can be pruned 2:4.",)
    corrected = sum("output_error" in layer for layer in layers.values())
    rest = len(layers) - corrected
    first = (_CORRECTED.format(corrected),) if corrected else ()
    return (*first, *((_BY_MAGNITUDE.format(rest),) if rest else ()), _WHERE)


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
