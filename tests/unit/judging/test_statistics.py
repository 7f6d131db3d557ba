from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from made_up_rounds import CALLS, measurement, pair

from workbench.errors import DataError
from workbench.judging import statistics
from workbench.records import Accuracy, Protocol, Round


def accuracy(scores: Any, parent_scores: Any, **changes: Any) -> Accuracy:
    values = {"metric": "top-1", "scores": tuple(map(float, scores)), "parent_scores": tuple(map(float, parent_scores))}
    return Accuracy("int8", "v", "onnxruntime-cpu", len(scores), "digits", "shipped", "d", **{**values, **changes})


def test_a_summary_counts_each_process_once_and_hides_percentiles_it_cannot_support() -> None:
    summary = statistics.summary(measurement([1e-3, 1.1e-3, 1.2e-3]))
    assert summary.median == pytest.approx(1.1e-3)
    assert summary.low is not None and summary.high is not None
    assert summary.low < summary.median < summary.high
    assert (summary.samples, summary.rounds) == (3 * (CALLS + 1), 3)
    assert summary.p90 is not None  # 123 calls suffice for p90 alone
    assert summary.p95 is None and summary.p99 is None


def test_a_summary_of_one_round_has_no_interval() -> None:
    summary = statistics.summary(measurement([1e-3]))
    assert summary.low is None and summary.high is None


def test_a_summary_has_the_textbook_values() -> None:
    record = measurement([1.0], rounds=(Round(0, tuple(range(1, 101)), 0.1, 0.0),))
    summary = statistics.summary(record)
    assert summary.mean == 50.5
    assert summary.std == pytest.approx(math.sqrt((100**2 - 1) / 12))
    assert summary.variation == pytest.approx(summary.std / 50.5)
    assert summary.p90 == pytest.approx(90.1)  # linear interpolation between the 90th and 91st


@pytest.mark.parametrize("rounds", [(), (Round(0, (), 0.1, 0.0),)])
def test_a_measurement_without_latencies_is_refused(rounds: tuple[Round, ...]) -> None:
    empty = replace(measurement([1.0]), rounds=rounds)
    with pytest.raises(DataError, match="Measure it again"):
        statistics.summary(empty)
    with pytest.raises(DataError, match="Measure it again"):
        statistics.ratio(measurement([1.0]), empty)


def test_a_latency_of_zero_is_refused() -> None:
    with pytest.raises(DataError, match="clock is too coarse"):
        statistics.ratio(measurement([1.0, 1.0]), measurement([0.0, 1.0]))


def test_a_ratio_is_in_words_with_its_interval() -> None:
    generator = np.random.default_rng(0)
    luck = np.exp(generator.normal(0, 0.005, (2, 10)))
    faster = statistics.ratio(measurement(1.25e-3 * luck[0]), measurement(1e-3 * luck[1], turn=1))
    assert faster.verdict == "faster" and faster.paired and faster.rounds == 10
    assert faster.value == pytest.approx(1.25, abs=0.02)
    assert faster.words == f"{faster.value:.2f}x faster [{faster.low:.2f}, {faster.high:.2f}]"


def test_a_slowdown_is_told_as_one_with_its_edges_in_order() -> None:
    slower = statistics.ratio(measurement([1.0, 1.01, 1.0, 1.01]), measurement([1.5, 1.5, 1.51, 1.51], turn=1))
    assert slower.verdict == "slower" and slower.low is not None and slower.high is not None
    assert slower.low < slower.value < slower.high < 1
    times, word, low, high = slower.words.replace("[", "").replace("]", "").replace(",", "").split()
    assert word == "slower" and float(low) < float(times.rstrip("x")) < float(high)


def test_a_small_sure_difference_is_written_with_enough_digits() -> None:
    luck = np.exp(np.random.default_rng(1).normal(0, 1e-4, (2, 10)))
    words = statistics.ratio(measurement(1.003 * luck[0]), measurement(luck[1], turn=1)).words
    assert words.startswith("1.003x faster [1.00")


def test_one_round_gives_a_value_without_verdict_and_says_why() -> None:
    ratio = statistics.ratio(measurement([2.0]), measurement([1.0], turn=1))
    assert (ratio.verdict, ratio.low, ratio.high) == ("no interval", None, None)
    assert ratio.words == "2.00x; one round: too few to tell, 2 more are needed for an interval"


def test_two_rounds_are_too_few_to_tell_and_three_give_an_honest_interval_which_is_huge() -> None:
    two = statistics.ratio(measurement([1.0, 1.02]), measurement([0.95, 0.95], turn=1))
    assert (two.verdict, two.low, two.high) == ("no interval", None, None)
    assert two.words.endswith("2 rounds: too few to tell, 1 more is needed for an interval")
    assert statistics.summary(measurement([1.0, 1.02])).low is None
    three = statistics.ratio(measurement([1.0, 1.02, 1.07]), measurement([0.95, 0.95, 0.91], turn=1))
    assert three.verdict == "not distinguishable" and three.high / three.low > 1.3


def test_an_interval_over_more_than_a_factor_of_ten_is_none_and_the_spread_says_how_many_more_rounds_it_takes() -> None:
    wild = measurement([1.0, 1.5, 2.6])
    summary = statistics.summary(wild)
    assert (summary.low, summary.high, summary.more_rounds) == (None, None, 2)
    even = measurement([1.4, 1.5, 1.6])
    assert statistics.summary(even).low is not None and statistics.summary(even).more_rounds == 0
    ratio = statistics.ratio(wild, measurement([1.5, 1.5, 1.5], turn=1))
    assert (ratio.verdict, ratio.low, ratio.high, ratio.more_rounds) == ("no interval", None, None, 2)
    assert ratio.words == "1.05x; 3 rounds: too few to tell, about 2 more are needed for an interval"
    assert statistics.is_alike(wild, measurement([1.5, 1.5, 1.5], turn=1))


def test_a_large_factor_is_no_verdict_where_its_interval_tells_nothing() -> None:
    """It would exclude 1; but its value is not known to an order of magnitude, and one rule serves all that asks."""
    slow = measurement([60.0, 300.0, 900.0, 250.0, 400.0])
    fast = measurement([1.0] * 5, turn=1)
    ratio = statistics.ratio(slow, fast)
    assert ratio.verdict == "no interval" and statistics.is_alike(slow, fast) and statistics.is_alike(fast, slow)
    calmer = measurement([290.0, 300.0, 310.0, 305.0])
    assert statistics.ratio(calmer, fast).verdict == "faster" and not statistics.is_alike(calmer, fast)


def test_as_many_rounds_as_were_said_to_be_needed_give_an_interval_in_most_cases() -> None:
    generator = np.random.default_rng(5)
    given = []
    for _ in range(60):
        few = np.exp(generator.normal(0, 0.5, 4))
        more = statistics.summary(measurement(few)).more_rounds
        again = np.exp(generator.normal(0, float(np.log(few).std(ddof=1)), 4 + more))
        given.append(statistics.summary(measurement(again)).low is not None)
    assert sum(given) > 30


def test_a_round_of_no_time_counts_for_no_interval() -> None:
    assert statistics.summary(measurement([0.0, 1.0, 1.1])).low is None


def test_rounds_are_paired_by_index_so_that_drift_cancels() -> None:
    drift = np.exp(np.linspace(0, 1, 10)) * np.exp(np.random.default_rng(2).normal(0, 0.002, 10))
    ratio = statistics.ratio(measurement(drift), measurement(drift * 0.9, turn=1))
    assert ratio.verdict == "faster"


def test_rounds_measured_at_another_time_are_not_paired() -> None:
    drift = np.exp(np.linspace(0, 1, 10))
    ratio = statistics.ratio(measurement(drift), measurement(drift * 0.9, offset_seconds=86400))
    assert not ratio.paired and ratio.verdict == "not distinguishable"


def test_only_common_rounds_are_paired() -> None:
    late = measurement([9.0, 9.0, 1.0, 1.01, 1.0], turn=1)
    late = replace(late, rounds=late.rounds[2:])
    ratio = statistics.ratio(measurement([5.0, 5.0, 1.0, 1.0, 1.01]), late)
    assert ratio.paired and ratio.rounds == 3 and ratio.value == pytest.approx(1.0, abs=0.01)


def test_throughput_is_compared_by_queries_per_second() -> None:
    def streams(rate: float, turn: int) -> Any:
        base = measurement([1e-3] * 4, turn=turn, protocol=Protocol(boundary="throughput", streams=2))
        rates = (rate, rate * 1.001, rate * 0.999, rate)
        rounds = tuple(
            replace(item, conditions={"queries_per_second": one}) for item, one in zip(base.rounds, rates, strict=True)
        )
        return replace(base, rounds=rounds)

    assert statistics.ratio(streams(1000, 0), streams(1500, 1)).value == pytest.approx(1.5, rel=1e-3)
    assert statistics.summary(streams(1000, 0)).queries_per_second == pytest.approx(1000, rel=1e-3)


@pytest.mark.parametrize("rounds", [3, 5, 10, 15])
def test_equal_variants_are_told_apart_in_at_most_5_of_100(rounds: int) -> None:
    generator = np.random.default_rng(100 + rounds)
    verdicts = [statistics.ratio(*pair(generator, rounds, 1.0)).verdict for _ in range(100)]
    assert verdicts.count("faster") + verdicts.count("slower") <= 5


def test_a_slowdown_of_5_percent_is_found_in_at_least_90_of_100() -> None:
    """15 rounds; processes differ by 2 %, 1 in 20 is 1.5 times slower: noisier than what a quiet machine shows."""
    generator = np.random.default_rng(200)
    found = [statistics.ratio(*pair(generator, 15, 1.05)) for _ in range(100)]
    assert sum(ratio.verdict == "slower" for ratio in found) >= 90
    held = sum(
        ratio.low <= 1 / 1.05 <= ratio.high for ratio in found if ratio.low is not None and ratio.high is not None
    )
    assert held >= 95


def test_a_slowdown_is_still_found_where_every_seventh_process_is_disturbed() -> None:
    generator = np.random.default_rng(300)
    found = [statistics.ratio(*pair(generator, 25, 1.05, noise=0.01, outliers=0.15)).verdict for _ in range(100)]
    assert found.count("slower") >= 90


def test_a_change_of_right_and_wrong_answers_takes_mcnemar() -> None:
    parent, ours = np.ones(540), np.ones(540)
    parent[:20] = 0
    ours[:35] = 0
    change = statistics.accuracy_change(accuracy(ours, parent))
    assert change.difference == pytest.approx(-15 / 540)
    assert change.p_value == pytest.approx(2**-14)
    assert change.verdict == "worse" and change.low is not None and change.high is not None
    assert change.low < -15 / 540 < change.high < 0
    assert change.words.startswith("2.8 points worse [-")


def test_a_few_flips_are_not_distinguishable() -> None:
    parent, ours = np.ones(100), np.ones(100)
    parent[:5], ours[3:9] = 0, 0
    change = statistics.accuracy_change(accuracy(ours, parent))
    assert change.words == "not distinguishable" and change.difference == pytest.approx(-0.01)


def test_real_valued_scores_take_a_paired_bootstrap() -> None:
    generator = np.random.default_rng(0)
    parent = generator.normal(3.0, 0.5, 60)
    worse = parent + generator.normal(0.02, 0.01, 60)
    change = statistics.accuracy_change(accuracy(worse, parent, higher_is_better=False))
    assert change.verdict == "worse" and "worse" in change.words
    # Between samples the spread is 0.5: only pairing can see 0.02.
    assert change.low is not None and change.high is not None and 0.01 < change.low < change.high < 0.03


@pytest.mark.parametrize(("pairs", "verdict"), [(2, "not distinguishable"), (5, "not distinguishable"), (6, "worse")])
@pytest.mark.parametrize("drops", [[0.25], [0.25, 0.250001]])
def test_a_few_samples_that_all_lose_as_much_are_no_surer_than_a_few_signs(pairs: int, verdict: str, drops) -> None:
    parent = np.linspace(0.5, 0.9, pairs)
    change = statistics.accuracy_change(accuracy(parent - np.resize(drops, pairs), parent))
    assert change.verdict == verdict and change.p_value == pytest.approx(2 / 2**pairs, abs=5e-4)


def test_perplexity_is_shown_after_the_exponential() -> None:
    generator = np.random.default_rng(1)
    parent = generator.normal(2.0, 0.1, 50)
    ours = parent + generator.normal(0.1, 0.01, 50)
    record = accuracy(ours, parent, higher_is_better=False, display="exp_mean")
    change = statistics.accuracy_change(record)
    assert change.difference == pytest.approx(np.exp(ours.mean()) - np.exp(parent.mean()))
    assert change.low is not None and change.high is not None and change.low < change.difference < change.high
    score = statistics.score_interval(record)
    assert score is not None and score.low is not None and score.high is not None
    assert score.value == pytest.approx(np.exp(ours.mean()))
    assert score.low < score.value < score.high
    parent_score = statistics.parent_score_interval(record)
    assert parent_score is not None and parent_score.value == pytest.approx(np.exp(parent.mean()))


def test_equal_scores_are_not_distinguishable() -> None:
    change = statistics.accuracy_change(accuracy([1.5, 2.5, 3.5], [1.5, 2.5, 3.5]))
    assert (change.difference, change.verdict, change.p_value) == (0.0, "not distinguishable", 1.0)


def test_a_score_of_the_whole_set_has_no_interval() -> None:
    record = replace(accuracy([0.8], [0.9]), samples=100)
    change = statistics.accuracy_change(record)
    assert change.verdict == "unknown" and change.words == "0.1 worse (one value: no interval)"
    score = statistics.score_interval(record)
    assert score is not None and score.low is None


def test_scores_that_are_not_finite_make_the_change_unknown() -> None:
    record = accuracy([1.0, math.nan, 2.0], [1.0, 1.0, 1.0])
    change = statistics.accuracy_change(record)
    assert change.difference is None and change.words == "unknown: 1 of 3 scores are not finite"
    assert statistics.score_interval(record) is None


def test_no_metric_means_no_score_and_no_change() -> None:
    record = accuracy([], [], metric=None)
    assert statistics.accuracy_change(record).words == "no metric, so no score"
    assert statistics.score_interval(record) is None


def test_paired_scores_need_the_same_samples() -> None:
    with pytest.raises(DataError, match="3 against 2"):
        statistics.accuracy_change(accuracy([1, 0, 1], [1, 0]))


def test_shares_take_wilsons_interval() -> None:
    score = statistics.score_interval(accuracy([1] * 81 + [0] * 182, [1] * 263))
    assert score is not None and (score.low, score.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
