"""A weight that was pruned on calibration samples: plain data, which steps get and tuning makes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Pruned:
    """A weight that was pruned for the inputs it was seen with.

    Attributes:
        output_error: energy of the change of the layer's outputs over the energy of the outputs, on these inputs.
    """

    weight: NDArray[np.float32]
    output_error: float
