"""The one rule of which variant is best: within a budget, or where none is set; and which limit keeps a better one out.

Reports, the app and the search ask here. Takes points with their intervals as the plot has them; knows nothing of widgets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workbench.judging import separating
from workbench.judging.separating import Apart
from workbench.judging.standing import Point, Quality


@dataclass(frozen=True)
class Budget:
    """What may be spent.

    Attributes:
        latency_seconds: a call may take, or None.
        loss: of the score against the baseline, in the shown unit (points of a percentage, dB), or None.
    """

    latency_seconds: float | None = None
    loss: float | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing limits."""
        return self.latency_seconds is None and self.loss is None


@dataclass(frozen=True)
class Choice:
    """The best variant (None where none fits), and why, in sentences.

    Attributes:
        equals: others that would do and whose speed cannot be told apart from the best's.
    """

    best: str | None
    words: str
    equals: tuple[str, ...] = ()


Alike = Callable[[str, str], bool]


def _unknown(one: str, other: str) -> None:
    """What it takes to tell two variants apart, where no measurement is at hand."""


def choose(
    points: Sequence[Point],
    quality: Quality,
    baseline: str,
    budget: Budget,
    alike: Alike = lambda one, other: False,
    *,
    apart: Apart = _unknown,
) -> Choice:
    """Return the best variant that keeps a budget.

    With an accuracy budget the fastest that keeps it is best, and among those whose speed cannot be told apart from its
    the most accurate; with a latency budget alone, the most accurate. A value within the limit whose interval reaches
    beyond it counts, and is said.

    Args:
        alike: whether the speed of two variants cannot be told apart (see `standing.alike_in_speed`).
        apart: what it takes to tell them apart (see `standing.apart_in_speed`).
    """
    base = next((point for point in points if point.name == baseline), None)
    if budget.is_empty or not points:
        return Choice(None, "")
    if base is None:
        return Choice(None, f"{baseline} has no measurement yet, so a loss against it cannot be judged.")
    fitting = [point for point in points if _fits(point, base, quality, budget)]
    if not fitting:
        return Choice(None, f"No variant keeps the budget. {_nearest(points, base, quality, budget)}")
    if budget.loss is None:
        best = max(fitting, key=lambda point: (_worth(point, quality), -point.seconds.value))
    else:
        best = _fastest(fitting, quality, alike)
    equals = tuple(point.name for point in fitting if point is not best and alike(best.name, point.name))
    words = [
        _praise(best, quality, equals),
        *_binding(points, best, base, quality, budget),
        *_ties(best, equals, apart),
    ]
    return Choice(best.name, " ".join(words), equals)


def recommended(
    points: Sequence[Point], quality: Quality, alike: Alike = lambda one, other: False, *, apart: Apart = _unknown
) -> Choice:
    """Return what to take where no budget is set: distinguishably faster than the baseline, not distinguishably worse.

    Of these the fastest, and among those whose speed cannot be told apart from its the most accurate.
    """
    good = [point for point in points if point.is_faster and not point.is_worse and point.on_front]
    if not good:
        return Choice(None, "No variant is distinguishably faster without answering distinguishably worse.")
    best = _fastest(good, quality, alike)
    equals = tuple(point.name for point in good if point is not best and alike(best.name, point.name))
    return Choice(best.name, " ".join([_praise(best, quality, equals), *_ties(best, equals, apart)]), equals)


def _fastest(points: Sequence[Point], quality: Quality, alike: Alike) -> Point:
    first = min(points, key=lambda point: (point.seconds.value, -_worth(point, quality)))
    equals = [point for point in points if point is first or alike(first.name, point.name)]
    return max(equals, key=lambda point: (_worth(point, quality), -point.seconds.value))


def _worth(point: Point, quality: Quality) -> float:
    return point.quality.value if quality.higher_is_better else -point.quality.value


def _ties(best: Point, equals: Sequence[str], apart: Apart) -> list[str]:
    return list(filter(None, [separating.words(best.name, equals, apart)]))


def _fits(point: Point, base: Point, quality: Quality, budget: Budget) -> bool:
    return _fast_enough(point, budget) and _good_enough(point, base, quality, budget)


def _fast_enough(point: Point, budget: Budget) -> bool:
    return budget.latency_seconds is None or point.seconds.value <= budget.latency_seconds


def _good_enough(point: Point, base: Point, quality: Quality, budget: Budget) -> bool:
    # Scores are shares of whole samples: rounding in the last place must not decide.
    return budget.loss is None or keeps_to(_loss(point, base, quality), budget.loss)


def _loss(point: Point, base: Point, quality: Quality) -> float:
    difference = base.quality.value - point.quality.value
    return difference if quality.higher_is_better else -difference


def _praise(best: Point, quality: Quality, equals: Sequence[str]) -> str:
    score = f"{quality.name} {best.quality.value:.4g} {quality.unit}".strip()
    first = f"{best.name}, {best.seconds.value * 1e3:.3g} ms, {score}"
    if not equals:
        return f"Best: {first}."
    return (
        f"Best: {first}. In speed it cannot be told apart from {', '.join(equals)}: of these {len(equals) + 1} it answers "
        f"best, and any would do for speed."
    )


def _binding(points: Sequence[Point], best: Point, base: Point, quality: Quality, budget: Budget) -> list[str]:
    """Say which limit keeps a better variant out, and where an interval reaches over a limit."""
    words = []
    better_lost = [
        point for point in points if _good_enough(point, base, quality, budget) and not _fast_enough(point, budget)
    ]
    faster_lost = [
        point for point in points if _fast_enough(point, budget) and not _good_enough(point, base, quality, budget)
    ]
    more_accurate = [point for point in better_lost if _loss(point, base, quality) < _loss(best, base, quality)]
    faster = [point for point in faster_lost if point.seconds.value < best.seconds.value]
    if more_accurate:
        first = min(more_accurate, key=lambda point: point.seconds.value)
        words.append(
            f"The latency limit binds: {first.name} answers better but takes {first.seconds.value * 1e3:.3g} ms."
        )
    if faster:
        first = min(faster, key=lambda point: _loss(point, base, quality))
        lost = _loss(first, base, quality)
        words.append(f"The accuracy limit binds: {first.name} is faster but loses {lost:.3g} {_unit(quality)}.")
    if not words:
        words.append("No limit binds: nothing better is kept out.")
    high = best.seconds.high
    if budget.latency_seconds is not None and high is not None and high > budget.latency_seconds:
        words.append("Its latency interval reaches over the limit.")
    return words


def _nearest(points: Sequence[Point], base: Point, quality: Quality, budget: Budget) -> str:
    fastest = min(points, key=lambda point: point.seconds.value)
    slow = [point for point in points if not _fast_enough(point, budget)]
    if len(slow) == len(points):
        return f"The latency limit binds: the fastest, {fastest.name}, takes {fastest.seconds.value * 1e3:.3g} ms."
    if not any(_good_enough(point, base, quality, budget) for point in points):
        return "The accuracy limit binds: every variant loses more."
    return "Both limits bind: those that are fast enough lose too much, and the others are too slow."


def _unit(quality: Quality) -> str:
    return "points" if quality.unit == "%" else quality.unit


def keeps_to(loss: float, bound: float) -> bool:
    """Whether a loss is within a bound, of the same unit; the last digits of a difference of means do not count."""
    return loss <= bound + 1e-9
