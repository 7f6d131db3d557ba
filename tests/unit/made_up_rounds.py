"""Made-up measurements for tests of statistics and comparison: seeded noise of known size, nothing measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.records import Measurement, Protocol, Round

CALLS = 40


def measurement(
    medians_seconds: Any, *, variant: str = "fp32", turn: int = 0, offset_seconds: float = 0.0, **changes: Any
) -> Measurement:
    """Return a measurement whose rounds have these medians exactly (symmetric calls around them).

    Args:
        turn: place within a round; round i of all turns begins within the same 10 seconds.
        offset_seconds: moves all rounds, as if they had been measured at another time.
    """
    spread = np.linspace(-0.02, 0.02, CALLS + 1)
    rounds = tuple(
        Round(index, tuple(float(median) * (1 + spread)), 0.1, 10.0 * index + turn + offset_seconds)
        for index, median in enumerate(medians_seconds)
    )
    fields: dict[str, Any] = {
        "variant": variant,
        "variant_sha256": variant,
        "backend": "onnxruntime-cpu",
        "device": "Example CPU (2 cores)",
        "protocol": Protocol(),
        "shapes": {"image": (8, 1, 32, 32)},
        "rounds": rounds,
        "environment": {"threads": 1},
    }
    return Measurement(**{**fields, **changes})


def pair(
    generator: np.random.Generator, rounds: int, slowdown: float, *, noise: float = 0.02, outliers: float = 0.05
) -> tuple[Measurement, Measurement]:
    """Return baseline and candidate as a noisy shared machine gives them, interleaved.

    The machine's speed drifts between rounds (shared by a round's variants); each process has a lognormal luck of its
    own of size `noise`; a share of `outliers` of the processes is 1.5 times slower throughout.
    """
    drift = np.exp(np.cumsum(generator.normal(0, 0.03, rounds)))
    sides = []
    for factor in (1.0, slowdown):
        luck = np.exp(generator.normal(0, noise, rounds))
        disturbed = np.where(generator.random(rounds) < outliers, 1.5, 1.0)
        sides.append(1e-3 * factor * drift * luck * disturbed)
    return measurement(sides[0]), measurement(sides[1], variant="candidate", turn=1)
