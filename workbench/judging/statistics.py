"""Statistics derived from stored records: summaries, speed-up ratios, scores and their changes. Stores nothing."""

from __future__ import annotations

import functools
import itertools
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import numpy as np

from workbench.errors import DataError
from workbench.judging.intervals import (
    ACCURACY_CONFIDENCE,
    CONFIDENCE,
    FEWEST_ROUNDS,
    are_apart,
    center_interval,
    difference,
    mcnemar,
    more_rounds,
    paired_share_interval,
    required_samples,
    rounds_interval,
    wilson,
)
from workbench.records import Accuracy, Measurement, Round

METHOD = (
    "A round is a fresh process, and counts with the median of its calls. A ratio is the trimmed mean of the paired "
    "differences of rounds' log medians (from 6 rounds on 20 %, from 20 on 30 % are cut off each end); its interval, at 99 % "
    "confidence, comes from a studentized bootstrap over rounds, because calls of one process resemble each other more than "
    "those of another. A difference is named only where that interval excludes 1; with fewer than three rounds, or where the "
    "interval would span more than a factor of ten, there is no interval and no verdict. A percentile is shown where the "
    "calls suffice for it at 99 % confidence: 64 for the 90th, 130 for the 95th, 662 for the 99th. Scores of right or wrong "
    "have Wilson's interval, their change the exact McNemar test and Newcombe's paired interval; other scores a bootstrap "
    "over samples, paired; all at 95 % confidence."
)

Made = TypeVar("Made")
SpeedVerdict = Literal["faster", "slower", "not distinguishable", "no interval"]
AccuracyVerdict = Literal["better", "worse", "not distinguishable", "unknown"]


@dataclass(frozen=True)
class Summary:
    """What the raw latencies of a measurement say, in seconds a call.

    Attributes:
        median: median of the rounds' medians: each process counts once, however many calls it made.
        mean, std: over all calls (population standard deviation).
        variation: std / mean.
        p90, p95, p99: over all calls; None where `required_samples` says there are too few.
        low, high: interval of the median over rounds; None where the rounds are too few to tell: fewer than three, or so
            different that the interval would span more than a factor of ten.
        queries_per_second: median over rounds, for the boundary `throughput`; None for the others.
        more_rounds: about how many more an interval needs, if they spread as those seen; 0 where there is one.
    """

    median: float
    mean: float
    std: float
    variation: float
    p90: float | None
    p95: float | None
    p99: float | None
    low: float | None
    high: float | None
    queries_per_second: float | None
    samples: int
    rounds: int
    confidence: float
    more_rounds: int = 0


@dataclass(frozen=True)
class Ratio:
    """How many times faster a candidate is than its baseline (baseline seconds / candidate seconds).

    Attributes:
        low, high: interval of `value`; None where the rounds are too few to tell, as for a `Summary`.
        paired: whether the rounds were interleaved, so that slow drifts of the machine cancel.
        words: such as `1.23x faster [1.20, 1.26]`.
        more_rounds: as of a `Summary`.
    """

    value: float
    low: float | None
    high: float | None
    confidence: float
    verdict: SpeedVerdict
    words: str
    rounds: int
    paired: bool
    more_rounds: int = 0


@dataclass(frozen=True)
class Score:
    """A score with its interval, in the unit in which it is shown (for perplexity, after the exponential)."""

    value: float
    low: float | None
    high: float | None
    confidence: float


@dataclass(frozen=True)
class Change:
    """What a variant does to the score of its parent, on the same samples.

    Attributes:
        difference: score - parent's score, in the unit in which the score is shown; None where a score is not finite.
        low, high: interval of the difference, the parent's score taken as given; None where there is none.
        p_value: of "no difference"; None where there is none.
        verdict: `better` or `worse` already minds whether higher is better.
    """

    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None
    confidence: float
    verdict: AccuracyVerdict
    words: str


# A record never changes, and one table asks for what follows from it many times; forgotten together with it.
_KEPT: dict[tuple[int, object], tuple[weakref.ref[Any], Any]] = {}


def _remembered(record: Measurement | Accuracy, what: object, make: Callable[[], Made]) -> Made:
    key = (id(record), what)
    kept = _KEPT.get(key)
    if kept is not None and kept[0]() is record:
        return cast("Made", kept[1])
    made = make()
    _KEPT[key] = (weakref.ref(record, lambda gone: _KEPT.pop(key, None)), made)
    return made


def summary(measurement: Measurement, confidence: float = CONFIDENCE) -> Summary:
    """Return what the raw latencies say.

    Raises:
        DataError: the measurement has no latencies.
    """
    return _remembered(measurement, confidence, lambda: _summarised(measurement, confidence))


def _summarised(measurement: Measurement, confidence: float) -> Summary:
    _check_rounds(measurement)
    values = np.concatenate([np.asarray(item.latencies_seconds) for item in measurement.rounds])
    medians = _medians(measurement)
    median = float(np.median(medians))
    logs = [np.log(medians[medians > 0])]  # a round of no time has none; `ratio` refuses it
    low = high = None
    interval = rounds_interval(logs, confidence)
    if interval is not None:
        # The centre is a trimmed mean; the median of few rounds may lie beside it.
        low, high = min(_exp(interval.low), median), max(_exp(interval.high), median)
    rates = [rate for item in measurement.rounds if (rate := _rate(item)) is not None]
    known = [q for q in (0.9, 0.95, 0.99) if len(values) >= required_samples(q)]
    tail = dict(zip(known, np.quantile(values, known).tolist(), strict=True))
    return Summary(
        median=median,
        mean=float(values.mean()),
        std=float(values.std()),
        variation=float(values.std() / values.mean()),
        p90=tail.get(0.9),
        p95=tail.get(0.95),
        p99=tail.get(0.99),
        low=low,
        high=high,
        queries_per_second=float(np.median(rates)) if rates else None,
        samples=len(values),
        rounds=len(medians),
        confidence=confidence,
        more_rounds=more_rounds(logs, confidence) if interval is None else 0,
    )


def ratio(baseline: Measurement, candidate: Measurement, confidence: float = CONFIDENCE) -> Ratio:
    """Return how many times faster the candidate is, with an interval over rounds.

    Interleaved rounds are paired by their index, and rounds that only one of the two has are left out. Rounds that
    were not measured in turns are two samples of their own: no drift cancels, and one that happened between them
    cannot be told from a difference.

    Args:
        baseline, candidate: measurements of like things (`workbench.judging.comparison` sees to that). A round counts with the
            median of its latencies; for the boundary `throughput`, with its seconds a query.

    Raises:
        DataError: a measurement has no latencies, or a latency of zero.
    """
    ours, theirs = logs_by_round(baseline), logs_by_round(candidate)
    return ratio_of_logs(ours, theirs, interleaved(baseline, candidate), confidence)


def is_alike(first: Measurement, second: Measurement) -> bool:
    """Return whether `ratio` has no verdict for either side, found with less work than the ratio itself.

    Raises:
        DataError: a measurement has no latencies, or a latency of zero.
    """
    groups, _ = groups_of_logs(logs_by_round(first), logs_by_round(second), interleaved(first, second))
    return not are_apart(groups, CONFIDENCE)


def ratio_of_logs(
    ours: Mapping[int, float], theirs: Mapping[int, float], in_turns: bool, confidence: float = CONFIDENCE
) -> Ratio:
    """Return `ratio` of two measurements whose rounds were summed up before (see `logs_by_round`).

    Args:
        in_turns: whether they were measured in turns.
    """
    groups, paired = groups_of_logs(ours, theirs, in_turns)
    rounds = min(len(group) for group in groups)
    interval = rounds_interval(groups, confidence)
    if interval is None:
        value, more = _exp(difference(groups)), more_rounds(groups, confidence)
        words = f"{_times(value, 2)}; {few_rounds(rounds, more)}"
        return Ratio(value, None, None, confidence, "no interval", words, rounds, paired, more)
    value, low, high = (_exp(edge) for edge in (interval.value, interval.low, interval.high))
    verdict: SpeedVerdict = "faster" if low > 1 else "slower" if high < 1 else "not distinguishable"
    return Ratio(value, low, high, confidence, verdict, _speed_words(verdict, value, low, high), rounds, paired)


def groups_of_logs(
    ours: Mapping[int, float], theirs: Mapping[int, float], in_turns: bool
) -> tuple[list[np.ndarray], bool]:
    """Return what is resampled for a ratio, and whether rounds are paired: one group of differences, or a group a side."""
    common = sorted(ours.keys() & theirs.keys())
    if len(common) > 1 and in_turns:
        return [np.array([ours[index] - theirs[index] for index in common])], True
    return [np.array(list(ours.values())), np.array(list(theirs.values()))], False


def few_rounds(rounds: int, more: int) -> str:
    """Say that so many rounds are too few for an interval, and how many more it takes."""
    return f"{'one round' if rounds == 1 else f'{rounds} rounds'}: {too_few(rounds, more)}"


def too_few(rounds: int, more: int) -> str:
    """Say how many more rounds an interval takes; from three on their spread asks for more, which is known roughly."""
    about = "about " if rounds >= FEWEST_ROUNDS else ""
    return f"too few to tell, {about}{more} more {'is' if more == 1 else 'are'} needed for an interval"


def interleaved(first: Measurement, second: Measurement) -> bool:
    """Return whether both sides of each round began before either side of the next one."""
    starts = [_remembered(side, "starts", functools.partial(_starts, side.rounds)) for side in (first, second)]
    common = sorted(starts[0].keys() & starts[1].keys())
    turns = [(starts[0][index], starts[1][index]) for index in common]
    return all(max(turn) <= min(following) for turn, following in itertools.pairwise(turns))


def _starts(rounds: Sequence[Round]) -> Mapping[int, float]:
    return {item.index: item.started_at for item in rounds}


def score_interval(accuracy: Accuracy, confidence: float = ACCURACY_CONFIDENCE) -> Score | None:
    """Return a variant's score with its interval; None where there is no metric or a value is not finite."""
    values, display = accuracy.scores, accuracy.display
    return _remembered(
        accuracy,
        ("score", confidence),
        lambda: mean_score(np.asarray(values, dtype=np.float64), display, confidence),
    )


def parent_score_interval(accuracy: Accuracy, confidence: float = ACCURACY_CONFIDENCE) -> Score | None:
    """Return the parent's score with its interval; None where there is no metric or a value is not finite."""
    return mean_score(np.asarray(accuracy.parent_scores, dtype=np.float64), accuracy.display, confidence)


def mean_score(values: np.ndarray, display: str = "mean", confidence: float = ACCURACY_CONFIDENCE) -> Score | None:
    """Return the score of values (n,) with its interval: Wilson's for 0 and 1, a bootstrap for others.

    None where there are no values or one is not finite; no interval where there is one value only.
    """
    if len(values) == 0 or not np.isfinite(values).all():
        return None
    value = shown_score(values, display)
    if len(values) == 1:
        return Score(value, None, None, confidence)
    if np.isin(values, (0, 1)).all() and display == "mean":
        return Score(value, *wilson(int(values.sum()), len(values), confidence), confidence)
    interval = center_interval(values, confidence, trim=0.0)
    edges = (interval.low, interval.high)
    low, high = (_exp(edge) for edge in edges) if display == "exp_mean" else edges
    return Score(value, low, high, confidence)


def accuracy_change(accuracy: Accuracy, confidence: float = ACCURACY_CONFIDENCE) -> Change:
    """Return what the variant does to its parent's score, paired by sample.

    Scores of 0 and 1 take McNemar's exact test and Newcombe's paired interval; other values a bootstrap of the paired
    differences, which is no surer than the signs of so many pairs can be: with five or fewer nothing is told apart.

    Raises:
        DataError: variant and parent have different numbers of scores.
    """
    return score_change(
        np.asarray(accuracy.scores, dtype=np.float64),
        np.asarray(accuracy.parent_scores, dtype=np.float64),
        higher_is_better=accuracy.higher_is_better,
        display=accuracy.display,
        confidence=confidence,
    )


def score_change(
    scores: np.ndarray,
    parent_scores: np.ndarray,
    *,
    higher_is_better: bool = True,
    display: str = "mean",
    confidence: float = ACCURACY_CONFIDENCE,
) -> Change:
    """Return the change of a score between two sets of values (n,) for the same samples; see `accuracy_change`.

    Raises:
        DataError: the sets differ in length.
    """
    if len(scores) != len(parent_scores):
        raise DataError(
            f"Paired scores need the same samples: {len(scores)} against {len(parent_scores)}. Check both on one split."
        )
    bad = int((~np.isfinite(scores) | ~np.isfinite(parent_scores)).sum())
    if len(scores) == 0 or bad:
        why = "no metric, so no score" if len(scores) == 0 else f"unknown: {bad} of {len(scores)} scores are not finite"
        return Change(None, None, None, None, confidence, "unknown", why)
    difference = shown_score(scores, display) - shown_score(parent_scores, display)
    binary = bool(np.isin(scores, (0, 1)).all() and np.isin(parent_scores, (0, 1)).all()) and display == "mean"
    points = "points" if binary else ""
    if len(scores) == 1:
        words = _change_words(difference, None, higher_is_better, points) + " (one value: no interval)"
        return Change(difference, None, None, None, confidence, "unknown", words)
    if binary:
        low, high, p_value = _binary_change(scores, parent_scores, confidence)
    else:
        interval = center_interval(scores - parent_scores, confidence, trim=0.0)
        # Few pairs that agree have no spread to resample; that all go one way has this chance without any change.
        low, high, p_value = interval.low, interval.high, max(interval.p_value, 2.0 ** (1 - len(scores)))
        if display == "exp_mean":
            parent = shown_score(parent_scores, display)
            low, high = (parent * (_exp(edge) - 1) for edge in (low, high))
    sure = p_value <= 1 - confidence
    verdict: AccuracyVerdict = (
        "not distinguishable" if not sure else "better" if (difference > 0) == higher_is_better else "worse"
    )
    words = _change_words(difference, (low, high), higher_is_better, points) if sure else verdict
    return Change(difference, low, high, p_value, confidence, verdict, words)


def _binary_change(scores: np.ndarray, parent_scores: np.ndarray, confidence: float) -> tuple[float, float, float]:
    ours, theirs = scores == 1, parent_scores == 1
    gained, lost = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    both, neither = int((ours & theirs).sum()), int((~ours & ~theirs).sum())
    low, high = paired_share_interval((both, gained, lost, neither), confidence)
    return low, high, mcnemar(gained, lost)


def shown_score(values: np.ndarray, display: str) -> float:
    """Return the score of these values as it is shown: their mean, or its exponential (perplexity)."""
    mean = float(values.mean())
    return _exp(mean) if display == "exp_mean" else mean


def logs_by_round(measurement: Measurement) -> Mapping[int, float]:
    """Return round index -> log of its typical seconds.

    Raises:
        DataError: there are no latencies, or a latency of zero.
    """
    return _remembered(measurement, "logs", lambda: _logs(measurement))


def _logs(measurement: Measurement) -> dict[int, float]:
    _check_rounds(measurement)
    rates = [_rate(item) if measurement.protocol.boundary == "throughput" else None for item in measurement.rounds]
    typical = zip(measurement.rounds, rates, _medians(measurement), strict=True)
    seconds = {item.index: 1 / rate if rate else float(median) for item, rate, median in typical}
    if min(seconds.values()) <= 0:
        raise DataError(
            f"{measurement.variant!r} has a round of {min(seconds.values())} s a call: the clock is too coarse or the "
            f"record was damaged. Measure again with a larger batch."
        )
    return {index: math.log(value) for index, value in seconds.items()}


def _medians(measurement: Measurement) -> np.ndarray:
    """Return the median latency of each round."""
    return _remembered(
        measurement, "medians", lambda: np.array([np.median(item.latencies_seconds) for item in measurement.rounds])
    )


def _rate(item: Round) -> float | None:
    rate = item.conditions.get("queries_per_second")
    return float(rate) if isinstance(rate, (int, float)) else None


def _check_rounds(measurement: Measurement) -> None:
    if not measurement.rounds or not all(item.latencies_seconds for item in measurement.rounds):
        raise DataError(
            f"The measurement of {measurement.variant!r} has {len(measurement.rounds)} rounds, and one or all are without "
            f"latencies. Measure it again."
        )


def _speed_words(verdict: SpeedVerdict, value: float, low: float, high: float) -> str:
    if verdict == "not distinguishable":
        return f"not distinguishable [{low:.2f}, {high:.2f}]"
    if verdict == "slower":
        value, low, high = 1 / value, 1 / high, 1 / low
    digits = next((digits for digits in (2, 3, 4) if round(low, digits) > 1), 4)
    return f"{_times(value, digits)} {verdict} [{low:.{digits}f}, {high:.{digits}f}]"


def _times(value: float, digits: int) -> str:
    return f"{value:.{digits}f}x"


def _change_words(difference: float, interval: tuple[float, float] | None, higher_is_better: bool, unit: str) -> str:
    scale = 100 if unit == "points" else 1
    form = ".1f" if unit == "points" else ".3g"
    direction = "the same" if difference == 0 else "better" if (difference > 0) == higher_is_better else "worse"
    amount = f"{abs(difference) * scale:{form}} {unit}".strip()
    edges = "" if interval is None else f" [{interval[0] * scale:+{form}}, {interval[1] * scale:+{form}}]"
    return direction + edges if difference == 0 else f"{amount} {direction}{edges}"


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
