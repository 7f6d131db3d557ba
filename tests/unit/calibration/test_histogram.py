"""Histograms: exact counts, and the same bytes whatever the batching and order."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from workbench.calibration.histogram import BINS, SMALLEST_EXPONENT, Histogram
from workbench.errors import CalibrationError

# Numbers that sit on bin edges of some range, besides whatever hypothesis thinks of (NaN, infinities, denormals, -0.0).
EDGES = st.builds(
    lambda mantissa, exponent: float(np.ldexp(mantissa, exponent)), st.integers(-2049, 2049), st.integers(-20, 20)
)
VALUES = st.one_of(st.floats(width=32), EDGES)
SEEDS = st.integers(0, 2**32 - 1)


def histogram_of(*arrays):
    histogram = Histogram()
    for array in arrays:
        histogram.update(array)
    return histogram


def plain_counts(values):
    """The definition, in exact arithmetic: half-open bins on the smallest power-of-two range that holds all."""
    magnitudes = [abs(Fraction(float(value))) for value in values if math.isfinite(value)]
    exponent = SMALLEST_EXPONENT
    while any(magnitude >= Fraction(2) ** exponent for magnitude in magnitudes):
        exponent += 1
    counts = [0] * BINS
    for magnitude in magnitudes:
        counts[int(magnitude / (Fraction(2) ** exponent / BINS))] += 1
    return counts, exponent


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, max_size=40))
@example([])
@example([0.0, -0.0])
@example([1.0, 2.0, 4.0, -8.0])
@example([1e-45, 3.4028235e38])
@example([1e-45])
@example([math.nan, math.inf, -math.inf])
def test_counts_and_tallies_equal_the_definition_in_exact_arithmetic(values):
    array = np.array(values, np.float32)
    histogram = histogram_of(array)
    counts, exponent = plain_counts(array)
    assert histogram.counts.tolist() == counts
    assert histogram.range_exponent == exponent
    finite = array[np.isfinite(array)]
    assert histogram.elements == array.size
    assert histogram.nans == sum(math.isnan(value) for value in values)
    assert histogram.infinities == sum(math.isinf(value) for value in array)
    assert histogram.zeros == np.count_nonzero(finite == 0)
    assert histogram.abs_max == max(np.abs(finite), default=0.0)
    assert histogram.minimum == min(finite, default=math.inf)
    assert histogram.maximum == max(finite, default=-math.inf)


@settings(max_examples=150, deadline=None)
@given(st.lists(VALUES, max_size=60), SEEDS, st.integers(1, 6))
@example([1.0, 1.9999999, 2.0, 0.0, -0.0, 1024.0], 0, 3)
@example([math.inf, 1e-45, math.nan, 3e38], 1, 4)
def test_any_order_and_any_batches_give_the_same_bytes(values, seed, batches):
    array = np.array(values, np.float32)
    rng = np.random.default_rng(seed)
    parts = np.array_split(rng.permutation(array), batches)
    whole = histogram_of(array)
    one_by_one = histogram_of(*parts)
    merged = Histogram()
    for part in reversed(parts):
        merged.merge(histogram_of(part))
    for other in (one_by_one, merged):
        assert other == whole
        for name, field in whole.to_arrays().items():
            assert other.to_arrays()[name].tobytes() == field.tobytes()


def test_growing_from_a_tiny_first_batch_equals_starting_with_the_largest_value():
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal(1000).astype(np.float32) * np.float32(10.0**power) for power in range(-30, 30, 3)]
    assert histogram_of(*batches) == histogram_of(*batches[::-1]) == histogram_of(np.concatenate(batches))


def test_an_array_of_many_chunks_equals_its_parts():
    values = np.random.default_rng(0).laplace(size=300_001).astype(np.float32)
    assert histogram_of(values) == histogram_of(*np.array_split(values, 7)[::-1])


def test_layout_and_shape_do_not_matter():
    values = np.random.default_rng(0).standard_normal((6, 5, 4)).astype(np.float32)
    expected = histogram_of(values.reshape(-1))
    for view in (values.T, values[::-1, :, ::-1], np.asfortranarray(values), values.astype(">f4")):
        assert histogram_of(view) == expected


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_float_types_count_as_the_same_values_in_float32(dtype):
    values = np.random.default_rng(0).standard_normal(1000).astype(ml_dtypes.bfloat16).astype(np.float16)
    assert histogram_of(values.astype(dtype)) == histogram_of(values.astype(dtype).astype(np.float32))


def test_float64_beyond_the_range_of_float32_is_counted():
    histogram = histogram_of(np.array([1e300, -5e299, 5e-324, 0.0]))
    assert (histogram.abs_max, histogram.elements, histogram.zeros) == (1e300, 4, 1)
    assert histogram.counts.sum() == 4


def test_an_update_leaves_the_array_alone():
    values = np.array([-1.0, 2.0, math.nan], np.float32)
    histogram_of(values)
    np.testing.assert_array_equal(values, [-1.0, 2.0, math.nan])


def test_a_merge_leaves_the_other_histogram_alone():
    other = histogram_of(np.ones(3, np.float32))
    histogram_of(np.full(3, 100, np.float32)).merge(other)
    assert other == histogram_of(np.ones(3, np.float32))


def test_edges_bound_what_their_bin_counts():
    values = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    histogram = histogram_of(values)
    expected, edges = np.histogram(np.abs(values).astype(np.float64), histogram.edges())
    np.testing.assert_array_equal(histogram.counts, expected)
    assert edges[histogram.occupied_bins - 1] <= histogram.abs_max < edges[histogram.occupied_bins]
    assert 0.5 < histogram.abs_max / edges[-1] < 1.0


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.complex64, np.longdouble, np.str_])
def test_other_types_are_refused_and_nothing_is_counted(dtype):
    histogram = Histogram()
    with pytest.raises(CalibrationError, match="only floating-point tensors"):
        histogram.update(np.zeros(3, dtype))
    assert histogram == Histogram()


def test_a_histogram_is_equal_to_itself_after_storage_and_to_nothing_else():
    histogram = histogram_of(np.array([1.0, -3.0, math.nan, math.inf], np.float32))
    assert Histogram.from_arrays(histogram.to_arrays()) == histogram
    assert Histogram.from_arrays(Histogram().to_arrays()) == Histogram()
    assert histogram != histogram_of(np.array([1.0, -3.0, math.nan, math.nan], np.float32))
    assert histogram != "histogram"
    assert "maximum=1.0" in repr(histogram)


def test_stored_arrays_are_copies():
    histogram = histogram_of(np.ones(3, np.float32))
    arrays = histogram.to_arrays()
    rebuilt = Histogram.from_arrays(arrays)
    arrays["counts"][:] = 0
    assert histogram.counts.sum() == rebuilt.counts.sum() == 3


@pytest.mark.parametrize(
    ("field", "index", "value", "message"),
    [
        ("counts", 0, -1, "counts from -1"),
        ("counts", 0, 5, "counts sum to 8"),
        ("counts", 0, 2**60, "counts from"),
        ("tallies", 0, -4, "tallies"),
        ("tallies", 0, 2**60, "tallies"),
        ("tallies", 1, 1, "1 zeros but 0 elements in the first bin"),
        ("tallies", 2, 4, "counts sum to 3, but 1 of 5"),
        ("extrema", 0, math.nan, "minimum nan"),
        ("extrema", 1, math.inf, "maximum inf"),
        ("extrema", 0, 5.0, "minimum 5.0, maximum 2.0"),
        ("extrema", 1, 100.0, "not in the last occupied bin"),
        ("extrema", 1, 1.5, "not in the last occupied bin"),
    ],
)
def test_damaged_storage_is_refused_and_named(field, index, value, message):
    arrays = histogram_of(np.array([1.0, 1.5, 2.0, math.nan, math.nan], np.float32)).to_arrays()
    arrays[field][index] = value
    with pytest.raises(CalibrationError, match=message):
        Histogram.from_arrays(arrays)


def test_extrema_of_nothing_are_refused():
    arrays = Histogram().to_arrays()
    arrays["extrema"][:] = 1.0
    with pytest.raises(CalibrationError, match="extrema without elements"):
        Histogram.from_arrays(arrays)


@pytest.mark.parametrize("field", ["counts", "extrema", "tallies"])
def test_storage_of_another_shape_or_type_is_refused(field):
    arrays = Histogram().to_arrays()
    for wrong in (arrays[field][1:], arrays[field].astype(np.float32)):
        with pytest.raises(CalibrationError, match=f"field '{field}' is"):
            Histogram.from_arrays({**arrays, field: wrong})
