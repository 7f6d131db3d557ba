from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from workbench.datasets.metrics import IGNORED_TOKEN, Metric, identity, perplexity, top1
from workbench.errors import DataError


def test_top1_scores_each_sample() -> None:
    logits = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]], dtype=np.float16)
    assert np.array_equal(top1().function({"y": logits}, np.array([1, 1, 1])), [1.0, 0.0, 1.0])


def test_top1_counts_nan_as_wrong() -> None:
    logits = np.array([[np.nan, 2.0], [0.0, 1.0]])
    assert np.array_equal(top1().function({"y": logits}, np.array([0, 1])), [0.0, 1.0])


def test_top1_of_tokens_is_the_share_of_right_tokens() -> None:
    logits = np.eye(3)[None][:, [0, 1, 1]]
    assert top1().function({"y": logits}, np.array([[0, 1, 2]])) == pytest.approx([2 / 3])


def test_top1_refuses_labels_that_do_not_fit() -> None:
    with pytest.raises(DataError, match=r"scores \(4, 10\) and labels \(3,\)"):
        top1().function({"y": np.zeros((4, 10))}, np.zeros(3, dtype=int))


def test_perplexity_judges_each_logit_by_the_next_token() -> None:
    ids = np.array([[0, 2, 1]])
    probabilities = np.array([[[0.1, 0.1, 0.8], [0.25, 0.5, 0.25], [1.0, 1e-9, 1e-9]]])
    values = perplexity().function({"logits": np.log(probabilities)}, ids)
    assert values == pytest.approx([-(np.log(0.8) + np.log(0.5)) / 2])


def test_perplexity_of_uniform_logits_is_the_vocabulary() -> None:
    metric = perplexity()
    values = np.asarray(metric.function({"logits": np.zeros((2, 5, 7), dtype=np.float32)}, np.ones((2, 5), dtype=int)))
    assert np.exp(values.mean()) == pytest.approx(7.0)
    assert metric.display == "exp_mean" and not metric.higher_is_better


def test_perplexity_leaves_out_ignored_tokens_and_survives_large_logits() -> None:
    logits = np.zeros((1, 3, 2), dtype=np.float32)
    logits[0, 0] = [1e4, 0]
    values = np.asarray(perplexity().function({"logits": logits}, np.array([[0, 0, IGNORED_TOKEN]])))
    assert values == pytest.approx([0.0], abs=1e-12)


def test_perplexity_of_infinite_logits_is_not_a_number() -> None:
    logits = np.full((1, 3, 2), np.inf, dtype=np.float32)
    assert np.isnan(np.asarray(perplexity().function({"logits": logits}, np.array([[0, 0, 1]])))).all()


@pytest.mark.parametrize(
    ("logits", "labels", "words"),
    [
        (np.zeros((2, 3)), np.zeros((2, 3), dtype=int), "perplexity needs logits"),
        (np.zeros((2, 1, 5)), np.zeros((2, 1), dtype=int), "T >= 2"),
        (np.zeros((1, 3, 5)), np.full((1, 3), IGNORED_TOKEN), "no token to predict"),
    ],
)
def test_perplexity_refuses_what_it_cannot_score(logits: np.ndarray, labels: np.ndarray, words: str) -> None:
    with pytest.raises(DataError, match=words):
        perplexity().function({"logits": logits}, labels)


def test_no_outputs_means_no_scores() -> None:
    with pytest.raises(DataError, match="no outputs"):
        top1().function({}, np.zeros(1, dtype=int))


def closing_over(value: object) -> Metric:
    return Metric("mine", lambda outputs, labels: np.zeros(len(labels)) * float(value))  # type: ignore[arg-type]


def test_shipped_metrics_are_known_by_their_name_and_a_users_is_not_known() -> None:
    assert identity(None) != identity(top1()) != identity(perplexity())
    assert identity(top1()) == identity(top1())
    for other in ({"higher_is_better": False}, {"unit": "dB"}, {"name": "accuracy"}):
        assert identity(replace(top1(), **other)) != identity(top1())
    assert identity(Metric("top-1", lambda outputs, labels: np.zeros(len(labels)))) is None
    assert identity(replace(top1(), function=lambda outputs, labels: np.zeros(len(labels)))) is None
