"""What a variant does to each class: counted by hand on a few samples."""

from __future__ import annotations

import numpy as np
import pytest
import synthetic_study

from workbench.judging.accuracy import compare_outputs
from workbench.judging.classes import UNKNOWN, Moved, by_class, labels_told, moved

LABELS = np.array([0] * 40 + [1] * 40 + [2, 2, UNKNOWN])
BEFORE = np.array([0] * 40 + [1] * 39 + [2] + [2, 2, 5])
AFTER = np.array([0] * 40 + [1] * 20 + [2] * 19 + [0] + [2, 2, 6])


def test_wrong_answers_that_became_more_or_fewer_come_with_the_largest_change_first() -> None:
    assert moved(LABELS, BEFORE, AFTER) == [Moved(1, 2, 1, 19), Moved(1, 0, 0, 1)]
    assert moved(LABELS, AFTER, BEFORE)[0] == Moved(1, 2, 19, 1)
    assert moved(LABELS, BEFORE, BEFORE) == []


def test_a_class_that_lost_right_answers_has_its_shares_and_an_interval_for_all_classes_together() -> None:
    (row,) = by_class(LABELS, BEFORE, AFTER)
    assert (row.label, row.samples) == (1, 40)
    assert row.before == pytest.approx(39 / 40) and row.after == pytest.approx(20 / 40)
    assert row.change.confidence == pytest.approx(1 - 0.05 / 3) and row.change.verdict == "worse"
    assert row.change.low < row.change.difference < row.change.high < 0
    (back,) = by_class(LABELS, AFTER, BEFORE)
    assert back.change.verdict == "better"


def test_labels_are_known_where_anybody_was_right() -> None:
    record = synthetic_study.study(("fp32", "int8-kl"))
    checks = [result.accuracy for result in record.results]
    found = labels_told(checks)
    assert found is not None and len(found) == 540
    for check in checks:
        for answer, score, label in zip(check.predictions, check.scores, found, strict=True):
            assert (answer == label) == (score == 1.0)
    assert labels_told([]) is None


def test_a_margin_is_how_far_the_parents_answer_is_ahead_and_below_zero_where_it_is_not() -> None:
    parent = np.array([[3.0, 1.0, 0.0], [0.0, 2.0, 1.5], [1.0, 0.0, 0.0]], np.float32)
    variant = np.array([[2.5, 1.0, 0.0], [0.0, 1.0, 1.75], [np.nan, 0.0, 0.0]], np.float32)
    found = compare_outputs({"logits": variant}, {"logits": parent})
    assert found.margins == (1.5, -0.75, -np.inf) and found.parent_margins == (2.0, 0.5, 1.0)
    tokens = np.zeros((2, 3, 4), np.float32)
    assert compare_outputs({"logits": tokens}, {"logits": tokens}).margins == ()
