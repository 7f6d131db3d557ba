"""How a server should form batches, from the latencies that studies measured and the latency that is allowed.

Nothing is extrapolated: a batch that nobody measured is never formed. Pure arithmetic; knows no server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.errors import CompareError, DataError
from workbench.judging import statistics
from workbench.records import Measurement

_MICRO = 1e6


@dataclass(frozen=True)
class Point:
    """How long a call of so many samples takes.

    Attributes:
        seconds: near the worst: the highest percentile that the calls suffice for, else the slowest call.
        words: which one it is, such as `p99` or `slowest of 40 calls`.
    """

    batch: int
    seconds: float
    words: str


@dataclass(frozen=True)
class Batching:
    """How batches are formed.

    Attributes:
        largest: samples in a batch, at most.
        preferred: sizes at which a batch is sent off at once, the smallest first; empty where nothing is gathered.
        delay_microseconds: how long a request waits for company.
        reasons: where these come from, one sentence each.
    """

    largest: int
    preferred: tuple[int, ...]
    delay_microseconds: int
    reasons: tuple[str, ...]


def point(measurement: Measurement) -> Point:
    """Return how long a call takes, near the worst."""
    found = statistics.summary(measurement)
    batch = measurement.protocol.batch
    for name in ("p99", "p95", "p90"):
        seconds = getattr(found, name)
        if seconds is not None:
            return Point(batch, seconds, name)
    slowest = max(float(np.max(taken.latencies_seconds)) for taken in measurement.rounds)
    return Point(batch, slowest, f"slowest of {found.samples} calls")


def alike(ours: Measurement, others: Sequence[Measurement]) -> list[Measurement]:
    """Return measurements of one file on one device that differ in the batch alone, the smallest batch first.

    Raises:
        CompareError: they differ in more, or two have the same batch.
    """
    found = [ours]
    for other in others:
        for what in ("variant_sha256", "backend", "device"):
            if getattr(other, what) != getattr(ours, what):
                raise CompareError(
                    f"The study beside has another {what} ({str(getattr(other, what))[:20]}) than this one "
                    f"({str(getattr(ours, what))[:20]}), so that its latencies are not those of the engine that is "
                    f"deployed. Give studies of the same model and recipe on the same machine, with other batches."
                )
        if other.protocol.boundary != ours.protocol.boundary or other.protocol.streams != ours.protocol.streams:
            raise CompareError(
                f"The study beside was measured as {other.protocol.boundary!r} with {other.protocol.streams} streams, this "
                f"one as {ours.protocol.boundary!r} with {ours.protocol.streams}. Run it again under this boundary."
            )
        found.append(other)
    batches = [item.protocol.batch for item in found]
    if twice := [batch for batch in batches if batches.count(batch) > 1]:
        raise CompareError(f"Two of the studies measured batches of {twice[0]}. Give one study for each batch.")
    return sorted(found, key=lambda item: item.protocol.batch)


def chosen(points: Sequence[Point], at_most_seconds: float | None) -> Batching:
    """Choose sizes and delay.

    A request may wait for company, then for the batch that is running, then for its own: with a delay of what the
    allowed latency leaves after two such batches, the sum stays within it. It never waits longer than its batch
    takes, as more would cost it more than the company brings.

    Args:
        points: for each measured batch, the smallest first.
        at_most_seconds: latency that a request may have; None where it was not stated, and then nothing waits.

    Raises:
        DataError: not even the smallest batch is fast enough, or the latency is no positive number.
    """
    if at_most_seconds is not None and not at_most_seconds > 0:
        raise DataError(f"at_most_seconds is {at_most_seconds}; it must be above 0. Pass seconds, such as 0.05.")
    fitting = [one for one in points if at_most_seconds is None or one.seconds <= at_most_seconds]
    if not fitting:
        fastest = min(points, key=lambda one: one.seconds)
        raise DataError(
            f"No measured batch keeps to {at_most_seconds} s: {fastest.batch} samples take {fastest.seconds:.3g} s "
            f"({fastest.words}). Allow more, choose a faster variant, or run a study with a smaller batch and pass it as "
            f"beside=[study]."
        )
    last = fitting[-1]
    reasons = [f"A call of {one.batch} took {one.seconds * 1e3:.3g} ms ({one.words})." for one in points]
    preferred: list[int] = []
    best = 0.0
    for one in fitting:
        if one.batch / one.seconds > best:
            best = one.batch / one.seconds
            preferred += [one.batch] if one.batch > 1 else []
    if at_most_seconds is None:
        reasons.append("No latency was allowed for, so no request waits for others; at_most_seconds= lets it.")
        return Batching(last.batch, tuple(preferred), 0, tuple(reasons))
    left = at_most_seconds - 2 * last.seconds
    if left < 0:
        reasons.append(
            f"A request that arrives while {last.batch} others are running can take {2 * last.seconds * 1e3:.3g} ms, more "
            f"than the {at_most_seconds * 1e3:.3g} ms allowed; none waits for company on top of that."
        )
    delay = int(min(max(left, 0.0), last.seconds) * _MICRO) if last.batch > 1 else 0
    if delay:
        reasons.append(
            f"Of the {at_most_seconds * 1e3:.3g} ms allowed, two batches of {last.batch} leave {left * 1e3:.3g} ms; a "
            f"request waits for company for {delay / 1e3:.3g} ms at most, and no longer than a batch takes."
        )
    return Batching(last.batch, tuple(preferred), delay, tuple(reasons))
