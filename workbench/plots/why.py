"""Figures of explanations, from plain data: roofline, layers side by side, precision strip, error by layer.

Draws what it is given; knows neither engines nor evidence.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, NullFormatter

from workbench.errors import DataError
from workbench.judging.roofline import Ceilings
from workbench.plots import labels
from workbench.plots import theme as look
from workbench.plots.labels import shorten
from workbench.plots.theme import Theme, ThemeName

# A type has one colour (a place in the theme's series) and one hatch in every figure.
_TYPES: Mapping[str, tuple[int, str]] = {
    "fp32": (1, ""), "int8": (0, "///"), "fp16": (2, "..."), "bf16": (3, "xx"), "fp8": (4, "\\\\\\"), "tf32": (5, "++"),
}  # fmt: skip
_MOST_LABELS, _MOST_BARS, _MOST_HATCHED = 6, 16, 80
_ALIKE = 1.05


@dataclass(frozen=True)
class LayerPoint:
    """One executed layer, for drawing; seconds, operations and bytes of one call."""

    name: str
    precision: str
    seconds: float
    flops: float
    size_bytes: float
    weighs: bool = True


def roofline(points: Sequence[LayerPoint], ceilings: Ceilings, *, name: str = "", theme: ThemeName = "light") -> Figure:
    """Draw layers under the roofs of this machine: operations a second against operations a byte.

    Args:
        points: layers; those without operations or bytes have no place and are counted in the footnote.
        name: of the variant, for the title.

    Raises:
        DataError: there is no layer at all.
    """
    if not points:
        raise DataError("there is no layer to draw; pass the layers of a profiled pass")
    colours = look.named(theme)
    shown = [point for point in points if point.flops > 0 and point.size_bytes > 0 and point.seconds > 0]
    if not shown:
        return look.empty_figure(
            colours, "No layer's operations and bytes are known, so none has a place under a roof."
        )
    figure, axes = look.new_figure(colours, height_inches=5.2)
    x = np.array([point.flops / point.size_bytes for point in shown])
    y = np.array([point.flops / point.seconds for point in shown]) / 1e9
    seconds = np.array([point.seconds for point in shown])
    reach = (min(x.min() / 3, 0.3), max(x.max() * 3, 300.0))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*reach)
    top = 2.2 * max(max(ceilings.rates.values()) / 1e9, y.max())
    axes.set_ylim(min(y.min() / 3, top / 1e4), top)
    _roofs(axes, ceilings, colours, reach, {point.precision for point in shown})
    for precision in dict.fromkeys(point.precision for point in shown):
        chosen = [place for place, point in enumerate(shown) if point.precision == precision]
        sizes = 30 + 900 * seconds[chosen] / seconds.sum()
        axes.scatter(
            x[chosen],
            y[chosen],
            s=sizes,
            color=_colour(precision, colours),
            edgecolor=colours.ink,
            linewidth=0.8,
            alpha=0.85,
            zorder=4,
            label=shorten(precision.upper()),
        )
    labels.place(axes, _labels(shown, x, y), colours)
    look.entitle(axes, colours, f"Roofline{f' of {name}' if name else ''}", "operations a byte", "GFLOP/s")
    _plain_ticks(axes)
    box = axes.legend(loc="lower right", fontsize=look.NOTE_POINTS, labelcolor=colours.ink, frameon=True)
    box.get_frame().set(facecolor=colours.background, edgecolor="none", alpha=0.85)
    for handle in box.legend_handles:
        if handle is not None and hasattr(handle, "set_sizes"):
            handle.set_sizes([50])
    left = len(points) - len(shown)
    rest = f"; {left} layers without counted operations are not drawn" if left else ""
    look.footnote(
        figure,
        colours,
        f"Areas are times; +3: as many more in the same place. Roofs were measured here, {ceilings.backend}{rest}",
    )
    return figure


def _labels(shown: Sequence[LayerPoint], x: np.ndarray, y: np.ndarray) -> list[labels.Label]:
    """Label the slowest layers, those that lie on each other once."""
    found: dict[int, int] = {}
    for index in sorted(range(len(shown)), key=lambda place: -shown[place].seconds):
        near = [
            other for other in found if abs(np.log10(x[index] / x[other])) + abs(np.log10(y[index] / y[other])) < 0.15
        ]
        if near:
            found[near[0]] += 1
        elif len(found) < _MOST_LABELS:
            found[index] = 0
    words = {index: shorten(shown[index].name, 22) + (f" +{more}" if more else "") for index, more in found.items()}
    return [labels.Label(text, float(x[index]), float(y[index])) for index, text in words.items()]


def _roofs(axes: Axes, ceilings: Ceilings, colours: Theme, reach: tuple[float, float], used: set[str]) -> None:
    grid = np.geomspace(*reach, 200)
    fast, slow = max(ceilings.copy_rates), ceilings.copy_rates[-1]
    for name, rate in ceilings.rates.items():
        flat = np.minimum(grid * fast, rate) / 1e9
        axes.plot(
            grid, flat, color=_colour(name, colours), linewidth=1.8, alpha=1.0 if name in used else 0.45, zorder=2
        )
        axes.annotate(
            f"{shorten(name.upper())} {rate / 1e9:,.0f}",
            (reach[1], rate / 1e9),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            annotation_clip=False,
            fontsize=look.NOTE_POINTS,
            color=colours.ink,
        )
    most = max(ceilings.rates.values())
    axes.plot(grid, np.minimum(grid * slow, most) / 1e9, color=colours.quiet, linewidth=1.2, linestyle="--", zorder=2)
    start = reach[0] * 1.15
    ends = axes.transData.transform([(start, start), (10 * start, 10 * start)])
    slope = float(np.degrees(np.arctan2(*(ends[1] - ends[0])[::-1])))
    for rate, words, above in ((fast, "caches", True), (slow, "memory", False)):
        axes.annotate(
            f"{words} {rate / 1e9:,.0f} GB/s",
            (start, start * rate / 1e9),
            xytext=(-2, 5) if above else (4, -5),
            textcoords="offset points",
            rotation=slope,
            rotation_mode="anchor",
            va="bottom" if above else "top",
            fontsize=look.NOTE_POINTS,
            color=colours.quiet,
        )


def time_bars(
    rows: Sequence[tuple[str, float, float]], names: tuple[str, str], *, theme: ThemeName = "light"
) -> Figure:
    """Draw two variants' times side by side, layer by layer, in the order given; what is saved is written behind.

    Args:
        rows: (layer, seconds before, seconds after).
        names: of both variants.

    Raises:
        DataError: there is no row.
    """
    if not rows:
        raise DataError("there is no layer to draw; pass (layer, seconds before, seconds after)")
    colours = look.named(theme)
    chosen = sorted(range(len(rows)), key=lambda place: -max(rows[place][1:]))[:_MOST_BARS]
    kept = [rows[place] for place in sorted(chosen)]
    others = [row for place, row in enumerate(rows) if place not in chosen]
    if others:
        kept.append((f"{len(others)} others", sum(row[1] for row in others), sum(row[2] for row in others)))
    figure, axes = look.new_figure(colours, height_inches=max(2.6, 1.5 + 0.36 * len(kept)))
    look.dress(axes, colours, grid="x")
    most = 1e3 * max(max(row[1:]) for row in kept) or 1.0
    for place, (_, before, after) in enumerate(kept):
        axes.barh(place - 0.19, 1e3 * before, height=0.36, color=colours.quiet, alpha=0.55)
        axes.barh(place + 0.19, 1e3 * after, height=0.36, color=colours.series[0], edgecolor=colours.ink, linewidth=0.5)
        axes.annotate(
            _change(before, after),
            (1e3 * max(before, after), place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=look.NOTE_POINTS,
            color=colours.series[1] if after > _ALIKE * before else colours.ink,
            fontweight="bold" if after > _ALIKE * before else "normal",
        )
    axes.set_yticks(range(len(kept)), [shorten(row[0]) for row in kept])
    axes.set_ylim(len(kept) - 0.4, -0.6)
    axes.set_xlim(0, most * 1.22)
    look.entitle(axes, colours, "Where the time goes", "ms a call, while profiled", "")
    handles = [
        Patch(color=colours.quiet, alpha=0.55, label=shorten(names[0])),
        Patch(color=colours.series[0], label=shorten(names[1])),
    ]
    look.legend(
        axes, colours, handles=handles, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2
    )
    return figure


def precision_strip(points: Sequence[LayerPoint], *, name: str = "", theme: ThemeName = "light") -> Figure:
    """Draw the network as a strip: one cell a layer in the order of execution, its colour the type, its height the time.

    Raises:
        DataError: there is no layer.
    """
    if not points:
        raise DataError("there is no layer to draw; pass the layers of a profiled pass")
    colours = look.named(theme)
    figure, axes = look.new_figure(colours, height_inches=3.4)
    look.dress(axes, colours, grid="y")
    heights = np.array([1e3 * point.seconds for point in points])
    hatched = len(points) <= _MOST_HATCHED  # thinner cells show colours only
    for place, point in enumerate(points):
        # What does not multiply is paler: it is there, and it is not what the type is for.
        axes.bar(
            place,
            heights[place],
            width=0.92,
            color=_colour(point.precision, colours),
            alpha=1.0 if point.weighs else 0.45,
            edgecolor=colours.ink,
            linewidth=0.6 if hatched else 0.0,
            hatch=_TYPES.get(point.precision, (0, ""))[1] if hatched else None,
        )
    axes.set_xlim(-0.8, len(points) - 0.2)
    axes.set_ylim(0, heights.max() * 1.22 or 1.0)
    named: list[int] = []
    for place in np.argsort(-heights):
        if (
            heights[place] > heights.max() / 2
            and len(named) < _MOST_LABELS // 2
            and all(abs(place - other) > len(points) / 3 for other in named)
        ):
            named.append(int(place))
    for place in named:
        axes.annotate(
            shorten(points[place].name, 22),
            (float(place), float(heights[place])),
            xytext=(0, 4),
            textcoords="offset points",
            ha="left" if place < len(points) / 3 else "right" if place > 2 * len(points) / 3 else "center",
            fontsize=look.NOTE_POINTS,
            color=colours.ink,
        )
    used = list(dict.fromkeys(point.precision for point in points))
    hatches = {kind: _TYPES.get(kind, (0, ""))[1] if hatched else "" for kind in used}
    handles = [
        Patch(facecolor=_colour(kind, colours), edgecolor=colours.ink, hatch=hatch, label=shorten(kind.upper()))
        for kind, hatch in hatches.items()
    ]
    look.legend(axes, colours, handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    title = f"Types along the network{f': {name}' if name else ''}"
    look.entitle(axes, colours, title, "layers in the order of execution", "ms while profiled")
    axes.set_xticks([])
    look.footnote(figure, colours, "Pale cells do not multiply: conversions, copies, activations")
    return figure


def error_by_layer(rows: Sequence[tuple[str, float, float | None]], *, theme: ThemeName = "light") -> Figure:
    """Draw what each layer loses at the output: lowered alone (full), and left in FP32 while all others are lowered (hollow).

    Args:
        rows: (layer, signal to noise in dB alone, in dB of all but it, or None), the noisiest first.

    Raises:
        DataError: there is no row.
    """
    if not rows:
        raise DataError("there is no layer to draw; pass (layer, dB alone, dB of all but it)")
    colours = look.named(theme)
    kept = rows[:_MOST_BARS]
    figure, axes = look.new_figure(colours, height_inches=max(2.8, 1.7 + 0.3 * len(kept)))
    look.dress(axes, colours, grid="x")
    for place, (_, alone, rest) in enumerate(kept):
        if np.isfinite(alone):
            axes.plot(alone, place, "o", markersize=8, color=colours.series[0], zorder=3)
        if rest is not None and np.isfinite(rest):
            axes.plot(rest, place, "D", markersize=7, markerfacecolor="none", color=colours.series[1], zorder=3)
    axes.set_yticks(range(len(kept)), [shorten(row[0]) for row in kept])
    axes.set_ylim(len(kept) - 0.4, -0.6)
    axes.margins(x=0.12)
    alone_mark = axes.plot([], [], color=colours.series[0], label="it alone is lowered", marker="o", linestyle="none")[
        0
    ]
    rest_mark = axes.plot(
        [],
        [],
        color=colours.series[1],
        label="all but it are lowered",
        markerfacecolor="none",
        marker="D",
        linestyle="none",
    )[0]
    look.legend(axes, colours, handles=[alone_mark, rest_mark], loc="upper left", bbox_to_anchor=(0.0, -0.16), ncols=2)
    look.entitle(axes, colours, "What each layer loses at the output", "signal to noise, dB (more is better)", "")
    left = len(rows) - len(kept)
    if left:
        look.footnote(figure, colours, f"{left} layers with less noise are not drawn")
    return figure


def as_image(figure: Figure) -> str:
    """Return a figure as an HTML image that needs no other file."""
    data = base64.b64encode(look.png(figure, 110)).decode("ascii")
    alt = html.escape(figure.axes[0].get_title(loc="left"))
    return f'<img alt="{alt}" style="max-width:100%" src="data:image/png;base64,{data}">'


def type_colours(theme: ThemeName = "light") -> dict[str, str]:
    """Return type -> its colour, as in every figure here; the empty type has the colour of what is not known."""
    colours = look.named(theme)
    return {"": colours.quiet, **{name: colours.series[place] for name, (place, *_) in _TYPES.items()}}


def _colour(precision: str, colours: Theme) -> str:
    if precision not in _TYPES:
        return colours.quiet
    return colours.series[_TYPES[precision][0]]


def _change(before: float, after: float) -> str:
    if not before:
        return "added"
    if not after:
        return "gone"
    if abs(np.log(after / before)) < np.log(_ALIKE):
        return "alike"
    return f"{before / after:.2g}x" if after <= before else f"{after / before:.2g}x slower"


def _plain_ticks(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.15g}" if value >= 1 else f"{value:.3g}"))
        axis.set_minor_formatter(NullFormatter())
