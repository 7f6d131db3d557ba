"""What a device did while it was measured: one quantity above the other over the same time. Draws what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from workbench.errors import DataError
from workbench.plots import theme as look
from workbench.plots.theme import ThemeName


@dataclass(frozen=True)
class Track:
    """One quantity over the rounds of a study, for drawing.

    Attributes:
        seconds: since the first round began, growing.
        slowed: whether the device said, at each of these, that something slowed it down.
    """

    name: str
    unit: str
    seconds: tuple[float, ...]
    values: tuple[float, ...]
    slowed: tuple[bool, ...]


def tracks(found: Sequence[Track], *, theme: ThemeName = "light") -> Figure:
    """Draw quantities over time, rounds in which the device was slowed down as crosses.

    Raises:
        DataError: there is none.
    """
    if not found:
        raise DataError("there is nothing to draw; pass what a device told over the rounds")
    colours = look.named(theme)
    figure, first = look.new_figure(colours, height_inches=1.0 + 1.15 * len(found))
    first.remove()
    for place, one in enumerate(found):
        axes = figure.add_subplot(len(found), 1, place + 1)
        look.dress(axes, colours)
        axes.plot(one.seconds, one.values, color=colours.series[0], linewidth=1.2, marker="o", markersize=3.5)
        marked = [index for index, is_slowed in enumerate(one.slowed) if is_slowed]
        axes.plot(
            [one.seconds[index] for index in marked],
            [one.values[index] for index in marked],
            linestyle="none",
            marker="X",
            markersize=8,
            color=colours.series[1],
        )
        low, high = min(one.values), max(one.values)
        # A clock that wavers by a thousandth must not look like a cliff.
        pad = max(0.15 * (high - low), 0.03 * abs(high), 1.0)
        axes.set_ylim(low - pad, high + pad)
        axes.set_ylabel(f"{one.name}\n({one.unit})", color=colours.ink, fontsize=look.NOTE_POINTS)
        if place == 0:
            look.entitle(axes, colours, "The GPU over the run", "", f"{one.name}\n({one.unit})")
            axes.yaxis.label.set_fontsize(look.NOTE_POINTS)
        if place < len(found) - 1:
            axes.tick_params(labelbottom=False)
    figure.axes[-1].set_xlabel("time since the first round (s)", color=colours.ink, fontsize=look.LABEL_POINTS)
    count = sum(found[0].slowed)
    words = f"Crosses: the driver said that it slowed the GPU down ({count} of {len(found[0].slowed)} rounds)"
    look.footnote(figure, colours, words if count else "The driver never said that it slowed the GPU down")
    return figure
