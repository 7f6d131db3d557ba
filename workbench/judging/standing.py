"""Where each variant of a study stands: how fast, how right, with intervals. What `front` draws and reports list.

Chooses what stands for "how right": the task metric, else agreement with the parent, else SQNR. Draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from workbench.errors import CompareError
from workbench.judging import statistics
from workbench.judging.accuracy import agreement, lowest_sqnr_db
from workbench.judging.comparison import Comparison, Row, compare
from workbench.judging.separating import Apart, Separation, separation
from workbench.records import StudyRecord, VariantResult


@dataclass(frozen=True)
class Quality:
    """What stands for "how right" in a study.

    Attributes:
        name: such as `top-1`, `agreement with fp32`.
        scale: stored value -> shown value (100 for shares).
        unit: of the shown value; empty where there is none.
    """

    kind: Literal["score", "agreement", "sqnr"]
    name: str
    scale: float
    unit: str
    higher_is_better: bool


@dataclass(frozen=True)
class Place:
    """A value with its interval; ends are None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Point:
    """One variant: seconds a call, times faster than the baseline, and quality in the unit in which it is shown.

    Attributes:
        like_baseline: not told apart from it, in speed and in quality; also where the rounds are too few to tell.
        is_faster, is_worse: distinguishably, than the baseline.
    """

    name: str
    seconds: Place
    speedup: Place
    quality: Place
    on_front: bool
    like_baseline: bool
    is_faster: bool = False
    is_worse: bool = False


def compared(record: StudyRecord, *, front: bool = True) -> tuple[Comparison | None, str]:
    """Compare a study's variants with its baseline; where that is refused return None and the reason."""
    base = next((item for item in record.results if item.recipe.name == record.baseline), None)
    if base is None:
        return None, f"The study has no variant {record.baseline!r}, its baseline, so nothing can be compared."
    try:
        return compare(base, [item for item in record.results if item is not base], front=front), ""
    except CompareError as error:
        return None, str(error)


def quality(record: StudyRecord, comparison: Comparison) -> Quality | None:
    """Return what stands for "how right", or None where no variant was checked."""
    check = next((result.accuracy for result in record.results if result.accuracy is not None), None)
    if check is None or comparison.quality == "none":
        return None
    if comparison.quality == "score":
        share = check.unit == "share"
        unit = "%" if share else check.unit
        return Quality("score", check.metric or "score", 100 if share else 1, unit, check.higher_is_better)
    if comparison.quality == "agreement":
        return Quality("agreement", f"agreement with {record.baseline}", 100, "%", True)
    return Quality("sqnr", f"SQNR against {record.baseline}", 1, "dB", True)


def points(record: StudyRecord, comparison: Comparison, shown: Quality) -> tuple[list[Point], list[str]]:
    """Return the variants that have both a speed and a quality, and the names of those that lack one."""
    rows = {row.variant: row for row in comparison.rows}
    base = next(result for result in record.results if result.recipe.name == comparison.baseline)
    found, lacking = [], []
    for result in record.results:
        row = rows[result.recipe.name]
        place = _place(result, base, row, shown)
        if place is None or result.measurement is None or result.failure is not None:
            lacking.append(result.recipe.name)
            continue
        summary = statistics.summary(result.measurement)
        found.append(
            Point(
                name=result.recipe.name,
                seconds=Place(summary.median, summary.low, summary.high),
                speedup=Place(1.0) if row.ratio is None else Place(row.ratio.value, row.ratio.low, row.ratio.high),
                quality=place,
                on_front=bool(row.on_front),
                like_baseline=_like_baseline(row),
                is_faster=row.ratio is not None and row.ratio.verdict == "faster",
                is_worse=row.change is not None and row.change.verdict == "worse",
            )
        )
    return found, lacking


def alike_in_speed(record: StudyRecord) -> Callable[[str, str], bool]:
    """Return whether the speed of two variants of a study cannot be told apart."""
    measured = {item.recipe.name: item.measurement for item in record.results if item.failure is None}

    def alike(one: str, other: str) -> bool:
        first, second = measured.get(one), measured.get(other)
        if first is None or second is None:
            return False
        return statistics.is_alike(first, second)

    return alike


def apart_in_speed(record: StudyRecord) -> Apart:
    """Return what tells how many more rounds it takes to tell the speed of two variants of a study apart."""
    measured = {item.recipe.name: item.measurement for item in record.results if item.failure is None}

    def apart(one: str, other: str) -> Separation | None:
        first, second = measured.get(one), measured.get(other)
        return None if first is None or second is None else separation(first, second)

    return apart


def _place(result: VariantResult, base: VariantResult, row: Row, shown: Quality) -> Place | None:
    check = result.accuracy
    if check is None:
        return None
    if shown.kind == "sqnr":
        decibels = lowest_sqnr_db(check)
        return None if decibels is None else Place(decibels)
    if shown.kind == "agreement":
        share = agreement(check)
        return None if share is None else _scaled(share.value, share.low, share.high, shown.scale)
    score = statistics.score_interval(check)
    if score is None:
        return None
    parent = None if base.accuracy is None else statistics.score_interval(base.accuracy)
    if row.change is None or row.change.low is None or row.change.high is None or parent is None:
        return Place(score.value * shown.scale)
    # The interval of the paired change: the samples are shared, so their own spread is no doubt about a difference.
    low, high = parent.value + row.change.low, parent.value + row.change.high
    if shown.unit == "%":
        low, high = max(low, 0.0), min(high, 1.0)
    return _scaled(score.value, low, high, shown.scale)


def _scaled(value: float, low: float | None, high: float | None, scale: float) -> Place:
    return Place(value * scale, None if low is None else low * scale, None if high is None else high * scale)


def _like_baseline(row: Row) -> bool:
    apart = row.ratio is None or row.ratio.verdict in ("faster", "slower")
    return not apart and row.change is not None and row.change.verdict == "not distinguishable"
