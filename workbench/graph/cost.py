"""What one pass through a graph costs in floating-point operations, counted from shapes; runs nothing.

A multiplication and an addition are two operations. Counted are the operators that dominate: Conv, ConvTranspose, Gemm,
MatMul and recurrent layers; what else multiplies is named. Knows nothing of devices or of how long an operation takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import onnx

from workbench.graph.bodies import opened
from workbench.graph.editing import Graph, every_node, label
from workbench.graph.tensor_types import Shape, tensor_types

# What multiplies, whether or not it holds weights.
MULTIPLIES = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum", "FusedMatMul", "Attention", "MultiHeadAttention",
    "GroupQueryAttention", "FusedConv", "FusedGemm", "DeformConv",
)  # fmt: skip
# The work of others is small beside that of these wherever both occur.
COUNTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of one pass.

    Attributes:
        flops: of all nodes that multiply together; None where those of one are unknown.
        by_operator: operator type -> operations of its nodes.
        unknown: nodes that multiply and whose operations could not be told: for their shapes, for their kind, or because they
            lie in a loop, of which the file does not say how often it runs.
        assumed: input name -> shape that was assumed.
    """

    flops: int | None
    by_operator: dict[str, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    assumed: dict[str, tuple[int, ...]] = field(default_factory=dict)


def cost(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Cost:
    """Count the operations of one pass.

    Args:
        shapes: input name -> shape to assume; a dynamic axis of an input without one is taken as 1, so that the count
            is that of one sample.
    """
    fixed = _with_fixed_inputs(model, shapes or {})
    counts = _node_flops(fixed)
    by_operator: dict[str, int] = {}
    unknown = []
    functions = {(one.domain, one.name) for one in model.functions if any(n.op_type in MULTIPLIES for n in one.node)}
    for node in every_node(fixed.graph):
        count = counts.get(label(node))
        if count is not None:
            by_operator[node.op_type] = by_operator.get(node.op_type, 0) + count
        elif node.op_type in MULTIPLIES or (node.domain, node.op_type) in functions:
            unknown.append(node.name or node.output[0])
    assumed = {value.name: _sizes(value) for value in fixed.graph.input}
    return Cost(None if unknown else sum(by_operator.values()), by_operator, tuple(unknown), assumed)


def node_flops(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, int]:
    """Return node name -> operations of one pass, for the counted operators and recurrent ones whose shapes are known.

    Of an If the branch that multiplies most is counted, and nodes of the other are 0. Bodies of Loop and Scan are not counted:
    how often they run is not in the file.

    Args:
        shapes: as for `cost`.
    """
    return _node_flops(_with_fixed_inputs(model, shapes or {}))


def _node_flops(model: onnx.ModelProto) -> dict[str, int]:
    types = tensor_types(model)
    found = {}
    for node in model.graph.node:
        if node.domain in ("", "ai.onnx") and node.op_type in (*COUNTED, *_GATES):
            count = _recurrent(node, types.shapes) if node.op_type in _GATES else _flops(node, types.shapes)
            if count is not None:
                found[label(node)] = count
    branches: dict[str, list[dict[str, int]]] = {}
    if any(node.op_type == "If" for node in model.graph.node):
        for node, _, inner in opened(Graph(model), types):
            if node.op_type == "If" and isinstance(inner, Graph):
                branches.setdefault(node.name, []).append(_node_flops(inner.model))
    for one in branches.values():
        largest = max(one, key=lambda branch: sum(branch.values()))
        found |= {name: 0 for branch in one for name in branch} | largest
    return found


def _recurrent(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    """Each step multiplies input and state with the weights of every gate, in each direction."""
    inputs, weights = _numbers(shapes.get(node.input[0])), _numbers(shapes.get(node.input[1]))
    if inputs is None or weights is None or len(inputs) != 3 or len(weights) != 3:
        return None
    directions, gated, features = weights
    hidden = gated // _GATES[node.op_type]
    return 2 * inputs[0] * inputs[1] * directions * gated * (features + hidden)


def _flops(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    output, inner = _numbers(shapes.get(node.output[0])), _inner(node, shapes)
    if node.op_type == "ConvTranspose":
        # Each input element is multiplied with the kernel of every output channel of its group.
        output = _numbers(shapes.get(node.input[0]))
    return None if output is None or inner is None else 2 * math.prod(output) * inner


def _inner(node: onnx.NodeProto, shapes: Mapping[str, Shape]) -> int | None:
    """How many products make one element (of the output; of the input for ConvTranspose)."""
    if node.op_type in ("Conv", "ConvTranspose"):
        weight = _numbers(
            shapes.get(node.input[1])
        )  # (out, in / groups, kernel...), transposed: (in, out / groups, ...)
        return None if weight is None else math.prod(weight[1:])
    left = _numbers(shapes.get(node.input[0]))
    if not left:
        return None
    transposed = node.op_type == "Gemm" and any(item.name == "transA" and item.i for item in node.attribute)
    return left[0] if transposed else left[-1]


def _numbers(shape: Shape | None) -> tuple[int, ...] | None:
    if shape is None or not all(isinstance(axis, int) for axis in shape):
        return None
    return tuple(int(axis) for axis in shape if axis is not None)


def _with_fixed_inputs(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> onnx.ModelProto:
    """Return the graph, without its big weights, with numbers for all input axes and no other written shapes."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.name = model.graph.name or "graph"
    light.graph.node.extend(model.graph.node)
    light.graph.initializer.extend(model.graph.initializer)
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name in weights:
            continue
        kind = value.type.tensor_type
        given = shapes.get(value.name, ())
        sizes = [
            given[place] if place < len(given) else (axis.dim_value or 1) for place, axis in enumerate(kind.shape.dim)
        ]
        light.graph.input.append(onnx.helper.make_tensor_value_info(value.name, kind.elem_type, sizes))
    # Written output shapes carry the symbols that were just replaced.
    light.graph.output.extend(
        onnx.helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, None)
        for value in model.graph.output
    )
    return light


def _sizes(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(int(axis.dim_value) for axis in value.type.tensor_type.shape.dim)
