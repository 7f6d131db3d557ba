"""What a variant does to the answers, compared with its parent batch by batch. Runs no engine, judges nothing.

`Accumulator` sees each batch once and keeps sums, per-sample scores and predictions: the logits of a language model
(N, T, V) need not all be held.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from workbench.datasets.metrics import Metric, Outputs, scores_output
from workbench.datasets.outputs import Answers, answers_of, side_by_side
from workbench.errors import DataError, WorkbenchError, nearest
from workbench.judging.distances import Distance
from workbench.judging.doubts import doubts
from workbench.judging.statistics import Score, mean_score
from workbench.records import Accuracy

# The prediction of a sample whose scores hold NaN: no class, so it agrees with nothing.
NO_PREDICTION = -1
_RANDOM_NOTE = (
    "Random inputs: no accuracy is claimed. Agreement and distances say how close the variant is to its parent."
)
# Samples whose class scores are kept, to doubt the metric by what else they could be.
_DOUBTED = 512


def lowest_sqnr_db(check: Accuracy) -> float | None:
    """Return the SQNR of the worst output, or None where no output has an error."""
    return min((value for value in check.sqnr_db.values() if value is not None), default=None)


@dataclass
class _Whole:
    """All outputs and labels, kept only for a metric that must see all samples at once."""

    ours: list[Answers] = field(default_factory=list)
    theirs: list[Answers] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)

    def hold(self, outputs: Answers, parent_outputs: Answers, labels: np.ndarray) -> None:
        self.ours.append(outputs)
        self.theirs.append(parent_outputs)
        self.labels.append(np.asarray(labels))


class Accumulator:
    """Compare a variant with its parent, fed batch by batch in the order of the samples.

    Args:
        metric: scores both against labels; None compares them with each other only. A metric that returns one float
            for all samples needs all outputs at once, so these are then held in memory; so does any metric of outputs
            that have no axis of samples.
    """

    def __init__(self, metric: Metric | None = None) -> None:
        self._metric = metric
        self._samples = 0
        self._distances: dict[str, Distance] = {}
        self._scores: tuple[list[float], list[float]] = ([], [])
        self._predictions: tuple[list[int], list[int]] = ([], [])
        self._margins: tuple[list[float], list[float]] = ([], [])
        self._classified: bool | None = None
        self._labels: list[np.ndarray] = []
        self._first_scores: list[np.ndarray] = []
        self._whole: _Whole | None = None
        self._notes: dict[str, None] = {}

    def update(self, outputs: Outputs, parent_outputs: Outputs, labels: np.ndarray | None = None) -> None:
        """Take one batch.

        Args:
            outputs, parent_outputs: output name -> array, samples on axis 0, or Answers that say on which axis.
            labels: of this batch's samples, for the metric.

        Raises:
            DataError: outputs differ in names or shapes, labels are missing, or the metric fails on them.
        """
        outputs, parent_outputs = answers_of(outputs), answers_of(parent_outputs)
        _check_alike(outputs, parent_outputs)
        count = outputs.samples
        self._tell_axes(outputs)
        ours, theirs = outputs.samples_first(), parent_outputs.samples_first()
        for name, values in ours.items():
            if values.dtype.kind not in "fiub" and values.dtype.name != "bfloat16":
                self._notes[f"Output {name!r} holds {values.dtype}, not numbers: it was not compared."] = None
                continue
            if values.shape != theirs[name].shape:
                self._notes[
                    f"Output {name!r}, whose length depends on the data, is {values.shape} in the variant and "
                    f"{theirs[name].shape} in its parent: only a metric can judge it."
                ] = None
                continue
            distance = self._distances.setdefault(name, Distance())
            distance.update(values, theirs[name]) if name not in ours.whole else distance.update(
                values[np.newaxis], theirs[name][np.newaxis]
            )
        if self._metric is not None:
            self._score(self._metric, outputs, parent_outputs, labels, count)
        self._predict(ours, theirs, labels)
        self._samples += count

    def note(self, sentence: str) -> None:
        """Add a sentence to the record's notes."""
        self._notes[sentence] = None

    def result(
        self,
        *,
        variant: str = "",
        variant_sha256: str = "",
        backend: str = "",
        data_name: str = "",
        data_kind: str = "user",
        data_sha256: str = "",
    ) -> Accuracy:
        """Return the record of all batches so far.

        Raises:
            DataError: there was no batch, or the metric fails.
        """
        if self._samples == 0:
            raise DataError("No samples were compared. Feed at least one batch of outputs.")
        scores, parent_scores = self._all_scores(self._metric if data_kind != "random" else None)
        metric = self._metric if data_kind != "random" else None
        finite = {name: distance for name, distance in self._distances.items() if distance.values}
        return Accuracy(
            variant=variant,
            variant_sha256=variant_sha256,
            backend=backend,
            samples=self._samples,
            data_name=data_name,
            data_kind=data_kind,
            data_sha256=data_sha256,
            metric=None if metric is None else metric.name,
            higher_is_better=True if metric is None else metric.higher_is_better,
            scores=scores,
            parent_scores=parent_scores,
            predictions=tuple(self._predictions[0]),
            parent_predictions=tuple(self._predictions[1]),
            margins=tuple(self._margins[0]),
            parent_margins=tuple(self._margins[1]),
            sqnr_db={name: one.sqnr_db() for name, one in finite.items() if one.signal > 0 or one.error == 0},
            cosine={name: one.cosine() for name, one in finite.items()},
            largest_error={name: one.largest for name, one in finite.items()},
            notes=tuple(self._notes) + self._found(data_kind, scores, parent_scores),
            display="mean" if metric is None else metric.display,
            unit="" if metric is None else metric.unit,
        )

    def _score(
        self, metric: Metric, outputs: Answers, parent_outputs: Answers, labels: np.ndarray | None, count: int
    ) -> None:
        if labels is None:
            raise DataError(f"The metric {metric.name!r} needs labels, and there are none. Pass them, or metric=None.")
        outputs, parent_outputs = (_scored(metric, one, labels) for one in (outputs, parent_outputs))
        if self._whole is None and (metric.whole or outputs.whole):
            self._whole = _Whole()
        values = [] if self._whole else [_evaluate(metric, one, labels) for one in (outputs, parent_outputs)]
        if self._whole is None and values[0].ndim == 0:
            self._whole = _Whole()
        if self._whole is not None:
            self._whole.hold(outputs, parent_outputs, labels)
            return
        for kept, value in zip(self._scores, values, strict=True):
            if value.shape != (count,):
                raise DataError(
                    f"The metric {metric.name!r} returned an array {value.shape} for {count} samples. It must return "
                    f"one value a sample, or one float."
                )
            kept.extend(float(one) for one in value)

    def _all_scores(self, metric: Metric | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
        if metric is None:
            return (), ()
        if self._whole is None:
            return tuple(self._scores[0]), tuple(self._scores[1])
        labels = np.concatenate(self._whole.labels)
        ours, theirs = (side_by_side(side) for side in (self._whole.ours, self._whole.theirs))
        if metric.settled is not None:
            metric, notes = metric.settled(theirs, labels)
            self._metric = metric
            self._notes.update(dict.fromkeys(notes))
        values = [_evaluate(metric, side, labels) for side in (ours, theirs)]
        if values[0].ndim > 1 or values[0].shape != values[1].shape:
            raise DataError(
                f"The metric {metric.name!r} returned {values[0].shape} values for the variant and {values[1].shape} for "
                f"its parent. It must return one value a sample, or one float."
            )
        first, second = (tuple(float(one) for one in np.atleast_1d(value)) for value in values)
        return first, second

    def _predict(self, outputs: Answers, parent_outputs: Answers, labels: np.ndarray | None) -> None:
        metric = self._metric
        if self._classified is None:
            self._classified = (metric is None or metric.classes) and _holds_class_scores(outputs, labels, metric)
        if self._classified:
            sides = [scores_output(one, metric.output if metric else None) for one in (outputs, parent_outputs)]
            for kept, scores in zip(self._predictions, sides, strict=True):
                kept.extend(_predictions(scores))
            if sides[1].ndim == 2:
                answers = np.asarray(_predictions(sides[1]))
                for margins, scores in zip(self._margins, sides, strict=True):
                    margins.extend(_margins(scores, answers))
            if labels is not None and metric is not None:
                self._labels.append(np.asarray(labels))
                scores = scores_output(parent_outputs, metric.output)
                if scores.ndim == 2 and self._samples < _DOUBTED:
                    self._first_scores.append(np.array(scores[: _DOUBTED - self._samples], np.float32))

    def _tell_axes(self, outputs: Answers) -> None:
        for name, axis in outputs.axes.items():
            if axis:
                shape = ", ".join(
                    "samples" if place == axis else str(size) for place, size in enumerate(outputs[name].shape)
                )
                self._notes[f"Output {name!r} is ({shape}): its samples are on axis {axis}."] = None
        for name in outputs.whole:
            self._notes[
                f"Output {name!r} has no axis that counts the samples: what each call gave was compared whole."
            ] = None

    def _found(self, data_kind: str, scores: tuple[float, ...], parent_scores: tuple[float, ...]) -> tuple[str, ...]:
        notes = [_RANDOM_NOTE] if data_kind == "random" else []
        for name, one in self._distances.items():
            for who, lost in (("the variant", one.lost_samples), ("its parent", one.parent_lost_samples)):
                if lost:
                    notes.append(
                        f"Output {name!r} of {who} is NaN or infinite in {lost} of {self._samples} samples; distances "
                        f"are over the others."
                    )
            if one.infinite:
                notes.append(
                    f"Output {name!r} holds the same infinity in the variant and its parent at {one.infinite} places; "
                    f"distances are over the others."
                )
            if one.values and one.signal == 0 and one.error > 0:
                notes.append(f"Output {name!r} of the parent is all zero, so it has no signal-to-noise ratio.")
        for who, values in (("the variant", scores), ("its parent", parent_scores)):
            bad = sum(not math.isfinite(value) for value in values)
            if bad:
                notes.append(f"{bad} of {len(values)} scores of {who} are not finite, so its score is unknown.")
        if self._metric is not None and data_kind != "random" and self._labels:
            first = np.concatenate(self._first_scores) if self._first_scores else np.zeros((0, 0))
            labels = np.concatenate(self._labels)
            notes += doubts(self._metric, np.asarray(self._predictions[1]), labels, first)
        return tuple(notes)


def compare_outputs(
    outputs: Outputs,
    parent_outputs: Outputs,
    labels: np.ndarray | None = None,
    metric: Metric | None = None,
    **identity: Any,
) -> Accuracy:
    """Compare all outputs at once; `identity` as for `Accumulator.result`.

    Raises:
        DataError: see `Accumulator.update`.
    """
    accumulator = Accumulator(metric)
    accumulator.update(outputs, parent_outputs, labels)
    return accumulator.result(**identity)


def flips(accuracy: Accuracy) -> np.ndarray:
    """Return the indices of the samples whose prediction differs from the parent's, ascending.

    With several predictions a sample (tokens) one that differs is enough. Without predictions: the samples that are
    right in one and wrong in the other; none where scores are no rights and wrongs.
    """
    if accuracy.predictions:
        ours, theirs = (np.asarray(side) for side in (accuracy.predictions, accuracy.parent_predictions))
        differ = (ours != theirs) | (ours == NO_PREDICTION)
        return np.flatnonzero(differ.reshape(accuracy.samples, -1).any(axis=1))
    if len(accuracy.scores) == accuracy.samples and set(accuracy.scores + accuracy.parent_scores) <= {0.0, 1.0}:
        return np.flatnonzero(np.asarray(accuracy.scores) != np.asarray(accuracy.parent_scores))
    return np.zeros(0, dtype=np.int64)


def agreeing(accuracy: Accuracy) -> np.ndarray:
    """Return for each sample the share of its predictions that equal the parent's (0 or 1 where it has one); (samples,)."""
    ours, theirs = (np.asarray(side) for side in (accuracy.predictions, accuracy.parent_predictions))
    same = (ours == theirs) & (ours != NO_PREDICTION)
    return same.reshape(accuracy.samples, -1).mean(axis=1)


def agreement(accuracy: Accuracy) -> Score | None:
    """Return the mean share of predictions that equal the parent's, with its interval over samples.

    None where the first output is not made of class scores.
    """
    return mean_score(agreeing(accuracy)) if accuracy.predictions else None


def _scored(metric: Metric, outputs: Answers, labels: np.ndarray) -> Answers:
    """Return what a metric is given of the outputs: the one it scores, samples in front where it wants them so."""
    if metric.output is not None:
        if metric.output not in outputs:
            raise DataError(
                f"The metric {metric.name!r} scores the output {metric.output!r}, which the model lacks. "
                f"{nearest(metric.output, outputs)}"
            )
        name = metric.output
        counts = {name: outputs.counts[name]} if name in outputs.counts else {}
        outputs = Answers({name: outputs[name]}, {name: outputs.axes[name]}, samples=outputs.samples, counts=counts,
                          calls=outputs.calls)  # fmt: skip
    return outputs.samples_first() if metric.samples_first else outputs


def _evaluate(metric: Metric, outputs: Answers, labels: np.ndarray) -> np.ndarray:
    try:
        return np.asarray(metric.function(outputs, labels), dtype=np.float64)
    except WorkbenchError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in outputs.items())
        raise DataError(
            f"The metric {metric.name!r} failed with {type(error).__name__}: {error}. It was given the outputs {shapes} and "
            f"labels {np.shape(labels)}."
        ) from error


def _check_alike(outputs: Answers, parent_outputs: Answers) -> None:
    if not outputs or set(outputs) != set(parent_outputs):
        raise DataError(
            f"Variant and parent must have the same outputs, at least one: {sorted(outputs)} against "
            f"{sorted(parent_outputs)}. Was a transform run that renamed them?"
        )
    for name, values in outputs.items():
        if values.shape != parent_outputs[name].shape and outputs.axes[name] is not None:
            raise DataError(
                f"Output {name!r} is {values.shape} in the variant and {parent_outputs[name].shape} in its parent. Feed "
                f"both the same samples."
            )


def _holds_class_scores(outputs: Answers, labels: np.ndarray | None, metric: Metric | None) -> bool:
    """Whether the scored output is scores over classes: floats (N, C), or (N, T, V) of tokens, and labels that fit."""
    scores = scores_output(outputs, metric.output if metric else None)
    if any(scores is outputs[name] for name in outputs.whole):
        return False
    if scores.dtype.kind in "iub" or scores.dtype.kind == "U" or scores.ndim not in (2, 3) or scores.shape[-1] < 2:
        return False
    if labels is None:
        return scores.ndim == 2 or "logits" in outputs
    return np.asarray(labels).dtype.kind in "iu" and np.shape(labels) == scores.shape[:-1]


def _predictions(scores: np.ndarray) -> list[int]:
    values = np.asarray(scores, dtype=np.float32)
    chosen = np.where(np.isnan(values).any(axis=-1), NO_PREDICTION, values.argmax(axis=-1))
    return [int(one) for one in chosen.ravel()]


def _margins(scores: np.ndarray, answers: np.ndarray) -> list[float]:
    """Return by how much the score of an answer is above all others (N,); minus infinity where scores are no numbers."""
    values = np.array(scores, dtype=np.float64)
    rows = np.arange(len(values))
    own = values[rows, answers]
    values[rows, answers] = -np.inf
    with np.errstate(invalid="ignore"):
        margins = own - values.max(axis=-1)
    return [float(one) for one in np.where(np.isnan(margins) | (answers == NO_PREDICTION), -np.inf, margins)]
