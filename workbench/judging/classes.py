"""What a variant does to each class: answers that moved, classes that lost or gained. Plain arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.judging.intervals import ACCURACY_CONFIDENCE
from workbench.judging.statistics import Change, score_change
from workbench.records import Accuracy

UNKNOWN = -1


@dataclass(frozen=True)
class Moved:
    """Samples of one class that were answered in one way: how many before, how many after."""

    label: int
    answer: int
    before: int
    after: int


@dataclass(frozen=True)
class ClassChange:
    """The share of a class that is answered rightly, before and after.

    Attributes:
        change: paired by sample; its interval is wide enough for those of all classes to hold together.
    """

    label: int
    samples: int
    before: float
    after: float
    change: Change


def labels_told(checks: Sequence[Accuracy]) -> np.ndarray | None:
    """Return the label of each sample as far as records tell it: somebody's answer that was right; `UNKNOWN` for others.

    None where no record has one answer and one right or wrong a sample.
    """
    found: np.ndarray | None = None
    for check in checks:
        for answers, scores in ((check.parent_predictions, check.parent_scores), (check.predictions, check.scores)):
            if len(answers) != check.samples or len(scores) != check.samples or not set(scores) <= {0.0, 1.0}:
                continue
            if found is None:
                found = np.full(check.samples, UNKNOWN, dtype=np.int64)
            if len(found) == check.samples:
                found = np.where(np.asarray(scores) == 1.0, np.asarray(answers), found)
    return found


def moved(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> list[Moved]:
    """Return the wrong answers whose number changed, the largest change first; samples without a label are left out."""
    found: dict[tuple[int, int], list[int]] = {}
    for side, answers in enumerate((before, after)):
        wrong = (labels != UNKNOWN) & (answers != labels)
        for label, answer in zip(labels[wrong].tolist(), answers[wrong].tolist(), strict=True):
            found.setdefault((label, answer), [0, 0])[side] += 1
    rows = [Moved(*pair, *counts) for pair, counts in found.items() if counts[0] != counts[1]]
    return sorted(rows, key=lambda row: (-abs(row.after - row.before), row.before - row.after, row.label, row.answer))


def by_class(labels: np.ndarray, before: np.ndarray, after: np.ndarray) -> list[ClassChange]:
    """Return the classes in which a right answer was lost or gained, the largest loss first.

    Intervals and tests are at the usual confidence for all classes together (Bonferroni): of a hundred classes five would
    else seem changed by chance.
    """
    classes = [int(label) for label in np.unique(labels) if label != UNKNOWN]
    confidence = 1 - (1 - ACCURACY_CONFIDENCE) / max(len(classes), 1)
    rows = []
    for label in classes:
        here = labels == label
        ours, theirs = (after[here] == label).astype(float), (before[here] == label).astype(float)
        if (ours != theirs).any():
            change = score_change(ours, theirs, confidence=confidence)
            rows.append(ClassChange(label, int(here.sum()), float(theirs.mean()), float(ours.mean()), change))
    return sorted(rows, key=lambda row: (row.after - row.before, row.label))
