"""Nets in which the reason for lost time is known by construction: it is named first, and not for the twin without it.

Ratios are large: what is planted takes several times what anything else that is wrong does. Yet each explanation measures, and
whatever else this machine does for a second may take as long: a test that failed is asked again, at most twice.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from planted import Pairs
from small_nets import net, values

from workbench.explaining.explanation import Explanation

pytestmark = pytest.mark.flaky(reruns=2)
IMAGES = values((16, 32, 28, 28), 9)


def kinds(found: Explanation) -> list[str]:
    return [reason.kind for reason in found.reasons]


def conv(index: int, source: str, target: str, extra: str = "") -> str:
    return f"[c{index}] {target} = Conv<pads = [1,1,1,1]{extra}>({source}, w{index})"


def weights(count: int, channels: int = 32, first: int | None = None) -> dict[str, np.ndarray]:
    found = {f"w{index}": values((channels, channels, 3, 3), index, 0.06) for index in range(count)}
    if first is not None:
        found["w0"] = values((channels, first, 3, 3), 0, 0.3)
    return found


def activated(operator: str) -> onnx.ModelProto:
    """Three convolutions with activations, and a pool behind them, so that all of them can be quantized."""
    return net(
        f"""(float[N,32,28,28] x) => (float[N,32,1,1] y) {{
            {conv(0, "x", "a0")} [r0] a = {operator}(a0)
            {conv(1, "a", "b0")} [r1] b = {operator}(b0)
            {conv(2, "b", "c0")} [r2] c = {operator}(c0)
            [pool] y = GlobalAveragePool(c)
        }}""",
        **weights(3),
    )


def residual() -> onnx.ModelProto:
    return net(
        f"""(float[N,32,28,28] x) => (float[N,32,28,28] y) {{
            {conv(0, "x", "a0")} [r0] a = Relu(a0)
            {conv(1, "a", "b0")} [r1] b = Relu(b0)
            {conv(2, "b", "c")}
            [add] d0 = Add(c, a) [r2] d = Relu(d0)
            {conv(3, "d", "e")}
            [pool] y = MaxPool<kernel_shape = [3,3], pads = [1,1,1,1]>(e)
        }}""",
        **weights(4),
    )


def attention(middle: str) -> onnx.ModelProto:
    return net(
        f"""(float[N,64,64] x) => (float[N,64,64] y) {{
            [m0] a = MatMul(x, w0) [middle] b = {middle}(a) [m1] c = MatMul(b, w1) [r] d = Relu(c) [m2] y = MatMul(d, w2)
        }}""",
        **{f"w{index}": values((64, 64), index, 0.2) for index in range(3)},
    )


def test_a_skip_branch_without_a_pair_is_named_first(explain) -> None:
    found = explain(residual(), Pairs("xabcde", readers={"a": ["c1"]}), IMAGES)
    assert found.main.kind == "skip_without_pair"
    assert "add" in found.main.nodes and "c0" in found.main.sentence
    assert found.main.share > 0.3, "the convolution that had to stay in FP32 takes several times a quantized one"


def test_a_skip_branch_with_a_pair_is_not(explain) -> None:
    assert "skip_without_pair" not in kinds(explain(residual(), Pairs("xabcde"), IMAGES))


def test_pairs_between_products_and_their_activations_are_named_first(explain) -> None:
    tensors = ["x", "a0", "a", "b0", "b", "c0", "c"]
    found = explain(activated("Relu"), Pairs(tensors, scales={"a0": 0.03, "b0": 0.03, "c0": 0.03}), IMAGES)
    assert found.main.kind == "pair_between"
    assert "c0 and r0" in found.main.sentence


def test_pairs_behind_the_activations_are_not(explain) -> None:
    found = explain(activated("Relu"), Pairs(["x", "a", "b", "c"]), IMAGES)
    assert not {"pair_between", "fallback"} & set(kinds(found))


def test_an_operator_without_an_integer_kernel_falls_back_and_is_named_first(explain) -> None:
    found = explain(activated("Elu"), Pairs(["x", "a0", "a", "b0", "b", "c0", "c"]), IMAGES)
    assert found.main.kind == "fallback"
    assert {"r0", "r1", "r2"} <= set(found.main.nodes)
    assert "Elu" in found.main.sentence


def test_a_product_whose_result_stays_in_floating_point_falls_back_for_a_reason(explain) -> None:
    parent = net(
        f"(float[N,32,28,28] x) => (float[N,32,28,28] y) {{ {conv(0, 'x', 'a0')} [r] a = Relu(a0) {conv(1, 'a', 'y')} }}",
        **weights(2),
    )
    found = explain(parent, Pairs("xa"), IMAGES)
    assert found.main.kind == "fallback"
    assert found.main.nodes[-1] == "c1" or "c1" in found.main.nodes
    assert "an output of the model" in found.main.sentence


def test_a_softmax_left_in_fp32_between_quantized_products_is_named_first(explain) -> None:
    found = explain(attention("Softmax"), Pairs("xbd"), values((8, 64, 64), 9), batch=8)
    assert found.main.kind == "float_island"
    assert "middle (Softmax)" in found.main.sentence


def test_a_relu_in_its_place_is_part_of_the_kernel_and_is_not(explain) -> None:
    assert "float_island" not in kinds(explain(attention("Relu"), Pairs("xbd"), values((8, 64, 64), 9), batch=8))


def test_a_softmax_behind_a_convolution_drags_it_into_fp32_and_is_the_one_that_is_named(explain) -> None:
    """ONNX Runtime's integer convolution gives codes only: what reads its result in floating point keeps it there."""
    parent = net(
        f"""(float[N,32,28,28] x) => (float[N,32,1,1] y) {{
            {conv(0, "x", "a")} [middle] b = Softmax<axis = 1>(a)
            {conv(1, "b", "c0")} [r] c = Relu(c0) [pool] y = GlobalAveragePool(c)
        }}""",
        **weights(2),
    )
    found = explain(parent, Pairs("xbc"), IMAGES)
    assert found.main.kind == "float_island"
    assert {"middle", "c0"} <= set(found.main.nodes)
    assert "c0 had to be computed in FP32 for that" in found.main.sentence


def test_an_integer_softmax_that_is_slower_than_fp32_is_a_slow_kernel(explain) -> None:
    found = explain(attention("Softmax"), Pairs("xabd"), values((8, 64, 64), 9), batch=8)
    assert found.main.kind == "slow_kernel"
    assert found.main.layers[0] == "middle"
    assert any(advice.change == "keep" and "middle" in advice.names for advice in found.main.advice)


def joined() -> onnx.ModelProto:
    """Two thin branches, joined: the join itself is a good part of the work."""
    return net(
        """(float[N,32,28,28] x) => (float[N,128,1,1] y) {
            [c0] a = Conv(x, w0) [c1] b = Conv(x, w1)
            [join] c = Concat<axis = 1>(a, b)
            [pool] y = GlobalAveragePool(c)
        }""",
        w0=values((64, 32, 1, 1), 0, 0.2),
        w1=values((64, 32, 1, 1), 1, 0.2),
    )


def test_a_concat_of_unequal_scales_is_named_first(explain) -> None:
    found = explain(joined(), Pairs("xabc", scales={"a": 0.05, "b": 0.04, "c": 0.06}), IMAGES)
    assert found.about("time")[0].kind == "concat_scales"
    assert "0.05, 0.04 into 0.06" in found.about("time")[0].sentence


def test_a_concat_of_equal_scales_is_not(explain) -> None:
    found = explain(joined(), Pairs("xabc", scales=dict.fromkeys("abc", 0.05)), IMAGES)
    assert "concat_scales" not in kinds(found)


def first_layer(inputs: int, outputs: int) -> onnx.ModelProto:
    return net(
        f"""(float[N,{inputs},96,96] x) => (float[N,{outputs},48,48] y) {{
            [c0] a0 = Conv<pads = [1,1,1,1]>(x, w0) [r0] a = Relu(a0)
            [pool] y = MaxPool<kernel_shape = [2,2], strides = [2,2]>(a)
        }}""",
        w0=values((outputs, inputs, 3, 3), 0, 0.3),
    )


def test_a_convolution_of_few_channels_is_named_first(explain) -> None:
    found = explain(first_layer(1, 8), Pairs("xa"), values((8, 1, 96, 96), 9))
    assert found.main.kind == "few_channels"
    assert "8 output channels, 9 products a value" in found.main.sentence


def test_a_convolution_of_many_channels_is_not(explain) -> None:
    assert "few_channels" not in kinds(explain(first_layer(64, 64), Pairs("xa"), values((4, 64, 96, 96), 9)))


WIDE = 3072  # nine million bytes of weights a product, more than the caches of a core hold


def matrix(rows: int) -> onnx.ModelProto:
    return net(
        f"(float[{rows},{WIDE}] x) => (float[{rows},{WIDE}] y) {{ [m0] a = MatMul(x, w0) [m1] y = MatMul(a, w1) }}",
        **{f"w{index}": values((WIDE, WIDE), index, 0.02) for index in range(2)},
    )


@pytest.mark.parametrize(("rows", "expected"), [(1, True), (128, False)])
def test_products_with_one_row_are_bound_by_their_weights_and_those_with_many_are_not(explain, rows, expected) -> None:
    found = explain(matrix(rows), Pairs("xa"), values((rows, WIDE), 9), batch=rows)
    assert ("weight_bound" in kinds(found)) is expected
    assert (found.main is not None and found.main.kind == "weight_bound") is expected


def chain(size: int, length: int) -> onnx.ModelProto:
    text = " ".join(f"[m{index}] t{index + 1} = MatMul(t{index}, w{index})" for index in range(length - 1))
    text = text.replace("(t0,", "(x,") + f" [last] y = MatMul(t{length - 1}, w{length - 1})"
    return net(
        f"(float[N,{size}] x) => (float[N,{size}] y) {{ {text} }}",
        **{f"w{index}": values((size, size), index, size**-0.5) for index in range(length)},
    )


@pytest.mark.parametrize(("size", "expected"), [(8, True), (512, False)])
def test_a_graph_that_is_all_launches_is_named_so_and_one_of_work_is_not(explain, size: int, expected: bool) -> None:
    tensors = ["x", *(f"t{index}" for index in range(1, 24))]
    found = explain(chain(size, 24), Pairs(tensors), values((64, size), 9), batch=64 if size > 8 else 1)
    # Which of a tiny call's reasons weighs most is this machine's matter; test_recorded.py has the order on a fixed profile.
    assert ("launch_bound" in kinds(found)) is expected


def turned(perm: str, back: str) -> onnx.ModelProto:
    """Small products with the axes turned to and fro around them."""
    return net(
        f"""(float[N,64,96,32] x) => (float[N,64,96,32] y) {{
            [to0] a0 = Transpose<perm = {perm}>(x) [r0] a = Relu(a0) [m0] b0 = MatMul(a, w0)
            [to1] b = Transpose<perm = {back}>(b0) [r1] c = Relu(b) [m1] y = MatMul(c, w1)
        }}""",
        w0=values((64 if "3,1]" in perm else 32,) * 2, 0, 0.2),
        w1=values((32, 32), 1, 0.2),
    )


def test_turning_axes_around_small_products_is_named_first(explain) -> None:
    x = values((4, 64, 96, 32), 9)
    # The input is turned in FP32, before its codes: turning bytes is so cheap that making them can cost more.
    found = explain(turned("[0,2,3,1]", "[0,3,1,2]"), Pairs("ac"), x)
    assert found.main.kind == "layout"


def test_without_turns_there_is_no_change_of_layout(explain) -> None:
    parent = net(
        "(float[N,64,96,32] x) => (float[N,64,96,32] y) { [r0] a = Relu(x) [m0] b = MatMul(a, w0) [m1] y = MatMul(b, w1) }",
        w0=values((32, 32), 0, 0.2),
        w1=values((32, 32), 1, 0.2),
    )
    assert "layout" not in kinds(explain(parent, Pairs("ab"), values((4, 64, 96, 32), 9)))


def test_layers_left_in_floating_point_are_named_with_their_share_of_the_work(explain) -> None:
    found = explain(activated("Relu"), Pairs(["x"], unweighted=["c1", "c2"]), IMAGES)
    assert "left_in_float" in kinds(found)
    reason = next(reason for reason in found.reasons if reason.kind == "left_in_float")
    assert {"c1", "c2"} <= set(reason.nodes)
