"""The account of work: shares that only grow, and a time left that comes from what was seen."""

from __future__ import annotations

from itertools import pairwise

import pytest

from workbench.recipes import NAMED
from workbench.records import Protocol
from workbench.study.effort import ANSWERS, Effort
from workbench.study.estimate import Pace

PROTOCOL = Protocol(rounds=3, min_seconds=0.5, warmup_seconds=0.2)
RECIPES = [NAMED[name] for name in ("fp32", "fp16", "int8-kl")]
# What the stages really take: another order of size than what is guessed before anything was seen.
SECONDS = {"transform": 1.0, "build": 8.0, "check": 20.0, "measure": 1.5}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def walk(effort: Effort, clock: Clock) -> list[tuple[float, float | None, float]]:
    """Go through a whole study and note (share, time left, time since the start), each second."""
    start, seen = clock.now, []

    def work(stage: str, variant: str, seconds: float) -> None:
        effort.begin(stage, variant)
        end = clock.now + seconds
        while clock.now < end:
            clock.now = min(end, clock.now + 1.0)
            seen.append((effort.fraction, effort.remaining_seconds, clock.now - start))

    for recipe in RECIPES:
        for stage in ANSWERS:
            slow = 15.0 if stage == "transform" and recipe.needs_calibration else SECONDS[stage]
            work(stage, recipe.name, slow)
    effort.rounds(3 * PROTOCOL.rounds)
    for _ in range(PROTOCOL.rounds):
        for recipe in RECIPES:
            work("measure", recipe.name, SECONDS["measure"])
    effort.end()
    seen.append((effort.fraction, effort.remaining_seconds, clock.now - start))
    return seen


def test_the_share_only_grows_moves_within_stages_and_ends_at_one() -> None:
    clock = Clock()
    seen = walk(Effort(RECIPES, PROTOCOL, clock=clock), clock)
    shares = [share for share, _, _ in seen]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)
    known = [share for share, left, _ in seen if left is not None]
    assert len(set(known)) > 0.85 * len(known), "it moves within a stage too"


def test_the_time_left_is_not_said_before_it_was_seen_and_does_not_climb_far_above_what_was_said() -> None:
    clock = Clock()
    seen = walk(Effort(RECIPES, PROTOCOL, clock=clock), clock)
    total = seen[-1][2]
    told = [(left, total - at) for _, left, at in seen if left is not None]
    assert told and len(told) > 0.5 * len(seen)
    # Within half of the truth, and 10 s near the end, although every first guess was wrong tenfold.
    assert all(abs(left - truth) <= max(10.0, 0.5 * truth) for left, truth in told)
    climbs = sum(max(0.0, after[0] - before[0]) for before, after in pairwise(told))
    assert climbs < 10.0


def test_what_the_store_had_takes_no_time_and_says_nothing_of_how_long_things_take() -> None:
    clock = Clock()
    effort = Effort(RECIPES, PROTOCOL, clock=clock)
    for recipe in RECIPES:
        for stage in ANSWERS:
            effort.begin(stage, recipe.name)
            clock.now += 0.01
    effort.rounds(0)
    assert effort.fraction == pytest.approx(1.0)
    resumed = Effort(RECIPES, PROTOCOL, clock=clock)
    for recipe in RECIPES:
        for stage in ANSWERS:
            resumed.begin(stage, recipe.name)
            clock.now += 0.01
    resumed.rounds(2)
    assert resumed.remaining_seconds is None, "no round was seen yet"
    for name in ("fp32", "fp16"):
        assert resumed.remaining_seconds is None
        resumed.begin("measure", name)
        clock.now += 1.5
    resumed.end()
    assert resumed.remaining_seconds == pytest.approx(0.0)


def test_while_rounds_are_taken_the_time_left_falls_although_every_guess_was_too_low() -> None:
    clock, wanted = Clock(), 9
    effort = Effort(RECIPES, Protocol(rounds=wanted, min_seconds=0.05, warmup_seconds=0.02), clock=clock)
    for recipe in RECIPES:
        for stage in ANSWERS:
            effort.begin(stage, recipe.name)
            clock.now += 1.0
    effort.rounds(len(RECIPES) * wanted)
    took = {"fp32": 2.6, "fp16": 1.5, "int8-kl": 0.9}
    total = wanted * (sum(took.values()) + 3 * 0.2)
    began, told = clock.now, []
    for turn in range(wanted):
        for name in sorted(took, reverse=bool(turn % 2)):
            effort.begin("measure", name)
            for _ in range(10):
                clock.now += took[name] / 10
                told.append((effort.remaining_seconds, total - (clock.now - began)))
            effort.end()
            clock.now += 0.2  # what is written down counts as well
    assert all(left is None for left, _ in told[:20]) and all(left is not None for left, _ in told[31:])
    known = [(left, truth) for left, truth in told if left is not None]
    assert all(abs(left - truth) < 0.1 * total for left, truth in known)
    climbs = sum(max(0.0, after[0] - before[0]) for before, after in pairwise(known))
    assert climbs < 0.15 * total and known[0][0] > 0.85 * known[0][1]


def test_a_stage_that_tells_how_far_it_is_is_believed() -> None:
    clock = Clock()
    effort = Effort(RECIPES[:1], PROTOCOL, Pace(1.0, 0.3), clock)
    effort.begin("build", "fp32")
    clock.now += 30.0
    effort.at(0.25)
    left = effort.remaining_seconds
    assert left is not None and left > 90.0
    effort.begin("check", "fp32")
    effort.at(1.0)
    assert effort.remaining_seconds is not None and effort.remaining_seconds > 3.0, "one of its passes is not the check"


def test_what_a_failed_variant_would_have_done_is_not_waited_for() -> None:
    effort = Effort(RECIPES, PROTOCOL, clock=Clock())
    effort.begin("transform", "fp16")
    before = effort._remaining()
    effort.drop("fp16", "transform")
    assert effort._remaining() < before - 3.0
