"""Sizes of batches and the time to wait for company, from measured latencies and an allowed one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import synthetic_study

from workbench.errors import CompareError, DataError
from workbench.handoff.batching import Batching, Point, alike, chosen, point
from workbench.records import Measurement, Protocol, Round


def measurement(batch: int, *seconds: float, **changes: object) -> Measurement:
    made = Measurement(
        "int8", "ab" * 32, "onnxruntime-cpu", "Example CPU", Protocol(batch=batch), {"x": (batch, 8)},
        (Round(0, seconds or (0.01,), 0.1, 1.0),),
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def test_without_an_allowed_latency_nothing_waits() -> None:
    found = chosen([Point(8, 0.01, "p99")], None)
    assert (found.largest, found.preferred, found.delay_microseconds) == (8, (8,), 0)
    assert any("no request waits" in reason for reason in found.reasons)


def test_the_wait_and_two_batches_fit_into_the_allowed_latency() -> None:
    found = chosen([Point(8, 0.010, "p99")], 0.025)
    assert found.delay_microseconds == 5_000


def test_nobody_waits_longer_than_the_batch_takes() -> None:
    assert chosen([Point(8, 0.010, "p99")], 10.0).delay_microseconds == 10_000


def test_where_a_running_batch_leaves_nothing_to_wait_this_is_said() -> None:
    found = chosen([Point(8, 0.010, "p99")], 0.015)
    assert found.delay_microseconds == 0
    assert any("can take 20 ms" in reason for reason in found.reasons)


def test_no_batch_is_formed_that_nobody_measured_or_that_is_too_slow() -> None:
    points = [Point(1, 0.002, "p99"), Point(8, 0.008, "p99"), Point(32, 0.040, "p99")]
    assert chosen(points, 0.030).largest == 8
    assert chosen(points, 0.100).largest == 32


def test_a_size_is_preferred_only_where_it_serves_more_samples_a_second_than_smaller_ones() -> None:
    points = [Point(4, 0.004, "p99"), Point(8, 0.012, "p99"), Point(16, 0.014, "p99")]
    assert chosen(points, 1.0).preferred == (4, 16)


def test_batches_of_one_are_not_waited_for() -> None:
    assert chosen([Point(1, 0.002, "p99")], 1.0) == Batching(1, (), 0, ("A call of 1 took 2 ms (p99).",))


def test_a_latency_that_no_batch_keeps_to_is_refused_with_what_to_do() -> None:
    with pytest.raises(DataError, match=r"No measured batch keeps to 0.005 s: 8 samples take 0.01 s.*beside"):
        chosen([Point(8, 0.010, "p99")], 0.005)
    with pytest.raises(DataError, match="must be above 0"):
        chosen([Point(8, 0.010, "p99")], 0)


def test_a_point_is_the_highest_percentile_that_the_calls_suffice_for() -> None:
    many = synthetic_study.study().results[0].measurement
    assert many is not None
    assert point(many).words == "p95"  # 5 rounds of fewer than 662 calls in all
    few = point(measurement(4, 0.01, 0.03, 0.02))
    assert (few.seconds, few.words) == (0.03, "slowest of 3 calls")


def test_only_measurements_that_differ_in_the_batch_alone_are_put_together() -> None:
    ours = measurement(8)
    assert [item.protocol.batch for item in alike(ours, [measurement(4)])] == [4, 8]
    with pytest.raises(CompareError, match="another device"):
        alike(ours, [measurement(4, device="Other")])
    with pytest.raises(CompareError, match="measured as 'end_to_end'"):
        alike(ours, [measurement(4, protocol=Protocol(batch=4, boundary="end_to_end"))])
    with pytest.raises(CompareError, match="batches of 8"):
        alike(ours, [measurement(8)])
