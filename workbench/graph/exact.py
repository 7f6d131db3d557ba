"""Write a quantized graph so that no kernel of an engine has a say in its products: the arithmetic that the file means.

Run with the optimizer off, QuantizeLinear and DequantizeLinear are carried out one by one, and products between them in
floating point, which holds their sums exactly enough. Operators that are integer kernels themselves (MatMulInteger,
QLinearConv and their like) are written out in those terms first. Knows no engine.
"""

from __future__ import annotations

import onnx

from workbench.graph.editing import Graph

# Operator -> what it is between DequantizeLinear and QuantizeLinear.
_QLINEAR = {"QLinearConv": "Conv", "QLinearMatMul": "MatMul"}
# Integer kernels that have no such form here: what they compute exactly is not known.
_OPAQUE = (
    "ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "QAttention",
    "QGemm", "QMoE", "QOrderedMatMul",
)  # fmt: skip


def exact_form(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a copy in exact arithmetic, or None where the graph holds an integer operator that has no such form."""
    if any(node.op_type in _OPAQUE for node in model.graph.node):
        return None
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = Graph(result)
    for node in list(graph.nodes):
        if node.op_type == "MatMulInteger":
            _write_matmul(graph, node)
        elif node.op_type in _QLINEAR:
            _write_qlinear(graph, node)
    graph.finish()
    return result


def _write_matmul(graph: Graph, node: onnx.NodeProto) -> None:
    """MatMulInteger as a product of float64, whose sums of 16-bit products are exact."""
    wide = []
    for place in (0, 1):
        source = node.input[place]
        zero = node.input[place + 2] if len(node.input) > place + 2 else ""
        wide.append(_widened(graph, source))
        if zero:
            shifted = graph.unique(f"{source}_shifted")
            graph.add_node("Sub", [wide[place], _widened(graph, zero)], [shifted], f"{shifted}_Sub")
            wide[place] = shifted
    output, name = node.output[0], node.name
    graph.remove_node(node)
    product = graph.unique(f"{output}_exact")
    graph.add_node("MatMul", wide, [product], f"{name}_exact")
    graph.add_node("Cast", [product], [output], name, to=onnx.TensorProto.INT32)


def _widened(graph: Graph, source: str) -> str:
    wide = graph.unique(f"{source}_wide")
    graph.add_node("Cast", [source], [wide], f"{wide}_Cast", to=onnx.TensorProto.DOUBLE)
    return wide


def _write_qlinear(graph: Graph, node: onnx.NodeProto) -> None:
    """QLinearConv and QLinearMatMul as DequantizeLinear, the product in floating point, and QuantizeLinear."""
    inputs, output, name = list(node.input), node.output[0], node.name
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    graph.remove_node(node)
    convolution = node.op_type == "QLinearConv"
    restored = []
    for place in (0, 3):
        real = graph.unique(f"{inputs[place]}_real")
        # A weight's scales run along its output channels: the first axis of Conv's, the last of MatMul's.
        axis = 0 if convolution else -1
        graph.add_node("DequantizeLinear", inputs[place : place + 3], [real], f"{real}_DequantizeLinear", axis=axis)
        restored.append(real)
    if convolution and len(inputs) > 8 and inputs[8]:
        restored.append(_real_bias(graph, inputs))
    product = graph.unique(f"{output}_real")
    graph.add_node(_QLINEAR[node.op_type], restored, [product], f"{name}_exact", **attributes)
    graph.add_node("QuantizeLinear", [product, inputs[6], inputs[7]], [output], name)


def _real_bias(graph: Graph, inputs: list[str]) -> str:
    """The int32 bias, in units of the product of both scales."""
    numbers, scale, real = (graph.unique(f"{inputs[8]}_{part}") for part in ("numbers", "scale", "real"))
    graph.add_node("Cast", [inputs[8]], [numbers], f"{numbers}_Cast", to=onnx.TensorProto.FLOAT)
    graph.add_node("Mul", [inputs[1], inputs[4]], [scale], f"{scale}_Mul")
    graph.add_node("Mul", [numbers, scale], [real], f"{real}_Mul")
    return real
