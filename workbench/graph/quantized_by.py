"""Tell by whom a graph was quantized before it came here."""

from __future__ import annotations

import re

import onnx

from workbench.graph.editing import every_node

# How nodes are named that only give a model's inputs and outputs their type, such as a cache kept in 8 bits.
AT_THE_EDGE = "/cache/"
_QUANTIZED = re.compile(
    r"(De|Dynamic)?[Qq]uantizeLinear|QLinear\w+|TRT_\w+|\w+Integer(ToFloat)?|MatMulNBits|MatMulBnb4|"
    r"GatherBlockQuantized|DynamicQuantize(MatMul|LSTM)|QAttention|QGemm|QMoE|QOrdered\w+"
)


def quantized_by(proto: onnx.ModelProto) -> str | None:
    """Return `workbench`, `modelopt`, `onnxruntime` or `unknown` where the graph is quantized already, else None.

    Told by the producer's name, TensorRT's own operators, and the names that the tools give: ModelOpt's torch export
    has `.../input_quantizer/QuantizeLinear`. A file that ModelOpt made through ONNX Runtime's quantizer and that keeps
    its producer name is told as `onnxruntime`. Q/DQ under `AT_THE_EDGE` lower no arithmetic and do not count.
    """
    nodes = [*every_node(proto.graph), *(node for function in proto.functions for node in function.node)]
    quantized = [node for node in nodes if _QUANTIZED.fullmatch(node.op_type) and not node.name.startswith(AT_THE_EDGE)]
    if not quantized:
        return None
    written = " ".join([proto.producer_name, *(f"{entry.key} {entry.value}" for entry in proto.metadata_props)]).lower()
    if any(entry.key.startswith("workbench.") for entry in proto.metadata_props):
        return "workbench"
    if "modelopt" in written or any("_quantizer/" in node.name or node.domain == "trt" for node in quantized):
        return "modelopt"
    own = any(node.domain == "com.microsoft" or node.op_type.startswith("QLinear") for node in quantized)
    return "onnxruntime" if own or proto.producer_name.startswith("onnx.quantize") else "unknown"
