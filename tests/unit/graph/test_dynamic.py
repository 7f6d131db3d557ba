from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from quantization_nets import IMAGES, attention, bottleneck, sqnr_db
from small_nets import copied, net, operators, values

from workbench.errors import RecipeError, TransformError
from workbench.graph import dynamic
from workbench.graph.editing import Context
from workbench.recipes import Quantize
from workbench.records import StepReport

TOKENS = {"x": values((32, 6, 16), 3)}


def quantized(model: onnx.ModelProto, **options: object) -> tuple[onnx.ModelProto, StepReport]:
    result = copied(model)
    report = dynamic.apply(result, Quantize(activations="dynamic", **options), Context())  # type: ignore[arg-type]
    onnx.checker.check_model(result, full_check=True)
    return result, report


def test_products_with_weights_are_lowered_and_products_of_activations_are_not() -> None:
    parent = attention()
    model, report = quantized(parent)
    assert report.changed == ("query", "key", "value", "out")
    assert {item.name for item in report.skipped} == {"scores", "mix"}
    assert operators(model).count("MatMulInteger") == 4
    assert sqnr_db(model, parent, TOKENS) > 30


def test_readers_of_one_tensor_share_its_codes() -> None:
    model, report = quantized(attention())
    assert report.details["dynamic_inputs"] == ["n", "m"]
    assert operators(model).count("DynamicQuantizeLinear") == 2


def test_onnx_runtime_fuses_a_lone_product_with_its_bias(tmp_path) -> None:
    model, _ = quantized(
        net(
            "(float[N,16] x) => (float[N,8] y) { [one] p = MatMul(x, w) y = Add(p, b) }",
            w=values((16, 8)),
            b=values((8,)),
        )
    )
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert operators(onnx.load(options.optimized_model_filepath)) == ["DynamicQuantizeMatMul"]


@pytest.mark.parametrize("attributes", ["transB = 1", "transB = 1, alpha = 0.5", "transB = 0"])
def test_gemm_keeps_its_transposition_factor_and_bias(attributes: str) -> None:
    weight = values((8, 16)) if "transB = 1" in attributes else values((16, 8))
    parent = net(
        f"(float[N,16] x) => (float[N,8] y) {{ [one] y = Gemm<{attributes}>(x, w, b) }}", w=weight, b=values((8,), 9)
    )
    model, report = quantized(parent)
    assert report.changed == ("one",)
    assert sqnr_db(model, parent, {"x": values((9, 16), 4)}) > 35


def test_one_scale_a_tensor_on_demand_and_for_stacks_of_matrices() -> None:
    stacked = net("(float[3,N,16] x) => (float[3,N,8] y) { [one] y = MatMul(x, w) }", w=values((3, 16, 8)))
    assert sqnr_db(quantized(stacked)[0], stacked, {"x": values((3, 5, 16), 4)}) > 30
    model, _ = quantized(attention(), per_channel=False)
    scales = [tensor for tensor in model.graph.initializer if tensor.name.endswith("_scale")]
    assert [tuple(tensor.dims) for tensor in scales] == [()] * 4


def test_convolutions_stay_in_floating_point_with_a_reason() -> None:
    model, report = quantized(bottleneck())
    assert report.changed == ("head",)
    assert {item.name for item in report.skipped} == {"stem", "first", "second"}
    assert all("slower than FP32" in item.reason for item in report.skipped)
    assert sqnr_db(model, bottleneck(), IMAGES) > 30


def test_the_report_says_that_answers_depend_on_the_batch() -> None:
    assert any("whole batch" in note for note in quantized(attention())[1].notes)


def test_gemms_that_integer_products_cannot_do_are_skipped_with_reasons() -> None:
    parent = net(
        """(float[N,16] x, float[16,N] t) => (float[N,8] y, float[N,8] z, float[N,8] o) {
            [turned] y = Gemm<transA = 1>(t, w)
            [scaled] z = Gemm<beta = 2.0>(x, w, b)
            [good] o = Gemm(x, w)
        }""",
        w=values((16, 8)),
        b=values((8,)),
    )
    _, report = quantized(parent)
    assert report.changed == ("good",)
    told = {item.name: item.reason for item in report.skipped}
    assert "transposed" in told["turned"]
    assert "scaled by 2.0" in told["scaled"]


def test_exclusion_and_a_graph_without_products_are_told() -> None:
    with pytest.raises(TransformError, match=r"Nothing in this model .*dynamically .*excluded by"):
        quantized(bottleneck(), exclude=("head",))
    with pytest.raises(TransformError, match="no MatMul or Gemm"):
        quantized(net("(float[N,8] x) => (float[N,8] y) { y = Relu(x) }"))


@pytest.mark.parametrize("dialect", ["trt-8.6", "strong"])
def test_tensorrt_has_no_dynamic_int8(dialect: str) -> None:
    with pytest.raises(TransformError, match="has no INT8 with scales found at run time"):
        dynamic.apply(attention(), Quantize(activations="dynamic"), Context(dialect=dialect))


@pytest.mark.parametrize("options", [{"to": "fp8"}, {"symmetric": True}])
def test_other_codes_than_unsigned_int8_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match="unsigned INT8"):
        quantized(attention(), **options)


def test_quantizing_twice_and_old_opsets_are_refused() -> None:
    with pytest.raises(TransformError, match="quantized already"):
        quantized(quantized(attention())[0])
    old = net("(float[N,8] x) => (float[N,8] y) { y = MatMul(x, w) }", opset=10, w=values((8, 8)))
    with pytest.raises(TransformError, match="opset 10"):
        quantized(old)


def test_a_dead_column_gives_exact_zeros() -> None:
    weight = values((16, 8))
    weight[:, 3] = 0.0
    parent = net("(float[N,16] x) => (float[N,8] y) { y = MatMul(x, w) }", w=weight)
    model, _ = quantized(parent)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answers = session.run(None, {"x": values((5, 16), 4)})[0]
    assert not answers[:, 3].any()
    assert np.isfinite(answers).all()
