"""Decide where Q/DQ pairs go, and what is left in floating point and why. Changes nothing; knows no ranges and scales.

Common to all dialects: the inputs of Conv, ConvTranspose, Gemm and MatMul, weights per output channel; graph outputs,
Softmax, normalisation and copies stay as they are. TensorRT's dialects add the skip branch of residual additions
(`residual`) and average pools between integer kernels (`pooling`), ONNX Runtime's the outputs that its integer kernels
need (`chains`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from workbench.errors import RecipeError, nearest
from workbench.graph.chains import integer_chains, tail
from workbench.graph.dialects import DIALECTS, Dialect
from workbench.graph.editing import FLOAT_TYPES, Context, Graph, attribute, label
from workbench.graph.pooling import integer_pools
from workbench.graph.residual import skip_branches
from workbench.graph.tensor_types import TensorTypes, tensor_types
from workbench.recipes import Quantize
from workbench.records import Skipped

QUANTIZABLE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Measured with ONNX Runtime 1.32 on an AMD EPYC with VNNI, 3x3 first layers at batch 8, 1 thread: with 16 output channels
# FP32 was up to 3.3x faster (1 or 3 input channels, images of 28 to 112 pixels); from 32 channels on it was about even.
_FEW_PRODUCTS, _FEW_CHANNELS = 32, 16
_MOST_TOLD = 5


@dataclass(frozen=True)
class Weight:
    """The constant second input of a node, to be quantized along `axis` (one scale for all of it where None)."""

    node: onnx.NodeProto
    axis: int | None


@dataclass(frozen=True)
class Placement:
    """Where Q/DQ pairs go.

    Attributes:
        lowered: the nodes whose arithmetic becomes 8-bit.
        readers: activation tensor -> the nodes that are to read its dequantized form.
        ranges: tensor -> the tensors over whose values together its range is taken; itself where absent.
        weights: the constant inputs to quantize.
        skipped: quantizable nodes left alone, and why.
    """

    lowered: tuple[onnx.NodeProto, ...]
    readers: dict[str, list[onnx.NodeProto]]
    ranges: dict[str, tuple[str, ...]]
    weights: tuple[Weight, ...]
    skipped: tuple[Skipped, ...]


def told(skipped: Sequence[Skipped]) -> str:
    """Return why nodes were left alone as the part of a sentence: the first few, and how many more there are."""
    words = "; ".join(f"{item.name}: {item.reason}" for item in skipped[:_MOST_TOLD])
    return f"{words}; and {len(skipped) - _MOST_TOLD} more" if len(skipped) > _MOST_TOLD else words


def place(
    graph: Graph,
    step: Quantize,
    context: Context,
    dialect: Dialect,
    unusable: Mapping[str, str] | None = None,
    *,
    types: TensorTypes | None = None,
) -> Placement:
    """Decide where Q/DQ pairs go.

    Args:
        unusable: activation tensor -> why it cannot be quantized; nodes that read it are skipped.
        types: of the graph, where the caller has inferred them already.

    Raises:
        RecipeError: the step names an operator that is not quantized at all.
    """
    types = types or tensor_types(graph.model)
    lowered, skipped = quantizable_nodes(graph, step, context, dialect, unusable, types=types)
    weights = tuple(weight for node in lowered for weight in _weights(graph, node, step, types))
    inputs = _activations(graph, lowered)
    if dialect.integer_chains and step.to == "int8":
        chains = integer_chains(graph, lowered, inputs)
        return Placement(tuple(lowered), chains.readers, chains.ranges, weights, tuple(skipped))
    readers = _before_padding(graph, inputs)
    sums = [pair for pair in skip_branches(graph, lowered, types) if not context.excluded_by(pair[0], step.exclude)]
    for add, skip in sums:
        readers.setdefault(skip, []).append(add)
    for pool in integer_pools(graph, lowered, [add for add, _ in sums], readers) if step.to == "int8" else ():
        if not context.excluded_by(pool, step.exclude):
            readers.setdefault(pool.input[0], []).append(pool)
    return Placement(tuple(lowered), readers, _concatenated(graph, readers), weights, tuple(skipped))


def quantizable_nodes(
    graph: Graph,
    step: Quantize,
    context: Context,
    dialect: Dialect,
    unusable: Mapping[str, str] | None = None,
    *,
    types: TensorTypes | None = None,
) -> tuple[list[onnx.NodeProto], list[Skipped]]:
    """Return the nodes that the step lowers, and those of their kinds that it skips; arguments as for `place`."""
    types = types or tensor_types(graph.model)
    lowered, skipped = [], []
    for node in graph.nodes:
        if node.op_type not in _wanted_types(step):
            continue
        pattern = context.excluded_by(node, step.exclude)
        reason = None if pattern is None else f"excluded by the pattern {pattern!r}"
        reason = reason or _type_obstacle(node, types) or _weight_obstacle(graph, node, types)
        reason = reason or _saturation(graph, node, step, dialect)
        if dialect.integer_chains and step.to == "int8":
            reason = reason or _kernel_obstacle(graph, node, step, types)
        reason = reason or _unusable(node, unusable or {})
        if reason:
            skipped.append(Skipped(label(node), reason))
        else:
            lowered.append(node)
    return lowered, skipped


def observed_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the activations whose range some dialect or some exclusion may ask for, in the order of the graph."""
    graph = Graph(model)
    types = tensor_types(model)
    found: set[str] = set()
    for dialect in (item for item in DIALECTS.values() if item.name == item.family):
        placement = place(graph, Quantize(op_types=QUANTIZABLE), Context(dialect.name), dialect, types=types)
        found.update(placement.readers)
        found.update(name for names in placement.ranges.values() for name in names)
        found.update(name for add, _ in skip_branches(graph, placement.lowered, types) for name in add.input)
    found.update(name for name in graph.inputs if types.elements.get(name) in FLOAT_TYPES)
    order = [*graph.inputs, *(name for node in graph.nodes for name in node.output)]
    return tuple(name for name in order if name in found)


def _wanted_types(step: Quantize) -> tuple[str, ...]:
    for op_type in step.op_types:
        if op_type not in QUANTIZABLE:
            raise RecipeError(
                f"Quantize.op_types holds {op_type!r}, whose inputs are not quantized on their own: additions, pooling "
                f"and activations follow from the layers around them. {nearest(op_type, QUANTIZABLE)}"
            )
    return step.op_types or QUANTIZABLE


def _type_obstacle(node: onnx.NodeProto, types: TensorTypes) -> str | None:
    kinds = {types.elements.get(name, onnx.TensorProto.FLOAT) for name in node.input if name}
    if kinds == {onnx.TensorProto.FLOAT}:
        return None
    names = ", ".join(sorted(onnx.TensorProto.DataType.Name(kind) for kind in kinds))
    return f"it works on {names}; only FP32 nodes are quantized"


def _weight_obstacle(graph: Graph, node: onnx.NodeProto, types: TensorTypes) -> str | None:
    if graph.is_constant(node.input[0]):
        return "its first input is a constant, for which no engine here has an integer kernel"
    if not graph.is_constant(node.input[1]):
        return None if node.op_type == "MatMul" else "its weight is computed at run time"
    shape = types.shapes[node.input[1]]
    vector = len(shape) < 2 or (node.op_type in ("Gemm", "MatMul") and shape[output_axis(node, len(shape))] == 1)
    if vector or 0 in shape:
        return f"its weight has shape {shape}; a product with a vector gains nothing in 8 bits"
    return None


def _saturation(graph: Graph, node: onnx.NodeProto, step: Quantize, dialect: Dialect) -> str | None:
    """Return why a product of two activations would saturate: signed codes have no narrower form to be written in."""
    symmetric = dialect.symmetric if step.symmetric is None else step.symmetric
    if not (dialect.products_saturate and symmetric and step.to == "int8") or graph.is_constant(node.input[1]):
        return None
    return f"both its inputs are signed activations, whose products saturate with {dialect.engine}"


def _kernel_obstacle(graph: Graph, node: onnx.NodeProto, step: Quantize, types: TensorTypes) -> str | None:
    """Return why ONNX Runtime's CPU has no integer kernel for a node, or none that pays."""
    if node.op_type == "Conv" and tail(graph, node) in graph.pinned:
        return "it gives a graph output, which is not quantized, and ONNX Runtime's integer Conv gives codes only"
    biased = node.op_type in ("Conv", "Gemm") and len(node.input) > 2 and bool(node.input[2])
    if biased and step.activations == "static" and channel_bias(graph, node) is None:
        return "its bias is not one constant a channel, and ONNX Runtime's integer kernels add no other"
    if node.op_type in step.op_types:
        return None
    if node.op_type == "ConvTranspose":
        return "ONNX Runtime's CPU has no integer ConvTranspose; name it in Quantize.op_types to rehearse its accuracy"
    return _thin(graph, node, types)


def channel_bias(graph: Graph, node: onnx.NodeProto) -> NDArray[np.float32] | None:
    """Return the bias of a Conv or Gemm, one value a channel or one for all, as a vector; None where it is no such constant."""
    array = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if array is None or array.ndim > 2 or (array.ndim == 2 and len(array) != 1):
        return None
    return array.reshape(-1)


def _thin(graph: Graph, node: onnx.NodeProto, types: TensorTypes) -> str | None:
    """Return why a first convolution stays in floating point: too little work for what its codes cost."""
    if node.op_type != "Conv" or node.input[0] not in graph.inputs or attribute(node, "group", 1) != 1:
        return None
    channels, products = int(types.shapes[node.input[1]][0] or 0), 1  # type: ignore[arg-type]
    for size in types.shapes[node.input[1]][1:]:
        products *= int(size or 0)
    if channels > _FEW_CHANNELS or products >= _FEW_PRODUCTS:
        return None
    return (
        f"a first layer with {channels} output channels and {products} products a value is faster in FP32 on ONNX "
        f"Runtime's CPU; name 'Conv' in Quantize.op_types to quantize it all the same"
    )


def _unusable(node: onnx.NodeProto, unusable: Mapping[str, str]) -> str | None:
    return next((f"its input {name!r} {unusable[name]}" for name in node.input if name in unusable), None)


def output_axis(node: onnx.NodeProto, rank: int) -> int:
    """Return the axis of a node's weight that counts output channels."""
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": rank - 1}[node.op_type]


def _weights(graph: Graph, node: onnx.NodeProto, step: Quantize, types: TensorTypes) -> list[Weight]:
    if not graph.is_constant(node.input[1]):
        return []
    rank = len(types.shapes[node.input[1]])
    # A stack of matrices has no output channels of its own: engines take one scale along one axis only.
    per_channel = step.per_channel and not (node.op_type == "MatMul" and rank > 2)
    return [Weight(node, output_axis(node, rank) if per_channel else None)]


def _activations(graph: Graph, lowered: list[onnx.NodeProto]) -> dict[str, list[onnx.NodeProto]]:
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in lowered:
        for name in dict.fromkeys(node.input[:2]):
            if not graph.is_constant(name):
                found.setdefault(name, []).append(node)
    return found


def _before_padding(graph: Graph, readers: dict[str, list[onnx.NodeProto]]) -> dict[str, list[onnx.NodeProto]]:
    """Move pairs from behind a zero Pad to before it, so that Pad and Conv stay neighbours (TensorRT issue 2592)."""
    moved: dict[str, list[onnx.NodeProto]] = {}
    for name, nodes in readers.items():
        pad = graph.producer.get(name)
        alone = len(nodes) == len(graph.consumers[name]) and name not in graph.pinned
        if pad is not None and pad.op_type == "Pad" and alone and _pads_with_zero(graph, pad):
            name, nodes = pad.input[0], [pad]
        moved.setdefault(name, []).extend(nodes)
    return moved


def _pads_with_zero(graph: Graph, pad: onnx.NodeProto) -> bool:
    given = len(pad.input) > 2 and bool(pad.input[2])
    value = graph.array(pad.input[2]) if given else np.zeros(1)
    return attribute(pad, "mode", b"constant") == b"constant" and value is not None and not value.any()


def _concatenated(graph: Graph, readers: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    """Give the quantized inputs of a quantized Concat and its output one range, so that the copy needs no rescaling."""
    groups: dict[str, tuple[str, ...]] = {}
    for node in graph.nodes:
        if node.op_type != "Concat" or node.output[0] not in readers:
            continue
        tied = [name for name in (*node.input, node.output[0]) if name in readers]
        union = dict.fromkeys(member for name in tied for member in groups.get(name, (name,)))
        if len(union) > 1:
            groups.update(dict.fromkeys(union, tuple(union)))
    return groups
