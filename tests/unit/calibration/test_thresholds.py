"""Thresholds: the KL search equals the published loop, the others equal their definition or beat measured data."""

import math

import numpy as np
import pytest

from workbench import recipes
from workbench.calibration import thresholds
from workbench.calibration.histogram import BINS, Histogram
from workbench.errors import CalibrationError, RecipeError

RNG_SEED = 20240


def histogram_of(values):
    histogram = Histogram()
    histogram.update(np.asarray(values, np.float32))
    return histogram


def published_divergences(counts, levels):
    """The loop of GTC 2017 S7310 and NVIDIA's `_compute_amax_entropy`, one candidate at a time, rounded only once."""
    h = counts.copy()
    h[0] = h[1]
    divergences = []
    for i in range(levels, len(h) + 1):
        p = h[:i].astype(float)
        p[-1] += h[i:].sum()
        level = np.arange(i) * levels // i
        mass = np.bincount(level, weights=h[:i], minlength=levels)
        filled = np.bincount(level, weights=h[:i] > 0, minlength=levels)
        q = np.where(h[:i] > 0, (mass / np.maximum(filled, 1))[level], 0.0)
        seen = p > 0
        if (q[seen] == 0).any():
            divergences.append(math.inf)
        elif not seen.any():
            divergences.append(0.0)
        else:
            p, q = p / p.sum(), q / q.sum()
            divergences.append(math.fsum(p[seen] * np.log(p[seen] / q[seen])))
    return np.array(divergences)


def published_choice(counts, levels):
    """The last argmin, compared without any tolerance; nothing to search where no level could hold two bins."""
    if len(counts) <= levels:
        return len(counts)
    divergences = published_divergences(counts, levels)
    return levels + len(divergences) - 1 - int(np.argmin(divergences[::-1]))


def binned(values, bins):
    magnitudes = np.abs(values)
    return np.bincount(np.minimum((magnitudes / magnitudes.max() * bins).astype(int), bins - 1), minlength=bins)


def spikes(rng, bins, count):
    counts = np.zeros(bins, np.int64)
    counts[rng.integers(0, bins, count)] = rng.integers(1, 10**9, count)
    return counts


SHAPES = {
    "half-normal": lambda rng, bins, n: binned(rng.standard_normal(n), bins),
    "laplace": lambda rng, bins, n: binned(rng.laplace(size=n), bins),
    "heavy tail": lambda rng, bins, n: binned(rng.standard_t(2, size=n), bins),
    "rectified": lambda rng, bins, n: binned(np.maximum(rng.standard_normal(n), 0), bins),
    "bimodal": lambda rng, bins, n: binned(np.append(rng.normal(1, 0.1, n), rng.normal(4, 0.3, n // 3)), bins),
    "log-normal, many": lambda rng, bins, n: binned(np.exp(rng.standard_normal(n)), bins) * 10**7,
    "few elements": lambda rng, bins, n: binned(rng.standard_normal(n % 40 + 1), bins),
    "sparse": lambda rng, bins, n: rng.integers(0, 3, bins) * (rng.random(bins) < 0.05),
    "spikes": lambda rng, bins, n: spikes(rng, bins, 4),
    "single bin": lambda rng, bins, n: spikes(rng, bins, 1),
    "uniform": lambda rng, bins, n: np.full(bins, n),
    "empty": lambda rng, bins, n: np.zeros(bins, np.int64),
}


def random_counts(rng, shape, bins):
    return SHAPES[shape](rng, bins, int(rng.integers(50, 20_000))).astype(np.int64)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_search_chooses_what_the_published_loop_chooses_on_82_histograms_a_shape(shape):
    rng = np.random.default_rng(RNG_SEED)
    for number in range(82):
        bins, levels = ((128, 8), (192, 16), (130, 10), (256, 16), (20, 16))[number % 5]
        if number >= 80:
            bins, levels = BINS, 128
        counts = random_counts(rng, shape, bins)
        assert thresholds.kl_candidate(counts, levels) == published_choice(counts, levels), (number, bins, levels)


@pytest.mark.parametrize("shape", SHAPES)
def test_divergences_equal_the_published_loop_to_rounding(shape):
    counts = random_counts(np.random.default_rng(RNG_SEED), shape, 512)
    # Sums of some hundred terms of magnitude log(1e12) lose a few digits of sixteen; 100 times below TIE_NATS.
    np.testing.assert_allclose(
        thresholds.kl_divergences(counts, 32), published_divergences(counts, 32), rtol=0, atol=1e-12
    )


def test_the_search_leaves_the_counts_alone():
    counts = np.arange(1, 257)
    thresholds.kl_divergences(counts, 16)
    np.testing.assert_array_equal(counts, np.arange(1, 257))


def test_a_divergence_worked_out_by_hand():
    # Two levels over h = 1 1 3 1, keeping all: Q = 1 1 2 2, so KL = (3 log(3/2) + log(1/2)) / 6.
    # Keeping three: P = 1 1 4 in levels {0, 1} {2}, Q = 1 1 3: KL = log(5/6) + 4/6 log(4/3).
    # Keeping two: P = 1 5, Q = 1 1: KL = log(2/6) + 5/6 log 5.
    expected = [math.log(1 / 3) + 5 / 6 * math.log(5), math.log(5 / 6) + 4 / 6 * math.log(4 / 3), math.log(27 / 16) / 6]
    np.testing.assert_allclose(thresholds.kl_divergences(np.array([7, 1, 3, 1]), 2), expected, rtol=1e-14)


def test_mass_moved_onto_an_empty_bin_is_an_infinite_divergence_and_never_chosen():
    counts = np.array([5, 5, 5, 5, 0, 0, 0, 1])
    divergences = thresholds.kl_divergences(counts, 4)
    assert np.isinf(divergences[1:4]).all() and np.isfinite(divergences[[0, 4]]).all()


def test_kl_clips_rare_outliers_and_keeps_a_spike_of_zeros_out_of_it():
    rng = np.random.default_rng(0)
    bulk = rng.standard_normal(200_000)
    outliers = np.append(bulk, [30.0, 40.0])
    assert thresholds.threshold(histogram_of(outliers), "kl") < 8.0
    with_zeros = np.append(outliers, np.zeros(10**6))
    assert thresholds.threshold(histogram_of(with_zeros), "kl") == thresholds.threshold(histogram_of(outliers), "kl")


def test_the_kl_curve_has_its_minimum_at_the_threshold():
    histogram = histogram_of(np.random.default_rng(0).laplace(size=50_000))
    candidates, divergences = thresholds.kl_curve(histogram)
    assert candidates.shape == divergences.shape == (histogram.occupied_bins - 127,)
    assert candidates[np.argmin(divergences)] == thresholds.threshold(histogram, "kl")
    assert candidates[-1] >= histogram.abs_max > candidates[-2]


def test_the_kl_curve_of_a_dead_tensor_is_empty():
    candidates, divergences = thresholds.kl_curve(histogram_of(np.zeros(9)))
    assert candidates.size == divergences.size == 0


def test_max_is_the_largest_magnitude_exactly():
    values = np.random.default_rng(0).standard_normal(999).astype(np.float32)
    assert thresholds.threshold(histogram_of(values), "max") == np.abs(values).max()


@pytest.mark.parametrize("percent", [99.9, 99.99, 99.999])
def test_a_percentile_clips_at_most_its_share_and_one_bin_less_would_clip_more(percent):
    values = np.abs(np.random.default_rng(0).standard_t(3, size=300_000).astype(np.float32))
    histogram = histogram_of(values)
    chosen = thresholds.threshold(histogram, f"percentile-{percent}")
    # One part in 1e12 for the rounding of percent / 100 in binary.
    allowed = 1.0 - percent / 100.0 + 1e-12
    assert np.mean(values >= chosen) <= allowed < np.mean(values >= chosen - histogram.width)


def test_a_percentile_of_few_elements_keeps_them_all():
    assert thresholds.threshold(histogram_of([1.0, 2.0, 3.0]), "percentile-99.9") == 3.0


def test_a_hundred_percent_is_the_maximum_and_other_percents_are_refused():
    histogram = histogram_of([1.0, 2.0, 3.0])
    assert thresholds.percentile_threshold(histogram, percent=100.0) == 3.0
    for percent in (0.0, -1.0, 100.1, math.nan):
        with pytest.raises(ValueError, match="must lie in"):
            thresholds.percentile_threshold(histogram, percent=percent)


def quantized(values, threshold, levels):
    step = threshold / (levels - 1)
    return np.clip(np.round(values / step), 1 - levels, levels - 1) * step


@pytest.mark.parametrize("levels", [16, 128, 256])
@pytest.mark.parametrize("position", [300.0, 1234.5, 2047.9, 3000.0])
def test_the_expected_error_equals_fine_numerical_integration(levels, position):
    counts = random_counts(np.random.default_rng(RNG_SEED), "heavy tail", BINS)
    histogram = Histogram()
    histogram.counts, histogram.elements = counts, int(counts.sum())
    histogram.minimum, histogram.maximum = -1.0, 1.99951171875
    points = 200
    offsets = (np.arange(points) + 0.5) / points
    x = (np.arange(BINS)[:, None] + offsets) * histogram.width
    threshold = position * histogram.width
    errors = ((quantized(x, threshold, levels) - x) ** 2).mean(axis=1) @ counts / counts.sum()
    # The midpoint rule with 200 points a bin errs by about 1 / 200**2 of a bin's own contribution.
    expected = thresholds.expected_squared_error(histogram, np.array([threshold]), levels)
    np.testing.assert_allclose(expected, [errors], rtol=1e-3)


def test_zeros_cost_nothing():
    values = np.random.default_rng(0).standard_normal(10_000)
    without, with_zeros = histogram_of(values), histogram_of(np.append(values, np.zeros(30_000)))
    points = np.array([0.5, 1.0, 3.0])
    np.testing.assert_allclose(
        thresholds.expected_squared_error(with_zeros, points) * 4.0,
        thresholds.expected_squared_error(without, points),
        rtol=1e-9,
    )


@pytest.mark.parametrize("draw", ["standard_normal", "standard_cauchy", "standard_exponential"])
@pytest.mark.parametrize("method", thresholds.METHODS)
def test_expected_sqnr_is_what_quantizing_the_data_gives(draw, method):
    values = getattr(np.random.default_rng(1), draw)(100_000)
    values = values[np.abs(values) < 200].astype(np.float32)
    histogram = histogram_of(values)
    chosen = thresholds.threshold(histogram, method)
    wide = values.astype(np.float64)
    measured = 10 * np.log10((wide**2).sum() / ((quantized(wide, chosen, 128) - wide) ** 2).sum())
    # Values are taken as evenly spread within a bin of 1/2048 of the range: 0.1 dB is 2.3 % of the noise power.
    assert thresholds.sqnr_db(histogram, chosen) == pytest.approx(measured, abs=0.1)


@pytest.mark.parametrize("draw", ["standard_normal", "standard_cauchy", "standard_exponential", "laplace"])
def test_mse_loses_least_of_all_methods_on_the_data_themselves(draw):
    values = getattr(np.random.default_rng(2), draw)(size=100_000)
    values = values[np.abs(values) < 200].astype(np.float32).astype(np.float64)
    histogram = histogram_of(values)
    lost = {}
    for method in thresholds.METHODS:
        chosen = thresholds.threshold(histogram, method)
        lost[method] = ((quantized(values, chosen, 128) - values) ** 2).sum()
    # 1 %: the choice is made on expected errors, which differ from this sample's by about that.
    assert lost["mse"] <= 1.01 * min(lost.values())


def test_the_mse_threshold_is_the_least_of_all_candidates():
    histogram = histogram_of(np.random.default_rng(0).standard_t(3, size=50_000))
    candidates, _ = thresholds.kl_curve(histogram)
    errors = thresholds.expected_squared_error(histogram, candidates)
    assert thresholds.threshold(histogram, "mse") == candidates[np.argmin(errors)]


def test_the_clipped_share_is_exact_on_edges_and_interpolated_between():
    histogram = histogram_of([0.25, 0.25, 0.5, 1.5])
    assert thresholds.clipped_share(histogram, 0.5) == 0.5
    assert thresholds.clipped_share(histogram, 0.5 + histogram.width / 2) == 0.375
    assert thresholds.clipped_share(histogram, 1.5) == 0.0
    assert thresholds.clipped_share(histogram, 99.0) == 0.0


@pytest.mark.parametrize("method", thresholds.METHODS)
def test_every_threshold_is_positive_and_at_most_the_maximum(method):
    rng = np.random.default_rng(RNG_SEED)
    for values in (rng.standard_normal(5000), rng.standard_cauchy(5000), np.ones(7), [3.0], [1.0, math.nan, math.inf]):
        histogram = histogram_of(values)
        assert 0.0 < thresholds.threshold(histogram, method) <= histogram.abs_max


@pytest.mark.parametrize("method", thresholds.METHODS)
def test_huge_and_tiny_magnitudes_give_a_scale_that_is_neither_zero_nor_infinite(method):
    for values in ([1e-45, 0.0], [3.4e38, 1.0], [1e-30] * 5):
        scale = np.float32(thresholds.threshold(histogram_of(values), method) / 127)
        assert np.isfinite(scale) and scale >= np.finfo(np.float32).smallest_normal
    wide = Histogram()
    wide.update(np.array([1e300, 1e299, 1.0]))
    assert 0.0 < thresholds.threshold(wide, method) <= 1e300


@pytest.mark.parametrize("method", thresholds.METHODS)
def test_a_dead_tensor_gets_the_documented_threshold_and_loses_nothing(method):
    histogram = histogram_of(np.zeros(100))
    assert thresholds.threshold(histogram, method) == thresholds.DEAD_THRESHOLD
    assert thresholds.sqnr_db(histogram, thresholds.DEAD_THRESHOLD) == math.inf
    assert thresholds.clipped_share(histogram, thresholds.DEAD_THRESHOLD) == 0.0


@pytest.mark.parametrize("method", thresholds.METHODS)
@pytest.mark.parametrize("values", [[], [math.nan, math.inf, math.inf]])
def test_no_finite_element_gives_no_threshold(method, values):
    with pytest.raises(CalibrationError, match=f"No threshold from {len(values)} elements"):
        thresholds.threshold(histogram_of(values), method)


def test_an_unknown_method_suggests_the_nearest():
    with pytest.raises(
        RecipeError, match=r"Unknown calibration method 'percentile-99\.9999'. Did you mean 'percentile-99\.999'"
    ):
        thresholds.threshold(histogram_of([1.0]), "percentile-99.9999")


def test_fewer_than_two_levels_are_refused():
    with pytest.raises(ValueError, match="levels is 1"):
        thresholds.threshold(histogram_of([1.0]), "max", levels=1)


def test_the_methods_are_those_that_recipes_allow_besides_auto():
    assert set(thresholds.METHODS) == set(recipes.CALIBRATORS) - {"auto"}


def test_records_hold_one_row_a_tensor_and_method():
    histograms = {"a": histogram_of([1.0, 2.0]), "b": histogram_of([0.5])}
    records = thresholds.threshold_records(histograms, ("max", "kl"))
    assert [(record.tensor, record.method) for record in records] == [
        ("a", "max"),
        ("a", "kl"),
        ("b", "max"),
        ("b", "kl"),
    ]
    assert records[0].threshold == records[0].abs_max == 2.0
    assert records[0].clipped_share == 0.0 and records[0].sqnr_db > 30.0


def test_records_name_the_tensor_that_has_no_threshold():
    with pytest.raises(CalibrationError, match="Tensor 'b': No threshold"):
        thresholds.threshold_records({"a": histogram_of([1.0]), "b": histogram_of([])}, ["max"])
