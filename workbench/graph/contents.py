"""What the constants of a file are: how many parameters of the network, and in which number format most are stored.

Reads types and sizes only, so weights in other files need not be there. Quantized weights count as the parameters they
stand for; scales and zero points do not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator

import onnx

from workbench.graph.editing import attribute, graphs

_NAMES = {
    onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.DOUBLE: "fp64", onnx.TensorProto.FLOAT16: "fp16",
    onnx.TensorProto.BFLOAT16: "bf16", onnx.TensorProto.INT8: "int8", onnx.TensorProto.UINT8: "int8",
    onnx.TensorProto.INT4: "int4", onnx.TensorProto.UINT4: "int4", onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.FLOAT8E4M3FN: "fp8", onnx.TensorProto.FLOAT8E5M2: "fp8",
}  # fmt: skip
_FLOATS = ("fp32", "fp64", "fp16", "bf16")
# Integer operators -> the places of their weights and biases; all their other constants are scales and zero points.
_PARAMETERS = {
    "DequantizeLinear": (0,), "QuantizeLinear": (0,), "QLinearConv": (3, 8), "QLinearMatMul": (0, 3), "QGemm": (0, 3, 6),
    "ConvInteger": (0, 1), "MatMulInteger": (0, 1), "MatMulIntegerToFloat": (0, 1, 6), "DynamicQuantizeMatMul": (1, 4),
    "QAttention": (1, 2), "QLinearAdd": (0, 3), "QLinearMul": (0, 3),
}  # fmt: skip
_NBITS = ("MatMulNBits", "MatMulBnb4")


def parameters(model: onnx.ModelProto) -> int:
    """Return the number of parameters: floating-point constants, and integer ones that stand for such."""
    return sum(count for _, count in _counted(model))


def stored_as(model: onnx.ModelProto) -> str:
    """Return the format that holds most of the parameters: `fp32`, `fp16`, `bf16`, `int8`, ...; `fp32` where none are."""
    sizes: Counter[str] = Counter()
    for name, count in _counted(model):
        sizes[name] += count
    return sizes.most_common(1)[0][0] if sizes else "fp32"


def _counted(model: onnx.ModelProto) -> Iterator[tuple[str, int]]:
    """Yield the format and number of elements of every constant that holds parameters."""
    bodies = [(graph.node, graph.initializer) for graph in graphs(model.graph)]
    bodies += [(function.node, ()) for function in model.functions]
    for nodes, initializers in bodies:
        used, not_used = _places(nodes)
        bits = {
            node.input[1]: (f"int{attribute(node, 'bits', 4)}", attribute(node, "K", 0) * attribute(node, "N", 0))
            for node in nodes
            if node.op_type in _NBITS and len(node.input) > 1
        }
        for held, tensor in (*((one.name, one) for one in initializers), *_written_out(nodes)):
            if held in bits:
                yield bits[held]
                continue
            name = _NAMES.get(tensor.data_type)
            if name is None or (held not in used and (name not in _FLOATS or held in not_used)):
                continue
            yield name, math.prod(tensor.dims)


def _written_out(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Yield the tensors of Constant nodes by name; a single number is part of the arithmetic, and no parameter."""
    for node in nodes:
        value = attribute(node, "value") if node.op_type == "Constant" else None
        if isinstance(value, onnx.TensorProto) and math.prod(value.dims) > 1:
            yield node.output[0], value


def _places(nodes: Iterable[onnx.NodeProto]) -> tuple[set[str], set[str]]:
    """Return the tensors that integer operators read as parameters, and those that they read as scales or zero points."""
    used: set[str] = set()
    not_used: set[str] = set()
    for node in nodes:
        if node.op_type in _NBITS:
            not_used.update(node.input[2:])
        for place, name in enumerate(node.input) if node.op_type in _PARAMETERS else ():
            (used if place in _PARAMETERS[node.op_type] else not_used).add(name)
    return used, not_used
