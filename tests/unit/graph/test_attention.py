from __future__ import annotations

import numpy as np
import onnx
import pytest
from attention_nets import attention
from small_nets import net

from workbench.graph.attention import attentions


@pytest.mark.parametrize(
    ("options", "quantized", "obstacle"),
    [
        ({"quantized": False}, False, ""),
        ({}, True, ""),
        ({"smooth_mul": True}, True, "a Mul (smooth) stands between it and the quantization of its result"),
        ({"softmax_pair": False}, True, "input 0 of its second product (context) is not quantized"),
    ],
)
def test_an_attention_is_found_with_what_stands_in_its_way(options: dict, quantized: bool, obstacle: str) -> None:
    (found,) = attentions(attention(**options))
    assert (found.softmax, found.product) == ("softmax", "context")
    assert (found.quantized, found.obstacle) == (quantized, obstacle)


def test_a_result_with_several_readers_is_an_obstacle() -> None:
    model = attention()
    model.graph.node.append(onnx.helper.make_node("Relu", ["merged"], ["other"], name="other"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, None))
    assert attentions(model)[0].obstacle == "its result has 2 readers"


def test_a_softmax_over_classes_is_no_attention() -> None:
    weight = np.ones((4, 4), np.float32)
    assert attentions(net("(float[N,4] x) => (float[N,4] y) { y = Softmax (x) }")) == ()
    assert attentions(net("(float[N,4] x) => (float[N,4] y) { a = Softmax (x) y = MatMul (a, w) }", w=weight)) == ()


def test_an_attention_that_ends_the_graph_has_no_obstacle() -> None:
    model = attention()
    del model.graph.node[-3:]
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("merged", onnx.TensorProto.FLOAT, None))
    assert attentions(model)[0].obstacle == ""
