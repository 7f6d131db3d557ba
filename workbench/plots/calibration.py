"""Figures about calibration and quantization error, from plain arrays.

Each function takes what the calibration code already has (counts, edges, thresholds, decibels) and returns a `Figure`;
it runs no model and finds no threshold.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from workbench.errors import DataError
from workbench.plots import theme as look
from workbench.plots.labels import shorten
from workbench.plots.theme import ThemeName

_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def histogram(
    counts: Sequence[float] | np.ndarray,
    edges: Sequence[float] | np.ndarray,
    clips: Mapping[str, float] | None = None,
    *,
    tensor: str = "",
    theme: ThemeName = "light",
) -> Figure:
    """Draw the histogram of `|x|` of one tensor on a log scale, with a labelled line at each clip threshold.

    Args:
        counts: values in each bin, shape (bins,).
        edges: bin edges, shape (bins + 1,).
        clips: name of a calibrator -> its threshold, in the unit of the edges.
        tensor: name of the tensor, for the title.

    Raises:
        DataError: there is not one edge more than there are counts, or there are no counts.
    """
    counts, edges = np.asarray(counts, dtype=float), np.asarray(edges, dtype=float)
    if counts.ndim != 1 or counts.size == 0 or edges.shape != (counts.size + 1,):
        raise DataError(f"counts has shape {counts.shape} and edges {edges.shape}; expected (bins,) and (bins + 1,)")
    colours = look.named(theme)
    figure, axes = look.new_figure(colours)
    shown, shown_edges = _rebin(counts, edges)
    axes.stairs(shown, shown_edges, fill=True, color=colours.quiet, alpha=0.45, baseline=0.5)
    axes.set_yscale("log")
    # Room above the bars for one row of text for each line.
    axes.set_ylim(0.5, max(shown.max(), 1.0) * 10 ** (0.35 * len(clips or {}) + 0.2))
    axes.set_xlim(float(edges[0]), float(edges[-1]) * 1.02)
    total = max(counts.sum(), 1.0)
    for row, (name, threshold) in enumerate(sorted((clips or {}).items(), key=lambda item: item[1])):
        colour = colours.series[row % len(colours.series)]
        axes.axvline(threshold, color=colour, linewidth=2, linestyle=_DASHES[row % len(_DASHES)])
        clipped = counts[edges[:-1] >= threshold].sum() / total
        left = threshold > 0.6 * edges[-1]
        axes.annotate(
            f"{shorten(name)}: {threshold:.4g} (clips {_share(clipped)})",
            (threshold, 0.97 - 0.065 * row),
            xycoords=("data", "axes fraction"),
            xytext=(-6 if left else 6, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="top",
            fontsize=look.NOTE_POINTS,
            color=colours.ink,
            bbox={"facecolor": colours.background, "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        )
    title = f"Activations of {tensor}" if tensor else "Activations"
    look.entitle(axes, colours, title, "|x|", "values per bin (log scale)")
    look.footnote(figure, colours, f"{int(total):,} values, {counts.size} bins drawn as {shown.size}")
    return figure


def kl_curve(
    thresholds: Sequence[float] | np.ndarray,
    divergences: Sequence[float] | np.ndarray,
    chosen: float,
    *,
    tensor: str = "",
    theme: ThemeName = "light",
) -> Figure:
    """Draw the divergence of every threshold that the search tried, and mark the one chosen.

    Args:
        thresholds: candidates, shape (candidates,), in the unit of the tensor.
        divergences: KL divergence in nats, shape (candidates,); values that are not finite are left out.
        chosen: the threshold that was taken.

    Raises:
        DataError: shapes differ, or no divergence is finite.
    """
    x, y = np.asarray(thresholds, dtype=float), np.asarray(divergences, dtype=float)
    if x.shape != y.shape:
        raise DataError(f"thresholds has shape {x.shape} and divergences {y.shape}; they must be the same")
    finite = np.isfinite(y)
    if not finite.any():
        raise DataError(f"none of the {y.size} divergences is finite; there is no curve to draw")
    x, y = x[finite], y[finite]
    colours = look.named(theme)
    figure, axes = look.new_figure(colours)
    axes.plot(x, y, color=colours.series[0], linewidth=1.8)
    if (y > 0).all() and y.max() / y.min() > 30:
        axes.set_yscale("log")
    height = float(np.interp(chosen, x, y))
    axes.plot([chosen], [height], marker="o", markersize=9, color=colours.ink, linestyle="none")
    axes.axvline(chosen, color=colours.ink, linewidth=1, linestyle=":")
    right = chosen > x.min() + 0.6 * np.ptp(x)
    axes.annotate(
        f"chosen: {chosen:.4g}\n{height:.3g} nats",
        (chosen, height),
        xytext=(-10 if right else 10, 14),
        textcoords="offset points",
        ha="right" if right else "left",
        fontsize=look.LABEL_POINTS,
        color=colours.ink,
        bbox={"facecolor": colours.background, "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
    )
    axes.margins(y=0.18)
    title = f"Search for the clip threshold of {tensor}" if tensor else "Search for the clip threshold"
    look.entitle(axes, colours, title, "threshold, in the tensor's unit", "KL divergence (nats)")
    look.footnote(figure, colours, f"{x.size} candidates; lower is better")
    return figure


def convergence(
    sample_counts: Sequence[int],
    thresholds_by_tensor: Mapping[str, Sequence[float]],
    *,
    most: int = 8,
    theme: ThemeName = "light",
) -> Figure:
    """Draw how thresholds settle as more calibration samples are seen, relative to the last value.

    Args:
        sample_counts: how many samples each value was taken after, increasing.
        thresholds_by_tensor: tensor -> one threshold for each count.
        most: tensors drawn; the ones that moved most are taken and the number left out is said.

    Raises:
        DataError: nothing to draw, or a tensor has another number of thresholds than there are counts.
    """
    counts = np.asarray(sample_counts, dtype=float)
    if counts.size == 0 or not thresholds_by_tensor:
        raise DataError(
            f"{counts.size} sample counts and {len(thresholds_by_tensor)} tensors; at least one of each is needed"
        )
    for name, values in thresholds_by_tensor.items():
        if len(values) != counts.size:
            raise DataError(f"{name!r} has {len(values)} thresholds for {counts.size} sample counts")
    relative = {name: _relative_to_last(values) for name, values in thresholds_by_tensor.items()}
    order = sorted(relative, key=lambda name: -float(np.abs(relative[name] - 1).max()))[:most]
    colours = look.named(theme)
    figure, axes = look.new_figure(colours)
    axes.axhspan(0.95, 1.05, color=colours.grid, zorder=0)
    marks = look.styles(order, "", colours)
    for index, name in enumerate(order):
        axes.plot(
            counts,
            relative[name],
            color=marks[name].colour,
            marker=marks[name].marker,
            linestyle=_DASHES[index % len(_DASHES)],
            markersize=5,
            linewidth=1.6,
            label=shorten(name),
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    look.legend(axes, colours, loc="center left", bbox_to_anchor=(1.0, 0.5))
    look.entitle(axes, colours, "How many samples does calibration need?", "calibration samples", "threshold ÷ last")
    left_out = len(relative) - len(order)
    rest = f"; {left_out} that moved less are not drawn" if left_out else ""
    look.footnote(figure, colours, f"{len(order)} tensors that moved most{rest}. Band: within 5 % of the last value")
    return figure


def sqnr_waterfall(layers: Sequence[tuple[str, float | None]], *, theme: ThemeName = "light") -> Figure:
    """Draw the signal-to-noise ratio after each layer, first layer on top; the biggest drop is marked.

    Args:
        layers: name and SQNR in dB against the FP32 parent, in the order of execution; None where the error is zero.

    Raises:
        DataError: there is no layer.
    """
    if not layers:
        raise DataError("there is no layer to draw; pass (name, SQNR in dB) pairs")
    colours = look.named(theme)
    figure, axes = look.new_figure(colours, height_inches=max(2.6, 1.4 + 0.27 * len(layers)))
    look.dress(axes, colours, grid="x")
    known = [(row, value) for row, (_, value) in enumerate(layers) if value is not None]
    drops = [(earlier[1] - later[1], later[0]) for earlier, later in itertools.pairwise(known)]
    worst = max(drops)[1] if drops and max(drops)[0] > 0 else None
    for row, value in known:
        colour = colours.series[1] if row == worst else colours.series[0]
        axes.barh(row, value, color=colour, height=0.68, hatch="///" if row == worst else None, edgecolor=colours.ink)
    top = max((value for _, value in known), default=1.0)
    for row, (_, decibels) in enumerate(layers):
        words = "no error" if decibels is None else f"{decibels:.1f}"
        if row == worst:
            words += f"  ({max(drops)[0]:.1f} dB lost here)"
        axes.annotate(
            words,
            (max(decibels or 0.0, 0.0), row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=look.NOTE_POINTS,
            color=colours.ink,
        )
    axes.set_yticks(range(len(layers)), [shorten(name) for name, _ in layers])
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(min(0.0, *(value for _, value in known)) if known else 0.0, top * 1.22)
    look.entitle(
        axes, colours, "Where the quantization error comes in", "SQNR after the layer (dB, more is better)", ""
    )
    return figure


def sensitivity(rows: Sequence[tuple[Any, ...]], *, metric: str = "score", theme: ThemeName = "light") -> Figure:
    """Draw what quantizing each layer alone costs, the most sensitive on top, with intervals where there are any.

    Args:
        rows: (name, change) or (name, change, low, high), in units of the metric; negative is a loss.
        metric: what changes, for the axis.

    Raises:
        DataError: there is no row, or a row has another length.
    """
    if not rows or any(len(row) not in (2, 4) for row in rows):
        raise DataError(f"{len(rows)} rows; at least one is needed, each (name, change) or (name, change, low, high)")
    ordered = sorted(rows, key=lambda row: row[1])
    colours = look.named(theme)
    figure, axes = look.new_figure(colours, height_inches=max(2.6, 1.4 + 0.27 * len(rows)))
    look.dress(axes, colours, grid="x")
    axes.axvline(0, color=colours.quiet, linewidth=1.2)
    for place, row in enumerate(ordered):
        change = float(row[1])
        low, high = (float(row[2]), float(row[3])) if len(row) == 4 else (change, change)
        certain = len(row) == 4 and not low <= 0 <= high
        axes.plot([low, high], [place, place], color=colours.series[0], linewidth=2.2, solid_capstyle="butt")
        axes.plot(
            [change],
            [place],
            marker="o",
            markersize=7,
            markeredgecolor=colours.series[0],
            markerfacecolor=colours.series[0] if certain or len(row) == 2 else colours.background,
        )
    axes.set_yticks(range(len(ordered)), [shorten(str(row[0])) for row in ordered])
    axes.set_ylim(len(ordered) - 0.4, -0.6)
    look.entitle(axes, colours, "What each layer costs when quantized alone", f"change of {metric}", "")
    if any(len(row) == 4 for row in rows):
        look.footnote(figure, colours, "Hollow: the interval includes no change")
    return figure


def _rebin(counts: np.ndarray, edges: np.ndarray, most: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Join neighbouring bins so that none is thinner than a few pixels; no count is lost."""
    step = -(-counts.size // most)
    starts = np.arange(0, counts.size, step)
    return np.add.reduceat(counts, starts), np.append(edges[starts], edges[-1])


def _relative_to_last(values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    return array / array[-1] if array[-1] else np.ones_like(array)


def _share(share: float) -> str:
    if share == 0:
        return "nothing"
    return f"{share:.2%}" if share >= 0.0001 else "< 0.01 %"
