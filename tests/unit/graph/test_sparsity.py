from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import net, run, shipped, values

from workbench.graph import sparsity
from workbench.graph.editing import Context
from workbench.graph.sparsity import is_2_4, prune_2_4
from workbench.recipes import Sparsify


def prune(model: onnx.ModelProto, **options):
    report = sparsity.apply(model, Sparsify(**options), Context())
    onnx.checker.check_model(model, full_check=True)
    return report


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 2))
def test_pruning_keeps_the_two_largest_of_every_four_and_no_other_value_changes(seed: int, axis: int) -> None:
    shape = [3, 5, 2]
    shape[axis] = 8
    weight = values(tuple(shape), seed)
    pruned = prune_2_4(weight, axis)
    assert is_2_4(pruned, axis) and np.array_equal(pruned, prune_2_4(weight, axis - 3))
    assert np.array_equal(pruned[pruned != 0], weight[pruned != 0])
    four = np.moveaxis(weight, axis, -1)[0, 0, :4]
    kept = np.moveaxis(pruned, axis, -1)[0, 0, :4]
    assert set(np.flatnonzero(kept)) == set(np.argsort(np.abs(four))[2:])


def test_of_equal_magnitudes_the_earlier_are_pruned() -> None:
    np.testing.assert_array_equal(prune_2_4(np.array([1.0, -1.0, 1.0, 1.0]), 0), [0, 0, 1, 1])


def test_dense_weights_and_axes_that_do_not_divide_are_not_2_4() -> None:
    assert not is_2_4(np.ones((4, 4)), 0)
    assert not is_2_4(np.zeros((6, 4)), 0) and is_2_4(np.zeros((6, 4)), 1)


def test_conv_is_pruned_along_its_input_channels_at_every_kernel_position() -> None:
    text = "(float[N,8,9,9] x) => (float[N,6,H,W] y) { y = Conv (x, w) }"
    model = net(text, w=values((6, 8, 3, 3)))
    report = prune(model)
    weight = weights(model)["w"]
    assert is_2_4(weight, 1) and not is_2_4(weight.reshape(6, -1), 1)
    dense = values((6, 8, 3, 3)).astype(np.float64)
    layer = report.details["layers"]["Conv_0"]
    assert layer["zeroed"] == report.details["zeroed"] == 0.5
    assert layer["energy_removed"] == pytest.approx(1 - (weight.astype(np.float64) ** 2).sum() / (dense**2).sum())
    assert 0 < layer["energy_removed"] < 0.3


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_and_matmul_are_pruned_along_the_axis_that_is_summed(transposed: int) -> None:
    text = f"""(float[N,8] x) => (float[N,5] y) {{
        g = Gemm <transB: int = {transposed}> (x, w)
        y = MatMul (g, v)
    }}"""
    model = net(text, w=values((12, 8) if transposed else (8, 12)), v=values((12, 5)))
    prune(model)
    assert is_2_4(weights(model)["w"], 1 if transposed else 0) and is_2_4(weights(model)["v"], 0)


def test_layers_that_cannot_or_shall_not_be_pruned_are_reported() -> None:
    text = """(float[N,8,3,3] x, float[8,4] v) => (float[N,4] y) {
        d = Conv <group: int = 8> (x, depthwise)
        e = Conv (d, named)
        f = Flatten (e)
        g = Gemm (f, odd)
        y = MatMul (g, v)
    }"""
    parameters = {"depthwise": values((8, 1, 3, 3)), "named": values((6, 8, 1, 1)), "odd": values((6, 8))}
    report = prune(net(text, **parameters), exclude=("Conv_1",))
    reasons = {skipped.name: skipped.reason for skipped in report.skipped}
    assert "1 input channels" in reasons["Conv_0"] and "pattern 'Conv_1'" in reasons["Conv_1"]
    assert "6 input channels" in reasons["Gemm_3"] and "not constant" in reasons["MatMul_4"]
    assert report.changed == () and "No layer" in report.notes[0]


def test_weights_shared_by_two_layers_stay_shared() -> None:
    model = net("(float[N,4] x) => (float[N,4] y) { a = MatMul (x, w)  y = MatMul (a, w) }", w=values((4, 4)))
    prune(model)
    assert len(model.graph.initializer) == 1
    want = values((2, 4), 1) @ prune_2_4(values((4, 4)), 0) @ prune_2_4(values((4, 4)), 0)
    np.testing.assert_allclose(run(model, {"x": values((2, 4), 1)})["y"], want, rtol=1e-5, atol=1e-6)


def test_the_shipped_resnet_is_pruned_but_for_its_first_convolution() -> None:
    model = shipped("digits_resnet")
    report = prune(model)
    assert [skipped.name for skipped in report.skipped] == ["/conv1/Conv"]
    assert len(report.changed) == 21
