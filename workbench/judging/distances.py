"""How far one output is from its parent's, summed up sample by sample and batch by batch. Judges nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Distances are summed in float64, so many values at a time: enough for speed, little beside the outputs themselves.
_BLOCK_VALUES = 1 << 20


@dataclass
class Distance:
    """Running sums over one output, in float64."""

    signal: float = 0.0
    error: float = 0.0
    product: float = 0.0
    power: float = 0.0
    largest: float = 0.0
    values: int = 0
    lost_samples: int = 0
    parent_lost_samples: int = 0
    infinite: int = 0

    def update(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Add a batch, samples on axis 0."""
        ours, theirs = np.atleast_1d(ours), np.atleast_1d(theirs)
        rows = max(1, _BLOCK_VALUES // max(1, ours[:1].size))
        for start in range(0, len(ours), rows):
            self._add(ours[start : start + rows], theirs[start : start + rows])

    def _add(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        ours, theirs = self._without_equal_infinities(ours, theirs)
        finite, parent_finite = finite_rows(ours), finite_rows(theirs)
        self.lost_samples += int((~finite).sum())
        self.parent_lost_samples += int((~parent_finite).sum())
        both = finite & parent_finite
        x, y = (np.asarray(side[both], dtype=np.float64).ravel() for side in (theirs, ours))
        difference = x - y
        self.signal += float(x @ x)
        self.power += float(y @ y)
        self.product += float(x @ y)
        self.error += float(difference @ difference)
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))
        self.values += x.size

    def _without_equal_infinities(self, ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Leave out what both forbid with the same infinity: a place without a value cannot be near or far."""
        if ours.dtype.kind in "iub" or theirs.dtype.kind in "iub":
            return ours, theirs
        equal = np.isinf(wide(theirs)) & (wide(ours) == wide(theirs))
        if not equal.any():
            return ours, theirs
        self.infinite += int(equal.sum())
        return (np.where(equal, side.dtype.type(0), side) for side in (ours, theirs))  # type: ignore[return-value]

    def sqnr_db(self) -> float | None:
        """Return signal to quantization noise; None where nothing differs, -inf where the parent's is zero throughout."""
        if self.error == 0:
            return None
        return 10 * math.log10(self.signal / self.error) if self.signal > 0 else -math.inf

    def cosine(self) -> float:
        """Return the cosine of the angle between both, 0 where one is zero."""
        if self.error == 0:
            return 1.0
        norms = math.sqrt(self.signal) * math.sqrt(self.power)
        return max(-1.0, min(1.0, self.product / norms)) if norms else 0.0


def finite_rows(values: np.ndarray) -> np.ndarray:
    """Return for each sample (axis 0) whether all of its values are finite."""
    if values.dtype.kind in "iub":
        return np.ones(len(values), dtype=bool)
    return np.asarray(np.isfinite(wide(values)).reshape(len(values), -1).all(axis=1))


def wide(values: np.ndarray) -> np.ndarray:
    """Return half types widened, exactly: numpy's functions do not know every extension type."""
    return np.asarray(values, dtype=np.float32) if values.dtype.itemsize < 4 else values
