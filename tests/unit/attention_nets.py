"""The smallest attention with Q/DQ pairs as TensorRT wants them, and the ways to break its fusion."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TOKENS, WIDTH, HEADS = 64, 32, 4


class _Writer:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: object) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, operator: str, name: str, *inputs: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name, **attributes))
        return name

    def pair(self, name: str, scale: object = 0.02, **axis: int) -> str:
        scales = self.constant(f"{name}/scale", np.asarray(scale, np.float32))
        zeros = self.constant(f"{name}/zero", np.zeros(np.shape(scale), np.int8))
        codes = self.node("QuantizeLinear", f"{name}/Q", name, scales, zeros, **axis)
        return self.node("DequantizeLinear", f"{name}/DQ", codes, scales, zeros, **axis)


def attention(
    *,
    quantized: bool = True,
    smooth_mul: bool = False,
    softmax_pair: bool = True,
    width: int = WIDTH,
) -> onnx.ModelProto:
    """out = (softmax(q @ k) @ v) @ w, for q, v of (n, heads, tokens, width) and k transposed.

    Args:
        quantized: a Q/DQ pair before every product, on the activations and on w.
        smooth_mul: a Mul by a constant before the last product, as a smoothing would write it.
        softmax_pair: the pair behind the Softmax; without it the fusion breaks.
    """
    write, inner = _Writer(), HEADS * width
    restore = write.pair if quantized else lambda name, *_, **__: name
    scores = write.node("MatMul", "scores", restore("q"), restore("k"))
    weights = write.node("Softmax", "softmax", scores, axis=-1)
    weights = write.pair(weights, 1 / 127) if quantized and softmax_pair else weights
    write.node("MatMul", "context", weights, restore("v"))
    write.node("Transpose", "turned", "context", perm=[0, 2, 1, 3])
    merged = write.node("Reshape", "merged", "turned", write.constant("sizes", np.array([-1, TOKENS, inner], np.int64)))
    if smooth_mul:
        merged = write.node(
            "Mul", "smooth", merged, write.constant("factor", np.linspace(0.5, 2, inner, dtype=np.float32))
        )
    merged = restore(merged)
    generator = np.random.default_rng(0)
    write.constant("w", generator.normal(0, 0.1, (inner, inner)).astype(np.float32))
    write.node("MatMul", "out", merged, restore("w", np.full(inner, 0.002), axis=1))
    shapes = {"q": (HEADS, TOKENS, width), "k": (HEADS, width, TOKENS), "v": (HEADS, TOKENS, width)}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape]) for name, shape in shapes.items()]
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", TOKENS, inner])
    graph = helper.make_graph(write.nodes, "attention", inputs, [output], write.constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    return model
