"""What a file asks for, read off its dataflow; pairs taken out of it; what a pass is made of."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from planted import Pairs, quantized
from quantization_nets import IMAGES, bottleneck
from quantization_nets import quantized as by_recipe
from small_nets import net, run, values

from workbench.explaining.evidence import Layer, Pass
from workbench.explaining.noise import Noises
from workbench.explaining.pairs import activation_pairs, dequantized_weights, without
from workbench.explaining.passes import grouped, memory_of, pass_of
from workbench.explaining.structure import facts_of, precision_of
from workbench.judging.roofline import Ceilings
from workbench.records import LayerProfile, LayerTime, TensorSpec

X = values((8, 16), 3)


def two(middle: str = "Relu") -> onnx.ModelProto:
    return net(
        f"(float[N,16] x) => (float[N,4] y) {{ [first] a = MatMul(x, w1) [act] b = {middle}(a) [last] y = MatMul(b, w2) }}",
        w1=values((16, 16), 1),
        w2=values((16, 4), 2),
    )


def facts(model: onnx.ModelProto) -> dict:
    return {fact.name: fact for fact in facts_of(model)}


def test_the_type_that_a_file_asks_for() -> None:
    parent = two()
    assert precision_of(parent) == "fp32"
    assert precision_of(quantized(parent, {"x": X}, Pairs("xb"))) == "int8"
    assert precision_of(by_recipe(bottleneck(), IMAGES, "strong")[0]) == "int8"


def test_products_are_asked_whatever_becomes_of_their_result_and_others_between_codes_only() -> None:
    found = facts(quantized(two("Sigmoid"), {"x": X}, Pairs("xab")))
    assert found["first"].asked and found["act"].asked and found["last"].asked
    assert found["last"].obstacle == "its result is an output of the model, in floating point"
    assert found["first"].obstacle == ""
    without_last = facts(quantized(two("Sigmoid"), {"x": X}, Pairs("xa")))
    assert not without_last["act"].asked, "nobody quantizes its result"
    half = facts(quantized(two(), {"x": X}, Pairs("x", unweighted=["first"])))
    assert not half["first"].asked, "its weight is in floating point"


def test_a_pair_between_a_product_and_its_activation_is_seen() -> None:
    assert facts(quantized(two(), {"x": X}, Pairs("xab")))["act"].behind_pair_of == "first"
    assert facts(quantized(two(), {"x": X}, Pairs("xb")))["act"].behind_pair_of == ""


def test_a_result_that_a_float_reader_shares_is_an_obstacle() -> None:
    parent = net(
        """(float[N,16] x) => (float[N,16] y) {
            [first] a = MatMul(x, w1) [act] b = Relu(a) [second] c = MatMul(b, w2) [sum] y = Add(c, b)
        }""",
        w1=values((16, 16), 1),
        w2=values((16, 16), 2),
    )
    found = facts(quantized(parent, {"x": X}, Pairs("xbc", readers={"b": ["second"]})))
    assert found["sum"].mixed
    assert found["first"].float_readers == ("sum",)
    assert found["first"].obstacle == "its result is read in floating point, by sum"


@pytest.mark.parametrize("float8", [False, True])
@pytest.mark.parametrize("names", [set(), {"x"}, {"b"}, {"w1"}, {"w2"}, {"x", "b", "w1", "w2"}])
def test_a_file_without_some_pairs_computes_what_it_would_without_them(names: set[str], float8: bool) -> None:
    parent = two()
    model = quantized(parent, {"x": X}, Pairs("xb", float8=float8))
    weights = {"w1": values((16, 16), 1), "w2": values((16, 4), 2)}
    codes = {item.name: item.after for item in dequantized_weights(model, parent)}
    pairs = {pair.tensor: pair for pair in activation_pairs(model)}

    def quantize(name: str, array: np.ndarray) -> np.ndarray:
        pair = pairs[name]
        if name in names:
            return array
        if float8:
            return (
                np.clip(array / pair.scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float64) * pair.scale
            )
        return np.clip(np.rint(array / pair.scale), pair.grid.low, pair.grid.high) * pair.scale

    used = {name: weights[name] if name in names else codes[name] for name in weights}
    want = quantize("b", np.maximum(quantize("x", X.astype(np.float64)) @ used["w1"], 0)) @ used["w2"]
    have = run(without(model, parent, names), {"x": X})["y"]
    # A value on the edge between two codes may fall to either side in float32: one step of `b` at most.
    assert np.abs(have - want).max() <= 1.01 * (32 if float8 else 1) * pairs["b"].scale * np.abs(used["w2"]).max()
    assert float(np.square(have - want).sum()) < 1e-4 * float(np.square(want).sum())


def test_leaving_every_pair_out_leaves_no_noise() -> None:
    noises = Noises(two(), quantized(two(), {"x": X}, Pairs("xb")), {"x": X})
    assert noises.nsr(noises.run(noises.lowered)) > 0
    assert noises.nsr(noises.run(noises.bypassed({"x", "b", "w1", "w2"}))) < 1e-12


def test_a_pair_on_an_output_can_be_left_out_and_the_output_keeps_its_name() -> None:
    parent = two()
    model = quantized(parent, {"x": X}, Pairs("xb"))
    model.graph.output[0].name = "b_dq"
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 16
    kept = without(model, parent, {"b"})
    assert np.abs(run(kept, {"x": X})["b_dq"] - run(model, {"x": X})["b_dq"]).max() > 0


def test_weights_behind_pairs_of_their_own_are_found_too() -> None:
    parent = bottleneck()
    model, _ = by_recipe(parent, IMAGES, "strong")
    found = {item.name: (item.before, item.after) for item in dequantized_weights(model, parent)}
    assert {"w0", "w1", "w2", "wg"} <= set(found)
    for want, have in found.values():
        assert 0 < np.abs(want - have).max() < np.abs(want).max() / 100


LAYERS = (
    LayerTime("c", "Conv", 2.0, ("n1", "n2"), reads=(TensorSpec("x", "float32", (2, 8)), TensorSpec("w", "int8", (8, 8))),
              writes=(TensorSpec("a", "float32", (2, 8)),), constants=("w",)),
    LayerTime("r", "Relu", 1.0, ("n3",), reads=(TensorSpec("a", "float32", (None, 8)),),
              writes=(TensorSpec("y", "float16", (2, 8)),)),
)  # fmt: skip


def test_a_layers_bytes_are_what_it_reads_and_writes() -> None:
    found = pass_of("v", LayerProfile(LAYERS, 5.0), onnx.ModelProto(), {"x": (2, 8)})
    first, second = found.layers
    assert (first.size_bytes, first.weight_bytes) == (2 * 64 + 64, 64)
    assert second.size_bytes == 64 + 32, "an axis left open is the batch"
    assert found.between_seconds == 2.0


def test_what_is_alive_at_once_is_counted_in_the_order_of_execution() -> None:
    found = pass_of("v", LayerProfile(LAYERS), onnx.ModelProto(), {"x": (2, 8)})
    memory = memory_of(found, 100, batch=2)
    assert (memory.weights, memory.activations_sum, memory.activations_alive) == (64, 64 + 32, 64 + 32)


def test_layers_are_joined_over_the_nodes_that_they_share() -> None:
    fused = Pass("b", (Layer("conv+relu", "Conv", "compute", "fp32", 3.0, ("conv", "relu")),))
    apart = Pass(
        "v",
        (
            Layer("q", "QuantizeLinear", "convert", "fp32", 1.0),
            Layer("conv", "QLinearConv", "compute", "int8", 1.0, ("conv",)),
            Layer("relu", "Relu", "other", "fp32", 1.0, ("relu_MatMulInteger",)),
        ),
    )
    groups = [([one.name for one in ours], [one.name for one in theirs]) for ours, theirs in grouped(fused, apart)]
    assert sorted(groups) == [([], ["q"]), (["conv+relu"], ["conv", "relu"])]


def test_a_bound_needs_ceilings() -> None:
    machine = Ceilings("b", "1", "d", 1, {"fp32": 1000.0}, (1, 1000), (8.0, 8.0), 0.0, 0.0, 0.0)
    found = pass_of("v", LayerProfile(LAYERS), onnx.ModelProto(), {"x": (2, 8)}, ceilings=machine)
    assert found.layers[0].bound_seconds == pytest.approx((2 * 64 + 64) / 8)
    assert found.layers[0].share_of_bound == pytest.approx(24 / 2.0)
    assert found.layers[0].bound_by == "memory"
