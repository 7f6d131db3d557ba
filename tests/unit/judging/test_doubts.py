"""A score that something else explains is doubted aloud; one that nobody asked for is not given at all."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from workbench.datasets import metrics
from workbench.datasets.metrics import Metric
from workbench.errors import DataError
from workbench.judging.accuracy import compare_outputs

RANDOM = np.random.default_rng(0)
SCORES = RANDOM.normal(size=(200, 5)).astype(np.float32)
RIGHT = SCORES.argmax(-1)


def notes(scores: np.ndarray, labels: np.ndarray, metric: Metric) -> str:
    return " ".join(compare_outputs({"logits": scores}, {"logits": scores}, labels, metric).notes)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (RIGHT + 1, "100.0% are right if 1 is taken from every label"),
        (RIGHT - 1, "100.0% are right if 1 is added to every label"),
        (np.array([2, 0, 4, 1, 3])[RIGHT], "100.0% are right if the classes are numbered in another order"),
    ],
)
def test_another_numbering_of_the_classes_is_found_out(labels: np.ndarray, words: str) -> None:
    known = (labels >= 0) & (labels < 5)  # labels out of range are refused before any doubt
    assert words in notes(SCORES[known], labels[known], metrics.top1())
    with pytest.raises(DataError, match=words) as caught:
        notes(SCORES[known], labels[known], replace(metrics.top1(), by_default=True))
    assert "No metric was named, so nothing is claimed" in str(caught.value)


def test_embeddings_taken_for_class_scores_are_found_out() -> None:
    labels = np.repeat(np.arange(10), 20)
    points = (RANDOM.normal(size=(10, 64))[labels] + RANDOM.normal(0, 0.2, (200, 64))).astype(np.float32)
    with pytest.raises(DataError, match=r"nearest to one of their own label, which is what 'recall@1' judges"):
        notes(points, labels, replace(metrics.top1(), by_default=True))


def test_tokens_judged_by_the_next_ones_label_are_found_out_both_ways() -> None:
    logits = RANDOM.normal(size=(20, 12, 6)).astype(np.float32)
    answers = logits.argmax(-1)
    assert "which is what 'token-top-1' judges" in notes(logits, answers, metrics.perplexity())
    moved = np.concatenate([np.zeros((20, 1), int), answers[:, :-1]], axis=1)
    assert "which is what 'perplexity' judges" in notes(logits, moved, metrics.token_top1())
    masked = np.where(np.arange(12) < 4, -100, moved)
    assert notes(logits, masked, metrics.perplexity()) == "", (
        "a language model is right about the next tokens it is asked for"
    )


def test_one_answer_and_one_label_are_told() -> None:
    same = np.zeros((200, 5), np.float32)
    same[:, 3] = 1
    assert "answers class 3 for all 200 labels" in notes(same, RIGHT, metrics.top1())
    assert "All labels are 3: a model that always answers so" in notes(same, np.full(200, 3), metrics.top1())


def test_guessing_without_another_explanation_is_told_and_not_refused() -> None:
    labels = RANDOM.integers(0, 5, 200) % 2
    assert "always answering the most frequent label" in notes(SCORES, labels, replace(metrics.top1(), by_default=True))


def test_a_sound_score_few_samples_and_a_users_metric_are_not_doubted() -> None:
    assert notes(SCORES, RIGHT, metrics.top1()) == ""
    assert notes(SCORES[:20], (RIGHT[:20] + 1) % 5, metrics.top1()) == ""
    own = Metric("own", lambda outputs, labels: np.zeros(len(labels)))
    assert notes(SCORES, (RIGHT + 1) % 5, own) == ""


def test_equal_infinities_are_left_out_of_distances_and_told() -> None:
    theirs = SCORES.copy()
    theirs[:, 2] = -np.inf
    ours = theirs * np.float32(1.01)
    record = compare_outputs({"logits": ours}, {"logits": theirs})
    assert record.sqnr_db["logits"] == pytest.approx(40, abs=1e-3)
    assert record.notes == (
        "Output 'logits' holds the same infinity in the variant and its parent at 200 places; distances are over the others.",
    )
    ours[0, 2] = 0
    record = compare_outputs({"logits": ours}, {"logits": theirs})
    assert "of its parent is NaN or infinite in 1 of 200 samples" in record.notes[0]
