"""The front as a figure of plotly.js: points with intervals and what is said of each, as plain JSON. Pure; judges nothing.

Text, grid and ground take their colours from the app's style sheet, so that light and dark follow by themselves; the colours
of marks are chosen to be told apart on both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

from workbench.judging.intervals import ACCURACY_CONFIDENCE, CONFIDENCE
from workbench.judging.standing import Place, Point, Quality
from workbench.plots.labels import shorten
from workbench.records import StudyRecord

# At least 3:1 on white and on the dark ground (#111); blue and orange first, which all eyes can tell apart.
COLOURS = ("#2479c7", "#d4660b", "#16905f", "#a45bc9", "#cf4a5c", "#7d7a1f")
_MOST_NAMES = 12
# A gap this many times the extent of the others is an outlier's.
_FAR = 3.0
# Neighbours are named on different sides.
_PLACES = ("top right", "bottom right", "top left", "bottom left")


@dataclass(frozen=True)
class Series:
    """Points that are measured alike: one study on one backend and device.

    Attributes:
        unlike: what sets them apart from the first series, in words; empty for the first.
    """

    name: str
    baseline: str
    points: tuple[Point, ...]
    verdicts: dict[str, str]
    unlike: str = ""


@dataclass(frozen=True)
class Look:
    """What the user chose.

    Attributes:
        is_log: latency on a logarithmic axis.
        is_whole: points far from all others are within the axes too.
        latency_seconds, least_quality: budgets; the second in the unit that is shown.
    """

    is_log: bool = False
    is_whole: bool = False
    latency_seconds: float | None = None
    least_quality: float | None = None
    best: str = ""
    selected: str = ""


def series_of(record: StudyRecord, points: Sequence[Point], verdicts: dict[str, str], unlike: str = "") -> Series:
    """Return a study's points as one series."""
    devices = {item.measurement.device for item in record.results if item.measurement is not None}
    where = f"{record.backend} on {', '.join(sorted(devices))}" if devices else record.backend
    return Series(f"{record.name}: {where}", record.baseline, tuple(points), verdicts, unlike)


def figure(series: Sequence[Series], quality: Quality, batch: str, look: Look) -> dict[str, Any]:
    """Return data and layout; empty where there is no point.

    Args:
        batch: what one call holds, such as `8 samples`.
    """
    every = [point for one in series for point in one.points]
    if not every:
        return {}
    across = _span([point.seconds.value * 1e3 for point in every], look.is_whole, _half(every, "seconds", 1e3))
    up = _span([point.quality.value for point in every], look.is_whole, _half(every, "quality", 1.0))
    low = max(across[0], 0.0) if not look.is_log else max(across[0], min(p.seconds.value for p in every) * 1e3 / 2)
    across = (low, across[1])
    if quality.unit == "%" and not look.is_whole:  # no share is above all
        up = (up[0], min(up[1], 100.0 + 0.12 * (min(up[1], 100.0) - up[0])))
    many = len(every) > _MOST_NAMES
    data = [_marks(one, place, many, look, quality) for place, one in enumerate(_coloured(series, many))]
    data += [_edge(series, across, up, quality)]
    data += [_front(one, place, len(series), across, quality) for place, one in enumerate(series)]
    data += [_ring(every, look.selected)] if look.selected else []
    return {
        "data": [trace for trace in data if trace["x"]],
        "layout": _layout(quality, batch, across, up, look, len(series)),
    }


def _coloured(series: Sequence[Series], many: bool) -> Sequence[Series]:
    """Return what gets a colour of its own: each variant of one study, where there are few; else each study."""
    if many or len(series) > 1:
        return series
    (only,) = series
    return [
        replace(only, name=point.name, points=(point,))
        for point in sorted(only.points, key=lambda point: point.seconds.value)
    ]


def _marks(one: Series, place: int, many: bool, look: Look, quality: Quality) -> dict[str, Any]:
    colour = COLOURS[place % len(COLOURS)]
    names = [_label(point, one, look) if _is_named(point, one, many, look) else "" for point in one.points]
    hollow = [point.like_baseline or bool(one.unlike) for point in one.points]
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": _name(one),
        "x": [point.seconds.value * 1e3 for point in one.points],
        "y": [point.quality.value for point in one.points],
        "customdata": [point.name for point in one.points],
        "text": names,
        "textposition": [_PLACES[index % len(_PLACES)] for index in range(place, place + len(names))],
        "hovertext": [_hover(point, one, quality) for point in one.points],
        "hoverinfo": "text",
        "cliponaxis": False,
        "error_x": _bars([point.seconds for point in one.points], 1e3, colour),
        "error_y": _bars([point.quality for point in one.points], 1.0, colour),
        "marker": {
            "size": [13 if point.name == one.baseline else 11 for point in one.points],
            "symbol": [
                ("diamond" if point.name == one.baseline else "circle") + ("-open" if open_ else "")
                for point, open_ in zip(one.points, hollow, strict=True)
            ],
            "color": colour,
            "line": {"color": colour, "width": 2},
        },
    }


def _edge(
    series: Sequence[Series], across: tuple[float, float], up: tuple[float, float], quality: Quality
) -> dict[str, Any]:
    """Points beyond the axes, at their edge, with an arrow to where they are."""
    found: dict[str, Any] = {"x": [], "y": [], "customdata": [], "text": [], "hovertext": [], "symbol": []}
    for one in series:
        for point in one.points:
            x, y = point.seconds.value * 1e3, point.quality.value
            if across[0] <= x <= across[1] and up[0] <= y <= up[1]:
                continue
            beyond = "triangle-right" if x > across[1] else "triangle-down" if y < up[0] else "triangle-up"
            words = f"{x:.3g} ms" if beyond == "triangle-right" else f"{y:.4g} {quality.unit}".strip()
            found["x"].append(min(max(x, across[0]), across[1]))
            found["y"].append(min(max(y, up[0]), up[1]))
            found["customdata"].append(point.name)
            found["text"].append(f"{escape(shorten(point.name))}: {words}")
            found["hovertext"].append(_hover(point, one, quality))
            found["symbol"].append(beyond)
    return {
        "type": "scatter",
        "mode": "markers+text",
        "name": "beyond the axes",
        "hoverinfo": "text",
        "cliponaxis": False,
        "textposition": "top center",
        "marker": {"size": 13, "symbol": found.pop("symbol"), "color": "#767676"},
        **found,
    }


def _front(one: Series, place: int, count: int, across: tuple[float, float], quality: Quality) -> dict[str, Any]:
    members = sorted((point for point in one.points if point.on_front), key=lambda point: point.seconds.value)
    xs = [point.seconds.value * 1e3 for point in members]
    ys: list[float] = []
    for point in members:
        best = max if quality.higher_is_better else min
        ys.append(best([*ys[-1:], point.quality.value]))
    colour = COLOURS[place % len(COLOURS)] if count > 1 else "#767676"
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "hoverinfo": "skip",
        "showlegend": place == 0,
        "x": [*xs, across[1]] if xs else [],
        "y": [*ys, ys[-1]] if ys else [],
        "line": {"color": colour, "width": 1.5, "dash": "dash", "shape": "hv"},
    }


def _ring(points: Sequence[Point], selected: str) -> dict[str, Any]:
    chosen = [point for point in points if point.name == selected]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "selected",
        "hoverinfo": "skip",
        "showlegend": False,
        "x": [point.seconds.value * 1e3 for point in chosen],
        "y": [point.quality.value for point in chosen],
        "marker": {"size": 24, "symbol": "circle-open", "color": "#767676", "line": {"width": 3, "color": "#767676"}},
    }


def _layout(
    quality: Quality, batch: str, across: tuple[float, float], up: tuple[float, float], look: Look, count: int
) -> dict[str, Any]:
    unit = f" ({quality.unit})" if quality.unit else ""
    better = "more" if quality.higher_is_better else "less"
    shapes = []
    if look.latency_seconds is not None:
        shapes.append(_limit("x", look.latency_seconds * 1e3))
    if look.least_quality is not None:
        shapes.append(_limit("y", look.least_quality))
    span = [math.log10(edge) for edge in across] if look.is_log else list(across)
    return {
        "height": 430,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"size": 12},
        "margin": {"t": 16, "b": 52, "l": 64, "r": 24},
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        "showlegend": count > 1,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "dragmode": "zoom",
        "transition": {"duration": 350},
        "uirevision": f"{look.is_log} {look.is_whole}",
        "xaxis": {
            "title": {"text": f"latency of a call ({batch}), ms: less is better"},
            "type": "log" if look.is_log else "linear",
            "range": span,
            "zeroline": False,
        },
        "yaxis": {
            "title": {"text": f"{escape(quality.name)}{unit}: {better} is better"},
            "range": list(up) if quality.higher_is_better else list(reversed(up)),
            "zeroline": False,
        },
        "shapes": shapes,
    }


def _limit(axis: str, value: float) -> dict[str, Any]:
    other = "y" if axis == "x" else "x"
    line = {"color": "#767676", "width": 1.5, "dash": "dot"}
    place = {f"{axis}0": value, f"{axis}1": value, f"{other}0": 0, f"{other}1": 1, f"{other}ref": "paper"}
    return {"type": "line", "line": line, "label": {"text": "budget", "font": {"size": 11}}, **place}


def _span(values: Sequence[float], is_whole: bool, half: float) -> tuple[float, float]:
    """Return the axis' ends: around all values, or around those that no far one would flatten."""
    kept = sorted(values) if is_whole else _near(sorted(values))
    extent = kept[-1] - kept[0]
    pad = max(0.14 * extent, 1.3 * half, 0.01 * abs(kept[-1]), 1e-9)
    return kept[0] - pad, kept[-1] + pad


def _near(ordered: list[float]) -> list[float]:
    """Return the values without at most a quarter of them that lie far from all others, at either end."""
    for cut in range(len(ordered) // 4, 0, -1):
        for rest, gap in (
            (ordered[cut:], ordered[cut] - ordered[cut - 1]),
            (ordered[:-cut], ordered[-cut] - ordered[-cut - 1]),
        ):
            if gap > _FAR * max(rest[-1] - rest[0], 0.01 * abs(rest[-1])):
                return _near(rest)
    return ordered


def _half(points: Sequence[Point], name: str, scale: float) -> float:
    """Half the width of the usual interval, so that it is within the axes."""
    places = [getattr(point, name) for point in points]
    widths = sorted((place.high - place.low) / 2 * scale for place in places if None not in (place.low, place.high))
    return widths[len(widths) // 2] if widths else 0.0


def _bars(places: Sequence[Place], scale: float, colour: str) -> dict[str, Any]:
    above = [None if place.high is None else (place.high - place.value) * scale for place in places]
    below = [None if place.low is None else (place.value - place.low) * scale for place in places]
    return {
        "type": "data", "symmetric": False, "array": above, "arrayminus": below, "color": colour, "thickness": 1.2, "width": 3
    }  # fmt: skip


def _is_named(point: Point, one: Series, many: bool, look: Look) -> bool:
    return not many or point.on_front or point.name in (one.baseline, look.best, look.selected)


def _name(one: Series) -> str:
    return escape(shorten(one.name)) + (" (measured under unlike conditions)" if one.unlike else "")


def _label(point: Point, one: Series, look: Look) -> str:
    name = escape(shorten(point.name))
    name = f"{name} (baseline)" if point.name == one.baseline else name
    return f"★ {name}" if point.name == look.best else name


def _hover(point: Point, one: Series, quality: Quality) -> str:
    lines = [f"<b>{escape(point.name)}</b>" + (" (baseline)" if point.name == one.baseline else "")]
    lines.append(f"latency {_interval(point.seconds, 1e3, 'ms')} ({CONFIDENCE:.0%} interval)")
    lines.append(
        f"{escape(quality.name)} {_interval(point.quality, 1.0, quality.unit)} ({ACCURACY_CONFIDENCE:.0%} interval)"
    )
    lines += [escape(one.verdicts[point.name])] if one.verdicts.get(point.name) else []
    lines += ["on the Pareto front"] if point.on_front else []
    lines += [f"unlike the others: {escape(one.unlike)}"] if one.unlike else []
    return "<br>".join(lines)


def _interval(place: Place, scale: float, unit: str) -> str:
    value = f"{place.value * scale:.4g} {unit}".strip()
    if place.low is None or place.high is None:
        return f"{value}, too few rounds for an interval" if unit == "ms" else value
    return f"{value} [{place.low * scale:.4g}, {place.high * scale:.4g}]"
