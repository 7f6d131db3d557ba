"""The figure that answers the question: how right against how fast, with intervals on both and the Pareto front.

Better is always up, and to the left for latency or to the right for speed-up. Which variants are on the Pareto front is what
`workbench.judging.comparison` says; nothing is judged here.
"""

from __future__ import annotations

from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from workbench.judging import statistics
from workbench.judging.comparison import Comparison
from workbench.judging.intervals import ACCURACY_CONFIDENCE, CONFIDENCE
from workbench.judging.standing import Place, Point, Quality, compared, points, quality
from workbench.plots import theme as look
from workbench.plots.distributions import batch_words, failed_words
from workbench.plots.labels import Label, Line, place, shorten
from workbench.plots.theme import Style, Theme, ThemeName
from workbench.records import StudyRecord

Axis = Literal["latency", "speedup"]
# Beyond this factor between fastest and slowest, equal ratios get equal distances.
_LOGARITHMIC_FROM = 8.0


# More names than this cover the points that they name.
_MOST_NAMES = 30


def front(
    record: StudyRecord,
    budget_latency: float | None = None,
    budget_loss: float | None = None,
    *,
    comparison: Comparison | None = None,
    x: Axis = "latency",
    theme: ThemeName = "light",
) -> Figure:
    """Draw accuracy against latency, with intervals, the Pareto front as a step line and the baseline marked.

    Without labels, agreement with the baseline or SQNR takes the place of accuracy, and the axis says so.

    Args:
        budget_latency: seconds a call may take; beyond it the ground is hatched.
        budget_loss: how much of the score may be lost against the baseline, in the unit of the record (0.01 is one
            point of a share).
        comparison: of the record's variants with its baseline; made here where None.
        x: `latency` in milliseconds, or `speedup` over the baseline (what to take for the boundary `throughput`).
        theme: `light` or `dark`.
    """
    colours = look.named(theme)
    refusal = ""
    if comparison is None:
        comparison, refusal = compared(record)
    if comparison is None:
        return look.empty_figure(colours, refusal)
    shown = quality(record, comparison)
    if shown is None:
        return look.empty_figure(colours, "No variant was checked for accuracy, so there is no Pareto front to draw.")
    found, lacking = points(record, comparison, shown)
    if not found:
        return look.empty_figure(
            colours, "No variant has both a latency and an accuracy, so there is no Pareto front to draw."
        )
    figure, axes = look.new_figure(colours, height_inches=5.2)
    marks = look.styles([result.recipe.name for result in record.results], record.baseline, colours)
    _scale(axes, found, shown, x)
    _name_axes(axes, record, shown, x, colours)
    lines = [line for point in found for line in _draw(axes, point, marks[point.name], x, colours)]
    end = axes.get_xlim()[1 if x == "latency" else 0]
    if shown.kind == "sqnr":
        end = _exact_baseline(axes, record, comparison, x, colours)
    lines += _front_line(axes, [point for point in found if point.on_front], shown, x, end=end, colours=colours)
    _budgets(axes, record, found, shown, x, budgets=(budget_latency, budget_loss), colours=colours)
    look.footnote(figure, colours, _footnote(record, shown, found, lacking))
    labels = [
        Label(_label(point, record.baseline), _across(point, x).value, point.quality.value, point.on_front)
        for point in _named(found, record.baseline)
    ]
    place(axes, labels, colours, lines)
    return figure


def _named(found: list[Point], baseline: str) -> list[Point]:
    """Return the points that are named: all of a few; else the baseline and the front, the fastest first."""
    if len(found) <= _MOST_NAMES:
        return found
    wanted = [point for point in found if point.on_front or point.name == baseline]
    return sorted(wanted, key=lambda point: (point.name != baseline, point.seconds.value))[:_MOST_NAMES]


def _across(point: Point, x: Axis) -> Place:
    if x == "speedup":
        return point.speedup
    seconds = point.seconds
    low, high = (None if edge is None else edge * 1e3 for edge in (seconds.low, seconds.high))
    return Place(seconds.value * 1e3, low, high)


def _edges(found: Place) -> tuple[float, float]:
    low = found.value if found.low is None else found.low
    high = found.value if found.high is None else found.high
    return min(low, found.value), max(high, found.value)


def _scale(axes: Axes, found: list[Point], shown: Quality, x: Axis) -> None:
    """Set limits with room for labels; differences far below a point of a share are not blown up."""
    across = [edge for point in found for edge in _edges(_across(point, x))]
    if max(across) > _LOGARITHMIC_FROM * min(across):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axes.set_xlim(min(across) / 1.5, max(across) * 1.5)
    else:
        pad = 0.12 * max(max(across) - min(across), 0.2 * max(across))
        axes.set_xlim(max(0.0, min(across) - pad), max(across) + 1.5 * pad)
    up = [edge for point in found for edge in _edges(point.quality)]
    least = 1.0 if shown.unit == "%" else 0.02 * max(abs(edge) for edge in up)
    pad = 0.14 * max(max(up) - min(up), least)
    axes.set_ylim(min(up) - pad, max(up) + pad)
    if not shown.higher_is_better:
        axes.invert_yaxis()


def _name_axes(axes: Axes, record: StudyRecord, shown: Quality, x: Axis, colours: Theme) -> None:
    boundary = record.protocol.boundary.replace("_", " ")
    horizontal = (
        f"latency per call of {batch_words(record)} (ms, {boundary}), less is better"
        if x == "latency"
        else f"times faster than {shorten(record.baseline)} ({boundary}), more is better"
    )
    unit = f" ({shown.unit})" if shown.unit else ""
    direction = "more" if shown.higher_is_better else "less"
    kind = "Accuracy" if shown.kind == "score" else "Likeness to the parent (no labels)"
    title = f"{kind} against {'latency' if x == 'latency' else 'speed'}"
    look.entitle(axes, colours, title, horizontal, f"{shown.name}{unit}, {direction} is better")
    corner = (0.012, "left", "↖ better") if x == "latency" else (0.988, "right", "better ↗")
    axes.text(
        corner[0], 0.985, corner[2], transform=axes.transAxes, ha=corner[1], va="top", color=colours.quiet, fontsize=9
    )


def _front_line(axes: Axes, members: list[Point], shown: Quality, x: Axis, *, end: float, colours: Theme) -> list[Line]:
    """Draw the border of what is reached: from each member on, at least this good until a better one comes."""
    if not members:
        return []
    better = max if shown.higher_is_better else min
    across: list[float] = []
    up: list[float] = []
    for point in sorted(members, key=lambda point: point.seconds.value):
        across.append(_across(point, x).value)
        # Members within each other's noise may stand lower though slower; the border never steps back.
        up.append(better([point.quality.value, *up[-1:]]))
    ends = [*across, end]
    axes.step(ends, [*up, up[-1]], where="post", color=colours.quiet, linewidth=1.6, linestyle=(0, (5, 2)), zorder=1.5)
    return [((start, height), (end, height)) for start, end, height in zip(ends, ends[1:], up, strict=False)]


def _exact_baseline(axes: Axes, record: StudyRecord, comparison: Comparison, x: Axis, colours: Theme) -> float:
    """Mark the baseline's speed by a line (it has no error, and so no height in decibels); return where it stands."""
    base = next(result.measurement for result in record.results if result.recipe.name == comparison.baseline)
    if base is None:
        return axes.get_xlim()[1]
    across = 1.0 if x == "speedup" else statistics.summary(base).median * 1e3
    axes.axvline(across, color=colours.ink, linewidth=1.4)
    axes.annotate(
        f"{shorten(record.baseline, 24)} (baseline): no error",
        (across, 0.03),
        xycoords=("data", "axes fraction"),
        xytext=(6, 0),
        textcoords="offset points",
        color=colours.ink,
        fontsize=look.NOTE_POINTS + 0.5,
    )
    return across


def _draw(axes: Axes, point: Point, style: Style, x: Axis, colours: Theme) -> list[Line]:
    """Draw a point with its error bars; return the bars, which labels should not cover."""
    across = _across(point, x)
    left, right = _edges(across)
    low, high = _edges(point.quality)
    bars: list[Line] = [
        ((left, point.quality.value), (right, point.quality.value)),
        ((across.value, low), (across.value, high)),
    ]
    for (x0, y0), (x1, y1) in bars:
        # Caps tell bars apart that lie on each other.
        cap = "|" if y0 == y1 else "_"
        axes.plot([x0, x1], [y0, y1], color=style.colour, linewidth=1.8, marker=cap, markersize=7, zorder=3)
    axes.plot(
        [across.value],
        [point.quality.value],
        linestyle="none",
        marker=style.marker,
        markersize=9,
        markerfacecolor=colours.background if point.like_baseline else style.colour,
        markeredgecolor=style.colour if point.like_baseline else colours.ink,
        markeredgewidth=1.8 if point.like_baseline else 0.8,
        zorder=4,
    )
    return bars


def _budgets(
    axes: Axes,
    record: StudyRecord,
    found: list[Point],
    shown: Quality,
    x: Axis,
    *,
    budgets: tuple[float | None, float | None],
    colours: Theme,
) -> None:
    """Hatch the ground that breaks a budget, and widen the axes where a budget lies outside them."""
    base = next((point for point in found if point.name == record.baseline), None)
    latency, loss = budgets
    look_like: dict[str, Any] = {
        "facecolor": "none",
        "edgecolor": colours.grid,
        "hatch": "///",
        "linewidth": 0,
        "zorder": 0.5,
    }
    if latency is not None and (x == "latency" or base is not None):
        limit = latency * 1e3 if x == "latency" or base is None else base.seconds.value / latency
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, limit * 0.9), max(high, limit * 1.1))
        axes.axvline(limit, color=colours.quiet, linewidth=1.2, linestyle=":")
        axes.axvspan(limit, axes.get_xlim()[1 if x == "latency" else 0], **look_like)
        _budget_words(axes, f"budget {latency * 1e3:.3g} ms", (limit, 0.02), ("data", "axes fraction"), colours)
    if loss is not None and base is not None:
        sign = -1 if shown.higher_is_better else 1
        limit = base.quality.value + sign * loss * shown.scale
        worst, best = axes.get_ylim()
        span = best - worst
        axes.set_ylim(min(worst, limit - 0.1 * span) if span > 0 else max(worst, limit - 0.1 * span), best)
        axes.axhline(limit, color=colours.quiet, linewidth=1.2, linestyle=":")
        axes.axhspan(axes.get_ylim()[0], limit, **look_like)
        amount = loss * shown.scale
        unit = ("point" if amount == 1 else "points") if shown.unit == "%" else shown.unit
        words = " ".join(f"budget: {amount:.3g} {unit} lost".split())
        _budget_words(axes, words, (0.985, limit), ("axes fraction", "data"), colours)


def _budget_words(
    axes: Axes, words: str, where: tuple[float, float], coordinates: tuple[str, str], colours: Theme
) -> None:
    axes.annotate(
        words,
        where,
        xycoords=coordinates,
        xytext=(4 if coordinates[0] == "data" else -4, 4),
        textcoords="offset points",
        ha="left" if coordinates[0] == "data" else "right",
        va="bottom",
        color=colours.quiet,
        fontsize=look.NOTE_POINTS,
        bbox={"facecolor": colours.background, "edgecolor": "none", "alpha": 0.8, "pad": 1},
    ).set_in_layout(False)


def _label(point: Point, baseline: str) -> str:
    return f"{shorten(point.name, 24)} (baseline)" if point.name == baseline else shorten(point.name, 24)


def _footnote(record: StudyRecord, shown: Quality, found: list[Point], lacking: list[str]) -> str:
    words = f"Bars: {CONFIDENCE:.0%} interval of the latency"
    if shown.kind == "score":
        words += f"; {ACCURACY_CONFIDENCE:.0%} interval of the paired change against {shorten(record.baseline)}"
    elif shown.kind == "agreement":
        words += f"; {ACCURACY_CONFIDENCE:.0%} interval of the share"
    words += ". Dashed, bold: the Pareto front."
    if len(found) > _MOST_NAMES:
        words += f" Of {len(found)} variants only the baseline and the Pareto front are named, at most {_MOST_NAMES} of them."
    if shown.kind != "sqnr":
        words += " A point beyond it is not distinguishably better."
    if any(point.like_baseline and point.name != record.baseline for point in found):
        words += " Hollow: not told apart from the baseline."
    failures = {result.failure.variant for result in record.results if result.failure is not None}
    exact = {record.baseline} if shown.kind == "sqnr" else set()
    silent = [shorten(name) for name in lacking if name not in failures | exact]
    if silent:
        words += f"\nNot drawn, without a latency or {shown.name.split(' ')[0]}: {', '.join(silent)}."
    return words + failed_words(record)
