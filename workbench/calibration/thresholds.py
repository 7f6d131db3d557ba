"""From one histogram to one clip threshold: max, percentile, KL divergence, squared error; and what a threshold costs.

Pure arithmetic on `Histogram`: knows nothing of ONNX, tensor names, or engines. A further calibrator is one more
function `(histogram, levels) -> threshold` in `METHODS`.

`levels` counts the magnitudes a code can express, zero included: 128 for signed 8-bit (0..127 and a sign), 256 for
unsigned. All thresholds are positive, at most the largest magnitude seen, and computed from the finite elements;
NaN and infinite ones are named by `CalibrationTable.problems`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.calibration.histogram import SMALLEST_EXPONENT, Histogram
from workbench.errors import CalibrationError, RecipeError, nearest

LEVELS = 128
# A tensor that was always zero has no scale of its own; 1.0 keeps later non-zero values alive and is exact in FP16.
DEAD_THRESHOLD = 1.0
# Keeps threshold / 127 a normal float32: a scale that underflows to zero would divide by zero.
SMALLEST_THRESHOLD = math.ldexp(1.0, SMALLEST_EXPONENT)
# Two divergences closer than this count as equal. Divergences are sums of logarithms whose last digits depend on the
# order of summation (below 1e-12 nats here), while equal ones are common: every candidate that keeps a
# sparse histogram's spikes apart has divergence 0. Without a margin, rounding noise would pick among them.
TIE_NATS = 1e-10
# Rows of the (candidates, levels) matrices that are worked on at once, so that they stay in cache.
_BLOCK = 64

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ThresholdRecord:
    """A threshold and what it costs, as expected from the histogram.

    Attributes:
        tensor: name of the tensor.
        method: key of `METHODS`.
        threshold: largest magnitude that is not clipped.
        abs_max: largest magnitude seen.
        clipped_share: share of finite elements beyond the threshold.
        sqnr_db: expected signal to quantization noise ratio in dB; +inf where nothing is lost.
    """

    tensor: str
    method: str
    threshold: float
    abs_max: float
    clipped_share: float
    sqnr_db: float


def max_threshold(histogram: Histogram, levels: int = LEVELS) -> float:
    """Return the largest magnitude seen: nothing is clipped."""
    return _bounded(histogram, math.inf)


def percentile_threshold(histogram: Histogram, levels: int = LEVELS, *, percent: float) -> float:
    """Return the lowest bin edge that at least `percent` of all elements (zeros included) lie below.

    Raises:
        ValueError: percent is not within (0, 100].
    """
    if not 0.0 < percent <= 100.0:
        raise ValueError(f"percent is {percent}; it must lie in (0, 100]")
    kept = math.ceil(histogram.finite * percent / 100.0)
    index = int(np.searchsorted(np.cumsum(histogram.counts), kept))
    return _bounded(histogram, (index + 1) * histogram.width)


def kl_threshold(histogram: Histogram, levels: int = LEVELS) -> float:
    """Return the threshold whose quantized distribution diverges least from the original one.

    S. Migacz, "8-bit inference with TensorRT", GTC 2017, S7310. The last bin considered is the one that holds the
    largest magnitude, as in NVIDIA's implementations, whose range ends there.
    """
    return _bounded(histogram, kl_candidate(_occupied(histogram), levels) * histogram.width)


def mse_threshold(histogram: Histogram, levels: int = LEVELS) -> float:
    """Return the bin edge with the least expected squared error of clipping and rounding together."""
    candidates = _candidates(histogram.occupied_bins, levels)
    best = int(np.argmin(_squared_error_in_bins(histogram, candidates, levels)))
    return _bounded(histogram, int(candidates[best]) * histogram.width)


METHODS: dict[str, Callable[[Histogram, int], float]] = {
    "max": max_threshold,
    "percentile-99.9": partial(percentile_threshold, percent=99.9),
    "percentile-99.99": partial(percentile_threshold, percent=99.99),
    "percentile-99.999": partial(percentile_threshold, percent=99.999),
    "kl": kl_threshold,
    "mse": mse_threshold,
}


def threshold(histogram: Histogram, method: str, levels: int = LEVELS) -> float:
    """Return the threshold that a method of `METHODS` chooses.

    Args:
        histogram: of one tensor.
        method: key of `METHODS`.
        levels: magnitudes a code can express, at least 2.

    Returns:
        A positive number; `DEAD_THRESHOLD` for a tensor that is zero throughout.

    Raises:
        RecipeError: the method is unknown.
        CalibrationError: the histogram holds no finite element.
        ValueError: levels is below 2.
    """
    if method not in METHODS:
        raise RecipeError(f"Unknown calibration method {method!r}. {nearest(method, METHODS)}")
    if levels < 2:
        raise ValueError(f"levels is {levels}; it must be at least 2")
    return METHODS[method](histogram, levels)


def threshold_records(
    histograms: Mapping[str, Histogram], methods: Iterable[str] = tuple(METHODS), levels: int = LEVELS
) -> tuple[ThresholdRecord, ...]:
    """Return one record per tensor and method, tensor by tensor.

    Raises:
        CalibrationError: a tensor holds no finite element; the message names it.
    """
    chosen = tuple(methods)
    return tuple(
        _record(name, histogram, method, levels) for name, histogram in histograms.items() for method in chosen
    )


def kl_curve(histogram: Histogram, levels: int = LEVELS) -> tuple[Floats, Floats]:
    """Return candidate thresholds and their KL divergences in nats, for plotting (both empty for a dead tensor)."""
    if not histogram.abs_max:
        return np.empty(0), np.empty(0)
    counts = _occupied(histogram)
    return histogram.width * _candidates(counts.size, levels).astype(np.float64), kl_divergences(counts, levels)


def clipped_share(histogram: Histogram, threshold: float) -> float:
    """Return the share of finite elements beyond a threshold; exact on bin edges, interpolated within a bin."""
    if threshold >= histogram.abs_max:
        return 0.0
    below = _interpolated_mass(histogram.counts, threshold / histogram.width)
    return 1.0 - below / histogram.finite


def sqnr_db(histogram: Histogram, threshold: float, levels: int = LEVELS) -> float:
    """Return the expected signal to quantization noise ratio in dB; +inf where nothing is lost."""
    position = np.array([threshold / histogram.width])
    noise = float(_squared_error_in_bins(histogram, position, levels)[0])
    signal = float(_moments(histogram)[2][-1])
    return 10.0 * math.log10(signal / noise) if noise > 0.0 else math.inf


def expected_squared_error(histogram: Histogram, thresholds: Floats, levels: int = LEVELS) -> Floats:
    """Return the expected squared error of clipping and rounding, per finite element, for each threshold.

    Args:
        histogram: of one tensor.
        thresholds: float64 (candidates,), positive.
        levels: magnitudes a code can express.

    Returns:
        float64 (candidates,), in the squared unit of the tensor.
    """
    in_bins = _squared_error_in_bins(histogram, thresholds / histogram.width, levels)
    return in_bins / max(histogram.finite, 1) * histogram.width * histogram.width


def kl_candidate(counts: NDArray[np.int64], levels: int = LEVELS) -> int:
    """Return the number of bins to keep: the last candidate whose divergence is within `TIE_NATS` of the least.

    Where there are no more bins than levels, nothing is worth clipping and all are kept.
    """
    if counts.size <= levels:
        return counts.size
    divergences = kl_divergences(counts, levels)
    return levels + int(np.flatnonzero(divergences <= divergences.min() + TIE_NATS)[-1])


def kl_divergences(counts: NDArray[np.int64], levels: int = LEVELS) -> Floats:
    """Return KL(P || Q) in nats for i = levels..bins kept bins.

    The published algorithm (GTC 2017, S7310; NVIDIA `_compute_amax_entropy`): the first bin takes the count of the
    second (h[0] = h[1], so that zeros do not drown the rest); P is h[:i] with all counts beyond added to P[i - 1];
    Q spreads the counts of h[:i], without those beyond, evenly over the non-empty bins of each level, bin j being in
    level j * levels // i; both are normalised. Where P has mass and Q has none the divergence is infinite.

    Within a level log Q is constant, so that sum(P log Q) needs only the count m and the number n of non-empty bins
    of each level: differences of two running sums. With N all counts, C those in h[:i], t = N - C those beyond:
        KL = (sum P log P - sum_levels m log(m / n) - t log(m / n of the last level)) / N + log(C / N).

    Args:
        counts: int64 (bins,), bins >= levels >= 2.
        levels: number of quantization levels.

    Returns:
        float64 (bins - levels + 1,); all zero where nothing is left after h[0] = h[1].
    """
    counts = counts.copy()
    counts[0] = counts[1]
    kept = np.arange(levels, counts.size + 1)
    mass = _running_sum(counts.astype(np.float64))
    filled = _running_sum((counts > 0).astype(np.float64))
    total = mass[-1]
    if not total:
        return np.zeros(kept.size)
    last = counts[kept - 1].astype(np.float64)
    beyond = total - mass[kept]
    entropy = _running_sum(_x_log_x(counts.astype(np.float64)))[kept - 1] + _x_log_x(last + beyond)
    edges = _level_edges(counts.size, levels)
    cross = np.empty(kept.size)
    for start in range(0, kept.size, _BLOCK):
        rows = slice(start, start + _BLOCK)
        in_level = np.diff(mass.take(edges[rows]), axis=1)
        bins_in_level = np.diff(filled.take(edges[rows]), axis=1)
        # Empty levels have 0 / 0: with both raised to 1 their logarithm is 0, as is their weight.
        log_q = np.log(np.maximum(in_level, 1.0) / np.maximum(bins_in_level, 1.0))
        cross[rows] = (in_level * log_q).sum(axis=1) + beyond[rows] * log_q[:, -1]
    divergences = (entropy - cross) / total + np.log(np.maximum(mass[kept], 1.0) / total)
    return np.where((beyond > 0.0) & (last == 0.0), np.inf, np.maximum(divergences, 0.0))


def _squared_error_in_bins(histogram: Histogram, positions: NDArray[Any], levels: int) -> Floats:
    """Return the expected squared error summed over all elements, thresholds and errors in units of bins.

    Elements are taken as evenly spread within a bin, and zeros as free of error. With step d = position / K,
    K = levels - 1, code k stands for what lies between (k - 1/2) d and (k + 1/2) d, and code K for all above too.
    The sum over codes of the integral of (x - k d)^2 is, after summation by parts,
        M2 - 2 d (K M1 - sum_k F1(b_k)) + d^2 (K^2 M0 - sum_k (2 k - 1) F0(b_k)),  b_k = (k - 1/2) d, k = 1..K,
    with F0, F1 the mass and first moment below b_k and M0, M1, M2 the moments of all. So only the boundaries count.
    """
    mass, moment, squares = _moments(histogram)
    per_bin, codes = np.diff(mass), np.arange(1, levels)
    top, bins = levels - 1, per_bin.size
    result = np.empty(positions.size)
    for start in range(0, positions.size, _BLOCK):
        step = positions[start : start + _BLOCK, None] / top
        boundary = np.minimum(step * (codes - 0.5), bins)
        index = np.minimum(boundary.astype(np.intp), bins - 1)
        part = boundary - index
        count = part * per_bin.take(index)
        below = mass.take(index) + count
        moment_below = moment.take(index) + count * (index + 0.5 * part)
        step = step[:, 0]
        first = top * moment[-1] - moment_below.sum(axis=1)
        second = top * top * mass[-1] - below @ (2.0 * codes - 1.0)
        result[start : start + _BLOCK] = squares[-1] - 2.0 * step * first + step * step * second
    # The three terms cancel to about ten digits; an error of exactly zero may come out slightly negative.
    return np.maximum(result, 0.0)


@lru_cache(maxsize=2)
def _level_edges(bins: int, levels: int) -> NDArray[np.intp]:
    """Return the first bin of each level, and the end: (bins - levels + 1, levels + 1), ceil(level * i / levels)."""
    kept = np.arange(levels, bins + 1, dtype=np.intp)[:, None]
    return -(-kept * np.arange(levels + 1, dtype=np.intp) // levels)


def _record(name: str, histogram: Histogram, method: str, levels: int) -> ThresholdRecord:
    try:
        value = threshold(histogram, method, levels)
    except CalibrationError as error:
        raise CalibrationError(f"Tensor {name!r}: {error}") from error
    lost, ratio = clipped_share(histogram, value), sqnr_db(histogram, value, levels)
    return ThresholdRecord(name, method, value, histogram.abs_max, lost, ratio)


def _bounded(histogram: Histogram, edge: float) -> float:
    """Return the edge as a threshold: no larger than the largest magnitude, never so small that a scale is zero."""
    if not histogram.finite:
        raise CalibrationError(
            f"No threshold from {histogram.elements} elements, {histogram.nans} NaN and {histogram.infinities} "
            "infinite: none is finite. Check that calibration data reach this tensor, or exclude it."
        )
    if not histogram.abs_max:
        return DEAD_THRESHOLD
    return max(min(edge, histogram.abs_max), SMALLEST_THRESHOLD)


def _occupied(histogram: Histogram) -> NDArray[np.int64]:
    return histogram.counts[: histogram.occupied_bins]


def _candidates(bins: int, levels: int) -> NDArray[np.intp]:
    """Return the numbers of bins that may be kept; only all of them where there are no more than levels."""
    return np.arange(min(levels, bins), bins + 1)


def _moments(histogram: Histogram) -> tuple[Floats, Floats, Floats]:
    """Return running mass, first and second moment at the bin edges, in units of bins, without the exact zeros."""
    counts = histogram.counts.astype(np.float64)
    counts[0] -= histogram.zeros
    index = np.arange(counts.size)
    first, second = counts * (index + 0.5), counts * (index * (index + 1.0) + 1.0 / 3.0)
    return _running_sum(counts), _running_sum(first), _running_sum(second)


def _interpolated_mass(counts: NDArray[np.int64], position: float) -> float:
    """Return the count below a position, given in bins, elements being evenly spread within a bin."""
    index = int(position)
    return float(counts[:index].sum() + (position - index) * counts[index])


def _running_sum(values: Floats) -> Floats:
    return np.concatenate(([0.0], np.cumsum(values)))


def _x_log_x(values: Floats) -> Floats:
    return values * np.log(np.maximum(values, 1.0))
