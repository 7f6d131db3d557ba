"""Streaming statistics of one tensor: a histogram of |x| whose bytes do not depend on batch size or sample order.

Knows numpy only: nothing of ONNX, of tensor names, or of how a clip threshold is chosen (`thresholds.py`).

The range is [0, 2**e), with e the smallest exponent (not below `SMALLEST_EXPONENT`) for which every finite |x| lies
inside: a function of the largest magnitude alone, never of the first batch. When a larger value arrives the range
doubles and neighbouring bins merge. Bin edges of a range are all edges of every smaller one (half-open bins, powers
of two), so merging loses no count and equals what binning everything in the final range would have given. All sums
are integers, so their order cannot matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import CalibrationError

BINS = 2048
# Below this range the factor that turns a magnitude into a bin number would overflow float32.
SMALLEST_EXPONENT = -116
# With at most this many elements no sum over the bins wraps around in int64, and float64 holds each count exactly.
MOST_ELEMENTS = 2**51
# 128 KiB of float32: what is computed from a chunk stays in a core's second-level cache.
_CHUNK = 1 << 15
_LOG2_BINS = BINS.bit_length() - 1


class Histogram:
    """Counts of |x| in 2048 equal bins on [0, 2**range_exponent), with exact extrema and tallies.

    Attributes:
        counts: int64 (2048,); bin j counts the finite elements with j * width <= |x| < (j + 1) * width.
        minimum: smallest finite element, +inf where there is none.
        maximum: largest finite element, -inf where there is none.
        elements: number of elements seen, NaN and infinite ones included.
        zeros: number of elements equal to zero (they are in `counts[0]` too).
        nans: number of NaN elements.
        infinities: number of infinite elements of either sign.
    """

    __hash__ = None  # type: ignore[assignment]
    __slots__ = ("counts", "elements", "infinities", "maximum", "minimum", "nans", "zeros")

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(BINS, np.int64)
        self.minimum = math.inf
        self.maximum = -math.inf
        self.elements = 0
        self.zeros = 0
        self.nans = 0
        self.infinities = 0

    @property
    def finite(self) -> int:
        """Number of finite elements, the sum of `counts`."""
        return self.elements - self.nans - self.infinities

    @property
    def abs_max(self) -> float:
        """Largest finite magnitude; 0.0 where there is no finite element."""
        return max(abs(self.minimum), abs(self.maximum)) if self.minimum <= self.maximum else 0.0

    @property
    def range_exponent(self) -> int:
        """The smallest e >= SMALLEST_EXPONENT with abs_max < 2**e: the range is [0, 2**e)."""
        return max(math.frexp(self.abs_max)[1], SMALLEST_EXPONENT) if self.abs_max else SMALLEST_EXPONENT

    @property
    def width(self) -> float:
        """Width of a bin, a power of two."""
        return math.ldexp(1.0, self.range_exponent - _LOG2_BINS)

    @property
    def occupied_bins(self) -> int:
        """Number of bins up to and including the one that holds `abs_max`; all later ones are empty."""
        return int(self.abs_max / self.width) + 1 if self.finite else 0

    def edges(self) -> NDArray[np.float64]:
        """Return the 2049 bin edges, exact."""
        return np.arange(BINS + 1, dtype=np.float64) * self.width

    def update(self, array: NDArray[Any]) -> None:
        """Count the elements of an array.

        Args:
            array: any shape (also empty), float16, bfloat16, float32 or float64.

        Raises:
            CalibrationError: the array has another element type; nothing is counted then.
        """
        work_type = working_type(array)
        flat = np.ravel(array, order="K")
        scratch = _Scratch(min(flat.size, _CHUNK), work_type)
        for start in range(0, flat.size, _CHUNK):
            self._count(flat[start : start + _CHUNK].astype(work_type, copy=False), scratch)

    @classmethod
    def joined(cls, histograms: Iterable[Histogram]) -> Histogram:
        """Return what one histogram would have seen of all that these have seen."""
        whole = cls()
        for one in histograms:
            whole.merge(one)
        return whole

    def merge(self, other: Histogram) -> None:
        """Add what another histogram has seen; the same as updating with its arrays."""
        self._include(other.minimum, other.maximum, other.finite)
        self.counts += _folded(other.counts, self.range_exponent - other.range_exponent)
        self.elements += other.elements
        self.zeros += other.zeros
        self.nans += other.nans
        self.infinities += other.infinities

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the whole state: `counts` int64 (2048,), `extrema` float64 (2,), `tallies` int64 (4,)."""
        tallies = (self.elements, self.zeros, self.nans, self.infinities)
        return {
            "counts": self.counts.copy(),
            "extrema": np.array((self.minimum, self.maximum), np.float64),
            "tallies": np.array(tallies, np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Histogram:
        """Rebuild a histogram from `to_arrays`, trusting none of it.

        Raises:
            CalibrationError: a shape, type, or count contradicts what a histogram can be.
        """
        expected = {"counts": (np.int64, (BINS,)), "extrema": (np.float64, (2,)), "tallies": (np.int64, (4,))}
        for name, (dtype, shape) in expected.items():
            array = arrays[name]
            if array.dtype != dtype or array.shape != shape:
                found = f"{array.dtype} {array.shape}"
                raise CalibrationError(f"Histogram field {name!r} is {found}, expected {np.dtype(dtype)} {shape}.")
        histogram = cls()
        histogram.counts = arrays["counts"].copy()
        histogram.minimum, histogram.maximum = (float(value) for value in arrays["extrema"])
        tallies = (int(value) for value in arrays["tallies"])
        histogram.elements, histogram.zeros, histogram.nans, histogram.infinities = tallies
        contradiction = histogram._contradiction()
        if contradiction:
            raise CalibrationError(f"Damaged histogram: {contradiction}. Calibrate again instead of loading it.")
        return histogram

    def __eq__(self, other: object) -> bool:
        """Compare bit for bit (no NaN and no negative zero is ever stored)."""
        if not isinstance(other, Histogram):
            return NotImplemented
        mine, theirs = self.to_arrays(), other.to_arrays()
        return all(mine[name].tobytes() == theirs[name].tobytes() for name in mine)

    def __repr__(self) -> str:
        return (
            f"Histogram(elements={self.elements}, minimum={self.minimum}, maximum={self.maximum}, "
            f"zeros={self.zeros}, nans={self.nans}, infinities={self.infinities})"
        )

    def _count(self, chunk: NDArray[Any], scratch: _Scratch) -> None:
        self.elements += chunk.size
        low, high = float(np.minimum.reduce(chunk)), float(np.maximum.reduce(chunk))
        if not (math.isfinite(low) and math.isfinite(high)):
            self.nans += int(np.count_nonzero(np.isnan(chunk)))
            self.infinities += int(np.count_nonzero(np.isinf(chunk)))
            chunk = chunk[np.isfinite(chunk)]
            if not chunk.size:
                return
            low, high = float(np.minimum.reduce(chunk)), float(np.maximum.reduce(chunk))
        self._include(low, high, chunk.size)
        counts, zeros = scratch.binned(chunk, _LOG2_BINS - self.range_exponent)
        self.counts += counts
        self.zeros += zeros

    def _include(self, low: float, high: float, finite: int) -> None:
        """Widen extrema and range so that `finite` elements within [low, high] fit."""
        if not finite:
            return
        before = self.range_exponent
        # + 0.0 turns -0.0 into 0.0; which of the two a reduction returns depends on the order of the elements.
        self.minimum = min(self.minimum, low) + 0.0
        self.maximum = max(self.maximum, high) + 0.0
        if self.range_exponent > before:
            self.counts = _folded(self.counts, self.range_exponent - before)

    def _contradiction(self) -> str:
        """Say why the fields cannot belong to one histogram; empty where they can."""
        tallies = (self.elements, self.zeros, self.nans, self.infinities)
        if min(tallies) < 0 or max(tallies) > MOST_ELEMENTS:
            return f"tallies {tallies} are not all within 0..2**51"
        if self.counts.min() < 0 or self.counts.max() > self.elements:
            return f"counts from {self.counts.min()} to {self.counts.max()} for {self.elements} elements"
        if self.finite != self.counts.sum():
            return f"counts sum to {self.counts.sum()}, but {self.finite} of {self.elements} elements are finite"
        if not self.finite:
            return "" if (self.minimum, self.maximum) == (math.inf, -math.inf) else "extrema without elements"
        if not -math.inf < self.minimum <= self.maximum < math.inf:
            return f"minimum {self.minimum}, maximum {self.maximum}"
        if not self.counts[self.occupied_bins - 1] or self.counts[self.occupied_bins :].any():
            return f"the largest magnitude {self.abs_max} is not in the last occupied bin"
        if self.zeros > self.counts[0]:
            return f"{self.zeros} zeros but {self.counts[0]} elements in the first bin"
        return ""


class _Scratch:
    """Buffers for binning chunks, allocated once an update.

    With fresh ones for each chunk an update took up to four times as long: memory of this size goes back to the
    system at every release, and is zeroed again page by page.
    """

    def __init__(self, size: int, work_type: type[np.float32] | type[np.float64]) -> None:
        self._magnitudes = np.empty(size, work_type)
        self._narrow = np.empty(size, np.int32)
        self._numbers = np.empty(size, np.intp)

    def binned(self, chunk: NDArray[Any], log2_scale: int) -> tuple[NDArray[np.intp], int]:
        """Return the counts of floor(|x| * 2**log2_scale), which is below 2048, and the number of zeros."""
        magnitudes, narrow, numbers = (item[: chunk.size] for item in (self._magnitudes, self._narrow, self._numbers))
        np.abs(chunk, out=magnitudes)
        # As integers, because numpy counts nonzero integers several times faster than nonzero floats.
        zeros = chunk.size - int(np.count_nonzero(magnitudes.view(f"i{magnitudes.itemsize}")))
        # Exact: a power of two only shifts the exponent. Where it underflows, the bin number is 0 either way.
        magnitudes *= math.ldexp(1.0, log2_scale)
        # By way of int32: a cast from float to int64 is not vectorised on most processors.
        np.copyto(narrow, magnitudes, casting="unsafe")
        np.copyto(numbers, narrow)
        return np.bincount(numbers, minlength=BINS), zeros


def working_type(array: NDArray[Any]) -> type[np.float32] | type[np.float64]:
    """Return the type in which the elements of an array can be binned exactly.

    Raises:
        CalibrationError: the array is not of a floating-point type of at most 64 bits.
    """
    name, size = array.dtype.name, array.dtype.itemsize
    if not name.startswith(("float", "bfloat")) or size > 8:
        raise CalibrationError(
            f"Cannot calibrate an array of type {name}: only floating-point tensors of at most 64 bits have a "
            "quantization range. Leave this tensor out."
        )
    return np.float64 if size == 8 else np.float32


def _folded(counts: NDArray[np.int64], doublings: int) -> NDArray[np.int64]:
    """Return the counts in a range 2**doublings times as wide, as a new array."""
    folded = np.zeros_like(counts)
    shift = min(doublings, _LOG2_BINS)
    folded[: BINS >> shift] = counts.reshape(-1, 1 << shift).sum(axis=1)
    return folded
