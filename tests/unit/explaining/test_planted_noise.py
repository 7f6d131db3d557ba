"""Nets in which the reason for lost accuracy is known by construction: it is named first, and not for the twin without it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from planted import Pairs, quantized
from small_nets import copied, net, values

from workbench.explaining.explanation import Explanation, explanation
from workbench.machine import device

X = values((32, 16, 12, 12), 9)


def kinds(found: Explanation) -> list[str]:
    return [reason.kind for reason in found.reasons]


def plain(**weights: np.ndarray) -> onnx.ModelProto:
    given = {f"w{index}": values((16, 16, 3, 3), index, 0.1) for index in range(2)}
    return net(
        """(float[N,16,12,12] x) => (float[N,16,1,1] y) {
            [c0] a = Conv<pads = [1,1,1,1]>(x, w0)
            [c1] b = Conv<pads = [1,1,1,1]>(a, w1)
            [pool] y = GlobalAveragePool(b)
        }""",
        **{**given, **weights},
    )


def with_outlier(factor: float) -> onnx.ModelProto:
    """The same function whatever the factor: channel 5 is larger behind c0, and c1 takes it back."""
    first, second = values((16, 16, 3, 3), 0, 0.1), values((16, 16, 3, 3), 1, 0.1)
    first[5] *= factor
    second[:, 5] /= factor
    return plain(w0=first, w1=second)


def test_a_layer_with_one_outlier_channel_is_named_first(explain) -> None:
    found = explain(with_outlier(400.0), Pairs("xab"), X)
    assert found.main.kind == "outlier_channel"
    assert found.main.tensors == ("a",)
    assert "channel 5 is" in found.main.sentence
    assert [advice.change for advice in found.main.advice] == ["keep"], "SmoothQuant smooths no convolutions"
    assert found.main.advice[0].names == ("c0", "c1"), "codes are all that an integer c0 writes"


def test_float8_has_codes_for_small_channels_beside_a_large_one_until_they_leave_its_range(explain) -> None:
    pairs = Pairs("xab", float8=True)
    assert "outlier_channel" not in kinds(explain(with_outlier(400.0), pairs, X))
    found = explain(with_outlier(2e6), pairs, X)
    assert found.evidence.precision == "fp8"
    assert (found.about("accuracy")[0].kind, found.about("accuracy")[0].tensors) == ("outlier_channel", ("a",))


def test_float8_that_cuts_values_off_is_named_and_the_twin_is_not(explain) -> None:
    found = explain(plain(), Pairs("xab", float8=True, scales={"a": 0.2 / 448}), X)
    assert (found.about("accuracy")[0].kind, found.about("accuracy")[0].tensors) == ("clip", ("a",))
    assert found.about("accuracy")[0].advice[0].value == "max"
    assert not {"clip", "wide_range", "outlier_channel"} & set(kinds(explain(plain(), Pairs("xab", float8=True), X)))


def with_outlier_along_a_line(factor: float) -> onnx.ModelProto:
    """Convolutions over (samples, channels, time): the channels are not on the last axis."""
    first, second = values((16, 16, 3), 0, 0.2), values((16, 16, 3), 1, 0.2)
    first[5] *= factor
    second[:, 5] /= factor
    return net(
        """(float[N,16,40] x) => (float[N,16,1] y) {
            [c0] a = Conv<pads = [1,1]>(x, w0)
            [c1] b = Conv<pads = [1,1]>(a, w1)
            [pool] y = GlobalAveragePool(b)
        }""",
        w0=first,
        w1=second,
    )


def with_outlier_behind_heads(factor: float) -> onnx.ModelProto:
    """Products over (samples, heads, places, channels): the channels are not on the second axis."""
    return with_outlier_between_products(factor, "4,10", 32)


@pytest.mark.parametrize(
    ("made", "pairs", "shape"),
    [(with_outlier_along_a_line, "xab", (32, 16, 40)), (with_outlier_behind_heads, "xa", (16, 4, 10, 32))],
)
def test_channels_are_where_the_products_have_them(explain, made, pairs: str, shape: tuple[int, ...]) -> None:
    reason = explain(made(400.0), Pairs(pairs), values(shape, 9)).about("accuracy")[0]
    assert (reason.kind, reason.tensors) == ("outlier_channel", ("a",))
    assert "channel 5 is" in reason.sentence
    assert "outlier_channel" not in kinds(explain(made(1.0), Pairs(pairs), values(shape, 9)))


def with_outlier_between_products(factor: float, places: str = "64", channels: int = 64) -> onnx.ModelProto:
    first, second = values((channels, channels), 0, 0.2), values((channels, channels), 1, 0.2)
    first[:, 5] *= factor
    second[5] /= factor
    shape = f"float[N,{places},{channels}]"
    return net(
        f"({shape} x) => ({shape} y) {{ [m0] a = MatMul(x, w0) [m1] y = MatMul(a, w1) }}",
        w0=first,
        w1=second,
    )


@pytest.mark.parametrize(("factor", "expected"), [(400.0, True), (1.0, False)])
def test_an_outlier_between_products_suggests_smoothing(explain, factor: float, expected: bool) -> None:
    found = explain(with_outlier_between_products(factor), Pairs("xa"), values((16, 64, 64), 9))
    assert ("outlier_channel" in kinds(found)) is expected
    assert any(advice.change == "smooth" for advice in found.advice) is expected


def test_the_same_function_without_the_outlier_is_not(explain) -> None:
    assert "outlier_channel" not in kinds(explain(with_outlier(1.0), Pairs("xab"), X))


def test_a_weight_whose_one_large_channel_sets_the_scale_of_all_is_named_first(explain) -> None:
    first = values((16, 16, 3, 3), 0, 0.1)
    first[3] *= 300.0
    second = values((16, 16, 3, 3), 1, 0.1)
    second[:, 3] /= 300.0
    # The activation behind it keeps a fine scale, so that only the weight is to blame.
    pairs = Pairs(["x"], per_channel=False, unweighted=["c1"])
    found = explain(plain(w0=first, w1=second), pairs, X)
    assert (found.main.kind, found.main.tensors) == ("outlier_channel", ("w0",))
    assert any(advice.change == "per_channel" for advice in found.main.advice)
    assert "outlier_channel" not in kinds(explain(plain(w0=first, w1=second), replace(pairs, per_channel=True), X))


def test_a_clip_of_the_input_is_named_first(explain) -> None:
    found = explain(plain(), Pairs("xab", scales={"x": 0.004}), X)
    assert found.main.kind == "clip"
    assert found.main.tensors == ("x",)
    share = float(np.mean(np.abs(X) > 127.5 * 0.004))
    assert f"{share:.0%} of its values lie beyond" in found.main.sentence, "counted here independently"
    assert any((advice.change, advice.value) == ("calibrator", "max") for advice in found.main.advice)


def test_clips_that_hide_each_other_are_named_together(explain) -> None:
    """Where every tensor of a chain clips, leaving one of them in FP32 mends little."""
    found = explain(plain(), Pairs("xab", scales={"x": 0.004, "a": 0.004, "b": 0.004}), X)
    assert all((fact.noise_share or 0.0) < 0.2 for fact in found.evidence.noise.tensors)
    assert found.main.kind == "clip"
    assert set(found.main.tensors) == {"x", "a", "b"}
    assert found.main.share > 0.9


def test_a_range_that_holds_the_input_is_not(explain) -> None:
    assert "clip" not in kinds(explain(plain(), Pairs("xab"), X))


def branches(factor: float) -> onnx.ModelProto:
    """Two branches into one Concat; what the second is scaled by, the next layer takes back."""
    weights = {f"w{index}": values((16, 16, 3, 3), index, 0.1) for index in range(2)}
    after = values((16, 32, 3, 3), 2, 0.1)
    weights["w1"] = weights["w1"] * factor
    after[:, 16:] /= factor
    return net(
        """(float[N,16,12,12] x) => (float[N,16,1,1] y) {
            [c0] a = Conv<pads = [1,1,1,1]>(x, w0)
            [c1] b = Conv<pads = [1,1,1,1]>(x, w1)
            [join] c = Concat<axis = 1>(a, b)
            [c2] d = Conv<pads = [1,1,1,1]>(c, w2)
            [pool] y = GlobalAveragePool(d)
        }""",
        **weights,
        w2=after,
    )


def test_a_concat_whose_one_branch_is_far_smaller_is_named_first(explain) -> None:
    parent = branches(300.0)
    found = explain(parent, quantized(parent, {"x": X}, Pairs("xabcd")), X)
    assert found.about("accuracy")[0].kind == "concat_scales"
    assert found.main.aspect == "accuracy", "answers suffer, so this comes before any time"
    assert found.main.nodes == ("join",)


def test_a_concat_of_branches_alike_is_not(explain) -> None:
    found = explain(branches(1.0), Pairs("xabcd", scales=dict.fromkeys("abc", 0.05)), X)
    assert "concat_scales" not in kinds(found)


def test_where_answers_hardly_suffer_time_comes_first(explain) -> None:
    found = explain(plain(), Pairs("xab"), X)
    assert found.evidence.noise.file_nsr < 0.01
    assert not found.reasons or found.main.aspect == "time"


def test_an_engine_that_is_worse_than_its_file_saturates(explain) -> None:
    """By recorded evidence: whether this CPU's kernels saturate is not for a test to choose."""
    found = explain(plain(), Pairs("xab"), X)
    assert "saturation" not in kinds(found)
    noise = replace(found.evidence.noise, engine_nsr=0.2)
    told = explanation("recorded", replace(found.evidence, noise=noise))
    assert told.main.kind == "saturation"
    assert "7.0 dB against" in told.main.sentence
    assert "integer kernels" in told.main.sentence and told.main.advice[0].change == "range"
    float8 = explanation("recorded", replace(found.evidence, noise=noise, precision="fp8")).about("accuracy")[0]
    assert "integer" not in float8.sentence and float8.advice == (), "no range of weights mends that"


@pytest.mark.skipif(not device.int8().saturates, reason="this CPU adds products of bytes in 32 bits")
def test_full_eight_bit_weights_saturate_on_a_cpu_without_vnni(explain) -> None:
    # Sums of two products only leave 16 bits where both factors are large: inputs in the upper third of their codes.
    parent, high = (
        plain(w0=np.full((16, 16, 3, 3), 0.1, np.float32)),
        (0.7 + 0.3 * np.abs(np.sin(X))).astype(np.float32),
    )
    variant = copied(quantized(parent, {"x": high}, Pairs("xab")))
    for tensor in variant.graph.initializer:
        if tensor.name == "w0_codes":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full((16, 16, 3, 3), 127, np.int8), "w0_codes"))
        if tensor.name == "w0_scale":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(16, 0.1 / 127, np.float32), "w0_scale"))
    assert explain(parent, variant, high).main.kind == "saturation"
