from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from small_nets import copied, net, operators, relative_error, run, shipped, values

from workbench.errors import TransformError
from workbench.graph import smooth
from workbench.graph.editing import Context
from workbench.graph.smooth import smoothed_tensors
from workbench.recipes import SmoothQuant
from workbench.transformation.observing import channel_maxima

# Each constant and each product is rounded once more; scales reach some tens.
ROUNDING = 1e-5
OUTLIERS = np.where(np.arange(16) % 5 == 0, 40.0, 1.0).astype(np.float32)
G, V, W = values((16,), 1) * OUTLIERS, values((16, 16), 2), values((16, 8), 3)
FEEDS = {"x": values((40, 16), 7)}


def activations(model: onnx.ModelProto, names: list[str], feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    exposed = copied(model)
    known = {value.name for value in exposed.graph.output}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    return {**run(onnx.shape_inference.infer_shapes(exposed), feeds), **feeds}


def smoothed(model: onnx.ModelProto, feeds: dict[str, np.ndarray] = FEEDS, dialect: str = "ort-cpu", **options):
    step = SmoothQuant(**options)
    names = smoothed_tensors(model, step, Context(dialect=dialect))
    maxima = channel_maxima(copied(model), names, feeds)
    report = smooth.apply(model, step, Context(dialect=dialect, channel_maxima=maxima))
    onnx.checker.check_model(model, full_check=True)
    return report, maxima


MAKERS = {
    "LayerNormalization": "a = LayerNormalization (x, g, b)",
    "constant Mul": "a = Mul (x, g)",
    "constant Mul and Add": "m = Mul (g, x)  a = Add (m, b)",
    "MatMul": "a = MatMul (x, v)",
    "Gemm": "a = Gemm <alpha: float = 2.0, transB: int = 1> (x, v, b)",
}
CONSTANTS = {"g": G, "b": values((16,), 4), "v": V * OUTLIERS}


@pytest.mark.parametrize("maker", MAKERS)
def test_outputs_stay_the_same_and_the_division_goes_into_what_makes_the_activation(maker: str) -> None:
    text = f"(float[N,16] x) => (float[N,8] y) {{ {MAKERS[maker]}  y = MatMul (a, w) }}"
    used = {name: CONSTANTS[name] for name in re.findall(r"\b[gbv]\b", MAKERS[maker])}
    model = net(text, w=W, **used)
    before, want = operators(model), run(model, FEEDS)["y"]

    report, _ = smoothed(model, exclude=("_0$",))

    assert operators(model) == before
    assert relative_error(run(model, FEEDS)["y"], want) < ROUNDING
    activation = report.details["activations"]["a_smoothed"]
    assert activation["was"] == "a" and activation["into"] == model.graph.node[-2].name
    assert activation["largest_scale"] > 2


def test_the_outliers_of_an_activation_shrink_by_the_published_factor() -> None:
    model = net(f"(float[N,16] x) => (float[N,8] y) {{ {MAKERS['LayerNormalization']}  y = MatMul (a, w) }}", w=W, **{
        name: CONSTANTS[name] for name in "gb"})  # fmt: skip
    _, maxima = smoothed(model, alpha=0.5)
    after = np.abs(activations(model, ["a_smoothed"], FEEDS)["a_smoothed"]).max(axis=0)
    scale = np.sqrt(maxima["a"] / np.abs(W).max(axis=1))
    np.testing.assert_allclose(after, maxima["a"] / scale, rtol=1e-4)
    assert after.max() / np.median(after) < maxima["a"].max() / np.median(maxima["a"])


def test_an_activation_that_others_read_gets_a_mul_of_its_own() -> None:
    text = """(float[N,16] x) => (float[N,16] y) {
        a = LayerNormalization (x, g)
        m = MatMul (a, v)
        y = Add (m, a)
    }"""
    model = net(text, g=G, v=V)
    want = run(model, FEEDS)["y"]
    report, _ = smoothed(model)
    assert operators(model) == ["LayerNormalization", "Mul", "MatMul", "Add"]
    assert (report.details["folded"], report.details["multiplied"]) == (0, 1)
    assert relative_error(run(model, FEEDS)["y"], want) < ROUNDING


def test_layers_that_read_one_activation_share_its_scale_and_chains_are_smoothed_on_both_sides() -> None:
    text = """(float[N,16] x) => (float[N,8] y) {
        a = LayerNormalization (x, g)
        q = MatMul (a, v)
        k = Gemm <transB: int = 1> (a, u)
        s = Mul (q, k)
        t = MatMul (s, z)
        y = MatMul (t, w)
    }"""
    model = net(text, g=G, v=V, u=values((16, 16), 5), z=values((16, 16), 6), w=W)
    want = run(model, FEEDS)["y"]
    report, _ = smoothed(model)
    assert list(report.details["activations"]) == ["a_smoothed", "s_smoothed", "t_smoothed"]
    assert report.changed == ("MatMul_1", "Gemm_2", "MatMul_4", "MatMul_5")
    assert relative_error(run(model, FEEDS)["y"], want) < ROUNDING


def test_alpha_zero_evens_the_weights_and_alpha_one_the_activations() -> None:
    text = f"(float[N,16] x) => (float[N,8] y) {{ {MAKERS['constant Mul']}  y = MatMul (a, w) }}"
    evened = net(text, g=G, w=W)
    smoothed(evened, alpha=0.0)
    weight = onnx.numpy_helper.to_array(next(t for t in evened.graph.initializer if t.name == "w"))
    np.testing.assert_allclose(np.abs(weight).max(axis=1), 1.0, rtol=1e-5)
    flat = net(text, g=G, w=W)
    smoothed(flat, alpha=1.0)
    np.testing.assert_allclose(
        np.abs(activations(flat, ["a_smoothed"], FEEDS)["a_smoothed"]).max(axis=0), 1.0, rtol=1e-5
    )


def test_dead_channels_are_left_alone() -> None:
    feeds = {"x": FEEDS["x"] * (np.arange(16) != 3)}
    weight = W.copy()
    weight[5] = 0
    model = net("(float[N,16] x) => (float[N,8] y) { y = MatMul (x, w) }", w=weight)
    want = run(model, feeds)["y"]
    smoothed(model, feeds)
    factor = onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if "smoothing" in t.name))
    assert factor[3] == factor[5] == 1 and np.isfinite(factor).all()
    assert relative_error(run(model, feeds)["y"], want) < ROUNDING


def test_layers_that_cannot_or_shall_not_be_smoothed_are_reported() -> None:
    text = """(float[N,16] x, float[16,16] r) => (float[N,16] y) {
        a = MatMul (x, v)
        b = MatMul (a, v)
        c = MatMul (b, r)
        d = MatMul (c, named)
        e = Gemm <transA: int = 1> (d, u)
        f = MatMul (k, t)
        y = Add (e, f)
    }"""
    model = net(text, v=V, named=V, u=values((1, 16), 5), k=values((1, 16), 8), t=values((16, 16), 9))
    report = smooth.apply(model, SmoothQuant(exclude=("MatMul_3",)), Context())
    reasons = {skipped.name: skipped.reason for skipped in report.skipped}
    assert "other readers" in reasons["MatMul_0"] and "not constant" in reasons["MatMul_2"]
    assert (
        "pattern" in reasons["MatMul_3"] and "transposed" in reasons["Gemm_4"] and "is constant" in reasons["MatMul_5"]
    )
    assert "could be smoothed" in report.notes[0]


def test_missing_or_wrong_channel_maxima_are_errors() -> None:
    model = net("(float[N,16] x) => (float[N,8] y) { y = MatMul (x, w) }", w=W)
    with pytest.raises(TransformError, match="needs the channel maxima of 'x'"):
        smooth.apply(model, SmoothQuant(), Context())
    with pytest.raises(TransformError, match="have 4 channels"):
        smooth.apply(model, SmoothQuant(), Context(channel_maxima={"x": np.ones(4)}))


def test_the_shipped_vit_keeps_its_logits() -> None:
    model = shipped("digits_vit")
    value = model.graph.input[0]
    shape = tuple(axis.dim_value or 4 for axis in value.type.tensor_type.shape.dim)
    feeds = {value.name: np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)}
    want = next(iter(run(model, feeds).values()))
    report, _ = smoothed(model, feeds)
    assert report.details["folded"] >= 8
    assert relative_error(next(iter(run(model, feeds).values())), want) < ROUNDING


ATTENTION = """(float[N,4,16] x, float[N,2,4,4] p) => (float[N,4,8] y) {
    v = MatMul (x, w)
    b = Add (v, bias)
    r = Reshape (b, split)
    t = Transpose <perm: ints = [0, 2, 1, 3]> (r)
    s = Softmax (p)
    c = MatMul (s, t)
    u = Transpose <perm: ints = [0, 2, 1, 3]> (c)
    m = Reshape (u, join)
    y = MatMul (m, z)
}"""
HEADS = {"split": np.array([-1, 4, 2, 8]), "join": np.array([-1, 4, 16])}
ATTENTION_FEEDS = {"x": values((5, 4, 16), 7), "p": values((5, 2, 4, 4), 8)}


def attention_net(text: str = ATTENTION, **constants: np.ndarray) -> onnx.ModelProto:
    return net(text, w=V * OUTLIERS, bias=values((16,), 4), z=W, **{**HEADS, **constants})


@pytest.mark.parametrize("dialect", ["ort-cpu", "trt-8.6", "strong"])
def test_the_division_of_an_attentions_result_goes_into_the_projection_of_its_values(dialect: str) -> None:
    model = attention_net()
    before, want = operators(model), run(model, ATTENTION_FEEDS)["y"]
    report, maxima = smoothed(model, ATTENTION_FEEDS, dialect=dialect, exclude=("^MatMul_0$",))
    assert operators(model) == before and report.details["folded"] == 1
    assert relative_error(run(model, ATTENTION_FEEDS)["y"], want) < ROUNDING
    found = report.details["activations"]["m_smoothed"]
    assert found["was"] == "m" and found["into"] == "Add_1" and found["largest_scale"] > 2
    # The channels are those of the result, head by head, not of the values in another order.
    after = np.abs(activations(model, ["m_smoothed"], ATTENTION_FEEDS)["m_smoothed"]).max(axis=(0, 1))
    scale = np.sqrt(maxima["m"] / np.abs(W).max(axis=1))
    np.testing.assert_allclose(after, maxima["m"] / scale, rtol=1e-4)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("y = MatMul (m, z)", "k = Relu (b)  y = MatMul (m, z)"),  # another reader of the values
        (
            "t = Transpose <perm: ints = [0, 2, 1, 3]> (r)",
            "a = Transpose <perm: ints = [0, 2, 1, 3]> (r)  t = Relu (a)",
        ),
        ("b = Add (v, bias)", "b = Relu (v)"),
    ],
)
def test_where_the_values_cannot_be_divided_tensorrt_keeps_its_fused_attention(old: str, new: str) -> None:
    text = ATTENTION.replace(old, new)
    assert text != ATTENTION
    for_tensorrt, for_cpu = attention_net(text), attention_net(text)
    before = operators(for_tensorrt)
    report, _ = smoothed(for_tensorrt, ATTENTION_FEEDS, dialect="strong", exclude=("^MatMul_0$",))
    assert operators(for_tensorrt) == before
    assert "one kernel" in next(item.reason for item in report.skipped if "attention" in item.reason)
    report, _ = smoothed(for_cpu, ATTENTION_FEEDS)
    assert report.details["activations"]["m_smoothed"]["into"] == "m/smooth"


def test_channels_whose_order_cannot_be_told_are_not_divided_in_the_values() -> None:
    # Four heads of four, split off along another axis than they are put together on.
    text = ATTENTION.replace("float[N,2,4,4] p", "float[N,4,4,4] p").replace("[0, 2, 1, 3]> (r)", "[0, 2, 3, 1]> (r)")
    feeds = {"x": ATTENTION_FEEDS["x"], "p": values((5, 4, 4, 4), 8)}
    model = attention_net(text, split=np.array([-1, 4, 4, 4]))
    want = run(model, feeds)["y"]
    report, _ = smoothed(model, feeds)
    assert report.details["activations"]["m_smoothed"]["into"] == "m/smooth"
    assert relative_error(run(model, feeds)["y"], want) < ROUNDING
