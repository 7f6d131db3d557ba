"""Figures of what was measured: latency distributions, medians round by round, sizes.

Reads a StudyRecord and measures nothing. Variants that failed are named under the figure, never left out in silence.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workbench.judging import statistics
from workbench.judging.intervals import CONFIDENCE
from workbench.plots import theme as look
from workbench.plots.labels import shorten
from workbench.plots.theme import Style, Theme, ThemeName
from workbench.records import Measurement, StudyRecord, VariantResult

_ROW_INCHES = 0.95
# A figure of more rows than these is a wall; what is left out is said.
MOST_DRAWN = 30
# The slowest calls would stretch the axes until nothing else can be seen; how many are cut off is said.
_DRAWN_SHARE = 0.98


def latencies(record: StudyRecord, *, theme: ThemeName = "light") -> Figure:
    """Draw for each variant the raw latencies, the median of every round, and the median with its interval.

    Every variant has an axis of its own in milliseconds, and all axes span the same factor around the median, so that
    the widths can be compared by eye.

    Args:
        record: at least one result with a measurement, else the figure says that there is none.
    """
    colours = look.named(theme)
    measured, left_out = _drawn(record)
    if not measured:
        return look.empty_figure(colours, "Nothing was measured, so there are no latencies to draw.")
    figure = Figure(
        figsize=(look.WIDTH_INCHES, 1.3 + _ROW_INCHES * len(measured)),
        layout="constrained",
        facecolor=colours.background,
    )
    rows = figure.subplots(len(measured), 1, squeeze=False)[:, 0]
    marks = look.styles([result.recipe.name for result in record.results], record.baseline, colours)
    span = _common_span(measured)
    cut = 0
    for axes, measurement in zip(rows, measured, strict=True):
        look.dress(axes, colours, grid="x")
        cut += _distribution(axes, measurement, span, marks[measurement.variant], colours)
    look.entitle(rows[0], colours, "Latency of every call", "", "")
    rows[-1].set_xlabel(
        f"latency per call of {batch_words(record)} (ms)", color=colours.ink, fontsize=look.LABEL_POINTS
    )
    look.footnote(figure, colours, _what_was_drawn(measured, cut) + left_out + failed_words(record))
    return figure


def rounds(record: StudyRecord, *, theme: ThemeName = "light") -> Figure:
    """Draw the median of each round over time, relative to the variant's own median, to show drift and noise."""
    colours = look.named(theme)
    measured, left_out = _drawn(record)
    if not measured:
        return look.empty_figure(colours, "Nothing was measured, so there are no rounds to draw.")
    figure, axes = look.new_figure(colours, height_inches=max(3.8, 1.2 + 0.24 * len(measured)))
    marks = look.styles([result.recipe.name for result in record.results], record.baseline, colours)
    start = min(part.started_at for measurement in measured for part in measurement.rounds)
    axes.axhline(0, color=colours.quiet, linewidth=1)
    for measurement in measured:
        medians = _round_medians(measurement)
        axes.plot(
            [part.started_at - start for part in measurement.rounds],
            100 * (medians / np.median(medians) - 1),
            color=marks[measurement.variant].colour,
            marker=marks[measurement.variant].marker,
            markeredgecolor=colours.ink,
            markeredgewidth=0.6,
            markersize=6.5,
            linewidth=1.3,
            label=shorten(measurement.variant, 24),
        )
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -2.0), max(high, 2.0))
    look.legend(axes, colours, loc="center left", bbox_to_anchor=(1.0, 0.5))
    look.entitle(
        axes, colours, "Drift and noise, round by round", "time since the first round (s)", "from own median (%)"
    )
    note = "A line that climbs or falls is drift; lines that move together were disturbed together."
    look.footnote(figure, colours, note + left_out + failed_words(record))
    return figure


def sizes(record: StudyRecord, *, theme: ThemeName = "light") -> Figure:
    """Draw the size of the file that each variant runs from, beside the baseline's."""
    colours = look.named(theme)
    known = [(result.recipe.name, size) for result in record.results if (size := size_bytes(result)) is not None]
    if not known:
        return look.empty_figure(colours, "No variant was built, so there are no sizes to draw.")
    figure, axes = look.new_figure(colours, height_inches=1.5 + 0.42 * min(len(known), MOST_DRAWN))
    look.dress(axes, colours, grid="x")
    marks = look.styles([result.recipe.name for result in record.results], record.baseline, colours)
    unit, name = _unit(max(size for _, size in known))
    base = dict(known).get(record.baseline)
    words = ""
    if len(known) > MOST_DRAWN:
        chosen = sorted(known, key=lambda item: (item[0] != record.baseline, item[1]))[:MOST_DRAWN]
        words = f" The smallest {MOST_DRAWN} of {len(known)} are drawn; the table has all."
        known = [item for item in known if item in chosen]
    for row, (variant, size) in enumerate(known):
        axes.barh(row, size / unit, height=0.62, color=marks[variant].colour, edgecolor=colours.ink, linewidth=0.8)
        share = (
            f"  ({size / base:.0%} of {shorten(record.baseline, 24)})" if base and variant != record.baseline else ""
        )
        axes.annotate(
            f"{_three_digits(size / unit)} {name}{share}",
            (size / unit, row),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=look.NOTE_POINTS,
            color=colours.ink,
        )
    axes.set_yticks(range(len(known)), [shorten(variant) for variant, _ in known])
    axes.tick_params(axis="y", labelcolor=colours.ink, labelsize=look.LABEL_POINTS)
    axes.set_ylim(len(known) - 0.5, -0.6)
    axes.set_xlim(0, max(size for _, size in known) / unit * 1.3)
    look.entitle(axes, colours, "Size of the file that runs", f"size ({name})", "")
    look.footnote(figure, colours, "Weights included." + words + failed_words(record))
    return figure


def _drawn(record: StudyRecord) -> tuple[list[Measurement], str]:
    """Return the measurements that a figure has room for, the baseline among them, and what it leaves out, in words."""
    measured = [result.measurement for result in record.results if result.measurement is not None]
    if len(measured) <= MOST_DRAWN:
        return measured, ""
    by_speed = sorted(measured, key=lambda one: (one.variant != record.baseline, statistics.summary(one).median))
    chosen = {one.variant for one in by_speed[:MOST_DRAWN]}
    words = f" The baseline and the fastest {MOST_DRAWN - 1} of {len(measured)} are drawn; the table has all."
    return [one for one in measured if one.variant in chosen], words


def size_bytes(result: VariantResult) -> int | None:
    """Return the size of what runs: the engine's where one was built, else the variant's, else None."""
    if result.engine is not None:
        return result.engine.size_bytes
    return result.variant.size_bytes if result.variant is not None else None


def _distribution(axes: Axes, measurement: Measurement, span: tuple[float, float], style: Style, colours: Theme) -> int:
    """Draw one variant; return how many calls lie beyond its axis."""
    raw = _calls(measurement) * 1e3
    summary = statistics.summary(measurement)
    median = summary.median * 1e3
    start, end = span[0] * median, span[1] * median
    heights, edges = np.histogram(raw, bins=80, range=(start, end))
    axes.stairs(1.15 * heights / max(heights.max(), 1), edges, fill=True, color=style.colour, alpha=0.35)
    axes.stairs(1.15 * heights / max(heights.max(), 1), edges, color=style.colour, linewidth=1.1)
    if summary.low is not None and summary.high is not None:
        interval = [summary.low * 1e3, summary.high * 1e3]
        axes.plot(interval, [-0.28] * 2, color=style.colour, linewidth=6, solid_capstyle="butt")
    axes.plot([median], [-0.28], marker="|", markersize=12, markeredgewidth=2.2, color=colours.ink)
    medians = _round_medians(measurement) * 1e3
    axes.plot(
        medians,
        np.full(medians.size, -0.68),
        linestyle="none",
        marker=style.marker,
        markersize=5.5,
        markerfacecolor=style.colour,
        markeredgecolor=colours.ink,
        markeredgewidth=0.6,
        clip_on=False,
    )
    axes.set_xlim(start, end)
    axes.set_ylim(-1.0, 1.3)
    axes.set_yticks([0.15], [f"{shorten(measurement.variant, 24)}\n{_three_digits(median)} ms"])
    axes.tick_params(axis="y", labelcolor=colours.ink, labelsize=look.LABEL_POINTS, length=0)
    axes.spines["left"].set_visible(False)
    return int((raw > end).sum())


def _common_span(measured: list[Measurement]) -> tuple[float, float]:
    """Return the smallest and largest multiple of a median that every variant's axis shows."""
    parts = [_calls(measurement) / statistics.summary(measurement).median for measurement in measured]
    low = min(float(part.min()) for part in parts)
    high = max(float(np.quantile(part, _DRAWN_SHARE)) for part in parts)
    return low - 0.02, max(high, 2 - low) + 0.02


def _calls(measurement: Measurement) -> np.ndarray:
    return np.concatenate([np.asarray(part.latencies_seconds) for part in measurement.rounds])


def _round_medians(measurement: Measurement) -> np.ndarray:
    return np.array([np.median(part.latencies_seconds) for part in measurement.rounds])


def batch_words(record: StudyRecord) -> str:
    """Return what one call holds, such as `8 samples`."""
    return f"{record.protocol.batch} sample{'s' if record.protocol.batch != 1 else ''}"


def _what_was_drawn(measured: list[Measurement], cut: int) -> str:
    counts = [len(measurement.rounds) for measurement in measured]
    calls = [sum(len(part.latencies_seconds) for part in measurement.rounds) for measurement in measured]
    rounds_word = "round" if max(counts) == 1 else "rounds"
    return (
        f"Hill: all calls ({_span(calls)} a variant; the {cut} slowest are off the axis). Tick: median, bar: its "
        f"{CONFIDENCE:.0%} interval.\nMarks below: medians of {_span(counts)} {rounds_word}, each a "
        "process of its own."
    )


def _span(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def failed_words(record: StudyRecord) -> str:
    """Return the end of a footnote, which names the variants that failed."""
    failures = [result.failure for result in record.results if result.failure is not None]
    if not failures:
        return ""
    return "\nNot drawn: " + ", ".join(f"{shorten(fail.variant)} (failed: {fail.stage})" for fail in failures) + "."


def _unit(largest: int) -> tuple[float, str]:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= unit:
            return unit, name
    return 1.0, "B"


def _three_digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")
