"""Whether a quantized file suits the CPU it is run on: who it was written for, and whether its weights saturate here.

Reads files of any origin, QOperator and Q/DQ form alike. Knows no engine; `machine.device` knows the CPU.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray

from workbench.graph.dialects import DIALECTS, SEVEN_BITS, Dialect
from workbench.graph.editing import Graph, attribute
from workbench.machine.device import Int8

_DIALECT_KEY, _WEIGHTS_KEY = "workbench.dialect", "workbench.weights"
_FULL = "8 bits, the full range"
# Operator -> the place of its weight among its inputs.
_INTEGER = {
    "QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3, "MatMulInteger": 1, "ConvInteger": 1, "MatMulIntegerToFloat": 1,
    "DynamicQuantizeMatMul": 1, "QAttention": 1,
}  # fmt: skip
_BETWEEN_PAIRS = ("Conv", "Gemm", "MatMul")


def write_origin(model: onnx.ModelProto, style: Dialect) -> None:
    """Write into the file's metadata for which engine and kind of CPU it was quantized, and with what range of weights."""
    written = {_DIALECT_KEY: style.name, _WEIGHTS_KEY: style.weights or _FULL}
    kept = [entry for entry in model.metadata_props if entry.key not in written]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    for key, value in written.items():
        model.metadata_props.add(key=key, value=value)


def written_for(model: onnx.ModelProto) -> str | None:
    """Return the dialect that `write_origin` left, or None."""
    return _written(model, _DIALECT_KEY)


def saturating_nodes(model: onnx.ModelProto) -> list[str]:
    """Return the nodes whose signed weights are beyond 7 bits, where kernels that add in 16 bits saturate.

    Depthwise convolutions are not among them: their kernels widen bytes before they multiply.
    """
    graph = Graph(model)
    found = []
    for node in graph.nodes:
        codes = _weight_codes(graph, node)
        if codes is None or codes.dtype != np.int8 or np.abs(codes.astype(np.int16)).max(initial=0) <= SEVEN_BITS:
            continue
        if "Conv" in node.op_type and codes.shape[1] == 1 and codes.shape[0] == attribute(node, "group", 1):
            continue
        found.append(node.name)
    return found


def fit_note(model: onnx.ModelProto, cpu: Int8) -> str | None:
    """Say that a file was made for another kind of CPU than this one, and what that does; None where it fits.

    Args:
        model: with its weights.
    """
    origin = DIALECTS.get(written_for(model) or "")
    if cpu.saturates:
        nodes = saturating_nodes(model)
        if not nodes:
            return None
        made = f"made for another kind of CPU (dialect {origin.name!r})" if origin else "not made for this kind of CPU"
        if origin is not None and origin.narrow:
            made = "made with the full range of weights, as its recipe asks"
        return (
            f"This file was {made}: {len(nodes)} layers such as {nodes[0]!r} have INT8 weights of more than 7 bits, and "
            f"{cpu.reason}. Its accuracy here is not the file's own; quantize the model anew on this machine."
        )
    if origin is not None and origin.narrow and _written(model, _WEIGHTS_KEY) == origin.weights:
        return (
            f"This file was made for {origin.engine} (dialect {origin.name!r}), with INT8 weights of 7 bits. Here 8 bits "
            f"would be right too, and more accurate: {cpu.reason}."
        )
    return None


def _written(model: onnx.ModelProto, key: str) -> str | None:
    return next((entry.value for entry in model.metadata_props if entry.key == key), None)


def _weight_codes(graph: Graph, node: onnx.NodeProto) -> NDArray[np.generic] | None:
    """Return the codes of a node's constant weight where it is multiplied with coded activations."""
    if node.op_type in _INTEGER:
        return graph.array(node.input[_INTEGER[node.op_type]])
    if node.op_type not in _BETWEEN_PAIRS:
        return None
    activation, weight = (graph.producer.get(name) for name in node.input[:2])
    if activation is None or weight is None or {activation.op_type, weight.op_type} != {"DequantizeLinear"}:
        return None
    stored = graph.array(weight.input[0])
    coder = graph.producer.get(weight.input[0])
    if stored is not None or coder is None or coder.op_type != "QuantizeLinear" or len(coder.input) < 3:
        return stored
    values, scale, zero = (graph.array(name) for name in coder.input[:3])
    if values is None or scale is None or zero is None or zero.dtype != np.int8:
        return None
    shape = [1] * values.ndim
    if scale.ndim:
        shape[attribute(coder, "axis", 1)] = -1
    return np.asarray(np.clip(np.rint(values / scale.reshape(shape)), -128, 127).astype(np.int8))
