"""What the app derives from a record, and the pictures it shows as PNG bytes. Pure; slow enough to need a thread."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from workbench import plots
from workbench.calibration.histogram import Histogram
from workbench.calibration.thresholds import METHODS, kl_curve, sqnr_db, threshold
from workbench.judging.comparison import Comparison
from workbench.judging.standing import Point, Quality, compared, points, quality
from workbench.plots import theme as look
from workbench.plots.theme import ThemeName
from workbench.records import StudyRecord
from workbench.reports.rows import Table, main_table
from workbench.reports.verdict import verdict

# On screen at 100 %: the widest view of the app is about 900 pixels.
_DOTS_PER_INCH = 110


@dataclass(frozen=True)
class Summary:
    """What is computed from a record once.

    Attributes:
        finding: the result, a sentence a line, what to take first.
        quality: what stands for "how right"; None where nothing was checked yet.
    """

    record: StudyRecord
    comparison: Comparison | None
    table: Table
    finding: str
    points: tuple[Point, ...] = ()
    quality: Quality | None = None


@dataclass(frozen=True)
class Clip:
    """What a calibrator would do to one tensor."""

    calibrator: str
    threshold: float
    sqnr_db: float


def summarise(record: StudyRecord, *, front: bool = True) -> Summary:
    """Compute what is shown of a record; without the front it is much faster where there are many variants."""
    comparison, refusal = compared(record, front=front)
    finding = "\n".join(verdict(record, comparison, refusal))
    table = main_table(record, comparison)
    shown = None if comparison is None else quality(record, comparison)
    if comparison is None or shown is None:
        return Summary(record, comparison, table, finding)
    found, _ = points(record, comparison, shown)
    return Summary(record, comparison, table, finding, tuple(found), shown)


def clips(histogram: Histogram) -> tuple[Clip, ...]:
    """Return what each calibrator would do to a tensor, the most faithful first."""
    found = [Clip(name, value := threshold(histogram, name), sqnr_db(histogram, value)) for name in METHODS]
    return tuple(sorted(found, key=lambda clip: -clip.sqnr_db))


def histogram(tensor: str, values: Histogram, theme: ThemeName) -> bytes:
    """Return the histogram of a tensor with the clip of each calibrator."""
    occupied = values.occupied_bins
    thresholds = {clip.calibrator: clip.threshold for clip in clips(values)}
    figure = plots.histogram(
        values.counts[:occupied], values.edges()[: occupied + 1], thresholds, tensor=tensor, theme=theme
    )
    return _png(figure)


def divergence(tensor: str, values: Histogram, theme: ThemeName) -> bytes:
    """Return the KL curve of a tensor; a sentence in its place where there is none."""
    candidates, divergences = kl_curve(values)
    if not np.isfinite(divergences).any():
        return _png(look.empty_figure(look.named(theme), f"{tensor} was always zero: there is no curve to draw."))
    chosen = threshold(values, "kl")
    return _png(plots.kl_curve(candidates, divergences, chosen, tensor=tensor, theme=theme))


def weight(name: str, values: np.ndarray, axis: int, theme: ThemeName) -> bytes:
    """Return the histogram of a weight with its output channels."""
    return _png(plots.weight(values, axis, name=name, theme=theme))


def channels(name: str, maxima: tuple[float, ...], theme: ThemeName) -> bytes:
    """Return the largest magnitude of each channel of an activation."""
    return _png(plots.channels(np.array(maxima), name=name, theme=theme))


def _png(figure: Figure) -> bytes:
    return look.png(figure, _DOTS_PER_INCH)
