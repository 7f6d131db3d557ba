"""SmoothQuant (Xiao et al. 2022, arXiv:2211.10438): move activation outliers into the weights, channel by channel.

Dividing channel j of an activation by s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), and multiplying row j of the weights
that read it by the same, changes nothing but rounding, and makes both easier to quantize with one scale.

A smoothed activation gets a new name, because statistics collected before no longer hold for it: calibrate again
on the smoothed graph. Knows nothing of Q/DQ.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from workbench.errors import TransformError
from workbench.graph.attention import product_behind, values_before_heads
from workbench.graph.editing import Context, Graph, attribute
from workbench.graph.linear_layers import WeightLayer, weight_layers
from workbench.recipes import SmoothQuant
from workbench.records import Skipped, StepReport

# The strength of the paper, where none was chosen.
STRENGTH = 0.5
# Dialects of engines that compute an attention in one kernel, if nothing but data movement stands between it and the
# quantization of its result.
_FUSES_ATTENTION = ("strong", "trt-8.6")
_BREAKS_ATTENTION = (
    "its input is the result of an attention, and cannot be divided in the projection of the values: a Mul behind the "
    "attention would keep TensorRT from computing it in one kernel"
)
_NORMS = ("LayerNormalization", "RMSNormalization")
# Keeps a channel that is nearly dead, in activations or weights, from getting a scale that overflows elsewhere.
_SMALLEST_SCALE, _LARGEST_SCALE = 1e-4, 1e4


@dataclass(eq=False)
class _Group:
    """The layers that read one activation."""

    tensor: str
    layers: list[WeightLayer] = field(default_factory=list)


def apply(model: onnx.ModelProto, step: SmoothQuant, context: Context) -> StepReport:
    """Rebalance activations and weights of MatMul and Gemm in place; outputs stay the same within rounding.

    The division goes into the weights of the LayerNormalization, RMSNormalization, constant Mul or linear layer that
    makes the activation, or of the values' projection where an attention does, if nothing else reads it; else into a new
    Mul. For TensorRT no Mul is put behind an attention, which would no longer be one kernel: such layers stay as they are.

    Args:
        context: its `channel_maxima` need every tensor that `smoothed_tensors` names.

    Returns:
        A report. Details: under `activations`, by the new tensor name, `was` (the old name), `into` (the node that
        divides), `largest_scale`; `alpha`, and the counts `folded` and `multiplied`.

    Raises:
        TransformError: channel maxima are missing, or of a wrong length.
    """
    started = time.perf_counter()
    graph = Graph(model)
    groups, skipped = _groups(graph, step, context)
    alpha = STRENGTH if step.alpha is None else step.alpha
    activations: dict[str, dict[str, object]] = {}
    changed: list[str] = []
    folded = 0
    for group in groups:
        scale = _scale(group, alpha, context.channel_maxima)
        into = _divide_in_place(graph, group, scale)
        folded += into is not None
        name, node = into or _divide_by_mul(graph, group, scale)
        for layer in group.layers:
            shape = [1, 1]
            shape[layer.input_axis] = -1
            # Read again: the columns may have been divided when this layer made another group's activation.
            weight = np.asarray(graph.array(layer.node.input[1]), np.float64) * scale.reshape(shape)
            graph.give_constant(layer.node, 1, weight.astype(np.float32))
            changed.append(layer.name)
        activations[name] = {"was": group.tensor, "into": node, "largest_scale": float(scale.max())}
    graph.finish()
    return StepReport(
        kind="smooth_quant",
        seconds=time.perf_counter() - started,
        changed=tuple(changed),
        skipped=tuple(skipped),
        notes=() if activations else ("No MatMul or Gemm could be smoothed.",),
        details={"alpha": alpha, "activations": activations, "folded": folded, "multiplied": len(groups) - folded},
    )


def smoothed_tensors(model: onnx.ModelProto, step: SmoothQuant, context: Context) -> list[str]:
    """Return the activations whose channel maxima `apply` needs, in graph order; unnamed nodes get names.

    `workbench.transformation.observing.channel_maxima` collects them.
    """
    groups, _ = _groups(Graph(model), step, context)
    return [group.tensor for group in groups]


def _groups(graph: Graph, step: SmoothQuant, context: Context) -> tuple[list[_Group], list[Skipped]]:
    groups: dict[str, _Group] = {}
    skipped: list[Skipped] = []
    shared = {name for name in graph.initializers if len(graph.consumers.get(name, [])) > 1}
    for layer in weight_layers(graph, ("MatMul", "Gemm"), step.exclude, context):
        if isinstance(layer, Skipped):
            skipped.append(layer)
        elif attribute(layer.node, "transA", 0):
            skipped.append(Skipped(layer.name, "its first input is transposed"))
        elif graph.is_constant(layer.node.input[0]):
            skipped.append(Skipped(layer.name, "its first input is constant"))
        elif layer.node.input[1] in shared:
            skipped.append(Skipped(layer.name, f"its weights {layer.node.input[1]!r} have other readers"))
        else:
            name = layer.node.input[0]
            groups.setdefault(name, _Group(name)).layers.append(layer)
    if context.family in _FUSES_ATTENTION:
        for name in [name for name, group in groups.items() if _would_break_attention(graph, group)]:
            skipped += [Skipped(layer.name, _BREAKS_ATTENTION) for layer in groups.pop(name).layers]
    return list(groups.values()), skipped


def _would_break_attention(graph: Graph, group: _Group) -> bool:
    """Whether the division would be a Mul between an attention and the quantization of its result."""
    layer = group.layers[0]
    channels = layer.weight.shape[layer.input_axis]
    return product_behind(graph, group.tensor) is not None and _places(graph, group, channels) is None


def _scale(group: _Group, alpha: float, maxima: Mapping[str, np.ndarray]) -> np.ndarray:
    """s = max|X|^alpha / max|W|^(1 - alpha) a channel; 1 where either is dead."""
    if group.tensor not in maxima:
        raise TransformError(
            f"SmoothQuant needs the channel maxima of {group.tensor!r}, and has those of {len(maxima)} other tensors. "
            f"Collect them for all tensors that workbench.graph.smooth.smoothed_tensors names."
        )
    channels = {layer.weight.shape[layer.input_axis] for layer in group.layers}
    activation = np.asarray(maxima[group.tensor], np.float64)
    if channels != {activation.size}:
        raise TransformError(
            f"The channel maxima of {group.tensor!r} have {activation.size} channels, its layers {sorted(channels)}. "
            f"Collect them on this very model, along the last axis."
        )
    weight = np.max([np.abs(layer.weight).max(axis=layer.output_axis) for layer in group.layers], axis=0)
    alive = (activation > 0) & (weight > 0)
    ones = np.ones(activation.size)
    scale = np.power(activation, alpha, where=alive, out=ones.copy())
    scale /= np.power(weight.astype(np.float64), 1.0 - alpha, where=alive, out=ones)
    return np.where(alive, np.clip(scale, _SMALLEST_SCALE, _LARGEST_SCALE), 1.0)


def _divide_by_mul(graph: Graph, group: _Group, scale: np.ndarray) -> tuple[str, str]:
    factor = graph.add_initializer(f"{group.tensor}_smoothing", (1.0 / scale).astype(np.float32))
    name = graph.unique(f"{group.tensor}_smoothed")
    node = graph.add_node("Mul", [group.tensor, factor], [name], f"{group.tensor}/smooth")
    graph.rewire(group.tensor, name, only=[layer.node for layer in group.layers])
    return name, node.name


def _divide_in_place(graph: Graph, group: _Group, scale: np.ndarray) -> tuple[str, str] | None:
    """Fold the division into what makes the activation; return its new name and the node, or None."""
    places = _places(graph, group, scale.size)
    if places is None:
        return None
    for node, index, axis in places:
        old = np.asarray(graph.array(node.input[index]), np.float64)
        shape = [1] * old.ndim
        shape[axis] = -1
        divided = old / scale.reshape(shape)
        graph.give_constant(node, index, divided.astype(np.float32))
    name = graph.unique(f"{group.tensor}_smoothed")
    graph.rename_output(graph.producer[group.tensor], group.tensor, name)
    return name, places[0][0].name


def _places(graph: Graph, group: _Group, channels: int) -> list[tuple[onnx.NodeProto, int, int]] | None:
    """Return (node, input, channel axis) of every constant whose division divides the activation alone, or None."""
    maker = graph.producer.get(group.tensor)
    readers = graph.consumers.get(group.tensor, [])
    if maker is None or group.tensor in graph.pinned or len(readers) != len(group.layers):
        return None
    values = values_before_heads(graph, group.tensor, channels)
    source = maker if values is None else graph.producer.get(values)
    return None if source is None else _constants_to_divide(graph, source, channels)


def _constants_to_divide(
    graph: Graph, maker: onnx.NodeProto, channels: int
) -> list[tuple[onnx.NodeProto, int, int]] | None:
    """Return (node, input, channel axis) of every constant whose division divides the maker's output, or None."""
    if maker.op_type in _NORMS and attribute(maker, "axis", -1) == -1:
        places = [(maker, index, -1) for index in range(1, len(maker.input)) if maker.input[index]]
    elif maker.op_type in ("MatMul", "Gemm") and len(maker.input) > 1:
        turned = maker.op_type == "Gemm" and bool(attribute(maker, "transB", 0))
        places = [(maker, index, 0 if turned and index == 1 else -1) for index in range(1, len(maker.input))]
    elif maker.op_type in ("Mul", "Add"):
        constant = [index for index in range(2) if graph.is_constant(maker.input[index])]
        if len(constant) != 1:
            return None
        places = [(maker, constant[0], -1)]
        if maker.op_type == "Add":
            inner = graph.producer.get(maker.input[1 - constant[0]])
            if inner is None or len(graph.consumers[inner.output[0]]) > 1 or inner.output[0] in graph.pinned:
                return None
            before = None if inner.op_type == "Add" else _constants_to_divide(graph, inner, channels)
            if before is None:
                return None
            places += before
    else:
        return None
    return places if all(_has_channels(graph, *place, channels) for place in places) else None


def _has_channels(graph: Graph, node: onnx.NodeProto, index: int, axis: int, channels: int) -> bool:
    array = graph.array(node.input[index])
    return array is not None and array.ndim > 0 and array.dtype == np.float32 and array.shape[axis] == channels
