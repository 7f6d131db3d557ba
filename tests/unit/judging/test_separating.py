"""How many more rounds would tell two variants apart: from the interval, rough, and not at any price."""

from __future__ import annotations

import made_up_rounds
import numpy as np
import pytest

from workbench.judging import separating, statistics
from workbench.judging.separating import MOST_MORE, Separation, separation
from workbench.records import Measurement


def pair(difference: float, rounds: int = 8, noise: float = 0.02, seed: int = 0) -> tuple[Measurement, Measurement]:
    rng = np.random.default_rng(seed)
    ours = 0.004 * np.exp(noise * rng.normal(size=rounds))
    theirs = 0.004 * (1 + difference) * np.exp(noise * rng.normal(size=rounds))
    return (
        made_up_rounds.measurement(ours, variant="a"),
        made_up_rounds.measurement(theirs, variant="b", turn=1),
    )


def test_what_is_told_apart_needs_nothing() -> None:
    assert separation(*pair(0.5)) is None


def test_a_small_difference_needs_more_rounds_and_that_many_tell_it() -> None:
    found = separation(*pair(0.02))
    assert found is not None and found.more_rounds is not None and 1 <= found.more_rounds <= MOST_MORE
    assert 0.02 < (found.within or 0) < 0.2
    told = [statistics.ratio(*pair(0.02, 8 + 2 * found.more_rounds, seed=seed)).verdict for seed in range(1, 8)]
    assert told.count("slower") >= 4, "twice that many rounds tell it in most repetitions"


def test_no_difference_is_told_at_no_price() -> None:
    same, _ = pair(0.0)
    again = made_up_rounds.measurement([0.004] * 8, variant="b", turn=1)
    found = separation(same, again)
    assert found is not None and (found.more_rounds is None or found.more_rounds > 8)
    flat = separation(made_up_rounds.measurement([0.004] * 8, variant="a"), again)
    assert flat == Separation("a", "b", None, 0.0)


def test_below_the_rounds_of_an_interval_those_are_what_is_needed() -> None:
    assert separation(*pair(0.5, rounds=2)) == Separation("a", "b", 1, None)
    wild = separation(*pair(0.5, rounds=3, noise=2.0))
    assert wild is not None and (wild.more_rounds or 0) > 1 and wild.within is None


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, ""),
        ({"b": Separation("a", "b", 12, 0.03)}, "About 12 more rounds would tell a from b,"),
        (
            {"b": Separation("a", "b", 12, 0.03), "c": Separation("a", "c", 1, 0.1)},
            "About one more round would tell a from c and 12 more rounds from all 2,",
        ),
        (
            {"b": Separation("a", "b", 5, 0.03), "c": Separation("a", "c", 5, 0.1)},
            "About 5 more rounds would tell a from all of b, c,",
        ),
        (
            {"b": Separation("a", "b", None, 0.004)},
            "differ as little as it looks; within 0.4 % they are equally fast.",
        ),
        ({"b": Separation("a", "b", None, 0.68)}, "they may still differ by up to 68 %, so take some more rounds"),
        ({"b": None}, ""),
    ],
)
def test_the_cheapest_way_to_separate_is_said(found: dict[str, Separation | None], said: str) -> None:
    words = separating.words("a", list(found), lambda one, other: found[other])
    assert said in words and bool(said) == bool(words)
