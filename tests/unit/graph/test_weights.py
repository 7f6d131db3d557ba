from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from small_nets import net, operators, relative_error, run, values

from workbench.errors import TransformError
from workbench.graph import opset, precision, weights
from workbench.graph.editing import Context
from workbench.graph.weights import dequantize, quantize
from workbench.recipes import Precision, QuantizeWeights, Recipe

MATMUL = "(float[N,64] x) => (float[N,48] y) { m = MatMul (x, w)  y = Relu (m) }"


def lower(model: onnx.ModelProto, to: str = "int4", dialect: str = "ort-cpu", **options):
    step = QuantizeWeights(to, **options)
    opset.fit(model, dialect, Recipe("r", (step,)))
    report = weights.apply(model, step, Context(dialect))
    onnx.checker.check_model(model, full_check=True)
    return report


def types(model: onnx.ModelProto) -> set[int]:
    return {tensor.data_type for tensor in model.graph.initializer}


@pytest.mark.parametrize(("to", "largest"), [("int8", 127), ("int4", 7)])
@pytest.mark.parametrize("block", [None, 16, 32])
def test_every_weight_is_within_half_a_step_of_its_code(to: str, largest: int, block: int | None) -> None:
    weight = values((72, 5))
    coded = quantize(weight, to, block)
    scale = coded.scale if block is None else np.repeat(coded.scale, block, axis=0)[:72]
    # Half a step, plus the rounding of the scale itself in float32.
    assert (np.abs(dequantize(coded) - weight) <= scale * (0.5 + 1e-5)).all()
    assert np.abs(coded.codes.astype(int)).max() == largest


def test_a_dead_block_stays_zero() -> None:
    coded = quantize(np.zeros((32, 4), np.float32), "int4", 16)
    assert (coded.scale > 0).all() and not dequantize(coded).any()


@pytest.mark.parametrize(("to", "kind"), [("int8", TensorProto.INT8), ("int4", TensorProto.INT4)])
@pytest.mark.parametrize("dialect", ["ort-cpu", "strong"])
def test_onnx_runtime_computes_what_the_codes_stand_for(to: str, kind: int, dialect: str) -> None:
    model = net(MATMUL, w=values((64, 48)))
    report = lower(model, to, dialect, block_size=64)
    feeds = {"x": values((3, 64), 1)}
    block = None if (to, dialect) == ("int8", "strong") else 64
    want = np.maximum(feeds["x"] @ dequantize(quantize(values((64, 48)), to, block)), 0)
    assert kind in types(model) and operators(model) == ["DequantizeLinear", "MatMul", "Relu"]
    # Sums of 64 products in another order.
    assert relative_error(run(model, feeds)["y"], want) < 1e-6
    # Fused, activations are rounded to 8 bits a block: about 0.5 / 127 of the largest.
    assert relative_error(run(model, feeds, "all")["y"], want) < 0.02
    assert report.details["bytes_before"] == 64 * 48 * 4 > 3 * report.details["bytes_after"]
    assert 0 < report.details["layers"]["MatMul_0"]["relative_error"] < (0.2 if to == "int4" else 0.02)


def test_the_last_block_may_be_shorter_for_onnx_runtime_and_is_refused_for_tensorrt() -> None:
    text = MATMUL.replace("64", "72")
    model = net(text, w=values((72, 48)))
    lower(model)
    want = np.maximum(values((3, 72), 1) @ dequantize(quantize(values((72, 48)), "int4", 32)), 0)
    assert relative_error(run(model, {"x": values((3, 72), 1)})["y"], want) < 1e-6
    report = lower(net(text, w=values((72, 48))), dialect="strong")
    assert "no multiple of the block size 64" in report.skipped[0].reason


def test_tensorrt_gets_the_block_sizes_it_builds_and_the_report_says_so() -> None:
    model = net(MATMUL, w=values((64, 48)))
    report = lower(model, dialect="strong", block_size=32)
    assert "64 was used instead of 32" in report.notes[0]
    assert onnx.helper.get_node_attr_value(model.graph.node[0], "block_size") == 64
    assert "block_size 32 is not used" in lower(net(MATMUL, w=values((64, 48))), "int8", "strong").notes[0]


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_becomes_matmul_and_add_with_its_alpha_beta_and_bias(transposed: int) -> None:
    text = f"""(float[N,64] x) => (float[N,48] y) {{
        g = Gemm <alpha: float = 0.5, beta: float = 2.0, transB: int = {transposed}> (x, w, b)
        y = Relu (g)
    }}"""
    model = net(text, w=values((48, 64) if transposed else (64, 48)), b=values((48,), 2))
    feeds = {"x": values((3, 64), 1)}
    want = run(model, feeds)["y"]
    report = lower(model, "int8")
    assert operators(model) == ["DequantizeLinear", "MatMul", "Add", "Relu"] and report.changed == ("Gemm_0",)
    # Eight bits a block of 32: a step is 1/127 of the block's largest weight.
    assert relative_error(run(model, feeds)["y"], want) < 0.02


REFUSED = {
    "embeddings stay": ("(int64[N] i) => (float[N,64] y) { e = Gather (w, i)  y = Relu (e) }", {}),
    "is an embedding too": ("(int64[N] i) => (float[N,64] y) { e = Gather (w, i)  m = MatMul (e, w)  y = Relu (m) }", {}),
    "before the output 'y'": ("(float[N,64] x) => (float[N,64] y) { m = MatMul (x, w)  y = Add (m, b) }", {}),
    "input is transposed": ("(float[64,N] x) => (float[N,64] y) { g = Gemm <transA: int = 1> (x, w)  y = Relu (g) }", {}),
    "bias is not constant": ("(float[N,64] x, float[64] c) => (float[N,64] y) { g = Gemm (x, w, c)  y = Relu (g) }", {}),
    "second input is not constant": ("(float[N,64] x, float[64,64] v) => (float[N,64] y) { y = MatMul (x, v) }", {}),
    "matches the pattern": ("(float[N,64] x) => (float[N,64] y) { m = MatMul (x, w)  y = Relu (m) }", {"exclude": ("Mat",)}),
}  # fmt: skip


@pytest.mark.parametrize("reason", REFUSED)
def test_what_stays_is_reported_with_the_reason(reason: str) -> None:
    text, options = REFUSED[reason]
    report = lower(net(text, w=values((64, 64)), b=values((64,))), **options)
    assert [skipped for skipped in report.skipped if reason in skipped.reason]
    assert report.changed == () and "No weights were quantized" in report.notes[0]


def test_the_head_is_quantized_when_asked_and_a_residual_sum_does_not_make_a_head() -> None:
    text = """(float[N,64] x) => (float[N,64] y) {
        m = MatMul (x, w)
        r = Add (m, x)
        y = MatMul (r, v)
    }"""
    parameters = {"w": values((64, 64)), "v": values((64, 64), 2)}
    assert lower(net(text, **parameters)).changed == ("MatMul_0",)
    assert lower(net(text, **parameters), head=True).changed == ("MatMul_0", "MatMul_2")


def test_weights_shared_by_two_layers_are_stored_once() -> None:
    text = "(float[N,64] x) => (float[N,64] y) { a = MatMul (x, w)  b = MatMul (a, w)  y = Relu (b) }"
    model = net(text, w=values((64, 64)))
    report = lower(model)
    assert operators(model).count("DequantizeLinear") == 1 and len(report.changed) == 2


def test_blocks_without_opset_21_are_refused_with_the_way_out() -> None:
    with pytest.raises(TransformError, match=r"need opset 21, the model has 17.*raise_to"):
        weights.apply(net(MATMUL, w=values((64, 48))), QuantizeWeights(), Context())


def test_tensorrt_8_skips_int4_and_keeps_rounded_fp32_weights_behind_q_dq_for_int8() -> None:
    report = lower(net(MATMUL, w=values((64, 48))), "int4", "trt-8.6")
    assert report.skipped[0].reason == "TensorRT 8.6 has no INT4"
    model = net(MATMUL, w=values((64, 48)))
    report = lower(model, "int8", "trt-8.6")
    assert operators(model) == ["QuantizeLinear", "DequantizeLinear", "MatMul", "Relu"]
    assert all(len(node.input) == 3 for node in model.graph.node[:2]) and model.opset_import[0].version == 17
    feeds = {"x": values((3, 64), 1)}
    want = np.maximum(feeds["x"] @ dequantize(quantize(values((64, 48)), "int8", None)), 0)
    assert relative_error(run(model, feeds)["y"], want) < 1e-6
    assert "neither size nor speed" in report.notes[0]


def test_fp16_after_int4_gives_fp16_scales_and_close_results() -> None:
    model = net(MATMUL, w=values((64, 48)))
    lower(model, dialect="strong")
    feeds = {"x": values((3, 64), 1)}
    want = run(model, feeds)["y"]
    precision.apply(model, Precision("fp16"), Context("strong"))
    assert types(model) == {TensorProto.INT4, TensorProto.FLOAT16}
    # FP16 rounds inputs, scales and results: a few times 2^-11.
    assert relative_error(run(model, feeds)["y"], want) < 4 * 2.0**-11


@pytest.mark.parametrize(("inputs", "asked", "taken"), [(128, 128, 64), (192, 128, 64), (256, 128, 128), (64, 128, 64)])
def test_tensorrt_gets_two_blocks_a_column_where_it_can(inputs: int, asked: int, taken: int) -> None:
    model = net("(float[N,K] x) => (float[N,32] y) { h = MatMul (x, w) y = Relu (h) }", w=values((inputs, 32)))
    report = lower(model, dialect="strong", block_size=asked)
    assert onnx.helper.get_node_attr_value(model.graph.node[0], "block_size") == taken
    assert any("INT4 blocks of 64" in note for note in report.notes) == (taken != asked)
    assert any("one INT4 block a column (MatMul_0)" in note for note in report.notes) == (inputs == taken)


def test_onnx_runtime_keeps_the_block_that_was_asked_for() -> None:
    model = net("(float[N,128] x) => (float[N,32] y) { h = MatMul (x, w) y = Relu (h) }", w=values((128, 32)))
    report = lower(model, dialect="ort-cpu", block_size=128)
    assert onnx.helper.get_node_attr_value(model.graph.node[0], "block_size") == 128
    assert not [note for note in report.notes if "column" in note]
