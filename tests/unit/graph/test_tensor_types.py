from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper
from small_nets import net, values

from workbench.graph.tensor_types import tensor_types


def test_types_and_shapes_of_inputs_constants_and_results_with_symbols_for_dynamic_axes() -> None:
    text = """(float[N,64] x) => (float[N,32] y, int64[N] best) {
        y = MatMul (x, w)
        best = ArgMax <axis: int = 1, keepdims: int = 0> (y)
    }"""
    types = tensor_types(net(text, w=values((64, 32))))
    assert types.elements == dict.fromkeys("xyw", TensorProto.FLOAT) | {"best": TensorProto.INT64}
    assert types.shapes == {"x": ("N", 64), "w": (64, 32), "y": ("N", 32), "best": ("N",)}


def test_written_types_that_no_longer_hold_are_ignored() -> None:
    model = net("(float[4] x) => (float16[4] y) { h = Cast <to: int = 10> (x)  y = Relu (h) }")
    model.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, (4,)))
    assert tensor_types(model).elements["h"] == TensorProto.FLOAT16


def test_results_of_custom_operators_are_taken_as_written_or_unknown() -> None:
    model = net("(float[4] x) => (float[4] y) { g = com.microsoft.Gelu (x)  y = Relu (g) }")
    assert "g" not in tensor_types(model).elements
    model.graph.value_info.append(helper.make_tensor_value_info("g", TensorProto.FLOAT, (4,)))
    assert tensor_types(model).elements["g"] == TensorProto.FLOAT


def test_shape_arithmetic_on_small_constants_is_followed() -> None:
    text = "(float[2,6] x) => (float[A,B] y) { half = Div (shape, two)  y = Reshape (x, half) }"
    types = tensor_types(net(text, shape=np.array([6, 8]), two=np.array(2)))
    assert types.shapes["half"] == (2,) and len(types.shapes["y"]) == 2
