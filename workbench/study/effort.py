"""How much of a study's work is done and how long the rest takes, from what its own stages took. Runs nothing.

A share of work only grows, and is 1 at the end. The time left comes from stages that were seen to take time; before each kind
of stage was seen once, here or in an earlier study, none is told. Rounds are guessed at while answers are made, from what their
protocol asks for; once they are being taken, a whole turn of them is seen before more is said, as variants differ.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from workbench.recipes import Recipe
from workbench.records import Protocol
from workbench.study.estimate import ANSWER_SECONDS, Pace, round_seconds

ANSWERS = ("transform", "build", "check")
# What of an answer's time a stage takes, until it was seen.
_SHARES = {"transform": 0.2, "build": 0.3, "check": 0.5}
# Faster than this, it came from the store.
_LEAST_SECONDS = 0.05
# A stage that takes longer than the ones before it is not said to be done.
_MOST_OF_A_STAGE = 0.95

_Kind = tuple[str, bool]
_ROUND: _Kind = ("measure", False)


class Effort:
    """The account of one run.

    Args:
        recipes: of the study: each is transformed, built and checked.
        pace: of an earlier study here; only what weighs stages that were not seen yet.
        clock: seconds.
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        protocol: Protocol,
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._protocol, self._pace, self._clock = protocol, pace or Pace(), clock
        self._calibrated = {recipe.name: recipe.needs_calibration for recipe in recipes}
        self._waiting: Counter[_Kind] = Counter()
        for recipe in recipes:
            self._waiting.update(self._kind(stage, recipe.name) for stage in ANSWERS)
        self._waiting[_ROUND] = len(recipes) * protocol.rounds
        self._seen: dict[_Kind, list[float]] = defaultdict(list)
        self._current: _Kind | None = None
        self._variant = ""
        # Of each variant: some take longer than others, and a turn that has begun must not count some of them twice.
        self._rounds: dict[str, list[float]] = defaultdict(list)
        # Rounds that must be seen before a time left is told; none before they are taken.
        self._turn = 0
        self._ended_at: float | None = None
        self._began = 0.0
        self._within = 0.0
        self._ended: Counter[_Kind] = Counter()
        self._fraction = 0.0

    @property
    def fraction(self) -> float:
        """The share of all work that is done now; what the store had counts as done."""
        done = sum(count * self._expected(kind) for kind, count in self._ended.items())
        done += 0.0 if self._current is None else self._clock() - self._began
        left = self._remaining()
        share = done / (done + left) if done + left else 1.0
        if self.remaining_seconds is None:  # guesses can be far too low: until they are mended, stages are counted
            ended, waiting = self._ended.total(), self._waiting.total()
            share = min(share, (ended + _MOST_OF_A_STAGE) / (ended + waiting + 1))
        self._fraction = max(self._fraction, share)
        return self._fraction

    @property
    def remaining_seconds(self) -> float | None:
        """How long the rest takes; None while a kind of stage is ahead that was not seen yet."""
        seen = sum(map(len, self._rounds.values())) >= self._turn
        return self._remaining() if seen and all(map(self._known, ANSWERS)) else None

    def begin(self, stage: str, variant: str) -> None:
        """A stage of a variant, or one round, begins; what was under way has ended."""
        self.end()
        kind = self._kind(stage, variant)
        if self._waiting[kind] > 0:
            self._waiting[kind] -= 1
        now = self._clock()
        if kind == _ROUND and self._ended_at is not None and self._rounds.get(self._variant):
            # What is written down between two rounds takes time as well.
            self._rounds[self._variant][-1] += now - self._ended_at
        self._variant = variant
        self._current, self._began, self._within, self._ended_at = kind, now, 0.0, None

    def at(self, fraction: float) -> None:
        """The stage says itself how far it is; a check consists of several passes, of which each says its own."""
        if self._current is not None and self._current[0] != "check":
            self._within = max(self._within, min(fraction, 1.0))

    def end(self) -> None:
        """What was under way has ended."""
        if self._current is None:
            return
        self._ended_at = self._clock() if self._current == _ROUND else None
        took = self._clock() - self._began
        self._ended[self._current] += 1
        if took >= _LEAST_SECONDS:
            seen = self._rounds[self._variant] if self._current == _ROUND else self._seen[self._current]
            seen.append(took)
        self._current = None

    def rounds(self, lacking: int) -> None:
        """So many rounds are to be measured from now on: those in the store need not, the baseline's beside a new variant do."""
        self.end()
        self._ended[_ROUND] += max(0, self._waiting[_ROUND] - lacking)
        self._waiting[_ROUND], self._ended_at = lacking, None
        self._turn = 0 if self._pace.round_overhead_seconds is not None else min(lacking, len(self._calibrated))

    def drop(self, variant: str, stage: str) -> None:
        """A variant failed in a stage: what would have come after it does not."""
        self.end()
        for later in ANSWERS[ANSWERS.index(stage) + 1 :] if stage in ANSWERS else ():
            self._waiting[self._kind(later, variant)] -= 1
        self._waiting[_ROUND] -= self._protocol.rounds if stage in ANSWERS else 0

    def _kind(self, stage: str, variant: str) -> _Kind:
        # Calibration runs the model over its samples: a transformation with it is another kind of work.
        return stage, stage == "transform" and self._calibrated.get(variant, False)

    def _known(self, stage: str) -> bool:
        """Whether one was seen, here or in an earlier study, or none is ahead."""
        if self._pace.answer_seconds is not None or any(self._ended[kind] for kind in ((stage, False), (stage, True))):
            return True
        ahead = [kind for kind, count in self._waiting.items() if count > 0]
        return stage not in {kind[0] for kind in (*ahead, self._current or _ROUND)}

    def _remaining(self) -> float:
        left = sum(max(count, 0) * self._expected(kind) for kind, count in self._waiting.items())
        return left + self._rest_of_current()

    def _rest_of_current(self) -> float:
        if self._current is None:
            return 0.0
        took, expected = self._clock() - self._began, self._expected(self._current)
        if self._within > 0.0:
            return took * (1.0 - self._within) / self._within if took > 0 else expected
        return max(expected - took, (1.0 - _MOST_OF_A_STAGE) * expected)

    def _expected(self, kind: _Kind) -> float:
        """Seconds of one stage or round: of its kind, else of the nearest that was seen, else of earlier studies."""
        if took := self._seen.get(kind):
            return sum(took) / len(took)
        stage = kind[0]
        if stage == "measure":
            if means := [sum(took) / len(took) for took in self._rounds.values() if took]:
                return sum(means) / len(means)
            return round_seconds(self._protocol, self._pace)
        # Calibration runs the model over samples as a check does.
        near = [("check", False), ("transform", False)] if kind[1] else [(stage, False), (stage, True)]
        for other in near:
            if took := self._seen.get(other):
                return sum(took) / len(took)
        answer = self._pace.answer_seconds
        return _SHARES[stage] * (ANSWER_SECONDS if answer is None else answer)
