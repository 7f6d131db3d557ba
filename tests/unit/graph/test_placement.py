from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from quantization_nets import IMAGES, attention, behind_pairs, bottleneck, quantized, scale_of
from small_nets import net, operators, relative_error, run, values

from workbench.errors import RecipeError
from workbench.graph.placement import observed_tensors

TENSORRT = ("trt-8.6", "strong")
TOKENS = {"x": values((32, 6, 16), 3)}


def kernels(model: onnx.ModelProto, tmp_path) -> list[str]:
    """What ONNX Runtime runs after its own optimizations."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return operators(onnx.load(options.optimized_model_filepath))


def reasons(report) -> dict[str, str]:
    return {item.name: item.reason for item in report.skipped}


@pytest.mark.parametrize("dialect", TENSORRT)
def test_a_residual_add_gets_its_pair_on_the_skip_branch_only(dialect: str) -> None:
    model, _ = quantized(bottleneck(), IMAGES, dialect)
    assert behind_pairs(model, "add") == ["r0"]


@pytest.mark.parametrize("dialect", TENSORRT)
def test_the_shortcut_through_a_convolution_is_the_skip_branch(dialect: str) -> None:
    projected = bottleneck(ws=values((20, 20, 1, 1), 9, 0.2))
    shortcut = onnx.helper.make_node("Conv", ["r0", "ws"], ["s"], "shortcut")
    projected.graph.node.insert(5, shortcut)
    add = next(node for node in projected.graph.node if node.name == "add")
    for order in (["c2", "s"], ["s", "c2"]):
        add.input[:] = order
        model, _ = quantized(projected, IMAGES, dialect)
        assert behind_pairs(model, "add") == ["s"]


@pytest.mark.parametrize("dialect", TENSORRT)
def test_no_pair_stands_between_convolution_and_relu_and_no_bias_or_output_is_quantized(dialect: str) -> None:
    model, report = quantized(bottleneck(), IMAGES, dialect)
    for relu in ("stem_relu", "first_relu", "last_relu"):
        assert behind_pairs(model, relu) == []
    for node in ("stem", "first", "second", "head"):
        assert len(behind_pairs(model, node)) == 2
    assert report.changed == ("stem", "first", "second", "head")
    assert not any(node.op_type == "DequantizeLinear" and node.output[0] == "y" for node in model.graph.node)


def test_tensorrt_keeps_batchnorm_next_to_its_convolution_where_it_was_not_folded() -> None:
    ones, zeros = np.ones(20, np.float32), np.zeros(20, np.float32)
    model = bottleneck(ones=ones, zeros=zeros)
    relu = next(node for node in model.graph.node if node.name == "first_relu")
    norm = onnx.helper.make_node("BatchNormalization", ["c1", "ones", "zeros", "zeros", "ones"], ["n1"], "norm")
    model.graph.node.insert(3, norm)
    relu.input[0] = "n1"
    for dialect in TENSORRT:
        result, _ = quantized(model, IMAGES, dialect)
        assert behind_pairs(result, "norm") == behind_pairs(result, "first_relu") == []


def test_onnx_runtime_runs_a_residual_net_without_floating_point(tmp_path) -> None:
    model, _ = quantized(bottleneck(), IMAGES)
    found = kernels(model, tmp_path)
    assert found.count("QLinearConv") == 3
    assert {"QLinearAdd", "QLinearGlobalAveragePool", "QGemm"} <= set(found)
    assert not {"Conv", "FusedConv", "Relu", "Add", "DequantizeLinear"} & set(found)


def test_onnx_runtime_pools_and_joins_codes(tmp_path) -> None:
    weights = {"w0": values((24, 4, 3, 3), 1, 0.2), "w1": values((8, 24, 1, 1), 2, 0.2)}
    model = net(
        """(float[N,4,8,8] x) => (float[N,8] y) {
            [one] a = Conv<pads = [1,1,1,1]>(x, w0)
            [top] b = Clip(a, low, high)
            [pool] c = MaxPool<kernel_shape = [2,2], strides = [2,2]>(b)
            [two] d = Conv(c, w1)
            [three] e = Conv(c, w1)
            [join] f = Concat<axis = 1>(d, e)
            [four] g = Conv(f, w2)
            [mean] h = GlobalAveragePool(g)
            [flat] y = Flatten(h)
        }""",
        low=np.array(0, np.float32),
        high=np.array(1.5, np.float32),
        w2=values((8, 16, 1, 1), 4, 0.2),
        **weights,
    )
    result, _ = quantized(model, IMAGES)
    assert scale_of(result, "c") == scale_of(result, "b"), "codes can only be copied where the scale stays"
    found = kernels(result, tmp_path)
    assert found.count("QLinearConv") == 4
    assert "QLinearConcat" in found
    assert not {"Conv", "Clip"} & set(found)


@pytest.mark.parametrize(
    ("between", "left"),
    [
        ("r = Clip(a, zero, small)", ()),
        ("r = Clip(a, minus, small)", ()),  # a zero point between two codes would let them end beyond the bounds
        ("r = Clip(a, minus, large)", ()),
        ("r = Clip(a, , small)", ()),
        ("r = Clip(a, small, large)", ("Clip",)),  # zero has a code, and is not within these bounds
        ("r = Clip(a, zero, high)", ("Clip",)),
        ("r = BatchNormalization(a, scale, ones, ones, ones)", ("BatchNormalization",)),
    ],
)
def test_a_convolution_is_an_integer_kernel_whatever_clips_or_scales_its_result(tmp_path, between: str, left) -> None:
    constants = {"zero": 0.0, "small": 0.4, "large": 50.0, "minus": -0.4}
    model = net(
        f"""(float[N,4,8,8] x) => (float[N,8,1,1] y) {{
            high = ReduceMax<keepdims = 0>(x)
            scale = Add(ones, high)
            [one] a = Conv<pads = [1,1,1,1]>(x, w0)
            {between}
            [two] d = Conv(r, w1)
            y = GlobalAveragePool(d)
        }}""",
        **{name: np.array(value, np.float32) for name, value in constants.items()},
        ones=np.ones(24, np.float32),
        w0=values((24, 4, 3, 3), 1, 0.2),
        w1=values((8, 24, 1, 1), 2, 0.2),
    )
    result, report = quantized(model, IMAGES)
    found = kernels(result, tmp_path)
    assert report.changed == ("one", "two") and found.count("QLinearConv") == 2
    assert [name for name in found if name in ("Conv", "FusedConv", "Clip", "BatchNormalization")] == list(left)


def test_what_signed_codes_leave_in_fp32_behind_a_relu_is_said(tmp_path) -> None:
    model = net(
        """(float[N,4,8,8] x) => (float[N,3] y) {
            [one] a = Conv<pads = [1,1,1,1]>(x, w0)
            b = Relu(a)
            [two] c = Conv(b, w1)
            d = GlobalAveragePool(c)
            e = Flatten(d)
            [three] f = Gemm(e, w2)
            g = Relu(f)
            [four] y = Gemm(g, w3)
        }""",
        w0=values((24, 4, 3, 3), 1, 0.2), w1=values((8, 24, 1, 1), 2, 0.2), w2=values((8, 8), 3), w3=values((8, 3), 4),
    )  # fmt: skip
    for symmetric, behind in (
        (True, "2 layers with a Relu behind them (one, three) are quantized in the file"),
        (None, ""),
    ):
        result, report = quantized(model, IMAGES, symmetric=symmetric)
        found = kernels(result, tmp_path)
        assert report.changed == ("one", "two", "three", "four")
        assert found.count("FusedConv") + found.count("FusedGemm") == (2 if symmetric else 0)
        assert found.count("QLinearConv") + found.count("QGemm") == (2 if symmetric else 4)
        said = [note for note in report.notes if "Relu behind" in note]
        assert len(said) == bool(symmetric) and behind in "".join(said)


@pytest.mark.parametrize("shape", [(8,), (1, 8), (1,), (), None])
@pytest.mark.parametrize("factors", ["", "<alpha = -0.5, beta = 2.0>"])
def test_a_gemm_is_an_integer_kernel_with_any_factors_and_any_bias_of_one_value_a_channel(
    tmp_path, shape, factors
) -> None:
    bias = {} if shape is None else {"b": values(shape, 4)}
    model = net(
        f"""(float[N,16] x) => (float[N,16] y) {{
            [one] h = Gemm{factors}(x, w{", b" if bias else ""})
            [two] k = Gemm(x, w)
            y = Concat<axis = 1>(h, k)
        }}""",
        w=values((16, 8), 1),
        **bias,
    )
    feeds = {"x": values((40, 16), 5)}
    result, report = quantized(model, feeds)
    assert report.changed == ("one", "two") and kernels(result, tmp_path).count("QGemm") == 2
    # Codes of 7 and 8 bits, and sums of 16 products.
    assert relative_error(run(result, feeds)["y"], run(model, feeds)["y"]) < 0.03


@pytest.mark.parametrize("bias", ["column", "computed"])
def test_a_gemm_with_another_bias_is_left_alone_and_named(bias: str) -> None:
    model = net(
        f"""(float[8,16] x) => (float[8,8] y) {{
            computed = ReduceMax<keepdims = 1, axes = [1]>(x)
            [one] h = Gemm(x, w, {bias})
            [two] y = MatMul(h, w2)
        }}""",
        w=values((16, 8), 1),
        w2=values((8, 8), 2),
        column=values((8, 1), 3),
    )
    _, report = quantized(model, {"x": values((8, 16), 5)})
    assert report.changed == ("two",) and "its bias is not one constant a channel" in reasons(report)["one"]


@pytest.mark.parametrize("dialect", ["ort-cpu", *TENSORRT])
def test_attention_quantizes_both_inputs_of_its_products_and_leaves_softmax_and_norm(dialect: str) -> None:
    model, report = quantized(attention(), TOKENS, dialect)
    assert set(report.changed) == {"query", "key", "value", "scores", "mix", "out"}
    assert behind_pairs(model, "scores") == ["q", "kt"]
    assert behind_pairs(model, "mix") == ["p", "v"]
    for node in ("norm", "softmax", "add"):
        assert behind_pairs(model, node) == []


def test_one_pair_serves_all_readers_of_a_tensor() -> None:
    model, _ = quantized(attention(), TOKENS, "strong")
    readers = [n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "n"]
    assert len(readers) == 1


@pytest.mark.parametrize("dialect", ["ort-cpu", *TENSORRT])
def test_an_excluded_node_stays_as_it_is_and_is_named(dialect: str) -> None:
    model, report = quantized(bottleneck(), IMAGES, dialect, exclude=("^second$",))
    assert "second" not in report.changed
    assert reasons(report)["second"] == "excluded by the pattern '^second$'"
    if dialect in TENSORRT:
        assert behind_pairs(model, "second") == []
        assert behind_pairs(model, "add") == [], "without an INT8 convolution before it the addition is not fused"


def test_a_pattern_on_an_addition_leaves_its_skip_branch_alone() -> None:
    model, _ = quantized(bottleneck(), IMAGES, "strong", exclude=("^add$",))
    assert behind_pairs(model, "add") == []


def test_tensorrt_quantizes_before_a_zero_pad_and_not_behind_it() -> None:
    model = net(
        """(float[N,4,8,8] x) => (float[N,20,8,8] y) {
            [pad] p = Pad(x, pads)
            [conv] y = Conv(p, w)
        }""",
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        w=values((20, 4, 3, 3), 1),
    )
    result, _ = quantized(model, IMAGES, "strong")
    assert behind_pairs(result, "pad") == ["x"]
    assert behind_pairs(result, "conv") == ["w"]


def test_quantized_inputs_and_output_of_a_concat_share_a_scale_for_tensorrt() -> None:
    model = net(
        """(float[N,4,8,8] x) => (float[N,6,8,8] y) {
            [one] a = Conv(x, w0)
            [both] b = Concat<axis = 1>(x, a)
            [two] c = Conv(b, w1)
            [three] d = Conv(a, w2)
            [add] y = Add(c, d)
        }""",
        w0=values((20, 4, 1, 1), 1),
        w1=values((6, 24, 1, 1), 2),
        w2=values((6, 20, 1, 1), 3),
    )
    result, _ = quantized(model, IMAGES, "strong")
    assert scale_of(result, "x") == scale_of(result, "a") == scale_of(result, "b")


def test_onnx_runtime_keeps_a_convolution_that_gives_a_graph_output() -> None:
    model = net(
        "(float[N,4,8,8] x) => (float[N,20,8,8] y) { [one] a = Conv(x, w0) [two] y = Conv(a, w1) }",
        w0=values((20, 4, 1, 1), 1),
        w1=values((20, 20, 1, 1), 2),
    )
    _, report = quantized(model, IMAGES)
    assert report.changed == ("one",)
    assert "graph output" in reasons(report)["two"]
    _, report = quantized(model, IMAGES, "trt-8.6")
    assert report.changed == ("one", "two")


def test_onnx_runtime_keeps_a_thin_first_layer_unless_asked() -> None:
    thin = bottleneck(w0=values((16, 1, 3, 3), 1), b0=values((16,), 2), w1=values((20, 16, 3, 3), 3, 0.1))
    thin.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    del thin.graph.node[5]
    thin.graph.node[5].input[0] = "c2"
    images = {"x": values((32, 1, 8, 8))}
    _, report = quantized(thin, images)
    assert "stem" not in report.changed
    assert "faster in FP32" in reasons(report)["stem"]
    _, report = quantized(thin, images, op_types=("Conv", "Gemm"))
    assert "stem" in report.changed


def test_unsuited_nodes_are_skipped_with_reasons() -> None:
    model = net(
        """(float[N,4] x) => (float[N,1] y) {
            [good] a = MatMul(x, w)
            [left] b = MatMul(fixed, a)
            [narrow] y = MatMul(b, column)
        }""",
        w=values((4, 4), 1),
        fixed=values((3, 32), 2),
        column=values((4, 1), 3),
    )
    _, report = quantized(model, {"x": values((32, 4))}, "strong")
    assert report.changed == ("good",)
    assert "first input is a constant" in reasons(report)["left"]
    assert "(4, 1)" in reasons(report)["narrow"]


def test_products_of_other_types_and_weights_made_at_run_time_are_skipped_with_reasons() -> None:
    model = net(
        """(float[N,4,8,8] x, int32[3,3] i) => (float[N,2,8,8] y, int32[3,3] z) {
            [made] w = Mul(w0, two)
            [conv] c = Conv(x, w)
            [good] y = Conv(c, w1)
            [whole] z = MatMul(i, i)
        }""",
        w0=values((20, 4, 1, 1), 1),
        two=np.array(2, np.float32),
        w1=values((2, 20, 1, 1), 1),
    )
    feeds = {"x": values((3, 4, 8, 8)), "i": np.ones((3, 3), np.int32)}
    _, report = quantized(model, feeds, "strong")
    assert report.changed == ("good",)
    assert "INT32" in reasons(report)["whole"]
    assert "run time" in reasons(report)["conv"]


def test_transposed_convolution_is_quantized_for_tensorrt_and_on_demand_for_onnx_runtime() -> None:
    model = net(
        "(float[N,4,8,8] x) => (float[N,6,16,16] y) { [up] y = ConvTranspose<strides = [2,2]>(x, w) [id] q = Relu(y) }",
        w=values((4, 6, 2, 2), 1),
    )
    result, report = quantized(model, IMAGES, "strong")
    assert report.changed == ("up",)
    axis = next(n for n in result.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "w").attribute[0].i
    assert axis == 1
    _, report = quantized(model, IMAGES, op_types=("ConvTranspose",))
    assert report.changed == ("up",)


def test_an_operator_that_is_not_quantized_by_itself_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'Relu'.*Known: Conv, ConvTranspose, Gemm, MatMul"):
        quantized(bottleneck(), IMAGES, op_types=("Relu",))


def test_observed_tensors_serve_every_dialect_and_exclusion() -> None:
    assert observed_tensors(bottleneck()) == ("x", "r0", "r1", "c2", "r2", "p", "f")
