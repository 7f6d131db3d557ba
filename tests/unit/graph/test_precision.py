from __future__ import annotations

from collections import Counter

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from small_nets import batchnorm, copied, net, operators, relative_error, run, shipped, values

from workbench.calibration.table import CalibrationTable, Provenance
from workbench.errors import TransformError
from workbench.graph import precision
from workbench.graph.editing import Context
from workbench.recipes import Precision
from workbench.records import StepReport

# Half a unit in the last place: 2^-11 for FP16, 2^-8 for BF16; a few layers add some.
FP16_ERROR, BF16_ERROR = 4 * 2.0**-11, 4 * 2.0**-8

CONV = """(float[N,8,9,9] x) => (float[N,6,9,9] y) {
    c = Conv <pads: ints = [1,1,1,1]> (x, w, b)
    y = Relu (c)
}"""
CONV_WEIGHTS = {"w": values((6, 8, 3, 3)), "b": values((6,), 2)}
MLP = """(float[N,16] x) => (float[N,8] y) {
    a = MatMul (x, w)
    n = LayerNormalization (a, g)
    y = MatMul (n, v)
}"""
MLP_WEIGHTS = {"w": values((16, 16)), "g": values((16,), 1), "v": values((16, 8), 2)}


def lower(model: onnx.ModelProto, to: str = "fp16", dialect: str = "strong", **options) -> StepReport:
    table = options.pop("table", None)
    modules = options.pop("modules", {})
    report = precision.apply(model, Precision(to, **options), Context(dialect, modules=modules, table=table))
    onnx.checker.check_model(model, full_check=True)
    return report


def kept(report: StepReport) -> dict[str, str]:
    return {skipped.name: skipped.reason for skipped in report.skipped}


def calibrated(**tensors: np.ndarray) -> CalibrationTable:
    table = CalibrationTable(tensors, Provenance("m", "d", "test"))
    table.update(tensors, 1)
    return table


def test_fp16_halves_the_weights_and_keeps_inputs_and_outputs_fp32() -> None:
    model = net(CONV, **CONV_WEIGHTS)
    feeds = {"x": values((2, 8, 9, 9), 5)}
    want = run(model, feeds)["y"]

    report = lower(model)

    assert operators(model) == ["Cast", "Conv", "Relu", "Cast"] and report.details["casts"] == 2
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.FLOAT16}
    have = run(model, feeds)["y"]
    assert have.dtype == np.float32 and relative_error(have, want) < FP16_ERROR
    assert report.changed == ("Conv_0", "Relu_1") and report.skipped == ()


def test_norms_and_softmax_stay_fp32_unless_auto_exclude_is_off() -> None:
    text = MLP.replace("y = MatMul (n, v)", "s = Softmax (n)  y = MatMul (s, v)")
    report = lower(net(text, **MLP_WEIGHTS))
    assert {name.split("_")[0] for name in kept(report)} == {"LayerNormalization", "Softmax"}
    assert lower(net(text, **MLP_WEIGHTS), auto_exclude=False).skipped == ()


def test_a_tensor_is_cast_once_for_all_its_readers_and_not_to_and_fro() -> None:
    text = """(float[N,16] x) => (float[N,16] y) {
        a = MatMul (x, w)
        n = LayerNormalization (a, g)
        r = Reshape (n, shape)
        s = Softmax (r)
        p = MatMul (n, w)
        q = MatMul (n, v)
        t = Add (p, q)
        y = Add (t, s)
    }"""
    weights = {"w": values((16, 16)), "v": values((16, 16), 3), "g": values((16,), 1)}
    model = net(text, shape=np.array([-1, 16]), **weights)
    report = lower(model)
    # x down, a up, n down (two readers), s down, y up; the Reshape between two FP32 nodes needs none.
    assert report.details["casts"] == 5
    assert "moves data between FP32 nodes" in kept(report)["Reshape_2"]


def test_casts_of_the_model_itself_leave_no_pairs_behind() -> None:
    text = """(float[N,16] x) => (float[N,16] y) {
        a = MatMul (x, w)
        d = Cast <to: int = 10> (a)
        u = Cast <to: int = 1> (d)
        y = Relu (u)
    }"""
    model = net(text, w=values((16, 16)))
    lower(model)
    assert operators(model) == ["Cast", "MatMul", "Relu", "Cast"]


def test_activations_that_calibration_saw_large_or_not_finite_keep_their_nodes_in_fp32() -> None:
    table = calibrated(c=np.array([600.0], np.float32), y=np.array([1.0], np.float32))
    report = lower(net(CONV, **CONV_WEIGHTS), table=table)
    assert "'c' reached 600 during calibration, above 512" in kept(report)["Conv_0"]
    broken = calibrated(y=np.array([np.nan, 1.0], np.float32))
    assert "NaN" in kept(lower(net(CONV, **CONV_WEIGHTS), table=broken))["Relu_1"]
    assert kept(lower(net(CONV, **CONV_WEIGHTS), to="bf16", table=table)) == {}


def test_magnitudes_are_looked_up_through_quantization() -> None:
    text = """(float[N,4] x) => (float[N,6] y) {
        r = Relu (x)
        q = QuantizeLinear (r, s, z)
        d = DequantizeLinear (q, s, z)
        y = MatMul (d, w)
    }"""
    weights = {"s": np.array(8.0, np.float32), "z": np.array(0, np.int8), "w": values((4, 6))}
    report = lower(net(text, **weights), table=calibrated(r=np.array([900.0], np.float32)))
    assert "'d' reached 900" in kept(report)["MatMul_3"]


MASKED = """(float[N,4] x, bool[N,4] m) => (float[N,4] y) {
    b = Where (m, zero, low)
    s = Add (x, b)
    y = Softmax (s)
}"""
MASK = {"zero": np.array(0, np.float32), "low": np.array(-3.4e38, np.float32)}


def test_constants_beyond_fp16_keep_their_node_and_those_that_read_its_result_in_fp32() -> None:
    model = net(MASKED, **MASK)
    feeds = {"x": values((2, 4)), "m": np.array([[True, False, True, True], [False] * 4])}
    want = run(model, feeds)["y"]
    report = lower(model)
    assert "beyond FP16's 65504" in kept(report)["Where_0"] and "from 'Where_0'" in kept(report)["Add_1"]
    np.testing.assert_array_equal(run(model, feeds)["y"], want)


def test_factors_and_activations_below_the_normal_numbers_of_fp16_keep_their_node_in_fp32() -> None:
    text = """(float[N,16] x) => (float[N,8] y) {
        a = Div (x, small)
        b = Add (a, epsilon)
        y = MatMul (b, w)
    }"""
    small, epsilon = np.float32(1e-8), np.float32(1e-12)
    model = net(text, small=small, epsilon=epsilon, w=values((16, 8)))
    feeds = {"x": 1e-8 * values((3, 16), 5)}
    want = run(model, feeds)["y"]
    report = lower(model)
    assert "its constant 'small' reaches only 1e-08" in kept(report)["Div_0"] and report.changed == (
        "Add_1",
        "MatMul_2",
    )
    assert relative_error(run(model, feeds)["y"], want) < FP16_ERROR

    table = calibrated(x=feeds["x"], a=feeds["x"] / small)
    report = lower(net(text, small=np.float32(0.5), epsilon=epsilon, w=values((16, 8))), table=table)
    assert "'x' reached only" in kept(report)["Div_0"] and report.changed == ("Add_1", "MatMul_2")


@pytest.mark.parametrize("auto_exclude", [True, False])
def test_what_computes_the_scales_of_a_resize_stays_fp32_so_that_the_size_does_not_change(auto_exclude: bool) -> None:
    text = """(float[1,4,10,10] x, float[4] s) => (float[N,C,H,W] y) {
        t = Mul (s, factor)
        scales = Mul (t, one)
        r = Resize <mode: string = "linear"> (x, , scales)
        y = Relu (r)
    }"""
    # 1.3 is a little less in FP16, and 10 rows would become 12.
    model = net(text, factor=np.float32(1), one=np.array([1, 1, 1, 1], np.float32))
    feeds = {"x": values((1, 4, 10, 10), 5), "s": np.array([1, 1, 1.3, 1.3], np.float32)}
    want = run(model, feeds)["y"]
    report = lower(model, auto_exclude=auto_exclude)
    assert report.changed == ("Resize_2", "Relu_3")
    assert set(kept(report).values()) == {"it computes what Resize takes in FP32 only"}
    assert relative_error(run(model, feeds)["y"], want) < FP16_ERROR


@pytest.mark.parametrize("auto_exclude", [True, False])
@pytest.mark.parametrize("saturates", ["", ", saturate: int = 1"])
def test_a_cast_of_other_floating_point_numbers_is_lowered_and_is_no_position(
    saturates: str, auto_exclude: bool
) -> None:
    text = f"""(double[N,16] x) => (float[N,8] y) {{
        a = Cast <to: int = 1{saturates}> (x)
        y = MatMul (a, w)
    }}"""
    model = net(text, w=values((16, 8)), **({"opset": 19} if saturates else {}))
    cast = model.graph.node[0]
    cast.attribute.sort(key=lambda item: item.name)  # as most exporters write them
    feeds = {"x": values((3, 16), 5).astype(np.float64)}
    want = run(model, feeds)["y"]
    report = lower(model, auto_exclude=auto_exclude)
    assert report.changed == ("Cast_0", "MatMul_1") and report.skipped == ()
    assert relative_error(run(model, feeds)["y"], want) < FP16_ERROR


def test_without_auto_exclude_constants_beyond_fp16_are_set_to_its_largest_and_counted() -> None:
    model = net(MASKED, **MASK)
    report = lower(model, auto_exclude=False)
    assert report.details["overflowed"] == 0.5 and "1 of 2 constants" in report.notes[0]
    assert np.isfinite(run(model, {"x": values((1, 4)), "m": np.zeros((1, 4), bool)})["y"]).all()


def test_constants_below_the_smallest_normal_number_are_counted() -> None:
    weights = {"w": np.full((6, 8, 3, 3), 1e-6, np.float32), "b": np.zeros(6, np.float32)}
    report = lower(net(CONV, **weights), auto_exclude=False)
    assert report.details["constants"] == 438 and report.details["underflowed"] == 432 / 438
    assert lower(net(CONV, **weights), to="bf16").details["underflowed"] == 0


def test_a_norm_written_out_stays_fp32_as_a_whole() -> None:
    text = """(float[N,16] x) => (float[N,16] y) {
        a = MatMul (x, w)
        square = Pow (a, two)
        mean = ReduceMean <axes: ints = [-1]> (square)
        shifted = Add (mean, epsilon)
        root = Sqrt (shifted)
        inverse = Reciprocal (root)
        normal = Mul (a, inverse)
        scaled = Mul (g, normal)
        y = MatMul (scaled, w)
    }"""
    constants = {"two": np.array(2, np.float32), "epsilon": np.array(1e-6, np.float32)}
    report = lower(net(text, w=values((16, 16)), g=values((16,)), **constants))
    assert [name.split("_")[0] for name in sorted(kept(report), key=lambda name: int(name.split("_")[1]))] == [
        "Pow", "ReduceMean", "Add", "Sqrt", "Reciprocal", "Mul",
    ]  # fmt: skip
    assert report.changed == ("MatMul_0", "Mul_7", "MatMul_8")


def test_a_layer_norm_written_out_with_one_over_root_stays_fp32() -> None:
    text = """(float[N,16] x) => (float[N,16] y) {
        a = MatMul (x, w)
        mean = ReduceMean <axes: ints = [-1]> (a)
        centred = Sub (a, mean)
        square = Mul (centred, centred)
        variance = ReduceMean <axes: ints = [-1]> (square)
        shifted = Add (variance, epsilon)
        root = Sqrt (shifted)
        inverse = Div (one, root)
        normal = Mul (centred, inverse)
        y = MatMul (normal, w)
    }"""
    constants = {"one": np.array(1, np.float32), "epsilon": np.array(1e-6, np.float32)}
    report = lower(net(text, w=values((16, 16)), **constants))
    assert report.changed == ("MatMul_0", "MatMul_9")


def test_pooling_by_reduction_does_not_draw_the_gate_after_it_into_fp32() -> None:
    text = """(float[N,16] x) => (float[N,16] y) {
        mean = ReduceMean <axes: ints = [-1]> (x)
        y = Mul (x, mean)
    }"""
    assert list(kept(lower(net(text)))) == ["ReduceMean_0"]


def test_positions_are_not_computed_in_fp16() -> None:
    text = """(float[N,4] x, int64[N,1] position) => (float[N,4] y) {
        p = Cast <to: int = 1> (position)
        angle = MatMul (p, frequency)
        c = Cos (angle)
        y = Mul (x, c)
    }"""
    model = net(text, frequency=values((1, 4)))
    feeds = {"x": np.ones((1, 4), np.float32), "position": np.array([[4097]])}
    want = run(model, feeds)["y"]
    report = lower(model)
    assert list(kept(report)) == ["Cast_0", "MatMul_1", "Cos_2"]
    # In FP16 the position would be 4096, and the cosine anything.
    assert np.abs(run(model, feeds)["y"] - want).max() < FP16_ERROR


def test_embeddings_are_lowered_although_they_are_indexed_by_integers() -> None:
    model = net("(int64[N] ids) => (float[N,8] y) { e = Gather (w, ids)  y = Relu (e) }", w=values((10, 8)))
    assert lower(model).changed == ("Gather_0", "Relu_1")


def test_patterns_match_node_names_and_module_paths() -> None:
    report = lower(net(CONV, **CONV_WEIGHTS), exclude=("^Relu",))
    assert kept(report) == {"Relu_1": "it matches the pattern '^Relu'"}
    by_module = lower(net(CONV, **CONV_WEIGHTS), exclude=("stem",), modules={"Conv_0": "model.stem.conv"})
    assert kept(by_module) == {"Conv_0": "it matches the pattern 'stem'"}


def test_subgraphs_custom_operators_and_float_only_operators_are_left_alone_with_reasons() -> None:
    text = """(bool c, float[1,4] x) => (float[1,4] y, int64[M,3] chosen) {
        a = Relu (x)
        i = If (c) <
            then_branch = one () => (float[1,4] t) { t = Neg (a) },
            else_branch = other () => (float[1,4] e) { e = Identity (a) }
        >
        g = com.microsoft.Gelu (i)
        y = Neg (g)
        boxes = Reshape (x, as_box)
        highest = ReduceMax <axes: ints = [1], keepdims: int = 1> (x)
        score = Reshape (highest, as_score)
        chosen = NonMaxSuppression (boxes, score)
    }"""
    model = net(text, as_box=np.array([1, 1, 4]), as_score=np.array([1, 1, 1]))
    feeds = {"c": np.array(True), "x": values((1, 4))}
    want = run(model, feeds)
    report = lower(model)
    reasons = kept(report)
    assert "subgraph" in reasons["If_1"] and "no standard ONNX" in reasons["Gelu_2"]
    assert "could not be inferred" in reasons["Neg_3"] and "takes no FP16" in reasons["NonMaxSuppression_7"]
    assert "Relu_0" in report.changed
    have = run(model, feeds)
    assert relative_error(have["y"], want["y"]) < FP16_ERROR
    np.testing.assert_array_equal(have["chosen"], want["chosen"])


def test_operators_with_fp32_only_inputs_keep_those() -> None:
    text = """(float[1,2,4,4] x) => (float[1,2,8,8] y) { y = Resize (x, , scales) }"""
    model = net(text, scales=np.array([1, 1, 2, 2], np.float32))
    assert lower(model).changed == ("Resize_0",)
    assert model.graph.initializer[0].data_type == TensorProto.FLOAT
    assert run(model, {"x": values((1, 2, 4, 4))})["y"].shape == (1, 2, 8, 8)


QUANTIZED = """(float[N,4] x) => (float[N,6] y) {
    q = QuantizeLinear (x, s, z)
    d = DequantizeLinear (q, s, z)
    v = DequantizeLinear <axis: int = 1> (wq, ws)
    m = MatMul (d, v)
    r = Relu (m)
    rq = QuantizeLinear (r, s, z)
    rd = DequantizeLinear (rq, s, z)
    y = Softmax (rd)
}"""
CODES = np.random.default_rng(0).integers(-127, 128, (4, 6)).astype(np.int8)
SCALES = {"s": np.array(0.02, np.float32), "z": np.array(0, np.int8), "wq": CODES}


def test_scales_of_quantized_graphs_follow_the_type_of_the_arithmetic() -> None:
    model = net(QUANTIZED, opset=17, ws=np.full(6, 0.1, np.float32), **SCALES)
    feeds = {"x": values((3, 4))}
    want = run(model, feeds)["y"]
    report = lower(model)
    assert model.opset_import[0].version == 19 and "17 to 19" in report.notes[0]
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    by_output = {node.output[0]: node for node in model.graph.node}
    scale_types = {name: types[by_output[name].input[1]] for name in ("q", "d", "v", "rq")}
    assert [name for name, kind in scale_types.items() if kind == TensorProto.FLOAT] == ["q"]
    assert {name: kept(report)[name] for name in ("QuantizeLinear_0", "DequantizeLinear_6")} == {
        "QuantizeLinear_0": "it reads FP32 tensors and writes none",
        "DequantizeLinear_6": "all its readers are in FP32",
    }
    # A code may move by one where FP16 rounds across a boundary: 0.02 of outputs that reach 1 after Softmax.
    assert np.abs(run(model, feeds)["y"] - want).max() < 0.02


def test_fp16_around_quantization_is_said_to_be_slow_on_a_cpu_only() -> None:
    for dialect, want in (("ort-cpu", True), ("strong", False)):
        report = lower(net(QUANTIZED, opset=19, ws=np.full(6, 0.1, np.float32), **SCALES), dialect=dialect)
        assert any("no integer kernels" in note for note in report.notes) is want


def test_a_scale_too_small_for_fp16_keeps_its_node_in_fp32() -> None:
    report = lower(net(QUANTIZED, opset=19, ws=np.full(6, 3e-7, np.float32), **SCALES))
    assert "its scale would lose" in kept(report)["DequantizeLinear_2"] and "MatMul_3" in report.changed


def test_for_tensorrt_8_the_graph_stays_fp32_and_the_nodes_to_pin_are_listed() -> None:
    model = net(QUANTIZED, ws=np.full(6, 3e-7, np.float32), **SCALES)
    before = copied(model)
    report = lower(model, dialect="trt-8.6")
    assert [tensor.data_type for tensor in model.graph.initializer] == [t.data_type for t in before.graph.initializer]
    assert operators(model) == operators(before)
    assert report.details == {"keep_fp32": ["Softmax_7"]} and report.changed == ("MatMul_3", "Relu_4")
    assert "flag of the TensorRT 8.6 builder" in report.notes[0]


def test_bf16_for_tensorrt_8_is_refused() -> None:
    with pytest.raises(TransformError, match=r"TensorRT 8\.6 has no BF16"):
        lower(net(CONV, **CONV_WEIGHTS), to="bf16", dialect="trt-8.6")


def test_bf16_is_in_the_file_for_strong_typing_with_an_opset_whose_conv_takes_it() -> None:
    model = net(CONV, **CONV_WEIGHTS)
    report = lower(model, to="bf16")
    assert model.opset_import[0].version == 22 and "17 to 22" in report.notes[0]
    assert {tensor.data_type for tensor in model.graph.initializer} == {TensorProto.BFLOAT16}
    assert operators(model) == ["Cast", "Conv", "Relu", "Cast"]


def test_the_cpu_rehearsal_of_bf16_gives_what_the_bf16_graph_gives() -> None:
    strong, rehearsed = net(MLP, **MLP_WEIGHTS), net(MLP, **MLP_WEIGHTS)
    feeds = {"x": values((5, 16), 7)}
    exact = run(strong, feeds)["y"]
    lower(strong, to="bf16")
    report = lower(rehearsed, to="bf16", dialect="ort-cpu")

    have = run(rehearsed, feeds, "all")["y"]
    np.testing.assert_array_equal(have, have.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert {tensor.data_type for tensor in rehearsed.graph.initializer} == {TensorProto.FLOAT}
    assert report.notes[0].startswith("A rehearsal") and [node.name for node in rehearsed.graph.node][1]
    assert 0 < relative_error(have, exact) < BF16_ERROR
    # The reference evaluator sums products in another order and type: some results land one BF16 step apart.
    assert relative_error(ReferenceEvaluator(strong).run(None, feeds)[0], have) < BF16_ERROR
    np.testing.assert_array_equal(run(rehearsed, feeds, "off")["y"], have)


def test_the_rehearsal_rounds_after_each_computing_node_and_nowhere_else() -> None:
    text = """(float[N,16] x) => (float[N,16] y, float[N,16] z) {
        a = MatMul (x, w)
        t = Transpose <perm: ints = [0,1]> (a)
        y = Relu (t)
        z = Sigmoid (a)
    }"""
    model = net(text, w=values((16, 16)))
    lower(model, to="bf16", dialect="ort-cpu")
    # Input, product and sigmoid; moving data and Relu make no new values.
    assert Counter(operators(model)) == {"Cast": 6, "MatMul": 1, "Transpose": 1, "Relu": 1, "Sigmoid": 1}
    assert [value.name for value in model.graph.output] == ["y", "z"]


@pytest.mark.parametrize("to", ["fp32", "tf32"])
def test_fp32_and_tf32_change_no_byte_of_the_graph_and_say_so(to: str) -> None:
    model = net(CONV, **CONV_WEIGHTS)
    before = copied(model)
    report = lower(model, to=to)
    assert model == before and "unchanged" in report.notes[0]


def test_a_model_without_fp32_tensors_is_reported_as_unchanged() -> None:
    report = lower(net("(float16[N] x) => (float16[N] y) { y = Relu (x) }"))
    assert report.changed == () and "No node was changed" in report.notes[0]


def test_a_batchnorm_that_was_not_folded_stays_fp32() -> None:
    text = "(float[N,4,3,3] x) => (float[N,4,3,3] y) { y = BatchNormalization (x, scale, shift, mean, variance) }"
    assert list(kept(lower(net(text, **batchnorm(4))))) == ["BatchNormalization_0"]


@pytest.mark.parametrize("name", ["digits_resnet", "digits_vit"])
@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_the_shipped_nets_keep_their_logits_within_the_format(name: str, to: str) -> None:
    model = shipped(name)
    value = model.graph.input[0]
    shape = tuple(axis.dim_value or 4 for axis in value.type.tensor_type.shape.dim)
    feeds = {value.name: np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)}
    want = next(iter(run(model, feeds).values()))
    lower(model, to=to, dialect="ort-cpu")
    error = relative_error(next(iter(run(model, feeds).values())), want)
    assert 0 < error < (FP16_ERROR if to == "fp16" else BF16_ERROR)
