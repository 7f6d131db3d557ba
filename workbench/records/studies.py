"""What was found: answers, failures, and a whole study."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.recipes import Recipe
from workbench.records import cards, formats
from workbench.records.engines import BuildOptions, Engine
from workbench.records.measuring import Measurement, Protocol
from workbench.records.models import Model, Variant

SCHEMA_VERSION = 5


@dataclass(frozen=True, repr=False)
class Accuracy(cards.Card):
    """What a variant does to the answers, sample by sample, beside its FP32 parent.

    Attributes:
        metric: name of the task metric, or None where there are no labels.
        scores, parent_scores: the metric's value for each sample (mean is the score); empty where no metric.
        predictions, parent_predictions: class or token index for each sample where the first output is made of
            scores over classes; empty where it is not.
        margins, parent_margins: by how much the score of the parent's answer is above all others, in the variant and in
            the parent itself; below zero where the variant answers otherwise; empty where there is not one answer a sample.
        sqnr_db: output name -> 10 log10(sum y^2 / sum (y - y')^2) against the parent; None where the error is zero.
        cosine: output name -> cosine similarity of the flattened outputs.
        largest_error: output name -> largest absolute difference.
        data_name, data_kind: name of the data, and whether it was `user`, `shipped` or `random`.
        notes: such as "random inputs: no accuracy is claimed" or "3 of 540 samples left the calibrated range".
        display: whether the score is the mean of the values or its exponential (perplexity).
        unit: of the score; `share` is shown as a percentage.
    """

    variant: str
    variant_sha256: str
    backend: str
    samples: int
    data_name: str
    data_kind: str
    data_sha256: str
    metric: str | None = None
    higher_is_better: bool = True
    scores: tuple[float, ...] = ()
    parent_scores: tuple[float, ...] = ()
    predictions: tuple[int, ...] = ()
    parent_predictions: tuple[int, ...] = ()
    margins: tuple[float, ...] = ()
    parent_margins: tuple[float, ...] = ()
    sqnr_db: dict[str, float | None] = field(default_factory=dict)
    cosine: dict[str, float] = field(default_factory=dict)
    largest_error: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    display: Literal["mean", "exp_mean"] = "mean"
    unit: str = ""

    def _headline(self) -> str:
        what = self.metric or "no metric"
        return f"{self.variant!r} on {self.data_name}: {what}{self._score(self.scores)}, {formats.count(self.samples, 'sample')}"

    def _facts(self) -> cards.Facts:
        yield "parent", f"{self.metric}{self._score(self.parent_scores)}" if self.metric else ""
        pairs = zip(self.predictions, self.parent_predictions, strict=False)
        yield "other answers than the parent", str(sum(a != b for a, b in pairs)) if self.predictions else ""
        for name, value in list(self.sqnr_db.items())[: cards.MOST]:
            yield f"SQNR of {name}", "exact" if value is None else f"{value:.1f} dB"
        yield "backend", self.backend
        yield "notes", " ".join(self.notes)

    def _score(self, scores: tuple[float, ...]) -> str:
        if not scores:
            return ""
        mean = sum(scores) / len(scores)
        if self.display == "exp_mean":
            mean = math.exp(mean) if mean < 700 else math.inf
        return (
            f" {100 * mean:.2f} %" if self.unit == "share" else f" {formats.significant(mean, 4)} {self.unit}".rstrip()
        )


@dataclass(frozen=True, repr=False)
class Failure(cards.Card):
    """A variant that did not get through: at which stage, with which message and log."""

    variant: str
    stage: str
    error: str
    message: str
    log: str = ""

    def _headline(self) -> str:
        return f"{self.variant!r} during {self.stage}: {self.error}: {cards.short(self.message)}"

    def _facts(self) -> cards.Facts:
        yield "message", self.message
        yield "log", f"{len(self.log.splitlines())} lines, in .log" if self.log else ""


@dataclass(frozen=True, repr=False)
class VariantResult(cards.Card):
    """All that a study knows of one recipe; later fields are None until their stage is done."""

    recipe: Recipe
    variant: Variant | None = None
    engine: Engine | None = None
    measurement: Measurement | None = None
    accuracy: Accuracy | None = None
    failure: Failure | None = None

    @property
    def latency(self) -> float:
        """Median seconds of a call, over the medians of all rounds; NaN where none was. `Study.latency` has intervals."""
        rounds = () if self.measurement is None else self.measurement.rounds
        return statistics.median(statistics.median(item.latencies_seconds) for item in rounds) if rounds else math.nan

    def _headline(self) -> str:
        if self.failure is not None:
            return f"{self.recipe.name!r}: failed during {self.failure.stage}: {cards.short(self.failure.message)}"
        stages = ("variant", "engine", "accuracy", "measurement")
        return f"{self.recipe.name!r}: {', '.join(name for name in stages if getattr(self, name)) or 'nothing yet'}"

    def _facts(self) -> cards.Facts:
        for name in ("variant", "engine", "accuracy", "measurement", "failure"):
            part = getattr(self, name)
            yield name, "" if part is None else part._headline()


@dataclass(frozen=True, repr=False)
class StudyRecord(cards.Card):
    """A whole study as plain data: what a report is made of, and what moves between machines.

    Attributes:
        baseline: name of the recipe that the others are compared with (the FP32 parent).
        backend_reason: why this backend was taken, in a sentence.
        samples: small pictures or texts of evaluation samples, index -> {"kind": "image"|"text", "value": ...,
            "label": ...}, for the ones on which variants disagree.
        explanations: variant -> what was found when it was last explained, as plain data; see `study.explained`.
    """

    name: str
    created_at: float
    model: Model
    backend: str
    backend_reason: str
    protocol: Protocol
    baseline: str
    results: tuple[VariantResult, ...]
    data: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    options: BuildOptions = field(default_factory=BuildOptions)
    explanations: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def _headline(self) -> str:
        names = [result.recipe.name for result in self.results]
        found = ", ".join(names[: cards.MOST]) + cards.more(names)
        return f"{self.name!r}: {self.model.name} on {self.backend}: {found}"

    def _facts(self) -> cards.Facts:
        yield "model", self.model._headline()
        yield "data", str(self.data.get("name", ""))
        yield "backend", f"{self.backend}: {self.backend_reason}"
        for result in self.results[: cards.MOST]:
            yield "variant", result._headline()
        yield "and", cards.more(self.results).removeprefix(" and ")
        yield "notes", f"{len(self.notes)}, in .notes" if self.notes else ""


@dataclass(frozen=True)
class Progress:
    """One step forward of long work: what is being done, for which variant, and how much of all is done (0..1).

    Attributes:
        remaining_seconds: that all of it still takes, where the work has seen enough of itself to say.
    """

    stage: str
    variant: str
    fraction: float
    message: str = ""
    remaining_seconds: float | None = None
