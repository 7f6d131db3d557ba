"""Compare variants with a baseline: ratios with intervals, changes of the score, the Pareto front of accuracy and latency.

Unlike things (another device, backend, shape, boundary, thread count) are refused, unless asked. Derives everything from
records with `workbench.judging.statistics`; formats nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workbench.errors import CompareError, expect, nearest
from workbench.judging import accuracy, pareto, statistics
from workbench.judging.pareto import Quality
from workbench.judging.statistics import Change, Ratio, Score
from workbench.records import Measurement, StudyRecord, VariantResult, cards

_NO_FRONT = "The Pareto front was not looked for yet."


@dataclass(frozen=True)
class Row:
    """One variant against the baseline.

    Attributes:
        ratio: how many times faster; None for the baseline itself and for what was not measured.
        change: of the score, on the same samples; None where there is no metric or no common data.
        agreement: share of predictions that equal the parent's; None where there are no class scores.
        size_ratio: bytes of the engine / bytes of the baseline's.
        on_front: whether no other variant is at least as good in both and distinguishably better in one; None where it
            was not measured, or studies were compared.
        notes: what a reader must know: failures, unlike conditions that were let pass, rounds taken at other times.
    """

    variant: str
    ratio: Ratio | None = None
    change: Change | None = None
    agreement: Score | None = None
    size_ratio: float | None = None
    on_front: bool | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Comparison(cards.Card):
    """Variants against one baseline.

    Attributes:
        rows: the baseline first, then the candidates as given.
        quality: what the front's accuracy axis is: the task score; agreement with the parent where there are no labels;
            the signal-to-noise ratio of the worst output where there are no class scores; or nothing.
    """

    baseline: str
    rows: tuple[Row, ...]
    quality: Quality = "none"
    notes: tuple[str, ...] = ()

    def __getitem__(self, variant: str) -> Row:
        for row in self.rows:
            if row.variant == variant:
                return row
        raise KeyError(f"There is no row {variant!r}. {nearest(variant, [row.variant for row in self.rows])}")

    @property
    def front(self) -> tuple[str, ...]:
        """The variants on the Pareto front of accuracy and latency."""
        return tuple(row.variant for row in self.rows if row.on_front)

    def _headline(self) -> str:
        names = [row.variant for row in self.rows if row.variant != self.baseline]
        return f"{', '.join(names[: cards.MOST])}{cards.more(names)} against {self.baseline}"

    def _facts(self) -> cards.Facts:
        for row in self.rows:
            speed = [] if row.ratio is None else [row.ratio.words]
            score = [] if row.change is None else [f"score {row.change.words}"]
            yield row.variant, "; ".join((*speed, *score, *row.notes)) or "the baseline"
        yield "notes", " ".join(self.notes)


def compare(
    baseline: VariantResult, candidates: Sequence[VariantResult], *, allow_unlike: bool = False, front: bool = True
) -> Comparison:
    """Compare candidates with a baseline.

    Args:
        allow_unlike: compare other devices, backends, shapes, boundaries and thread counts too; rows then say so.
        front: find the front, which compares many pairs. False leaves it out, and a note says so.

    Raises:
        CompareError: the baseline was not measured, or a candidate was measured under unlike conditions.
    """
    candidates = candidates if isinstance(candidates, (list, tuple)) else [candidates]  # type: ignore[list-item]
    remedy = "Take it from a study: study = Study.open(name); study['fp32']. Or compare all: study.comparison()."
    for one in (baseline, *candidates):
        expect(one, VariantResult, "compare", remedy, CompareError)
    if baseline.measurement is None:
        raise CompareError(
            f"The baseline {baseline.recipe.name!r} has no measurement{_because(baseline)}. Measure it, or choose another."
        )
    rows = [_row(baseline, candidate, allow_unlike) for candidate in candidates]
    own = accuracy.agreement(baseline.accuracy) if baseline.accuracy is not None else None
    rows.insert(0, Row(baseline.recipe.name, agreement=own, size_ratio=_size_ratio(baseline, baseline)))
    if not front:
        return Comparison(baseline.recipe.name, tuple(rows), pareto.quality_of([baseline, *candidates]), (_NO_FRONT,))
    quality, members, notes = pareto.front([baseline, *candidates])
    measured = [result.measurement is not None and result.failure is None for result in (baseline, *candidates)]
    rows = [
        Row(**{**vars(row), "on_front": index in members if known else None})
        for index, (row, known) in enumerate(zip(rows, measured, strict=True))
    ]
    return Comparison(baseline.recipe.name, tuple(rows), quality, notes)


def compare_studies(before: StudyRecord, after: StudyRecord, *, allow_unlike: bool = False) -> Comparison:
    """Compare each variant of a study with the variant of the same name in an earlier one, such as before a change.

    Returns:
        One row a common variant, `after` against `before`; the notes name the variants that only one study has.

    Raises:
        CompareError: the studies share no variant, are of other models, or were measured under unlike conditions.
    """
    first = {result.recipe.name: result for result in before.results}
    second = {result.recipe.name: result for result in after.results}
    common = [name for name in first if name in second]
    if not common:
        raise CompareError(
            f"The studies {before.name!r} and {after.name!r} share no variant: {', '.join(first)} against "
            f"{', '.join(second)}. Compare single variants with workbench.compare(a, [b])."
        )
    notes = [f"Only {study.name!r} has {name!r}." for study, ours, other in
             ((before, first, second), (after, second, first)) for name in ours if name not in other]  # fmt: skip
    if before.model.name != after.model.name:
        notes += _refuse(before.name, after.name, {"model": (before.model.name, after.model.name)}, allow_unlike)
    if before.model.sha256 != after.model.sha256:
        notes.append(f"The models differ: sha256 {before.model.sha256[:12]} before, {after.model.sha256[:12]} after.")
    rows = tuple(_row(first[name], second[name], allow_unlike) for name in common)
    return Comparison(before.name, rows, "none", tuple(notes))


def unlike(first: Measurement, second: Measurement) -> dict[str, tuple[Any, Any]]:
    """Return what forbids comparing two measurements: condition -> its two values; empty where they are alike."""
    pairs = {
        "device": (first.device, second.device),
        "backend": (first.backend, second.backend),
        "shapes": (_shapes(first), _shapes(second)),
        "threads": (first.environment.get("threads"), second.environment.get("threads")),
    }
    for name in ("boundary", "batch", "streams", "cuda_graph"):
        pairs[name] = (getattr(first.protocol, name), getattr(second.protocol, name))
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _row(baseline: VariantResult, candidate: VariantResult, allow_unlike: bool) -> Row:
    name = candidate.recipe.name
    notes: list[str] = []
    if candidate.failure is not None:
        notes.append(f"{name} failed at {candidate.failure.stage}: {candidate.failure.message}")
    ratio = None
    if baseline.measurement is not None and candidate.measurement is not None and candidate.failure is None:
        differences = unlike(baseline.measurement, candidate.measurement)
        notes += _refuse(baseline.recipe.name, name, differences, allow_unlike)
        ratio = statistics.ratio(baseline.measurement, candidate.measurement)
        if not ratio.paired and ratio.rounds > 1:
            notes.append(
                f"{name} and {baseline.recipe.name} were not measured in turns: what the machine did between the two "
                f"looks like a difference."
            )
    elif candidate.failure is None:
        notes.append(f"{name} was not measured.")
    change, found = _change(baseline, candidate)
    return Row(
        variant=name,
        ratio=ratio,
        change=change,
        agreement=None if candidate.accuracy is None else accuracy.agreement(candidate.accuracy),
        size_ratio=_size_ratio(baseline, candidate),
        notes=(*notes, *found),
    )


def _change(baseline: VariantResult, candidate: VariantResult) -> tuple[Change | None, list[str]]:
    ours, theirs = candidate.accuracy, baseline.accuracy
    if ours is None or theirs is None or not ours.scores:
        return None, []
    name = candidate.recipe.name
    if ours.data_sha256 != theirs.data_sha256 or len(ours.scores) != len(theirs.scores):
        note = (
            f"The accuracy of {name} and {baseline.recipe.name} was checked on other data ({ours.data_name}, "
            f"{theirs.data_name}): no change is given."
        )
        return None, [note]
    if ours.metric != theirs.metric:
        return None, [f"{name} has the metric {ours.metric}, the baseline {theirs.metric}: no change is given."]
    return pareto.score_change(ours, theirs), []


def _refuse(first: str, second: str, differences: dict[str, tuple[Any, Any]], allow_unlike: bool) -> list[str]:
    """Return the differences in words where they are allowed; raise where they are not."""
    words = [f"{name} {one!r} against {other!r}" for name, (one, other) in differences.items()]
    if words and not allow_unlike:
        raise CompareError(
            f"{first!r} and {second!r} must not be compared: {'; '.join(words)}. A ratio would mix their effect with the "
            f"variant's. Measure both alike, or pass allow_unlike=True and have the difference named beside the ratio."
        )
    return [f"Unlike conditions: {word} ({first!r} against {second!r})." for word in words]


def _size_ratio(baseline: VariantResult, candidate: VariantResult) -> float | None:
    if baseline.engine is None or candidate.engine is None or baseline.engine.size_bytes == 0:
        return None
    return candidate.engine.size_bytes / baseline.engine.size_bytes


def _shapes(measurement: Measurement) -> dict[str, tuple[int, ...]]:
    return {name: tuple(shape) for name, shape in sorted(measurement.shapes.items())}


def _because(result: VariantResult) -> str:
    return "" if result.failure is None else f" (it failed at {result.failure.stage}: {result.failure.message})"
