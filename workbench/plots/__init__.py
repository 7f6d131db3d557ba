"""Figures of studies and of calibration: each function takes plain data and returns a matplotlib `Figure`.

Pure formatting: nothing here measures, runs a model or writes a file, and pyplot is never used, so figures may be drawn
on any thread. `svg` and `png` turn a figure into text or bytes.
"""

from __future__ import annotations

from workbench.plots.calibration import convergence, histogram, kl_curve, sensitivity, sqnr_waterfall
from workbench.plots.device import tracks
from workbench.plots.distributions import latencies, rounds, sizes
from workbench.plots.front import front
from workbench.plots.theme import png, svg
from workbench.plots.weights import channels, weight

__all__ = [
    "channels",
    "convergence",
    "front",
    "histogram",
    "kl_curve",
    "latencies",
    "png",
    "rounds",
    "sensitivity",
    "sizes",
    "sqnr_waterfall",
    "svg",
    "tracks",
    "weight",
]
