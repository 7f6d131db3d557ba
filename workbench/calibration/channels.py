"""Which channels of a tensor stand out: one that is far larger than the others takes the codes away from them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# A channel this many times the median one stands out.
OUTLIER = 8.0


def outliers(maxima: NDArray[np.float64]) -> tuple[float, tuple[int, ...], float]:
    """Return the largest channel over the median one, which channels stand out, and the median; channels of zeros do not count.

    Args:
        maxima: largest magnitude of each channel, (channels,).
    """
    alive = maxima[maxima > 0]
    if not alive.size:
        return 1.0, (), 0.0
    middle = float(np.median(alive))
    out = tuple(int(index) for index in np.flatnonzero(maxima >= OUTLIER * middle))
    return float(maxima.max()) / middle, out, middle
