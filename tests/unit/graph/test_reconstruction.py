from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from small_nets import net, run, shipped, values

from workbench.graph import sparsity
from workbench.graph.editing import Context, Graph
from workbench.graph.linear_layers import WeightLayer, weight_layers
from workbench.graph.reconstruction import columns_of, output_error, prune, unfolded
from workbench.graph.sparsity import is_2_4, prune_2_4, reconstructible
from workbench.recipes import Sparsify


def layer_of(model: onnx.ModelProto) -> WeightLayer:
    (layer,) = weight_layers(Graph(model), ("Conv", "Gemm", "MatMul"), (), Context())
    assert isinstance(layer, WeightLayer)
    return layer


def moments_of(layer: WeightLayer, inputs: np.ndarray) -> np.ndarray:
    rows = unfolded(layer, inputs).astype(np.float64)
    return rows.transpose(0, 2, 1) @ rows


CONVOLUTIONS = {
    "plain": ("", (6, 8, 3, 3)),
    "padded": ("<pads = [1,0,2,1], strides = [2,1]>", (6, 8, 3, 3)),
    "dilated": ("<dilations = [2,1], strides = [1,2]>", (6, 8, 3, 2)),
    "grouped": ("<group = 2, pads = [1,1,1,1]>", (6, 4, 3, 3)),
    "same upper": ('<auto_pad = "SAME_UPPER", strides = [2,2]>', (6, 8, 3, 2)),
    "same lower": ('<auto_pad = "SAME_LOWER", strides = [2,2]>', (6, 8, 2, 3)),
    "valid": ('<auto_pad = "VALID">', (6, 8, 3, 3)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_what_a_convolution_multiplies_gives_onnx_runtimes_own_answer(kind: str) -> None:
    attributes, shape = CONVOLUTIONS[kind]
    model = net(f"(float[N,8,H,W] x) => (float[N,6,A,B] y) {{ y = Conv {attributes} (x, w) }}", w=values(shape))
    layer, x = layer_of(model), values((2, 8, 9, 8), 1)
    groups, columns = columns_of(layer)
    rows = np.moveaxis(layer.weight, 1, -1).reshape(groups, -1, columns)
    sums = np.einsum("grk,gok->gor", unfolded(layer, x), rows)
    want = run(model, {"x": x})["y"]
    ours = sums.reshape(6, 2, *want.shape[2:]).swapaxes(0, 1)
    np.testing.assert_allclose(ours, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transposed", [0, 1])
def test_it_takes_the_best_two_and_the_best_weights_where_all_can_be_tried(transposed: int) -> None:
    weight = values((4, 3), 2)
    text = f"(float[N,4] x) => (float[N,3] y) {{ y = Gemm <transB: int = {transposed}> (x, w) }}"
    layer = layer_of(net(text, w=weight.T.copy() if transposed else weight))
    x = values((500, 4), 3) @ values((4, 4), 4)
    found = prune(layer, moments_of(layer, x))
    ours = found.weight.T if transposed else found.weight
    assert is_2_4(found.weight, 1 if transposed else 0)
    for output in range(3):
        target = x @ weight[:, output]
        kept = ours[:, output] != 0
        fitted, *_ = np.linalg.lstsq(x[:, kept], target, rcond=None)
        # With four inputs one pass has no later columns to forget: given the pair, the weights are least squares' own.
        assert (
            np.square(x @ ours[:, output] - target).sum() <= 1.1 * np.square(x[:, kept] @ fitted - target).sum() + 1.0
        )
        losses = []
        for pair in itertools.combinations(range(4), 2):
            best, *_ = np.linalg.lstsq(x[:, pair], target, rcond=None)
            losses.append(np.square(x[:, pair] @ best - target).sum())
        assert np.square(x @ ours[:, output] - target).sum() <= sorted(losses)[3] * 1.1


@pytest.mark.parametrize("kind", ["plain", "grouped"])
def test_outputs_change_less_than_by_magnitude_and_the_error_is_that_of_the_outputs(kind: str) -> None:
    attributes, shape = CONVOLUTIONS[kind]
    model = net(f"(float[N,8,H,W] x) => (float[N,6,A,B] y) {{ y = Conv {attributes} (x, w) }}", w=values(shape))
    layer = layer_of(model)
    # Channels that say much the same, as those of trained networks do: there is something to make up with.
    x = np.einsum("nchw,cd->ndhw", values((16, 2, 8, 8), 1), values((2, 8), 2)) + values((16, 8, 8, 8), 3, 0.1)
    x = x.astype(np.float32)
    moments = moments_of(layer, x)
    found = prune(layer, moments)
    assert is_2_4(found.weight, 1)
    assert found.output_error < output_error(layer, prune_2_4(layer.weight, 1), moments) / 2
    want = run(model, {"x": x})["y"]
    sparsity.apply(model, Sparsify(), Context(pruned={layer.name: found}))
    change = np.square(run(model, {"x": x})["y"] - want).sum() / np.square(want).sum()
    assert change == pytest.approx(found.output_error, rel=1e-3)


def test_inputs_that_never_vary_leave_finite_weights() -> None:
    layer = layer_of(net("(float[N,8] x) => (float[N,3] y) { y = MatMul (x, w) }", w=values((8, 3))))
    for x in (np.zeros((5, 8), np.float32), np.ones((1, 8), np.float32)):
        found = prune(layer, moments_of(layer, x))
        assert np.isfinite(found.weight).all() and is_2_4(found.weight, 0)
    assert prune(layer, moments_of(layer, np.zeros((5, 8), np.float32))).output_error == 0.0


def test_layers_that_share_a_weight_or_turn_their_input_are_left_to_magnitude() -> None:
    text = """(float[4,4] x) => (float[4,4] y) {
        a = MatMul (x, w)
        b = MatMul (a, w)
        c = Gemm <transA: int = 1> (b, v)
        y = MatMul (c, u)
    }"""
    model = net(text, w=values((4, 4)), v=values((4, 4)), u=values((4, 4)))
    names = [layer.node.input[1] for layer in reconstructible(model, Sparsify(), Context())]
    assert names == ["u"]


def test_all_of_the_shipped_resnet_can_be_corrected_but_its_first_convolution() -> None:
    assert len(reconstructible(shipped("digits_resnet"), Sparsify(), Context())) == 21
