"""The axis of samples is found by running, and outputs of several calls are joined on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_nets import net, run

import workbench as wb
from workbench.datasets.outputs import joined_calls
from workbench.engines import jobs
from workbench.engines.sample_axes import sample_axes
from workbench.errors import RunError
from workbench.machine.store import Store
from workbench.records import Engine, TensorSpec

RANDOM = np.random.default_rng(0)
W = RANDOM.normal(size=(4, 3)).astype(np.float32)
EVERY = """(float[{n},6,4] x) => (float[6,{n},3] time_major, float[{n},6,3] batch_major, float pairless, float[{n},{n}] pairs,
    int64[K,3] found, float[6,4] total) {{
    batch_major = MatMul(x, w)
    time_major = Transpose<perm = [1, 0, 2]>(batch_major)
    pairless = ReduceSum<keepdims = 0>(x)
    last = ReduceSum<keepdims = 0>(x, axis)
    turned = Transpose<perm = [1, 0]>(last)
    pairs = MatMul(last, turned)
    positive = Greater(batch_major, zero)
    places = NonZero(positive)
    found = Transpose<perm = [1, 0]>(places)
    total = ReduceSum<keepdims = 0>(x, first)
}}"""
AXES = {"time_major": 1, "batch_major": 0, "pairless": None, "pairs": None, "found": None, "total": None}


def every(n: str) -> onnx.ModelProto:
    constants = {"axis": np.array([1]), "first": np.array([0]), "zero": np.float32(0)}
    return net(EVERY.format(n=n), w=W, **{name: np.asarray(value) for name, value in constants.items()})


def engine(proto: onnx.ModelProto, folder: Path) -> Engine:
    onnx.save(proto, str(folder / "m.onnx"))
    store = Store(folder / "store")
    return jobs.build(
        wb.transform(wb.load(folder / "m.onnx", store=store), "fp32", store=store), "onnxruntime-cpu", store=store
    )


@pytest.mark.parametrize("batch", [1, 4, 6, 16])
def test_each_output_is_joined_on_its_own_axis(tmp_path: Path, batch: int) -> None:
    x = RANDOM.normal(size=(16, 6, 4)).astype(np.float32)
    found = jobs.infer(engine(every("N"), tmp_path), {"x": x}, batch)
    expected = x @ W
    assert found.axes == AXES and found.samples == 16 and found.calls == -(-16 // batch)
    np.testing.assert_allclose(found["batch_major"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["time_major"], expected.transpose(1, 0, 2), rtol=1e-4, atol=1e-5)
    parts = [x[start : start + batch] for start in range(0, 16, batch)]
    sums = [part.sum() for part in parts]
    np.testing.assert_allclose(np.atleast_1d(found["pairless"]), sums, rtol=1e-3, atol=1e-4)
    assert len(found["found"]) == (expected > 0).sum()
    if batch < 16:
        assert found.counts["found"] == tuple(int((part @ W > 0).sum()) for part in parts)
        np.testing.assert_allclose(found["total"], [part.sum(axis=0) for part in parts], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fixed", [1, 3, 6])
def test_a_fixed_batch_is_told_by_the_order_of_samples(tmp_path: Path, fixed: int) -> None:
    x = RANDOM.normal(size=(8, 6, 4)).astype(np.float32)  # 6 steps of time are as long as a batch of 6
    found = jobs.infer(engine(every(str(fixed)), tmp_path), {"x": x}, 32)
    # With one sample a matrix of all pairs has one entry, which is that sample's.
    assert found.axes == (AXES | {"pairs": 0} if fixed == 1 else AXES)
    np.testing.assert_allclose(found["time_major"], (x @ W).transpose(1, 0, 2), rtol=1e-4, atol=1e-5)
    if fixed == 1:
        assert len(found["found"]) == (x @ W > 0).sum()


def test_an_axis_may_be_given_and_one_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    built, x = engine(every("N"), tmp_path), RANDOM.normal(size=(5, 6, 4)).astype(np.float32)
    assert jobs.infer(built, {"x": x}, 2, axes={"batch_major": None}).axes["batch_major"] is None
    with pytest.raises(RunError, match=r"'time_major' has the shape \(6, 2, 3\) for 2 samples: axis 0 does not count"):
        jobs.infer(built, {"x": x}, 2, axes={"time_major": 0})


def test_an_engine_for_one_size_only_is_taken_as_it_answers() -> None:
    def infer(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if len(feeds["x"]) != 4:
            raise RunError("built for 4")
        return {"y": feeds["x"] * 2}

    x = np.ones((4, 3), np.float32)
    specs = [TensorSpec("y", "float32", (None, 3))]
    assert sample_axes(infer, {"x": x}, [(4, infer({"x": x}))], None, specs) == {"y": 0}


def test_an_axis_of_stated_length_counts_no_samples_where_their_number_is_free() -> None:
    y = np.ones((5, 7), np.float32)
    calls = [(5, {"y": y}), (5, {"y": y})]
    found = sample_axes(lambda feeds: {"y": y}, {"x": y}, calls, None, [TensorSpec("y", "float32", (5, 7))])
    assert found == {"y": None}


def test_text_and_nan_are_followed_through_a_change_of_order() -> None:
    def infer(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = feeds["x"][:, 0]
        return {
            "words": values.astype(str),
            "holes": np.where(values > 1, np.nan, values),
            "noise": RANDOM.normal(size=3),
        }

    x = np.arange(3, dtype=np.float32)[:, None]
    found = sample_axes(infer, {"x": x}, [(3, infer({"x": x}))], 3, [])
    assert found == {"words": 0, "holes": 0, "noise": None}


def test_calls_are_joined_where_one_axis_is_free_and_laid_flat_where_two_are() -> None:
    one, two = np.ones((2, 3)), np.zeros((2, 5))
    assert joined_calls([one], (2, None))[0] is one
    joined, counts = joined_calls([one, two], (2, None))
    assert joined.shape == (2, 8) and counts == (3, 5)
    assert joined_calls([one, one], (2, 3))[0].shape == (2, 2, 3)
    assert joined_calls([one, one], (None, 3))[0].shape == (4, 3)
    flat, counts = joined_calls([one, np.zeros((4, 5))], (None, None))
    assert flat.shape == (26,) and counts == (6, 20)


def test_the_nets_of_this_page_say_what_numpy_says() -> None:
    x = RANDOM.normal(size=(3, 6, 4)).astype(np.float32)
    assert run(every("N"), {"x": x})["pairs"] == pytest.approx(x.sum(1) @ x.sum(1).T, rel=1e-3, abs=1e-3)
