from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import onnx
import pytest
from quantization_nets import (
    IMAGES,
    ORIGIN,
    attention,
    bottleneck,
    constant,
    quantized,
    scale_of,
    sqnr_db,
    table_of,
)
from small_nets import copied, net, operators, run, shipped, values

from workbench.calibration.histogram import Histogram
from workbench.calibration.table import CalibrationTable
from workbench.datasets import digits
from workbench.engines.onnxruntime import version as onnxruntime_version
from workbench.errors import CalibrationError, RecipeError, TransformError
from workbench.graph import fusion, quantization
from workbench.graph.dialects import dialect as dialect_named
from workbench.graph.editing import Context
from workbench.graph.qdq import FLOAT8, SIGNED, UNSIGNED
from workbench.graph.quantization import encode
from workbench.machine import device
from workbench.recipes import Fuse, Quantize
from workbench.transformation.observing import Observation, calibrate_proto

DIALECTS = ("ort-cpu", "ort-cpu-7bit", "trt-8.6", "strong", "openvino-7bit")
TOKENS = {"x": values((32, 6, 16), 3)}
SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)


def histogram(*numbers: float) -> Histogram:
    found = Histogram()
    found.update(np.array(numbers, np.float32))
    return found


def weight_scales(model: onnx.ModelProto, weight: str) -> np.ndarray:
    readers = [n for n in model.graph.node if n.input[0] in (weight, f"{weight}_quantized")]
    return constant(model, readers[0].input[1])


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("make", [bottleneck, attention])
def test_eight_bits_stay_close_to_the_parent_at_every_optimization_level(make, dialect: str) -> None:
    feeds = IMAGES if make is bottleneck else TOKENS
    parent = make()
    model, _ = quantized(parent, feeds, dialect)
    # Kernels that saturate are no business of the files that are for others; with the optimizer off none is used.
    exact = dialect_named(dialect).narrow or not device.int8().saturates
    # 8 bits give about 48 dB for one evenly spread tensor; several layers of Gaussian values lose some of it.
    for fusion_level in ("off", "basic", "all") if exact else ("off",):
        assert sqnr_db(model, parent, feeds, fusion_level) > 25


def test_unsigned_codes_cover_the_range_seen_and_hold_zero() -> None:
    scale = encode(histogram(-1.0, 0.5, 3.0), "max", UNSIGNED)
    assert scale.scale == pytest.approx(4.0 / 255, rel=1e-6)
    assert scale.zero_point == 64
    assert encode(histogram(0.0, 2.0), "max", UNSIGNED).zero_point == 0
    assert encode(histogram(1.0, 2.0), "max", UNSIGNED).scale == pytest.approx(2.0 / 255, rel=1e-6)
    assert encode(histogram(-2.0, -1.0), "max", UNSIGNED).zero_point == 255


def test_a_threshold_clips_both_ends_but_never_widens_them() -> None:
    many = np.concatenate([np.linspace(-0.25, 1.0, 100_000), [8.0]])  # one element in 1e5 is far out
    scale = encode(histogram(*many), "percentile-99.99", UNSIGNED)
    assert scale.threshold < 1.1
    assert scale.scale == pytest.approx((scale.threshold + 0.25) / 255, rel=1e-6)
    assert 0 < scale.clipped_share < 1e-4


def test_signed_and_float8_codes_put_the_threshold_at_their_largest_code() -> None:
    assert encode(histogram(-3.0, 1.0), "max", SIGNED).scale == pytest.approx(3.0 / 127, rel=1e-6)
    assert encode(histogram(-3.0, 1.0), "max", FLOAT8).scale == pytest.approx(3.0 / 448, rel=1e-6)
    assert encode(histogram(-3.0, 1.0), "max", SIGNED).zero_point == 0


@pytest.mark.parametrize("to", [UNSIGNED, SIGNED, FLOAT8])
@pytest.mark.parametrize("numbers", [(0.0, 0.0), (1e-38, -1e-38), (0.0, 1e-30)])
def test_no_scale_is_zero(to, numbers) -> None:
    assert encode(histogram(*numbers), "max", to).scale > SMALLEST_NORMAL


@pytest.mark.parametrize("dialect", DIALECTS)
def test_scales_come_back_from_the_file_as_reported(dialect: str) -> None:
    model, report = quantized(bottleneck(), IMAGES, dialect)
    assert {"x", "r0", "r1"} <= set(report.details["thresholds"])
    for tensor, told in report.details["thresholds"].items():
        assert scale_of(model, tensor) == (np.float32(told["scale"]), told["zero_point"])


@pytest.mark.parametrize("dialect", ["trt-8.6", "strong"])
def test_tensorrt_gets_signed_pairs_with_fp32_scales_and_zero_points_that_are_zero(dialect: str) -> None:
    model, report = quantized(bottleneck(), IMAGES, dialect)
    assert report.details["format"] == "int8"
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(pairs) == 2 * sum(node.op_type == "QuantizeLinear" for node in pairs)
    for node in pairs:
        scale, zero = constant(model, node.input[1]), constant(model, node.input[2])
        assert scale.dtype == np.float32
        assert (scale > 0).all()
        assert zero.dtype == np.int8
        assert zero.shape == scale.shape
        assert not zero.any()
    assert constant(model, "w1").dtype == np.float32


def test_onnx_runtime_gets_integer_weights_and_biases() -> None:
    model, _ = quantized(bottleneck(), IMAGES)
    names = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert names["w1_quantized"] == onnx.TensorProto.INT8
    assert names["b1_quantized"] == onnx.TensorProto.INT32
    assert not {"w1", "b1"} & set(names), "the FP32 originals are gone, and so three quarters of the size"


def test_weights_have_one_scale_a_channel_unless_told_otherwise() -> None:
    model, _ = quantized(bottleneck(), IMAGES, "strong")
    expected = np.abs(constant(bottleneck(), "w1")).max(axis=(1, 2, 3)) / 127
    np.testing.assert_allclose(weight_scales(model, "w1"), expected, rtol=1e-6)
    for dialect in DIALECTS:
        coarse, _ = quantized(bottleneck(), IMAGES, dialect, per_channel=False)
        assert weight_scales(coarse, "w1").shape == ()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_dead_channel_keeps_its_bias_and_a_positive_scale(dialect: str) -> None:
    weight = values((20, 20, 3, 3), 3, 0.1)
    weight[4] = 0.0
    parent = bottleneck(w1=weight, b1=values((20,), 4, 3.0))
    model, report = quantized(parent, IMAGES, dialect)
    assert (weight_scales(model, "w1") > SMALLEST_NORMAL).all()
    assert report.details["dead_weight_channels"] == 1
    assert any("1 weight channels are zero" in note for note in report.notes)
    assert sqnr_db(model, parent, IMAGES) > 25


def test_a_bias_far_larger_than_its_weights_does_not_overflow() -> None:
    weight = values((20, 20, 3, 3), 3, 1e-12)
    parent = bottleneck(w1=weight, b1=values((20,), 4, 3.0))
    model, _ = quantized(parent, IMAGES)
    assert sqnr_db(model, parent, IMAGES) > 25


def test_a_dead_activation_is_noted_and_gets_a_positive_scale() -> None:
    parent = bottleneck(b0=np.full(20, -1e6, np.float32))
    for dialect in DIALECTS:
        model, report = quantized(parent, IMAGES, dialect)
        assert scale_of(model, "r0")[0] > SMALLEST_NORMAL
        assert any("zero in all calibration samples (r0" in note for note in report.notes)


def test_weights_shared_by_two_layers_are_stored_once() -> None:
    parent = net("(float[N,8] x) => (float[N,8] y) { [one] a = MatMul(x, w) [two] y = MatMul(a, w) }", w=values((8, 8)))
    model, _ = quantized(parent, {"x": values((9, 8))})
    assert [tensor.name for tensor in model.graph.initializer].count("w_quantized") == 1
    assert sum(name.startswith("w") for name in (tensor.name for tensor in model.graph.initializer)) == 3


def test_a_weight_that_others_read_too_stays_for_them() -> None:
    parent = net(
        "(float[N,8] x) => (float[N,8] y, float[8,8] z) { [one] y = MatMul(x, w) [other] z = Relu(w) }",
        w=values((8, 8)),
    )
    model, _ = quantized(parent, {"x": values((9, 8))})
    np.testing.assert_array_equal(run(model, {"x": values((2, 8))})["z"], np.maximum(values((8, 8)), 0))


def test_inputs_keep_their_full_range_unless_clipped_on_demand() -> None:
    images = {"x": values((64, 4, 8, 8), 5)}
    images["x"][0, 0, 0, 0] = 50.0
    _, kept = quantized(bottleneck(), images, calibrator="percentile-99.9")
    _, clipped = quantized(bottleneck(), images, calibrator="percentile-99.9", clip_inputs=True)
    assert kept.details["thresholds"]["x"]["calibrator"] == "max"
    assert kept.details["thresholds"]["x"]["threshold"] == 50.0
    assert clipped.details["thresholds"]["x"]["threshold"] < 5.0
    assert clipped.details["thresholds"]["x"]["clipped_share"] > 0
    assert kept.details["thresholds"]["r0"]["calibrator"] == "percentile-99.9"


def test_a_calibrator_chosen_for_a_tensor_has_the_last_word() -> None:
    parent = bottleneck()
    context = Context(table=table_of(parent, IMAGES), calibrators={"r1": "mse", "x": "kl"})
    report = quantization.apply(copied(parent), Quantize(calibrator="max"), context)
    told = {name: item["calibrator"] for name, item in report.details["thresholds"].items()}
    assert (told["r1"], told["x"], told["r0"]) == ("mse", "kl", "max")


def test_auto_without_choices_is_refused() -> None:
    with pytest.raises(RecipeError, match="'auto' was not resolved"):
        quantized(bottleneck(), IMAGES, calibrator="auto")


def test_auto_with_all_choices_made_is_applied() -> None:
    parent = bottleneck()
    table = table_of(parent, IMAGES)
    context = Context(table=table, calibrators=dict.fromkeys(table, "mse"))
    report = quantization.apply(copied(parent), Quantize(calibrator="auto"), context)
    assert {item["calibrator"] for item in report.details["thresholds"].values()} == {"mse"}


def test_symmetric_activations_on_demand_are_signed_and_noted_as_slow() -> None:
    model, report = quantized(bottleneck(), IMAGES, symmetric=True)
    assert report.details["format"] == "int8"
    assert any("slow" in note for note in report.notes)
    assert sqnr_db(model, bottleneck(), IMAGES) > 25


def test_asymmetric_activations_are_refused_where_the_engine_has_none() -> None:
    with pytest.raises(RecipeError, match=r"symmetric=False.*trt-8.6"):
        quantized(bottleneck(), IMAGES, "trt-8.6", symmetric=False)
    with pytest.raises(RecipeError, match="FP8 has no zero point"):
        quantized(bottleneck(), IMAGES, "strong", to="fp8", symmetric=False)


def test_an_unknown_dialect_is_refused() -> None:
    with pytest.raises(RecipeError, match="no Q/DQ dialect 'trt-7'"):
        quantized(bottleneck(), IMAGES, "trt-7")


def newer(model: onnx.ModelProto, opset: int = 20) -> onnx.ModelProto:
    return onnx.version_converter.convert_version(model, opset)


@pytest.mark.parametrize("make", [bottleneck, attention])
def test_float8_is_rehearsed_alike_at_every_optimization_level(make) -> None:
    old_runtime = tuple(map(int, onnxruntime_version("onnxruntime-cpu").split(".")[:2])) < (1, 24)
    if make is attention and old_runtime:
        pytest.skip("ONNX Runtime before 1.24 fuses float8 Q/DQ around MatMul into an operator that it does not have")
    feeds = IMAGES if make is bottleneck else TOKENS
    parent = newer(make())
    model, report = quantized(parent, feeds, to="fp8")
    exact = run(model, feeds, "off")["y"]
    for level in ("basic", "all"):
        # A rounding difference of FP32 may move a value across a float8 boundary: one step in sixteen of that value.
        assert np.abs(run(model, feeds, level)["y"] - exact).max() < 0.05 * np.abs(exact).max()
    assert sqnr_db(model, parent, feeds) > 20
    assert any("rehearsal" in note for note in report.notes)


def test_float8_pairs_hold_float8_zero_points_and_scales_of_448ths() -> None:
    model, report = quantized(newer(bottleneck()), IMAGES, "strong", to="fp8")
    node = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "r0")
    assert constant(model, node.input[2]).dtype == ml_dtypes.float8_e4m3fn
    told = report.details["thresholds"]["r0"]
    assert told["scale"] == pytest.approx(told["abs_max"] / 448, rel=1e-6)
    assert "Max" not in operators(model), "only ONNX Runtime's CPU drops a Relu before float8"


def test_float8_needs_a_newer_engine_and_opset() -> None:
    with pytest.raises(TransformError, match="FP8 Q/DQ does not exist"):
        quantized(bottleneck(), IMAGES, "trt-8.6", to="fp8")
    with pytest.raises(TransformError, match="opset 17, and fp8 Q/DQ needs at least 19"):
        quantized(bottleneck(), IMAGES, "strong", to="fp8")


def test_tensorrt_8_refuses_a_newer_opset() -> None:
    with pytest.raises(TransformError, match=r"opset 20, and TensorRT 8.6 reads up to 17"):
        quantized(newer(bottleneck()), IMAGES, "trt-8.6")


def test_quantizing_twice_is_refused() -> None:
    model, _ = quantized(bottleneck(), IMAGES)
    with pytest.raises(TransformError, match="quantized already"):
        quantization.apply(model, Quantize("int8", "max"), Context(table=table_of(bottleneck(), IMAGES)))


def test_static_scales_without_a_table_are_refused() -> None:
    with pytest.raises(CalibrationError, match="no calibration table was given"):
        quantization.apply(bottleneck(), Quantize(), Context())


def test_a_table_of_another_graph_is_refused() -> None:
    table = CalibrationTable(["x", "elsewhere"], ORIGIN)
    table.update({name: np.ones(3, np.float32) for name in table}, 1)
    with pytest.raises(TransformError, match=r"holds no range for 5 of the activations.*another graph"):
        quantization.apply(bottleneck(), Quantize(), Context(table=table))


def test_a_graph_with_nothing_to_quantize_is_refused_with_reasons() -> None:
    parent = net("(float[N,8] x) => (float[N,8] y) { [only] y = MatMul(x, w) }", w=values((8, 8)))
    with pytest.raises(TransformError, match=r"Nothing in this model can be quantized \(only: excluded"):
        quantized(parent, {"x": values((9, 8))}, exclude=("only",))
    with pytest.raises(TransformError, match="it has no such operator"):
        quantized(net("(float[N,8] x) => (float[N,8] y) { y = Relu(x) }"), {"x": values((9, 8))})


def test_a_tensor_that_calibration_never_filled_leaves_its_readers_in_floating_point() -> None:
    parent = net(
        """(float[N,8] x, float[N,M,8] past) => (float[N,8] y, float[N,M,4] z) {
            [good] y = MatMul(x, w)
            [starved] z = MatMul(past, v)
        }""",
        w=values((8, 8)),
        v=values((8, 4)),
    )
    feeds = {"x": values((9, 8)), "past": np.zeros((9, 0, 8), np.float32)}
    _, report = quantized(parent, feeds)
    assert report.changed == ("good",)
    assert "no finite value in 9 calibration samples" in report.skipped[0].reason


@pytest.mark.parametrize("name", ["digits_resnet", "digits_vit"])
def test_digit_models_lose_no_more_than_one_point(name: str) -> None:
    parent = shipped(name)
    fusion.apply(parent, Fuse(), Context())
    data = digits()
    calibration_images = {"image": next(iter(data.calibration.inputs.values()))[:128]}
    table = calibrate_proto(parent, calibration_images, ORIGIN, Observation(threads=1))
    images, labels = next(iter(data.evaluation.inputs.values()))[:256], data.evaluation.labels[:256]

    def accuracy(model: onnx.ModelProto) -> float:
        return float((run(model, {"image": images}, "all")["logits"].argmax(axis=1) == labels).mean())

    expected = accuracy(parent)
    for dialect, calibrator in itertools.product(("ort-cpu", "strong"), ("max", "kl")):
        model = copied(parent)
        quantization.apply(model, Quantize(calibrator=calibrator), Context(dialect=dialect, table=table))
        assert accuracy(model) >= expected - 0.01
