"""Recognise a graph that is quantized already, and by which tool."""

from __future__ import annotations

import onnx

_INTEGER_OPERATORS = frozenset(
    {
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger",
        "MatMulInteger",
    }
)  # fmt: skip
_PREFIXES = ("QLinear", "QGemm", "QAttention", "DynamicQuantize", "MatMulNBits", "MatMulInteger")


def quantized_by(model: onnx.ModelProto) -> str | None:
    """Return `onnxruntime`, `modelopt` or `unknown` where Q/DQ or integer operators are there; None where none are."""
    types = {node.op_type for node in model.graph.node}
    if not types & _INTEGER_OPERATORS and not any(name.startswith(_PREFIXES) for name in types):
        return None
    producer = model.producer_name.lower()
    if "onnx.quantize" in producer or "onnxruntime" in producer:
        return "onnxruntime"
    return (
        "modelopt"
        if "modelopt" in producer or any("modelopt" in item.domain for item in model.opset_import)
        else "unknown"
    )
