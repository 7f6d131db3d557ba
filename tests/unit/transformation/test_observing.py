from __future__ import annotations

import weakref

import numpy as np
import onnx
import pytest
from quantization_nets import IMAGES, ORIGIN, attention, bottleneck, table_of
from small_nets import net, run, values

from workbench.calibration.table import Provenance
from workbench.errors import CalibrationError, Cancelled
from workbench.graph import files
from workbench.graph.linear_layers import activation_channels
from workbench.machine.handle import Handle
from workbench.records import Progress
from workbench.transformation.intermediate_outputs import batches
from workbench.transformation.observing import (
    Observation,
    calibrate_parts,
    calibrate_proto,
    channel_maxima,
    range_alarm,
)

# ONNX Runtime picks kernels by the batch, so that the last bits of a sum may differ.
ROUNDING = 1e-5


def outputs(model: onnx.ModelProto, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return run(onnx.shape_inference.infer_shapes(exposed), IMAGES)


def test_the_table_holds_what_the_tensors_hold() -> None:
    table = table_of(bottleneck(), IMAGES)
    seen = outputs(bottleneck(), ("r0", "c2"))
    assert table.samples == 64
    assert table.provenance == ORIGIN
    for name in ("r0", "c2"):
        assert table[name].elements == seen[name].size
        assert table[name].maximum == pytest.approx(seen[name].max(), rel=ROUNDING)
        assert table[name].minimum == pytest.approx(seen[name].min(), rel=ROUNDING)
    assert table["x"].maximum == IMAGES["x"].max()


def test_the_table_is_the_same_for_any_order_of_samples() -> None:
    order = np.random.default_rng(1).permutation(64)
    assert table_of(bottleneck(), {"x": IMAGES["x"][order]}) == table_of(bottleneck(), IMAGES)


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_the_table_does_not_depend_on_the_batch_but_for_rounding(batch: int) -> None:
    one = table_of(bottleneck(), IMAGES)
    other = calibrate_proto(bottleneck(), IMAGES, ORIGIN, Observation(batch=batch, threads=1))
    assert other["x"] == one["x"]
    for name in one:
        assert other[name].elements == one[name].elements
        assert other[name].abs_max == pytest.approx(one[name].abs_max, rel=ROUNDING)
        moved = np.abs(other[name].counts - one[name].counts).sum()
        assert moved <= 1e-3 * one[name].elements, "only values next to a bin edge may move"


def test_one_pass_gives_a_table_of_each_half_and_one_of_all() -> None:
    halves = [{"x": IMAGES["x"][start::2]} for start in (0, 1)]
    origins = [Provenance("half", str(number), "") for number in range(2)]
    how = Observation(batch=8, threads=1)
    found = calibrate_parts(bottleneck(), halves, origins, ORIGIN, how)
    assert found is not None
    whole, parts = found
    assert parts == [calibrate_proto(bottleneck(), *pair, how) for pair in zip(halves, origins, strict=True)]
    assert whole.samples == 64 and whole.provenance == ORIGIN
    want = calibrate_proto(bottleneck(), IMAGES, ORIGIN, how)
    for name in want:
        assert (whole[name].elements, whole[name].zeros) == (want[name].elements, want[name].zeros)
        assert whole[name].abs_max == pytest.approx(want[name].abs_max, rel=ROUNDING)
        assert np.abs(whole[name].counts - want[name].counts).sum() <= 1e-3 * want[name].elements
    assert whole.convergence()[0].samples == want.convergence()[0].samples, "the record goes on from half to half"


def test_halves_of_what_has_to_be_taken_in_passes_are_not_taken_in_one() -> None:
    how = Observation(batch=32, threads=1, largest_held_bytes=400_000)
    assert calibrate_parts(bottleneck(), [IMAGES, IMAGES], [ORIGIN, ORIGIN], ORIGIN, how) is None


def test_tensors_in_groups_give_the_same_table() -> None:
    whole = table_of(bottleneck(), IMAGES)
    how = Observation(batch=32, threads=1, largest_held_bytes=400_000)
    assert next(batches(bottleneck(), list(whole), IMAGES, how)).groups > 2
    parts = calibrate_proto(bottleneck(), IMAGES, ORIGIN, how)
    assert list(parts) == list(whole)
    assert parts.samples == 64
    for name in whole:
        assert parts[name].abs_max == pytest.approx(whole[name].abs_max, rel=ROUNDING)


def test_no_more_than_two_batches_are_alive() -> None:
    stream = batches(bottleneck(), ["r0", "r1"], IMAGES, Observation(batch=4, threads=1))
    alive: list[weakref.ref[np.ndarray]] = []
    most = 0
    for batch in stream:
        alive.extend(weakref.ref(array) for array in batch.arrays.values())
        del batch
        most = max(most, sum(reference() is not None for reference in alive))
    assert len(alive) == 32
    assert most <= 4, "two tensors of two batches"


def test_a_graph_too_large_for_one_message_goes_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = table_of(bottleneck(), IMAGES)
    monkeypatch.setattr(files, "INLINE_LIMIT_BYTES", 100)
    assert table_of(bottleneck(), IMAGES) == expected


def test_all_floating_point_activations_on_demand() -> None:
    table = table_of(bottleneck(), IMAGES, tensors="all")
    assert list(table) == ["x", "c0", "r0", "c1", "r1", "c2", "a", "r2", "p", "f", "y"]
    assert list(table_of(bottleneck(), IMAGES, tensors=["a", "r1"])) == ["a", "r1"]


def test_integer_sequences_of_a_language_model_are_run() -> None:
    model = net(
        """(int64[N,T] input_ids) => (float[N,T,8] y) {
            [embed] e = Gather(table, input_ids)
            [mask] m = Where(future, low, zero)
            [shift] s = Add(e, m)
            [head] y = MatMul(s, w)
        }""",
        table=values((50, 16), 1),
        future=np.array(False),
        low=np.array(-np.inf, np.float32),
        zero=np.array(0, np.float32),
        w=values((16, 8), 2),
    )
    ids = {"input_ids": np.random.default_rng(0).integers(0, 50, (9, 5))}
    assert list(table_of(model, ids)) == ["s"]
    assert table_of(model, ids)["s"].elements == 9 * 5 * 16


def test_a_fixed_batch_is_kept_and_the_rest_left_out() -> None:
    model = net("(float[4,8] x) => (float[4,8] y) { y = MatMul(x, w) }", w=values((8, 8)))
    assert table_of(model, {"x": values((11, 8))}).samples == 8
    with pytest.raises(CalibrationError, match="takes 4 samples at a time, and 3 are given"):
        table_of(model, {"x": values((3, 8))})


def test_only_the_first_samples_are_taken_on_demand() -> None:
    table = calibrate_proto(bottleneck(), IMAGES, ORIGIN, Observation(samples=10, threads=1))
    assert table.samples == 10
    assert table["x"].maximum == IMAGES["x"][:10].max()


def test_convergence_can_be_followed() -> None:
    found = calibrate_proto(bottleneck(), IMAGES, ORIGIN, Observation(batch=4, threads=1)).convergence()
    assert len(found) == 7
    assert found[0].samples[0] == 4
    assert found[0].samples[-1] == 64


@pytest.mark.parametrize("wrong", [{}, {"x": IMAGES["x"][:0]}, {"x": IMAGES["x"], "z": IMAGES["x"][:3]}])
def test_no_or_unequal_samples_are_refused(wrong: dict[str, np.ndarray]) -> None:
    with pytest.raises(CalibrationError, match="at least 1 sample"):
        table_of(bottleneck(), wrong)


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(CalibrationError, match="batches of 0"):
        calibrate_proto(bottleneck(), IMAGES, ORIGIN, Observation(batch=0))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_non_finite_samples_are_named_with_the_tensors_they_spoil(poison: float) -> None:
    images = {"x": IMAGES["x"].copy()}
    images["x"][41, 2, 3, 3] = poison
    with pytest.raises(CalibrationError, match=r"NaN or infinite activations in 'x', .* first in sample 41:"):
        table_of(bottleneck(), images)
    with pytest.raises(CalibrationError, match="'n', first in sample 5"):
        tokens = {"x": values((8, 6, 16), 3)}
        tokens["x"][5] = poison
        channel_maxima(attention(), ["n"], tokens)


def test_infinities_that_no_one_quantizes_are_counted_only() -> None:
    model = net(
        "(float[N,8] x) => (float[N,8] y, float[N,8] z) { [good] y = MatMul(x, w) [pole] z = Reciprocal(x) }",
        w=values((8, 8)),
    )
    table = table_of(model, {"x": np.eye(8, dtype=np.float32)}, tensors="all")
    assert [problem.kind for problem in table.problems() if problem.tensor == "z"] == ["infinite", "constant"]


def test_an_unknown_tensor_is_refused_with_the_nearest() -> None:
    with pytest.raises(CalibrationError, match=r"no floating-point activation 'r00'.*Did you mean 'r0'"):
        table_of(bottleneck(), IMAGES, tensors=["r00"])


def test_progress_is_told_and_cancelling_stops() -> None:
    told: list[Progress] = []
    how = Observation(batch=16, threads=1, progress=told.append)
    calibrate_proto(bottleneck(), IMAGES, ORIGIN, how)
    assert [item.fraction for item in told] == [0.25, 0.5, 0.75, 1.0]
    assert told[-1].message == "64 of 64 samples"
    with pytest.raises(Cancelled, match="Stopped as asked during calibration"):
        calibrate_proto(
            bottleneck(),
            IMAGES,
            ORIGIN,
            Observation(batch=16, threads=1, progress=told.append, handle=Handle(cancelled=lambda: len(told) > 5)),
        )


def test_channel_maxima_are_those_of_the_last_axis_over_all_samples() -> None:
    tokens = {"x": values((32, 6, 16), 3)}
    found = channel_maxima(attention(), ["x"], tokens, Observation(batch=5, threads=1))
    np.testing.assert_array_equal(found["x"], np.abs(tokens["x"]).max(axis=(0, 1)))
    assert channel_maxima(attention(), [], tokens) == {}


def test_channel_maxima_of_images_are_those_of_the_axis_that_a_convolution_reads() -> None:
    model = bottleneck()
    axes = activation_channels(model)
    image = model.graph.input[0].name
    assert axes[image] == 1, "a convolution reads it"
    found = channel_maxima(model, axes, IMAGES, Observation(batch=3, threads=1))
    assert set(found) == set(axes)
    np.testing.assert_array_equal(found[image], np.abs(IMAGES[image]).max(axis=(0, 2, 3)))


def test_only_what_a_layer_with_a_constant_weight_reads_has_channels() -> None:
    model = net(
        "(float[N,8] x) => (float[8,N] y) <float[8,4] w = {" + ", ".join(["1"] * 32) + "}> "
        "{ h = MatMul(x, w) t = Transpose<perm = [1,0]>(h) z = MatMul(h, t) u = MatMul(w, t) y = Gemm<transA = 1>(h, w) }"
    )
    assert activation_channels(model) == {"x": -1}


def test_an_axis_that_changes_from_batch_to_batch_counts_no_channels() -> None:
    model = net("(float[N,8] x) => (float[8,N] t) { t = Transpose<perm = [1,0]>(x) }")
    with pytest.raises(CalibrationError, match="last axis of 't' had 4 elements before and 3 now"):
        channel_maxima(model, ["t"], {"x": values((7, 8))}, Observation(batch=4, threads=1))


def test_samples_beyond_the_calibrated_range_raise_an_alarm() -> None:
    table = table_of(bottleneck(), IMAGES)
    quiet = range_alarm(table, bottleneck(), {"x": IMAGES["x"]}, Observation(batch=32, threads=1))
    assert (quiet.samples, quiet.outside, quiet.tensors) == (64, (), {})
    loud = {"x": IMAGES["x"][:40].copy()}
    loud["x"][[7, 39]] *= 10.0
    alarm = range_alarm(table, bottleneck(), loud, Observation(batch=16, threads=1))
    assert alarm.samples == 40
    assert alarm.outside == (7, 39)
    assert alarm.tensors["x"] == 2
    assert alarm.excess["x"] == pytest.approx(np.abs(loud["x"]).max() / np.abs(IMAGES["x"]).max())
