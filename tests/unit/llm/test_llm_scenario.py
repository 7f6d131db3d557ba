"""Traffic, percentiles, goodput and the search for the highest rate."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from workbench.errors import Cancelled, DataError
from workbench.llm import scenario
from workbench.llm.loading import LanguageModel
from workbench.llm.requests import Lengths, Traffic, draw
from workbench.llm.serving import ContinuousBatching, NoBatching
from workbench.machine import turn
from workbench.machine.handle import Handle
from workbench.records import Engine

TEXT = np.random.default_rng(0).integers(1, 61, 500)
SMALL = Traffic(12, Lengths(6, 0.5, 2, 12), Lengths(4, 0.5, 1, 8))


def run(waits: list[float], rate: float = 1.0) -> scenario.ServingRun:
    """A run whose requests arrived a second apart and waited so long; NaN for one that got no answer."""
    arrival = tuple(float(index) for index in range(len(waits)))
    finished = tuple(start + wait for start, wait in zip(arrival, waits, strict=True))
    ones = (1,) * len(waits)
    return scenario.ServingRun("fp32", "b", "d", "p", rate, arrival, finished, finished, ones, ones, 1.0, 1)


def test_the_same_seed_gives_the_same_requests_at_any_rate() -> None:
    slow, fast = draw(SMALL, 1.0, TEXT), draw(SMALL, 10.0, TEXT)
    assert [item.tokens for item in slow] == [item.tokens for item in fast]
    np.testing.assert_allclose(
        [item.arrival_seconds for item in slow], [10 * item.arrival_seconds for item in fast], rtol=1e-12
    )
    assert draw(replace(SMALL, seed=1), 1.0, TEXT) != slow


def test_arrivals_are_poisson_and_lengths_follow_their_distribution() -> None:
    requests = draw(Traffic(4000, Lengths(20, 0.5, 4, 100), Lengths(10, 0.0)), 50.0, TEXT)
    gaps = np.diff([item.arrival_seconds for item in requests])
    # The mean and the deviation of exponential gaps are equal; four standard errors are 4 / sqrt(4000) = 6 %.
    assert gaps.mean() == pytest.approx(0.02, rel=0.07)
    assert gaps.std() == pytest.approx(0.02, rel=0.12)
    lengths = np.array([len(item.tokens) for item in requests])
    assert np.median(lengths) == pytest.approx(20, abs=1)
    assert lengths.min() >= 4
    assert lengths.max() <= 100
    assert {item.output_tokens for item in requests} == {10}


def test_traffic_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(DataError, match="rate is 0"):
        draw(SMALL, 0, TEXT)
    with pytest.raises(DataError, match="The text has 3 tokens"):
        draw(SMALL, 1.0, TEXT[:3])
    with pytest.raises(ValueError, match="least <= median <= most"):
        Lengths(4, 0.5, 5)
    with pytest.raises(ValueError, match="spread is -1"):
        Lengths(4, -1.0)
    with pytest.raises(ValueError, match="requests is 0"):
        Traffic(0)


def test_percentiles_are_shown_only_where_requests_support_them() -> None:
    assert run([0.1] * 63).percentile(0.9) is None
    assert run([0.1] * 64).percentile(0.9) == pytest.approx(0.1)
    assert run([0.1] * 661).percentile(0.99) is None
    assert run([0.1] * 655 + [9.0] * 7).percentile(0.99) == pytest.approx(9.0)
    shown = scenario.table([run([0.1] * 64)]).iloc[0]
    assert (shown["Answer p90 (ms)"], shown["Answer p99 (ms)"]) == ("100.0", "-")


def test_goodput_counts_requests_within_the_limit_and_a_lost_request_waits_for_ever() -> None:
    found = run([0.1, 0.6, math.nan, 0.2])
    assert found.waits().tolist() == pytest.approx([0.1, 0.6, math.inf, 0.2])
    assert found.seconds == pytest.approx(3.2)
    assert found.goodput(0.5) == pytest.approx(2 / 3.2)
    assert found.tokens_per_second == pytest.approx(3 / 3.2)


@pytest.mark.parametrize(("capacity", "first"), [(37.0, 10.0), (37.0, 500.0), (3.0, 10.0)])
def test_the_search_closes_in_on_the_capacity_from_either_side(capacity: float, first: float) -> None:
    passed, failed, probes = scenario.search(lambda rate: run([0.1], rate), lambda item: item.rate <= capacity, first)
    assert failed is not None
    assert passed <= capacity < failed <= 1.15 * passed
    assert len(probes) <= 12


def test_the_search_ends_where_nothing_passes_or_nothing_fails() -> None:
    passed, failed, probes = scenario.search(lambda rate: run([0.1], rate), lambda item: False, 10.0)
    assert (passed, failed, len(probes)) == (0.0, 10.0 / 2**15, 16)
    passed, failed, probes = scenario.search(lambda rate: run([0.1], rate), lambda item: True, 10.0)
    assert (passed, failed, len(probes)) == (10.0 * 2**15, None, 16)


@pytest.mark.parametrize("seconds", [0.002, 0.02, 0.05])
@pytest.mark.parametrize("count", [16, 64, 700])
def test_a_rate_is_held_only_if_a_load_of_it_lasts(seconds: float, count: int) -> None:
    """One server that takes so long for each request: however few requests there are, no more than it can do is found."""

    def served(rate: float) -> scenario.ServingRun:
        requests = draw(scenario.lasting(replace(SMALL, requests=count), rate, 0.5), rate, TEXT)
        arrival = np.array([item.arrival_seconds for item in requests])
        before = seconds * np.arange(len(requests))
        finished = np.maximum.accumulate(arrival - before) + before + seconds
        ones = (1,) * len(requests)
        return scenario.ServingRun(
            "fp32", "b", "d", "p", rate, tuple(arrival), tuple(finished), tuple(finished), ones, ones, 1.0, 1
        )

    passed, failed, probes = scenario.search(served, lambda item: float(np.quantile(item.waits(), 0.9)) <= 0.5, 10.0)
    assert 0.7 / seconds < passed < 1.2 / seconds  # a queue of chance arrivals is long before the server is full
    assert failed is not None
    assert all(item.arrival[-1] > 2.5 for item in probes)  # eight limits are 4 s on average


def test_the_first_requests_of_a_longer_load_are_the_same() -> None:
    longer = scenario.lasting(SMALL, 100.0, 0.5)
    assert longer.requests == 400 and scenario.lasting(SMALL, 0.1, 0.5) == SMALL
    assert draw(longer, 100.0, TEXT)[:12] == draw(SMALL, 100.0, TEXT)


def test_a_real_engine_serves_traffic_in_a_process_of_its_own(language: LanguageModel, engine: Engine) -> None:
    runs = scenario.serve_traffic(language, engine, [ContinuousBatching(4)], [200.0, 400.0], TEXT, traffic=SMALL)
    assert [item.rate for item in runs] == [200.0, 400.0]
    for item in runs:
        assert (item.waits("first_token") > 0).all()
        assert (item.waits() >= item.waits("first_token")).all()
        assert item.widest_batch <= 4
        assert not item.abandoned


def test_the_highest_rate_of_a_real_engine_lies_between_a_rate_that_passed_and_one_that_failed(
    language: LanguageModel, engine: Engine
) -> None:
    found = scenario.highest_rate(
        language,
        engine,
        NoBatching(),
        TEXT,
        replace(SMALL, requests=64),
        quantile=0.9,
        limit_seconds=0.02,
        first_rate=500,
    )
    assert found.rate > 0
    assert found.failed_rate is not None and found.failed_rate > found.rate
    assert all(len(item.arrival) == max(64, math.ceil(0.16 * item.rate)) for item in found.probes)


@pytest.mark.parametrize("call", ["serve_traffic", "highest_rate"])
def test_serving_is_not_measured_while_another_measures(call: str, language: LanguageModel, engine: Engine) -> None:
    told: list[str] = []
    waiting = Handle(cancelled=lambda: bool(told), on_line=told.append)
    with turn.measuring(), pytest.raises(Cancelled, match="another measurement"):
        if call == "serve_traffic":
            scenario.serve_traffic(language, engine, [NoBatching()], [200.0], TEXT, traffic=SMALL, handle=waiting)
        else:
            traffic = replace(SMALL, requests=64)
            scenario.highest_rate(language, engine, NoBatching(), TEXT, traffic, quantile=0.9, handle=waiting)
    assert "waiting for another measurement" in told[0]


def test_too_few_requests_for_the_percentile_and_too_long_ones_are_refused(
    language: LanguageModel, engine: Engine
) -> None:
    with pytest.raises(DataError, match=r"12 requests do not support the 99% percentile: it takes 662"):
        scenario.highest_rate(language, engine, NoBatching(), TEXT, SMALL)
    long = replace(SMALL, input_tokens=Lengths(120, 0.0), output_tokens=Lengths(20, 0.0))
    with pytest.raises(DataError, match=r"longest request needs 140 tokens; .* takes 128"):
        scenario.serve_traffic(language, engine, [NoBatching()], [1.0], TEXT, traffic=long)
