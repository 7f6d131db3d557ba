from __future__ import annotations

import math

import numpy as np
import pytest

from workbench.errors import DataError
from workbench.judging.intervals import (
    WIDEST,
    are_apart,
    center_interval,
    difference,
    is_apart,
    mcnemar,
    paired_share_interval,
    required_samples,
    rounds_interval,
    studentized,
    wilson,
)


@pytest.mark.parametrize(("quantile", "samples"), [(0.9, 64), (0.95, 130), (0.99, 662)])
def test_the_fewest_samples_of_a_percentile_are_those_of_mlperf_loadgen(quantile: float, samples: int) -> None:
    assert required_samples(quantile) == samples


def test_wilson_agrees_with_the_worked_example_of_newcombe_1998() -> None:
    # Newcombe 1998, Stat. Med. 17:857, table I: 81 of 263 gives 0.2553 to 0.3662 (method 3).
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_wilson_reaches_zero_and_one_at_the_ends() -> None:
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0
    assert wilson(0, 20)[1] == pytest.approx(0.1611, abs=5e-5)  # Newcombe 1998, table I: 0 of 20


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(successes: int, n: int) -> None:
    with pytest.raises(DataError, match=f"got {successes} of {n}"):
        wilson(successes, n)


@pytest.mark.parametrize(("pair", "p_value"), [((0, 0), 1.0), ((0, 5), 0.0625), ((1, 9), 22 / 1024), ((4, 4), 1.0)])
def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_pairs(pair: tuple[int, int], p_value: float) -> None:
    assert mcnemar(*pair) == pytest.approx(p_value, rel=1e-12)
    assert mcnemar(*reversed(pair)) == pytest.approx(p_value, rel=1e-12)


def test_the_paired_share_interval_agrees_with_a_published_table() -> None:
    # The complete-response table (59, 6, 16, 80) of Cavo 2012 in Fagerland, Lydersen and Laake, chapter 8.
    assert paired_share_interval((59, 6, 16, 80)) == pytest.approx((-0.1186, -0.0046), abs=5e-5)


def test_the_paired_share_interval_of_equal_answers_holds_zero_and_is_not_empty() -> None:
    low, high = paired_share_interval((50, 0, 0, 0))
    assert low < 0 < high


def test_an_interval_is_the_same_for_the_same_values() -> None:
    values = np.random.default_rng(1).normal(size=9)
    assert center_interval(values, 0.99) == center_interval(values, 0.99)


def test_equal_values_have_an_interval_without_width() -> None:
    interval = center_interval(np.full(5, 0.25), 0.99)
    assert (interval.low, interval.high, interval.p_value) == (0.25, 0.25, 0.0)
    assert center_interval(np.zeros(5), 0.99).p_value == 1.0


@pytest.mark.parametrize("rounds", [2, 3, 5, 8, 15, 25])
def test_the_99_percent_interval_of_few_rounds_holds_the_truth(rounds: int) -> None:
    """200 seeded samples: at a true coverage of 99 % fewer than 190 happen with p < 1e-4."""
    generator = np.random.default_rng(rounds)
    held = 0
    for _ in range(200):
        interval = center_interval(generator.normal(0.3, 1.0, rounds), 0.99)
        held += interval.low <= 0.3 <= interval.high
    assert held >= 190


def test_one_disturbed_round_neither_moves_nor_widens_the_interval_much() -> None:
    calm = np.random.default_rng(3).normal(0.0, 0.01, 12)
    disturbed = calm.copy()
    disturbed[calm.argmax()] = math.log(1.5)
    before, after = center_interval(calm, 0.99), center_interval(disturbed, 0.99)
    # The outlier was the largest value already, so it is trimmed in both; only resampling sees it.
    assert after.value == pytest.approx(before.value, abs=1e-12)
    assert after.high - after.low < 1.5 * (before.high - before.low)
    plain = center_interval(disturbed, 0.99, trim=0.0)
    assert plain.high - plain.low > 5 * (after.high - after.low)


def test_large_samples_take_the_normal_quantile_and_agree_with_resampling() -> None:
    values = np.random.default_rng(4).normal(0.1, 1.0, 2000)
    normal, resampled = center_interval(values, 0.95, trim=0.0), center_interval(values[:-1], 0.95, trim=0.0)
    # One value of 2000 less, and 1999 resamples: a few percent of the width.
    assert normal.low == pytest.approx(resampled.low, abs=0.005)
    assert normal.high == pytest.approx(resampled.high, abs=0.005)


def test_two_independent_samples_are_compared_without_pairing() -> None:
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        first, second = generator.normal(1.0, 0.1, 8), generator.normal(0.8, 0.3, 6)
        interval = studentized([first, second], 0.99)
        held += interval.low <= 0.2 <= interval.high
    assert held >= 190  # at 99 %, fewer happen with p < 1e-4


def test_values_that_differ_by_rounding_alone_have_no_width() -> None:
    values = np.array([0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2, 0.3])
    with np.errstate(all="raise"):
        interval = studentized([values], 0.99)
    assert interval.low == interval.value == interval.high


@pytest.mark.parametrize("rounds", [3, 5, 9, 70])
def test_whether_zero_is_outside_is_what_the_interval_itself_says(rounds: int) -> None:
    """Few resamples decide, and decide alike: near the edge, far from it, for pairs and for groups of their own."""
    random = np.random.default_rng(rounds)
    found = []
    for place in range(60):
        shift = random.uniform(0, 3) * random.choice((-1, 1)) * rounds**-0.5
        groups = [random.normal(shift, 1, rounds)] + [random.normal(0, 1, rounds + 1)] * (place % 2)
        interval = studentized(groups, 0.99)
        assert difference(groups) == interval.value
        found.append(is_apart(groups, 0.99))
        assert found[-1] == (math.exp(interval.low) > 1 or math.exp(interval.high) < 1)
    assert rounds == 3 or any(found)
    assert not all(found)
    same = np.full(rounds, 0.25)
    assert is_apart([same], 0.99) and not is_apart([same - same], 0.99) and not is_apart([same, same], 0.99)


@pytest.mark.parametrize("rounds", [2, 3, 5, 9])
def test_rounds_are_apart_where_their_interval_is_there_and_leaves_zero_out(rounds: int) -> None:
    random = np.random.default_rng(rounds)
    found = []
    for place in range(60):
        groups = [random.normal(random.uniform(-4, 4), random.choice((0.1, 1)), rounds)]
        groups += [random.normal(0, 0.1, rounds + 1)] * (place % 2)
        interval = rounds_interval(groups, 0.99)
        found.append(interval is not None and (interval.low > 0 or interval.high < 0))
        assert are_apart(groups, 0.99) == found[-1]
        assert interval is None or interval.high - interval.low <= WIDEST
    assert any(found) == (rounds > 2) and not all(found)
