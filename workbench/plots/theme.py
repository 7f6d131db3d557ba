"""How figures look: colours, markers, type sizes, light and dark; and figures as SVG or PNG bytes.

Uses `matplotlib.figure.Figure` only, never pyplot and never the global rcParams, so a figure may be drawn on any
thread. Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which people with any colour vision can
tell apart; each comes with a marker of its own shape, so that a figure survives being printed in grey. Knows nothing
of studies.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

ThemeName = Literal["light", "dark"]

# Points. A figure of 8 inches at 100 dpi is 800 pixels wide: 10 pt is then 14 pixels high.
TITLE_POINTS = 12.0
LABEL_POINTS = 10.5
TICK_POINTS = 9.5
NOTE_POINTS = 9.0
WIDTH_INCHES = 8.0

_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p")


@dataclass(frozen=True)
class Theme:
    """The colours of a figure.

    Attributes:
        ink: text, and the marks of the baseline.
        quiet: ticks, secondary text, reference lines.
        grid: grid lines.
        series: fill colours of the candidates, in order.
    """

    name: ThemeName
    background: str
    ink: str
    quiet: str
    grid: str
    series: tuple[str, ...]


LIGHT = Theme(
    name="light",
    background="#ffffff",
    ink="#1b1f24",
    quiet="#57606a",
    grid="#e4e7eb",
    series=("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
)
# On a dark ground the same set, the light ones first; the two darkest are lightened until they reach 4.5:1.
DARK = Theme(
    name="dark",
    background="#14171c",
    ink="#eceff3",
    quiet="#a7b0bb",
    grid="#2b313a",
    series=("#56B4E9", "#E69F00", "#2CC79A", "#CC79A7", "#F0E442", "#F0803C"),
)
_THEMES = {"light": LIGHT, "dark": DARK}


@dataclass(frozen=True)
class Style:
    """How one variant is drawn in every figure of a study."""

    colour: str
    marker: str


def named(theme: ThemeName | Theme) -> Theme:
    """Return the theme of that name; a Theme passes through.

    Raises:
        ValueError: no theme has that name.
    """
    if isinstance(theme, Theme):
        return theme
    if theme not in _THEMES:
        raise ValueError(f"theme is {theme!r}; allowed: {', '.join(_THEMES)}")
    return _THEMES[theme]


def styles(names: list[str], baseline: str, theme: Theme) -> dict[str, Style]:
    """Return a colour and a marker for each variant; the baseline is ink and a circle, whatever its place."""
    candidates = [name for name in names if name != baseline]
    pairs: Iterator[tuple[str, str]] = zip(cycle(theme.series), cycle(_MARKERS[1:]), strict=False)
    chosen = {name: Style(*pair) for name, pair in zip(candidates, islice(pairs, len(candidates)), strict=True)}
    return {baseline: Style(theme.ink, _MARKERS[0]), **chosen}


class _Shown(Figure):
    """A figure that notebooks show without pyplot's help."""

    def _repr_png_(self) -> bytes:
        return png(self)


def new_figure(theme: Theme, height_inches: float = 4.6, width_inches: float = WIDTH_INCHES) -> tuple[Figure, Axes]:
    """Return a figure with one styled pair of axes."""
    figure = _Shown(figsize=(width_inches, height_inches), layout="constrained", facecolor=theme.background)
    axes = figure.add_subplot()
    dress(axes, theme)
    return figure, axes


def dress(axes: Axes, theme: Theme, grid: Literal["both", "x", "y"] = "both") -> None:
    """Give axes the theme's colours and type sizes, and a grid behind the data."""
    axes.set_facecolor(theme.background)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.quiet)
    axes.tick_params(colors=theme.quiet, labelsize=TICK_POINTS, which="both")
    axes.grid(False)
    axes.grid(axis=grid, color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)


def plain(text: str) -> str:
    """Return text that matplotlib shows as it stands: dollar signs would start a formula, and an odd one is an error."""
    return re.sub(r"(?<!\\)\$", r"\\$", text)


def entitle(axes: Axes, theme: Theme, title: str, x: str, y: str) -> None:
    """Write the title and the axis labels (with units)."""
    axes.set_title(plain(title), loc="left", color=theme.ink, fontsize=TITLE_POINTS, fontweight="bold", pad=12)
    axes.set_xlabel(plain(x), color=theme.ink, fontsize=LABEL_POINTS)
    axes.set_ylabel(plain(y), color=theme.ink, fontsize=LABEL_POINTS)


def legend(axes: Axes, theme: Theme, **options: Any) -> None:
    """Add a legend without a frame around it, in the theme's colours."""
    box = axes.legend(fontsize=NOTE_POINTS, labelcolor=theme.ink, frameon=True, framealpha=0.85, **options)
    box.get_frame().set(facecolor=theme.background, edgecolor="none")


def footnote(figure: Figure, theme: Theme, text: str) -> None:
    """Write under the figure what a reader needs to judge it (counts, conditions), wrapped to its width."""
    across = int(figure.get_size_inches()[0] * 72 / (0.56 * NOTE_POINTS))  # a letter is about 0.56 em wide
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, across)]
    figure.supxlabel(plain("\n".join(lines)), x=0.01, ha="left", fontsize=NOTE_POINTS, color=theme.quiet)


def svg(figure: Figure) -> str:
    """Return the figure as SVG text; no date in it, letters as outlines so that it looks the same everywhere."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", facecolor=figure.get_facecolor(), metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def png(figure: Figure, dots_per_inch: int = 144) -> bytes:
    """Return the figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def empty_figure(theme: Theme, reason: str) -> Figure:
    """Return a figure that says why there is nothing to draw."""
    figure, axes = new_figure(theme, height_inches=1.6)
    axes.set_axis_off()
    axes.text(0.5, 0.5, plain(reason), ha="center", va="center", wrap=True, color=theme.quiet, fontsize=LABEL_POINTS)
    return figure
