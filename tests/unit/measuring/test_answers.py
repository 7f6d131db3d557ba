"""Answers are compared over all their values, on whichever axis the samples are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_nets import net

import workbench as wb
from workbench.engines import jobs
from workbench.errors import DataError
from workbench.machine.store import Store
from workbench.measuring.answers import check

RANDOM = np.random.default_rng(0)
W = RANDOM.normal(size=(4, 3)).astype(np.float32)
X = RANDOM.normal(size=(40, 6, 4)).astype(np.float32)
TIME_MAJOR = "(float[N,6,4] x) => (float[6,N,3] y) { t = Transpose<perm = [1, 0, 2]>(x)  y = MatMul(t, w) }"
DETECTOR = """(float[1,4] x) => (int64[K,2] boxes) {
    s = MatMul(x, w)  g = Greater(s, zero)  places = NonZero(g)  boxes = Transpose<perm = [1, 0]>(places) }"""


def built(folder: Path, text: str, name: str = "m", recipe: str = "fp32", **weights: np.ndarray):
    onnx.save(net(text, **weights), str(folder / f"{name}.onnx"))
    store = Store(folder / "store")
    model = wb.load(folder / f"{name}.onnx", store=store)
    return model, jobs.build(wb.transform(model, recipe, store=store), "onnxruntime-cpu", store=store)


def test_all_values_of_a_time_major_output_are_compared_and_its_axis_is_told(tmp_path: Path) -> None:
    model, parent = built(tmp_path, TIME_MAJOR, w=W)
    _, other = built(tmp_path, TIME_MAJOR, "other", w=np.float32(1.01) * W)
    folder = tmp_path / "kept"
    folder.mkdir()
    data = wb.datasets.arrays(X).bound_to(model)
    records = [check(other, parent, data, batch=8, keep_parent=folder) for _ in range(2)]
    # y and 1.01 y: the error is 1 % of every value, wherever it stands.
    assert records[0].sqnr_db["y"] == pytest.approx(40, abs=1e-3) and records[0].samples == 40
    assert "Output 'y' is (6, samples, 3): its samples are on axis 1." in records[0].notes
    assert records[0] == records[1], "the parent's kept answers are the same again"


def test_a_metric_sees_outputs_as_the_model_lays_them_out_and_ready_ones_find_the_samples(tmp_path: Path) -> None:
    model, parent = built(tmp_path, TIME_MAJOR, w=W)
    seen: list[tuple[int, ...]] = []

    def own(outputs, labels):
        seen.append(outputs["y"].shape)
        return (labels == outputs["y"].argmax(-1).T).mean(1)

    labels = (X @ W).argmax(-1)
    record = check(parent, parent, wb.datasets.arrays(X, labels, metric=own).bound_to(model), batch=16)
    assert set(seen) == {(6, 40, 3)} and record.scores == (1.0,) * 40
    record = check(parent, parent, wb.datasets.arrays(X, labels).bound_to(model), batch=16)
    assert record.metric == "token top-1" and record.scores == (1.0,) * 40


def test_boxes_of_any_number_reach_the_metric_all_at_once(tmp_path: Path) -> None:
    constants = {"w": RANDOM.normal(size=(4, 9)).astype(np.float32), "zero": np.asarray(np.float32(0))}
    model, parent = built(tmp_path, DETECTOR, **constants)
    _, fewer = built(tmp_path, DETECTOR, "fewer", **(constants | {"zero": np.asarray(np.float32(0.5))}))
    x = X[:12, 0]
    seen: list[int] = []

    def counted(outputs, labels):
        seen.append(len(outputs["boxes"]))
        return float(len(outputs["boxes"]))

    data = wb.datasets.arrays(x, np.zeros(12), metric=counted).bound_to(model)
    record = check(fewer, parent, data)
    right = [int((x @ constants["w"] > limit).sum()) for limit in (0.5, 0.0)]
    assert seen == right and [record.scores, record.parent_scores] == [(float(one),) for one in right]
    assert any("no axis that counts the samples" in note for note in record.notes)
    assert any("whose length depends on the data" in note for note in record.notes)


def test_outputs_without_samples_are_compared_whole_in_one_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """(float[N,4] x) => (float[N,N] pairs, float loss) {
        t = Transpose<perm = [1, 0]>(x)  p = MatMul(x, t)  pairs = Mul(p, k)  loss = ReduceMean<keepdims = 0>(pairs) }"""
    model, parent = built(tmp_path, text, k=np.asarray(np.float32(1)))
    _, other = built(tmp_path, text, "other", k=np.asarray(np.float32(1.1)))
    data = wb.datasets.arrays(X[:, 0]).bound_to(model)
    record = check(other, parent, data, batch=16)
    assert record.sqnr_db == pytest.approx({"pairs": 20, "loss": 20}, abs=1e-3) and record.samples == 40
    assert sum("has no axis that counts the samples" in note for note in record.notes) == 2
    labelled = wb.datasets.arrays(X[:, 0], np.arange(40) % 3, output="pairs").bound_to(model)
    for batch in (
        8,
        16,
        40,
    ):  # whether calls are alike or not, and even where one call looks like 40 samples of 40 classes
        with pytest.raises(DataError, match="'pairs' has no axis that counts the samples"):
            check(parent, parent, labelled, batch=batch)


def test_copies_in_the_last_call_are_told_where_they_count(tmp_path: Path) -> None:
    text = "(float[8,4] x) => (float loss, float[8,4] y) { y = Neg(x)  loss = ReduceMean<keepdims = 0>(x) }"
    model, parent = built(tmp_path, text)
    record = check(parent, parent, wb.datasets.arrays(X[:13, 0]).bound_to(model))
    assert (
        any("filled up with 3 copies, which are in loss too" in note for note in record.notes) and record.samples == 13
    )


def test_a_given_axis_is_kept(tmp_path: Path) -> None:
    model, parent = built(tmp_path, TIME_MAJOR, w=W)
    record = check(parent, parent, wb.datasets.arrays(X, sample_axes={"y": None}).bound_to(model), batch=40)
    assert any("Output 'y' has no axis" in note for note in record.notes)


def test_the_scored_output_can_be_named_and_a_wrong_name_is_refused(tmp_path: Path) -> None:
    text = "(float[N,4] x) => (float[N,3] a, float[N,3] b) { a = MatMul(x, w)  b = Neg(a) }"
    model, parent = built(tmp_path, text, w=W)
    x = X[:, 0]
    for output, sign in (("a", 1), ("b", -1)):
        data = wb.datasets.arrays(x, (sign * (x @ W)).argmax(-1), metric="top-1", output=output).bound_to(model)
        record = check(parent, parent, data)
        assert record.scores == (1.0,) * 40 and record.predictions == tuple((sign * (x @ W)).argmax(-1))
    with pytest.raises(DataError, match="scores the output 'c', which the model lacks"):
        check(parent, parent, wb.datasets.arrays(x, np.zeros(40, int), metric="top-1", output="c").bound_to(model))


def test_a_binary_model_is_judged_by_its_threshold(tmp_path: Path) -> None:
    model, parent = built(tmp_path, "(float[N,4] x) => (float[N,1] y) { a = MatMul(x, w)  y = Sigmoid(a) }", w=W[:, :1])
    x = X[:, 0]
    record = check(parent, parent, wb.datasets.arrays(x, ((x @ W[:, :1])[:, 0] > 0).astype(int)).bound_to(model))
    assert record.metric == "binary" and record.scores == (1.0,) * 40
    assert any("probabilities, with the threshold 0.5" in note for note in record.notes)
