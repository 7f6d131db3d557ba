"""Which metric is taken where none is named: the only reading there is, or none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from workbench import datasets
from workbench.datasets.metrics import chosen
from workbench.errors import DataError
from workbench.records import Model, Origin, TensorSpec

RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(0, 9, (6, 5))
X = {"x": RANDOM.normal(size=(6, 5)).astype(np.float32)}
ZERO_ONE = np.array([0, 1, 1, 0, 1, 0])
MANY = np.array([[1, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 0, 1], [0, 0, 1]])
MASKED = np.where(np.arange(5) < 2, -100, IDS)


def spec(*shape: int | None, kind: str = "float32", name: str = "y") -> TensorSpec:
    return TensorSpec(name, kind, shape)


@pytest.mark.parametrize(
    ("labels", "inputs", "output", "expected"),
    [
        (np.arange(6), X, spec(None, 6), "top-1"),
        (np.arange(6)[:, None], X, spec(None, None), "top-1"),
        (np.arange(6), X, spec(None, kind="int64"), "top-1"),
        (ZERO_ONE, X, spec(None, 2), "top-1"),
        (ZERO_ONE, X, spec(None, 1), "binary"),
        (ZERO_ONE.astype(bool), X, spec(None), "binary"),
        (ZERO_ONE.astype(np.float32), X, spec(None, 1), "binary"),
        (MANY, X, spec(None, 3), "multi-label F1"),
        (MANY.astype(np.float32), X, spec(None, 3), "multi-label F1"),
        (RANDOM.normal(size=6), X, spec(None, 1), "mean squared error"),
        (RANDOM.normal(size=(6, 3)), X, spec(None, None), "mean squared error"),
        (IDS, {"ids": IDS}, spec(None, None, 9), "perplexity"),
        (MASKED, {"ids": IDS}, spec(None, 5, 9), "perplexity"),
        (RANDOM.integers(0, 4, (6, 5)), {"ids": IDS + 20}, spec(None, None, 4), "token top-1"),
        (RANDOM.integers(0, 4, (6, 5)), {"ids": IDS}, spec(None, 5, kind="int64"), "token top-1"),
        (RANDOM.integers(0, 4, (6, 8, 8)), X, spec(None, 4, 8, 8), "mean IoU"),
        (RANDOM.integers(0, 4, (6, 8, 8)), X, spec(None, 8, 8, kind="int64"), "mean IoU"),
    ],
)  # fmt: skip
def test_one_reading_is_taken_and_told(labels, inputs, output, expected) -> None:
    metric, notes = chosen(labels, inputs, [output])
    assert metric is not None and metric.name == expected and metric.by_default
    assert f"No metric was named; {expected} was chosen" in notes[0]


@pytest.mark.parametrize(
    ("labels", "inputs", "outputs", "words"),
    [
        (np.arange(6), X, [spec(None, 1)], "mean squared error of 'y', mean absolute error of 'y'"),
        (np.eye(6, 3, dtype=int) + np.eye(6, 3, -3, dtype=int), X, [spec(None, 3)], "multi-label F1 of 'y', mean squared"),
        (np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]], X, [spec(None, 3)], "multi-label F1 of 'y', mean squared error"),
        (np.roll(IDS, -1, axis=1), {"ids": IDS}, [spec(None, None, 9)], "perplexity of 'y', token top-1 of 'y'"),
        (np.where(np.arange(5) == 1, 3, IDS), {"ids": IDS}, [spec(None, None, 9)], "perplexity of 'y', token top-1"),
        (ZERO_ONE, X, [spec(None, 10, name="age"), spec(None, 2, name="kind")], "top-1 of 'age', top-1 of 'kind'"),
        (np.arange(6), X, [spec(None, 8, 8, 3)], "fit none of the model's outputs"),
        (np.arange(1, 7), X, [spec(None, 6)], "labels run from 1 to 6, the 6 classes.*from 0 to 5"),
        (IDS, {"ids": IDS + 20}, [spec(None, 5, 4)], "labels name no class"),
    ],
)  # fmt: skip
def test_no_reading_or_several_are_refused_with_the_choice(labels, inputs, outputs, words) -> None:
    with pytest.raises(DataError, match=words) as caught:
        chosen(labels, inputs, outputs)
    assert "'token-top-1'" in str(caught.value) and "output=" in str(caught.value)


def test_an_output_called_logits_goes_first_and_a_named_one_before_it() -> None:
    outputs = [spec(None, 10, name="pooled"), spec(None, 6, name="logits")]
    metric, _ = chosen(np.arange(6), X, outputs)
    assert metric is not None and metric.output == "logits"
    metric, _ = chosen(np.arange(6), X, outputs, "pooled")
    assert metric is not None and metric.output == "pooled"
    with pytest.raises(DataError, match=r"no output 'pool' to score\. Did you mean 'pooled'"):
        chosen(np.arange(6), X, outputs, "pool")


def test_numbers_that_fit_nothing_are_compared_without_a_score() -> None:
    metric, notes = chosen(RANDOM.normal(size=(6, 2)), X, [spec(None, 3)])
    assert metric is None and "have no default metric" in notes[0]


def test_data_choose_when_they_meet_the_model_and_a_named_metric_stays() -> None:
    inputs = (TensorSpec("x", "float32", (None, 5)),)
    model = Model("net", "net.onnx", "0" * 64, 1, 17, inputs, (spec(None, 1),), Origin("onnx", "net.onnx"), 1, {})
    data = datasets.arrays(X["x"], ZERO_ONE)
    assert data.metric is not None and data.metric.name == "top-1"
    bound = data.bound_to(model)
    assert bound.metric is not None and bound.metric.name == "binary" and bound.bound_to(model).notes == bound.notes
    assert datasets.arrays(X["x"], ZERO_ONE, metric="mae").bound_to(model).metric.name == "mean absolute error"  # type: ignore[union-attr]
    for own in (datasets.top1(), None):
        assert replace(data, metric=own).bound_to(model).metric is own
    undecided = datasets.arrays(X["x"], ZERO_ONE * 0.5)
    assert "no default metric" in undecided.notes[0]
    settled = undecided.bound_to(model)
    assert settled.metric is not None and settled.metric.name == "mean squared error"
    assert not any("no default metric" in note for note in settled.notes)
