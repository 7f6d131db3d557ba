"""Channels as quantization meets them: how the values of a weight are spread, and how large each channel of a tensor is."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workbench.calibration.channels import OUTLIER, outliers
from workbench.errors import DataError
from workbench.plots import theme as look
from workbench.plots.labels import shorten
from workbench.plots.theme import ThemeName

_BINS = 100


def weight(values: np.ndarray, axis: int, *, name: str = "", theme: ThemeName = "light") -> Figure:
    """Draw the histogram of a weight, and below it the largest magnitude of each channel; outlier channels are marked.

    Args:
        axis: of the output channels.

    Raises:
        DataError: there are no values, or the weight has no such axis.
    """
    values = np.asarray(values, dtype=np.float64)
    if not values.size or not -values.ndim <= axis < values.ndim:
        raise DataError(f"a weight of shape {values.shape} has no channels along axis {axis}")
    colours = look.named(theme)
    figure, first = look.new_figure(colours, height_inches=5.6)
    first.remove()
    above, below = figure.subplots(2, 1)
    for axes in (above, below):
        look.dress(axes, colours)
    counts, edges = np.histogram(values, bins=_BINS)
    above.stairs(counts, edges, fill=True, color=colours.quiet, alpha=0.45, baseline=0.5)
    above.set_yscale("log")
    above.set_ylim(0.5, max(counts.max(), 1) * 2)
    title = f"Weight {shorten(name, 40)}" if name else "Weight"
    look.entitle(above, colours, title, "w", "values per bin (log scale)")
    maxima = np.abs(np.moveaxis(values, axis, 0)).reshape(values.shape[axis], -1).max(axis=1)
    told = _draw_channels(below, colours, maxima, "output channel", "largest |w|")
    look.footnote(figure, colours, f"{values.size:,} values in {len(maxima)} channels. {told}")
    return figure


def channels(maxima: np.ndarray, *, name: str = "", theme: ThemeName = "light") -> Figure:
    """Draw the largest magnitude of each channel of an activation; outlier channels are marked.

    Args:
        maxima: largest magnitude of each channel, (channels,).

    Raises:
        DataError: there are no channels.
    """
    maxima = np.asarray(maxima, dtype=np.float64)
    if not maxima.size:
        raise DataError(f"the activation {name!r} has no channels to draw")
    colours = look.named(theme)
    figure, axes = look.new_figure(colours, height_inches=3.4)
    told = _draw_channels(axes, colours, maxima, "channel", "largest |x|", f"Channels of {shorten(name, 40)}")
    look.footnote(figure, colours, f"{len(maxima)} channels over all calibration samples. {told}")
    return figure


def _draw_channels(axes: Axes, colours: look.Theme, maxima: np.ndarray, across: str, up: str, title: str = "") -> str:
    """Draw a bar a channel, mark those that stand out, and return what is to be told of them."""
    ratio, out, middle = outliers(maxima)
    places = np.arange(len(maxima))
    axes.vlines(places, 0, maxima, color=colours.series[0], linewidth=max(0.6, min(4.0, 300 / len(maxima))))
    axes.plot(
        list(out), maxima[list(out)], linestyle="none", marker="X", markersize=9, color=colours.series[1], zorder=3
    )
    for index in sorted(out, key=lambda place: -maxima[place])[:4]:
        axes.annotate(
            f"channel {index}",
            (index, maxima[index]),
            xytext=(7, -2),
            textcoords="offset points",
            fontsize=look.NOTE_POINTS,
            color=colours.ink,
        )
    axes.axhline(middle, color=colours.quiet, linewidth=1.2, linestyle="--")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, max(float(maxima.max()) * 1.12, 1e-12))
    look.entitle(axes, colours, title, across, up)
    if out:
        return f"{len(out)} of {len(maxima)} channels are {OUTLIER:g} times the median (dashed) or more"
    return f"No channel is {OUTLIER:g} times the median (dashed): the largest is {ratio:.2g} times it"
