"""The Pareto front of accuracy and latency: which variants nothing dominates. Compares no more pairs than the front needs.

One variant dominates another where it is distinguishably better in latency or quality and not distinguishably worse in the
other. "Not distinguishable" is not transitive, so that variants may dominate each other in a circle; all of a circle stay on
the front unless something outside it dominates them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from workbench.judging import accuracy, statistics
from workbench.judging.intervals import ACCURACY_CONFIDENCE, CONFIDENCE, FEWEST_ROUNDS, are_apart, difference, mcnemar
from workbench.judging.statistics import Change
from workbench.records import Accuracy, Measurement, VariantResult

Quality = Literal["score", "agreement", "sqnr", "none"]


def front(results: Sequence[VariantResult]) -> tuple[Quality, set[int], tuple[str, ...]]:
    """Return the quality axis, the positions of the results on the Pareto front, and notes."""
    quality = quality_of(results)
    runs = [
        index
        for index, result in enumerate(results)
        if result.measurement is not None
        and result.failure is None
        and (quality == "none" or result.accuracy is not None)
    ]
    pairs = _Pairs({index: results[index] for index in runs}, quality)
    certain = len(runs) < 2 or all(len(speed.logs) >= FEWEST_ROUNDS for speed in pairs.speeds.values())
    notes = () if certain else ("Too few rounds for intervals: the Pareto front is drawn from single values.",)
    fastest_first = sorted(runs, key=lambda index: pairs.speeds[index].middle)
    return quality, undominated(fastest_first, pairs.dominates), notes


def undominated(items: Sequence[int], dominates: Callable[[int, int], bool]) -> set[int]:
    """Return what nothing dominates, directly or through others, unless it dominates that in turn (a circle).

    Asks for few pairs where the items come in the order in which they are likely to dominate others.

    Args:
        dominates: whether the first item dominates the second.
    """
    kept: set[int] = set()
    out: set[int] = set()
    for item in items:
        # What dominates it, and what dominates that, until something settled is met or nothing is left.
        before, ahead = {item}, [item]
        while ahead and item not in kept and item not in out:
            one = ahead.pop()
            for other in (*kept, *(other for other in items if other not in kept)):
                if other in before or not dominates(other, one):
                    continue
                if other in kept or other in out:  # nothing that is kept is dominated by what is not
                    out |= {one, item}
                    break
                before.add(other)
                ahead.append(other)
        if item not in kept and item not in out:
            found = _sources(before, dominates)
            kept |= found
            out |= before - found
    return kept


def _sources(items: set[int], dominates: Callable[[int, int], bool]) -> set[int]:
    """Return `undominated` of items that nothing else dominates, by following every pair."""
    beats = {item: {other for other in items if other != item and dominates(item, other)} for item in items}
    reach = {item: _reachable(item, beats) for item in items}
    return {item for item in items if all(item not in reach[other] or other in reach[item] for other in items)}


def _reachable(start: int, beats: dict[int, set[int]]) -> set[int]:
    seen: set[int] = set()
    ahead = [start]
    while ahead:
        found = beats[ahead.pop()] - seen
        seen |= found
        ahead += found
    return seen


class _Pairs:
    """Answers which of two variants dominates the other, with as little resampling as the answer needs."""

    def __init__(self, results: dict[int, VariantResult], quality: Quality) -> None:
        self.speeds = {index: _Speed.of(result) for index, result in results.items()}
        self._answers = {index: _Answers.of(result.accuracy, quality) for index, result in results.items()}
        # Each is asked for in both directions, and a front asks for some pairs again.
        self._lead, self._faster, self._better = (
            functools.cache(one) for one in (self._led, self._found_faster, self._found_better)
        )

    def dominates(self, one: int, other: int) -> bool:
        """Whether the first is distinguishably better in one of speed and answers, and not worse in the other.

        A verdict never contradicts the sign of the plain difference, so that the sign alone settles most pairs.
        """
        lead = self._lead(one, other) if one < other else -self._lead(other, one)
        edge = self._answers[one].edge(self._answers[other])
        if lead <= 0 and edge <= 0:
            return False
        better = 0 if not edge else self._better(one, other) if one < other else -self._better(other, one)
        if better < 0 or (better == 0 and lead <= 0):
            return False
        if better > 0 and lead >= 0:
            return True
        faster = self._faster(one, other) if one < other else -self._faster(other, one)
        return faster >= 0 if better > 0 else faster > 0

    def _led(self, one: int, other: int) -> int:
        return self.speeds[one].lead(self.speeds[other])

    def _found_faster(self, one: int, other: int) -> int:
        """Return 1, 0 or -1: distinguishably faster, equal, slower; without intervals, what the values say."""
        return self._lead(one, other) if self.speeds[one].is_apart(self.speeds[other]) else 0

    def _found_better(self, one: int, other: int) -> int:
        return self._answers[one].better(self._answers[other])


@dataclass(frozen=True)
class _Speed:
    """A measurement as a front of many variants needs it: each round summed up once, not once a pair.

    Attributes:
        middle, shortest, longest: of the rounds' logs.
    """

    measurement: Measurement
    logs: Mapping[int, float]
    middle: float
    shortest: float
    longest: float

    @classmethod
    def of(cls, result: VariantResult) -> _Speed:
        assert result.measurement is not None
        logs = statistics.logs_by_round(result.measurement)
        values = list(logs.values())
        return cls(result.measurement, logs, float(np.median(values)), min(values), max(values))

    def lead(self, other: _Speed) -> int:
        """Return the sign of the difference, 1 where this one is faster; no verdict has another one."""
        if self.longest < other.shortest:
            return 1
        if other.longest < self.shortest:
            return -1
        value = difference(self._groups(other))
        return (value > 0) - (value < 0)

    def is_apart(self, other: _Speed) -> bool:
        """Return whether the two can be told apart; with fewer than `FEWEST_ROUNDS` every difference counts."""
        groups = self._groups(other)
        return min(map(len, groups)) < FEWEST_ROUNDS or are_apart(groups, CONFIDENCE)

    def _groups(self, other: _Speed) -> list[np.ndarray]:
        in_turns = statistics.interleaved(self.measurement, other.measurement)
        return statistics.groups_of_logs(other.logs, self.logs, in_turns)[0]


@dataclass(frozen=True)
class _Answers:
    """Answers as a front of many variants needs them.

    Attributes:
        worth: grows with how good they are; equal or not a number where nothing tells two apart.
        right: which samples are right, where each is right or wrong and that is all that counts.
    """

    quality: Quality
    worth: float
    check: Accuracy | None
    right: np.ndarray | None = None

    @classmethod
    def of(cls, check: Accuracy | None, quality: Quality) -> _Answers:
        if quality == "none" or check is None:
            return cls("none", 0.0, None)
        if quality == "sqnr":
            lowest = accuracy.lowest_sqnr_db(check)
            return cls(quality, float("inf") if lowest is None else lowest, check)
        if quality == "agreement":
            values, display, sign = accuracy.agreeing(check), "mean", 1
        else:
            values, display, sign = np.asarray(check.scores), check.display, 1 if check.higher_is_better else -1
        binary = display == "mean" and len(values) > 1 and bool(np.isin(values, (0, 1)).all())
        return cls(quality, sign * statistics.shown_score(values, display), check, values == 1 if binary else None)

    def edge(self, other: _Answers) -> int:
        """Return the sign of the difference, 1 where these are better; no verdict has another one."""
        return (self.worth > other.worth) - (self.worth < other.worth)

    def better(self, other: _Answers) -> int:
        """Return 1, 0 or -1: whether these are distinguishably better, or worse, than the other's."""
        if self.check is None or other.check is None or self.quality == "sqnr":
            return self.edge(other)
        if self.right is not None and other.right is not None:
            gained, lost = int((self.right & ~other.right).sum()), int((~self.right & other.right).sum())
            return self.edge(other) if mcnemar(gained, lost) <= 1 - ACCURACY_CONFIDENCE else 0
        if self.quality == "agreement":
            change = statistics.score_change(accuracy.agreeing(self.check), accuracy.agreeing(other.check))
        else:
            change = score_change(self.check, other.check)
            if change.verdict == "unknown" and change.difference:
                return 1 if (change.difference > 0) == self.check.higher_is_better else -1
        return {"better": 1, "worse": -1}.get(change.verdict, 0)


def quality_of(results: Sequence[VariantResult]) -> Quality:
    """Return what stands for "how right": what all that were checked have, on the same data."""
    checks = [result.accuracy for result in results if result.accuracy is not None]
    like = len({check.data_sha256 for check in checks}) == 1
    axes: dict[Quality, Callable[[Accuracy], Any]] = {
        "score": lambda check: len(check.scores),
        "agreement": lambda check: len(check.predictions),
        "sqnr": lambda check: len(check.sqnr_db),
    }
    for name, length in axes.items():
        lengths = {length(check) for check in checks}
        if like and len(lengths) == 1 and 0 not in lengths:
            return name
    return "none"


def score_change(ours: Accuracy, theirs: Accuracy) -> Change:
    """Return the change from the second's score to the first's, on the same samples."""
    return statistics.score_change(
        np.asarray(ours.scores),
        np.asarray(theirs.scores),
        higher_is_better=ours.higher_is_better,
        display=ours.display,
    )
