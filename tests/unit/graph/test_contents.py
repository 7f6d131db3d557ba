from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from quantization_nets import IMAGES, attention, bottleneck, quantized
from small_nets import net, values

from workbench.graph import dynamic, precision, weights
from workbench.graph.contents import parameters, stored_as
from workbench.graph.editing import Context
from workbench.graph.quantized_by import quantized_by
from workbench.recipes import Precision, Quantize, QuantizeWeights

TOKENS = {"x": values((32, 6, 16), 3)}


def elements(model: onnx.ModelProto) -> int:
    return sum(math.prod(tensor.dims) for tensor in model.graph.initializer)


@pytest.mark.parametrize("dialect", ["ort-cpu", "ort-cpu-7bit", "trt-8.6", "strong"])
def test_quantized_parameters_count_as_those_they_stand_for(dialect: str) -> None:
    for make, feeds in ((bottleneck, IMAGES), (attention, TOKENS)):
        model, _ = quantized(make(), feeds, dialect)
        assert parameters(model) == parameters(make()) == elements(make())
        if dialect.startswith("ort-cpu"):
            assert stored_as(model) == "int8"
    assert stored_as(bottleneck()) == "fp32"


def test_dynamic_and_weight_only_files_hold_the_parameters_of_their_parent() -> None:
    parent = attention()
    model = attention()
    dynamic.apply(model, Quantize(activations="dynamic"), Context())
    # A factor a channel is an ordinary FP32 constant there: four layers of 16 channels.
    assert parameters(model) - parameters(parent) in range(4 * 16 + 1) and stored_as(model) == "int8"
    wide = net("(float[N,64] x) => (float[N,64] y) { a = MatMul(x, w) y = MatMul(a, w2) }", opset=21,
               w=values((64, 64), 1), w2=values((64, 64), 2))  # fmt: skip
    for to in ("int8", "int4"):
        model = onnx.ModelProto.FromString(wide.SerializeToString())
        weights.apply(model, QuantizeWeights(to, head=True), Context())
        assert parameters(model) == 2 * 64 * 64 and stored_as(model) == to


def test_half_precision_is_told() -> None:
    model = bottleneck()
    precision.apply(model, Precision("fp16", auto_exclude=False), Context(dialect="strong"))
    assert stored_as(model) == "fp16" and parameters(model) == parameters(bottleneck())


@pytest.mark.parametrize("operators", [True, False])
def test_files_of_onnx_runtimes_quantizer_are_counted(tmp_path, operators: bool) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Samples(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([IMAGES])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    source, place = tmp_path / "model.onnx", tmp_path / "quantized.onnx"
    onnx.save(bottleneck(), source)
    form = QuantFormat.QOperator if operators else QuantFormat.QDQ
    quantize_static(source, place, Samples(), quant_format=form, activation_type=QuantType.QUInt8, per_channel=True)
    model = onnx.load(place)
    assert parameters(model) == parameters(bottleneck()) and stored_as(model) == "int8"


def test_packed_weights_count_by_their_shape() -> None:
    model = net(
        """(float[N,64] x) => (float[N,32] y) {
            y = com.microsoft.MatMulNBits<K = 64, N = 32, bits = 4, block_size = 32>(x, w, s)
        }""",
        w=np.zeros((32, 2, 16), np.uint8),
        s=np.ones(64, np.float32),
    )
    assert parameters(model) == 64 * 32 and stored_as(model) == "int4"


def test_weights_in_constant_nodes_and_in_functions_count_as_others_do() -> None:
    held = onnx.helper.make_node("Constant", [], ["w"], value=onnx.numpy_helper.from_array(values((16, 8), 1)))
    product = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    model = net("(float[N,16] x) => (float[N,8] y) { y = MatMul(x, w) }", w=values((16, 8), 1))
    assert parameters(model) == 16 * 8
    written = net("(float[N,16] x) => (float[N,8] y) { y = MatMul(x, w) }", w=values((16, 8), 1))
    del written.graph.initializer[:], written.graph.node[:]
    written.graph.node.extend([held, product])
    assert parameters(written) == 16 * 8 and stored_as(written) == "fp32"
    del written.graph.node[:]
    written.graph.node.append(onnx.helper.make_node("layer", ["x"], ["y"], domain="mine"))
    written.functions.append(onnx.helper.make_function("mine", "layer", ["x"], ["y"], [held, product], []))
    assert parameters(written) == 16 * 8

    codes = onnx.helper.make_node("Constant", [], ["q"], value=onnx.numpy_helper.from_array(np.ones((16, 8), np.int8)))
    scale = onnx.helper.make_node("Constant", [], ["s"], value=onnx.numpy_helper.from_array(np.ones(8, np.float32)))
    restored = onnx.helper.make_node("DequantizeLinear", ["q", "s"], ["w"])
    del written.functions[:]
    written.functions.append(
        onnx.helper.make_function("mine", "layer", ["x"], ["y"], [codes, scale, restored, product], [])
    )
    assert (parameters(written), stored_as(written)) == (16 * 8, "int8")
    assert quantized_by(written) == "unknown"


def test_a_graph_without_constants_is_taken_for_fp32() -> None:
    model = net("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    assert parameters(model) == 0 and stored_as(model) == "fp32"
