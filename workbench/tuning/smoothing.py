"""Choose how strongly SmoothQuant moves outliers into the weights, or that it is left off, by what it costs at the outputs.

Thresholds come from one half of the calibration samples and verdicts from the other; evaluation data take no part. Smoothing
is no gain by itself: on a sentence encoder it lost against plain INT8. Knows nothing of engines' builders and of latency.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from workbench.calibration.table import Provenance
from workbench.datasets import Split
from workbench.machine.handle import QUIET, Handle
from workbench.recipes import Quantize, Recipe, Step
from workbench.records import Model
from workbench.transformation.intermediate_outputs import Observation
from workbench.transformation.observing import calibrate_proto
from workbench.transformation.steps import Calibrated, with_strength
from workbench.tuning.held_out import better, crossed, decibels
from workbench.tuning.simulation import Simulation

# Off, and the strengths that the paper and its followers tried; 0.5 is the paper's own.
STRENGTHS = (0.0, 0.3, 0.5, 0.7)
_JUDGED_BYTES = 16 << 20


@dataclass(frozen=True)
class Strength:
    """How strongly to smooth.

    Attributes:
        alpha: see `SmoothQuant`; 0 where smoothing is left off, because nothing that was tried was surely better.
        sqnr_db: strength -> SQNR at the outputs on the judged samples, the noisiest twentieth left out.
        judged: how many samples these were.
    """

    alpha: float
    sqnr_db: dict[str, float]
    judged: int

    @property
    def note(self) -> str:
        """What a reader of the report must know, in a sentence."""
        tried = ", ".join(f"{name} {value:.1f}" for name, value in self.sqnr_db.items())
        what = (
            f"SmoothQuant was applied with strength {self.alpha:g}"
            if self.alpha
            else "SmoothQuant was left off, because no strength was surely better"
        )
        return f"{what}: dB at the outputs on {self.judged} held-back calibration samples: {tried}."


def choose_strength(
    model: Model, split: Split, recipe: Recipe, known: Calibrated, *, handle: Handle = QUIET
) -> Strength:
    """Quantize with each strength and compare the outputs with those of the FP32 model.

    Args:
        split: calibration samples, under the model's input names.
        recipe: with a SmoothQuant step and one that quantizes; `auto` is judged with `max`.
        known: the dialect, channel maxima and pruned weights.

    Raises:
        CalibrationError: activations are not finite, or there are too few samples for the model's batch.
    """
    fitted, judged = crossed(split)[0]
    noise = {
        alpha: _noise(model, recipe, replace(known, smoothing=alpha), fitted, judged, handle) for alpha in STRENGTHS
    }
    return Strength(_best(noise), {_name(alpha): decibels(one) for alpha, one in noise.items()}, len(noise[0.0]))


def _noise(
    model: Model, recipe: Recipe, known: Calibrated, fitted: Split, judged: Split, handle: Handle
) -> NDArray[np.float64]:
    plain = with_strength(Recipe(recipe.name, tuple(map(_with_max, recipe.steps))), known)
    simulation = Simulation(model, plain, judged, known, largest_held_bytes=_JUDGED_BYTES, handle=handle)
    provenance = Provenance(model.sha256, fitted.sha256, "")
    table = calibrate_proto(simulation.graph, fitted.inputs, provenance, Observation(handle=handle))
    return simulation.nsr(simulation.quantized(plain, table)[0])


def _with_max(step: Step) -> Step:
    return replace(step, calibrator="max") if isinstance(step, Quantize) and step.calibrator == "auto" else step


def _best(noise: Mapping[float, NDArray[np.float64]]) -> float:
    found = 0.0
    for alpha, one in noise.items():
        if alpha and better(one, noise[found]):
            found = alpha
    return found


def _name(alpha: float) -> str:
    return f"{alpha:g}" if alpha else "off"
