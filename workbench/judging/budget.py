"""The best variant within a latency or an accuracy budget, and which limit keeps a better one out.

Takes points with their intervals as the plot has them; knows nothing of widgets.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    """The best variant under a budget (None where none fits), and why, in sentences."""

    best: str | None
    words: str


def choose(points: list[Point], quality: Quality, baseline: str, budget: Budget) -> Choice:
    """Return the best variant that keeps a budget.

    With an accuracy budget the fastest that keeps it is best; with a latency budget alone, the most accurate. A value
    within the limit whose interval reaches beyond it counts, and is said.
    """
    base = next((point for point in points if point.name == baseline), None)
    if budget.is_empty or not points:
        return Choice(None, "")
    if base is None:
        return Choice(None, f"{baseline} has no measurement yet, so a loss against it cannot be judged.")
    fitting = [point for point in points if _fits(point, base, quality, budget)]
    if not fitting:
        return Choice(None, f"No variant keeps the budget. {_nearest(points, base, quality, budget)}")
    sign = 1.0 if quality.higher_is_better else -1.0
    if budget.loss is None:
        best = max(fitting, key=lambda point: (sign * point.quality.value, -point.seconds.value))
    else:
        best = min(fitting, key=lambda point: (point.seconds.value, -sign * point.quality.value))
    return Choice(best.name, " ".join([_praise(best, quality), *_binding(points, best, base, quality, budget)]))


def _fits(point: Point, base: Point, quality: Quality, budget: Budget) -> bool:
    return _fast_enough(point, budget) and _good_enough(point, base, quality, budget)


def _fast_enough(point: Point, budget: Budget) -> bool:
    return budget.latency_seconds is None or point.seconds.value <= budget.latency_seconds


def _good_enough(point: Point, base: Point, quality: Quality, budget: Budget) -> bool:
    # Scores are shares of whole samples: rounding in the last place must not decide.
    return budget.loss is None or _loss(point, base, quality) <= budget.loss + 1e-9


def _loss(point: Point, base: Point, quality: Quality) -> float:
    difference = base.quality.value - point.quality.value
    return difference if quality.higher_is_better else -difference


def _praise(best: Point, quality: Quality) -> str:
    score = f"{quality.name} {best.quality.value:.4g} {quality.unit}".strip()
    return f"Best: {best.name}, {best.seconds.value * 1e3:.3g} ms, {score}."


def _binding(points: list[Point], best: Point, base: Point, quality: Quality, budget: Budget) -> list[str]:
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


def _nearest(points: list[Point], base: Point, quality: Quality, budget: Budget) -> str:
    fastest = min(points, key=lambda point: point.seconds.value)
    slow = [point for point in points if not _fast_enough(point, budget)]
    if len(slow) == len(points):
        return f"The latency limit binds: the fastest, {fastest.name}, takes {fastest.seconds.value * 1e3:.3g} ms."
    if not any(_good_enough(point, base, quality, budget) for point in points):
        return "The accuracy limit binds: every variant loses more."
    return "Both limits bind: those that are fast enough lose too much, and the others are too slow."


def _unit(quality: Quality) -> str:
    return "points" if quality.unit == "%" else quality.unit
