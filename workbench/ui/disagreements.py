"""Two variants' answers: the samples on which they differ and the least certain ones, and what moved by class. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from workbench.judging import classes
from workbench.judging.classes import ClassChange, Moved
from workbench.records import Accuracy, StudyRecord
from workbench.reports.examples import image_uri

MOST_SAMPLES = 24
MOST_UNSURE = 12
_LONGEST_TEXT = 600


@dataclass(frozen=True)
class Sample:
    """One sample: a picture (data URI) or a text, its label, and what each of the two answered.

    Attributes:
        margin: of the parent's answer, in words; empty where it is not known or not asked for.
    """

    index: int
    image: str
    text: str
    label: str
    first: str
    second: str
    margin: str = ""


@dataclass(frozen=True)
class Disagreements:
    """A sentence, and the samples that can be shown.

    Attributes:
        unsure: samples in which the second variant gives the parent's answer least firmly, or most firmly another one.
        moved: wrong answers whose number changed from the first variant to the second.
        by_class: classes in which right answers were lost or gained.
        unlabelled: samples whose label nothing tells, which `moved` and `by_class` leave out.
    """

    words: str
    samples: tuple[Sample, ...] = ()
    unsure: tuple[Sample, ...] = ()
    moved: tuple[Moved, ...] = ()
    by_class: tuple[ClassChange, ...] = ()
    unlabelled: int = 0


def disagreements(
    record: StudyRecord,
    first: str,
    second: str,
    show: Callable[[int], dict[str, Any]] | None = None,
    labels: np.ndarray | None = None,
) -> Disagreements:
    """Return the samples on which two variants differ.

    Args:
        show: evaluation sample index -> how it is shown, where the data are at hand; else what the record kept.
        labels: classes of the evaluation samples, where the data are at hand; else what right answers tell of them.
    """
    checks = {result.recipe.name: result.accuracy for result in record.results}
    ours, theirs = checks.get(first), checks.get(second)
    if ours is None or theirs is None or not ours.predictions or not theirs.predictions:
        return Disagreements(f"{first} and {second} have no answers to compare (no class scores, or not checked yet).")
    if len(ours.predictions) != len(theirs.predictions) or ours.data_sha256 != theirs.data_sha256:
        return Disagreements(f"{first} and {second} were checked on different data.")
    sides = [np.asarray(check.predictions).reshape(check.samples, -1) for check in (ours, theirs)]
    differing = np.flatnonzero((sides[0] != sides[1]).any(axis=1)).tolist()
    shown: list[Sample] = []
    for index in differing:
        view = show(index) if show is not None else record.samples.get(str(index))
        if isinstance(view, dict) and len(shown) < MOST_SAMPLES:
            shown.append(_sample(index, view, [side[index] for side in sides]))
    words = _words(first, second, ours, len(differing), len(shown))
    if first == second or sides[0].shape[1] != 1:
        return Disagreements(words, tuple(shown))
    before, after = (side[:, 0] for side in sides)
    if labels is None or labels.shape != before.shape or labels.dtype.kind not in "iu":
        labels = classes.labels_told([check for check in checks.values() if check is not None])
    unsure = _unsure(theirs, lambda index: show(index) if show is not None else record.samples.get(str(index)), sides)
    if labels is None or len(labels) != len(before):
        return Disagreements(words, tuple(shown), unsure)
    return Disagreements(
        words,
        tuple(shown),
        unsure,
        tuple(classes.moved(labels, before, after)),
        tuple(classes.by_class(labels, before, after)),
        int((labels == classes.UNKNOWN).sum()),
    )


def _unsure(check: Accuracy, view: Callable[[int], Any], sides: list[np.ndarray]) -> tuple[Sample, ...]:
    if len(check.margins) != check.samples or len(check.parent_margins) != check.samples:
        return ()
    shown: list[Sample] = []
    for index in sorted(range(check.samples), key=lambda index: check.margins[index]):
        seen = view(index)
        if isinstance(seen, dict):
            margin = f"margin {check.margins[index]:.3g}, {check.parent_margins[index]:.3g} in the parent"
            shown.append(replace(_sample(index, seen, [side[index] for side in sides]), margin=margin))
        if len(shown) == MOST_UNSURE:
            break
    return tuple(shown)


def _words(first: str, second: str, check: Accuracy, count: int, shown: int) -> str:
    if first == second:
        return "Choose two different variants."
    if not count:
        return f"{first} and {second} give the same answer on all {check.samples} samples."
    words = f"{first} and {second} differ on {count} of {check.samples} samples"
    return f"{words}; {shown} of them are shown." if shown < count else f"{words}."


def _sample(index: int, view: dict[str, Any], answers: list[np.ndarray]) -> Sample:
    image = image_uri(view.get("value")) if view.get("kind") == "image" else None
    value = view.get("value")
    text = "" if image else value[:_LONGEST_TEXT] if isinstance(value, str) else "(This sample cannot be shown.)"
    label = view.get("label")
    if answers[0].size == 1:
        first, second = (str(int(answer[0])) for answer in answers)
    else:
        places = int((answers[0] != answers[1]).sum())
        first, second = f"{places} of {answers[0].size} predictions differ", ""
    return Sample(index, image or "", text, "" if label is None else str(label), first, second)
