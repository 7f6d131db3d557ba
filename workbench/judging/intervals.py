"""Intervals and tests on plain arrays: studentized bootstrap, shares, paired shares, percentiles. Knows no record.

The unit of resampling is the round, a fresh process: latencies of one process share its memory layout and its
neighbours, and so differ less among themselves than from those of another process. With the 3 to 20 rounds that
anyone waits for, the usual percentile bootstrap is far too sure of itself: with 3 rounds its 99 % interval held
the truth in 75 of 100 simulated comparisons. The intervals here come from a studentized bootstrap (Efron 1982) of the
trimmed mean with winsorized standard error (Yuen 1974; Wilcox 2012, section 4.4), so that a round disturbed by a
neighbour neither moves nor widens them, and of a smoothed sample (Silverman and Young 1987), because a handful of
rounds alone gives too few different resamples. `tests/unit/test_intervals.py` checks the coverage.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from workbench.errors import DataError

CONFIDENCE = 0.99
ACCURACY_CONFIDENCE = 0.95
# Of five values three would be left, and their standard error is so uncertain that it costs more than an outlier does.
_TRIM_FROM = 6
_TRIM = 0.2
# Many rounds can spare more of them, and a machine that disturbs 3 of 20 processes puts outliers on both sides.
_TRIM_MORE_FROM = 20
_TRIM_MORE = 0.3
# The interval of two rounds reaches over eight decades; it says nothing.
FEWEST_ROUNDS = 3
# Of logs of seconds: an interval from 1 to more than 10 ms does not tell even the order of magnitude, whatever the rounds.
WIDEST = math.log(10)
_RESAMPLES = 1999
# So many show whether two are alike, where they are.
_FIRST_RESAMPLES = 128
_CHUNK_VALUES = 1_000_000
# From here on a studentized mean is normal within what anyone could see, and resampling only costs time.
_NORMAL_FROM = 2000
# More rounds than these are compared too seldom for their draws to be kept in memory.
_KEPT_DRAWS_UP_TO = 64

# For each group: normal noise and places, both (n, resamples): sums over few long rows are far faster than over many short ones.
_Draws = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, and the p-value of "it is zero"."""

    value: float
    low: float
    high: float
    p_value: float


@functools.lru_cache(maxsize=64)
def required_samples(quantile: float, confidence: float = CONFIDENCE) -> int:
    """Return the fewest samples from which a percentile may be shown.

    The rule of MLPerf LoadGen's early stopping (mlcommons/inference, loadgen/early_stopping.cc) with one sample to
    discard: the smallest n with P(Binomial(n, 1 - quantile) <= 1) <= 1 - confidence. 64, 130 and 662 at 99 %.
    """
    n = 2
    while quantile**n + n * (1 - quantile) * quantile ** (n - 1) > 1 - confidence:
        n += 1
    return n


def trim_share(rounds: int) -> float:
    """Return the share of so many rounds that is cut off each end before they are averaged."""
    return 0.0 if rounds < _TRIM_FROM else _TRIM if rounds < _TRIM_MORE_FROM else _TRIM_MORE


def center_interval(values: np.ndarray, confidence: float, trim: float | None = None) -> Interval:
    """Return the trimmed mean of values (n,), n >= 2, with its interval.

    Args:
        trim: the share cut off each end; None takes `trim_share`, 0 gives the plain mean.
    """
    return studentized([np.asarray(values, dtype=np.float64)], confidence, trim)


def wilson(successes: int, n: int, confidence: float = ACCURACY_CONFIDENCE) -> tuple[float, float]:
    """Return Wilson's score interval of a share (Wilson 1927).

    Raises:
        DataError: n is 0, or successes are not within 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise DataError(f"A share needs 0 <= successes <= n and n >= 1; got {successes} of {n}.")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends the interval reaches 0 and 1 exactly; rounding would leave it a hair inside.
    return (0.0 if successes == 0 else center - half, 1.0 if successes == n else center + half)


@functools.lru_cache(maxsize=4096)
def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value of McNemar's test from the numbers of discordant pairs."""
    n, least = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(n, k) for k in range(least + 1))
    return min(1.0, 2 * tail / 2**n)


def paired_share_interval(table: Sequence[int], confidence: float = ACCURACY_CONFIDENCE) -> tuple[float, float]:
    """Return the interval of the difference of two paired shares (Newcombe 1998, Stat. Med. 17:2635, method 10).

    Args:
        table: (both right, only the first right, only the second right, both wrong).
    """
    a, b, c, d = table
    n = a + b + c + d
    first, second = (a + b) / n, (a + c) / n
    low1, high1 = wilson(a + b, n, confidence)
    low2, high2 = wilson(a + c, n, confidence)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    product = a * d - b * c
    corrected = max(product - n / 2, 0) if product > 0 else product
    phi = corrected / math.sqrt(margins) if margins else 0.0
    below, above = (first - low1, high2 - second), (high1 - first, second - low2)
    lower, upper = (math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0)) for x, y in (below, above))
    return first - second - lower, first - second + upper


def studentized(groups: Sequence[np.ndarray], confidence: float, trim: float | None = None) -> Interval:
    """Return center(groups[0]) [- center(groups[1])] with a smoothed, studentized, symmetric bootstrap interval.

    Args:
        groups: one sample of values (n,), or two independent ones; n >= 2 each.
        trim: the share cut off each end of a sample; None takes `trim_share` of its size.
    """
    centers, errors = zip(*(_trimmed(group, trim) for group in groups), strict=True)
    value = float(centers[0] - (centers[1] if len(groups) > 1 else 0.0))
    error = math.sqrt(sum(float(one) ** 2 for one in errors))
    if error <= 1e-9 * abs(value):  # identical but for rounding: nothing to resample
        return Interval(value, value, value, 1.0 if value == 0 else 0.0)
    observed = abs(value) / error
    if min(len(group) for group in groups) >= _NORMAL_FROM:
        normal = NormalDist()
        wide, p_value = normal.inv_cdf(0.5 + confidence / 2), 2 * (1 - normal.cdf(observed))
    else:
        spread = np.sort(np.concatenate(list(_resampled(groups, errors, value, trim))))
        wide = float(spread[math.ceil(confidence * (_RESAMPLES + 1)) - 1])
        p_value = float((1 + (spread >= observed).sum()) / (_RESAMPLES + 1))
    return Interval(value, value - wide * error, value + wide * error, p_value)


def rounds_interval(groups: Sequence[np.ndarray], confidence: float) -> Interval | None:
    """Return `studentized` of logs of rounds' seconds; None where it tells nothing: too few rounds, or wider than `WIDEST`."""
    if min(map(len, groups)) < FEWEST_ROUNDS:
        return None
    interval = studentized(groups, confidence)
    return interval if interval.high - interval.low <= WIDEST else None


def are_apart(groups: Sequence[np.ndarray], confidence: float) -> bool:
    """Return whether `rounds_interval` is there and leaves zero out, with as little resampling as that needs."""
    if min(map(len, groups)) < FEWEST_ROUNDS or not is_apart(groups, confidence):
        return False
    # An interval that leaves zero out is narrower than twice its middle.
    return abs(difference(groups)) <= WIDEST / 2 or rounds_interval(groups, confidence) is not None


def more_rounds(groups: Sequence[np.ndarray], confidence: float) -> int:
    """Return about how many more rounds `rounds_interval` needs, if further ones spread as those seen; at least one."""
    rounds = min(map(len, groups))
    if rounds < FEWEST_ROUNDS:
        return FEWEST_ROUNDS - rounds
    spread = math.sqrt(sum(float(np.var(group, ddof=1)) for group in groups))
    return next(more for more in itertools.count(1) if spread * _width(rounds + more, confidence) <= WIDEST)


@functools.lru_cache(maxsize=4096)
def _width(rounds: int, confidence: float) -> float:
    """Return how wide the interval of so many normally spread rounds is, in their standard deviations."""
    normal = NormalDist()
    scores = np.array([normal.inv_cdf((place + 0.5) / rounds) for place in range(rounds)])
    interval = studentized([scores / scores.std(ddof=1)], confidence)
    return interval.high - interval.low


def difference(groups: Sequence[np.ndarray], trim: float | None = None) -> float:
    """Return the value that `studentized` gives, without its interval."""
    centers = [float(_inner(group, trim)[0].mean()) for group in groups]
    return centers[0] - (centers[1] if len(groups) > 1 else 0.0)


def is_apart(groups: Sequence[np.ndarray], confidence: float, trim: float | None = None) -> bool:
    """Return whether the interval that `studentized` gives leaves zero out, from as few resamples as decide it.

    Zero is outside unless more resamples than the confidence allows lie as far out as the value itself. Where two cannot be
    told apart, that shows among the first few.
    """
    centers, errors = zip(*(_trimmed(group, trim) for group in groups), strict=True)
    value = float(centers[0] - (centers[1] if len(groups) > 1 else 0.0))
    error = math.sqrt(sum(float(one) ** 2 for one in errors))
    if error > 1e-9 * abs(value) and min(len(group) for group in groups) < _NORMAL_FROM:
        observed, beyond = abs(value) / error, 0
        allowed = _RESAMPLES - math.ceil(confidence * (_RESAMPLES + 1))
        close = 1e-9 * max(observed, 1.0)
        for part in _resampled(groups, errors, value, trim, first=_FIRST_RESAMPLES):
            if (np.abs(part - observed) <= close).any():
                break  # rounding could decide: the interval itself is asked
            beyond += int((~(part < observed)).sum())
            if beyond > allowed:
                return False
        else:
            return True
    interval = studentized(groups, confidence, trim)
    return math.exp(min(interval.low, 1.0)) > 1 or math.exp(min(interval.high, 1.0)) < 1


def _resampled(
    groups: Sequence[np.ndarray],
    errors: Sequence[np.ndarray],
    value: float,
    trim: float | None,
    first: int = _RESAMPLES,
) -> Iterator[np.ndarray]:
    """Yield |center* - center| / error* of each resample. The seed is fixed: the same raw values, the same interval.

    Args:
        errors: the standard error of each group's center.
        first: resamples that come before all others.
    """
    sizes = tuple(len(group) for group in groups)
    widths = [n**-0.2 * float(error) * math.sqrt(n) for n, error in zip(sizes, errors, strict=True)]
    for draws in _kept_draws(sizes) if max(sizes) <= _KEPT_DRAWS_UP_TO else _draws(sizes):
        for some in (slice(0, first), slice(first, None)):
            center, variance = np.zeros(len(draws[0][0][0][some])), np.zeros(len(draws[0][0][0][some]))
            if not len(center):
                continue
            for sign, group, width, (normal, places) in zip((1, -1), groups, widths, draws, strict=False):
                one, error = _trimmed(group[places[:, some]] + width * normal[:, some], trim)
                center, variance = center + sign * one, variance + error**2
            yield np.abs(center - value) / np.sqrt(variance)


def _draws(sizes: tuple[int, ...]) -> Iterator[_Draws]:
    """Yield, a chunk of resamples at a time, the noise and the places that each group is resampled with."""
    generator = np.random.default_rng(20140101)
    rows = max(1, _CHUNK_VALUES // max(sizes))
    for start in range(0, _RESAMPLES, rows):
        shapes = [(min(rows, _RESAMPLES - start), n) for n in sizes]
        drawn = [(generator.standard_normal(shape), generator.integers(0, shape[1], shape)) for shape in shapes]
        yield [(np.ascontiguousarray(normal.T), np.ascontiguousarray(places.T)) for normal, places in drawn]


@functools.lru_cache(maxsize=16)
def _kept_draws(sizes: tuple[int, ...]) -> tuple[_Draws, ...]:
    """The same draws for the same sizes: a front of a hundred variants resamples thousands of pairs of a few rounds."""
    return tuple(_draws(sizes))


def _trimmed(values: np.ndarray, trim: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Return trimmed mean and winsorized standard error over the first axis (Yuen 1974, Biometrika 61:165)."""
    inner, cut = _inner(values, trim)
    n, kept = len(values), len(inner)
    total = inner.sum(axis=0)
    # What is cut off counts as the nearest value that is kept.
    middle = (total + cut * (inner[0] + inner[-1])) / n if cut else total / n
    squares = (inner - middle) ** 2
    spread = squares.sum(axis=0)
    if cut:
        spread = spread + cut * (squares[0] + squares[-1])
    return total / kept, np.sqrt(spread / (kept * (kept - 1)))


def _inner(values: np.ndarray, trim: float | None) -> tuple[np.ndarray, int]:
    """Return the values that a trimmed mean over the first axis is of, and how many are cut off each end."""
    n = len(values)
    cut = int((trim_share(n) if trim is None else trim) * n)
    return (np.sort(values, axis=0)[cut : n - cut], cut) if cut else (values, 0)
