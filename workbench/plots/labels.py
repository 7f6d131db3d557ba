"""Words beside points: shortening names and placing labels so that none covers another or a point.

Placement is greedy: the labels take turns, each trying places around its point, near ones first, and keeping the one
that covers least. Enough for the dozen points of a study; knows nothing of studies.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from workbench.plots.theme import NOTE_POINTS, Theme, plain

# Directions that a label may stand in, the easiest to read first: right, left, above, below, then the corners.
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))
_DISTANCES_POINTS = (9.0, 16.0, 26.0, 40.0, 58.0, 80.0)
# From this distance on, a thin line ties the label to its point.
_LEADER_POINTS = 16.0


Line = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Label:
    """A text for the point (x, y), in data coordinates."""

    text: str
    x: float
    y: float
    bold: bool = False


def shorten(name: str, most: int = 34) -> str:
    """Return the name, cut in the middle where it is long: its ends are what tells it apart."""
    if len(name) > most:
        tail = most // 2
        name = f"{name[: most - tail - 1]}…{name[-tail:]}"
    return plain(name)


def place(
    axes: Axes,
    labels: Sequence[Label],
    theme: Theme,
    lines: Sequence[Line] = (),
) -> list[Annotation]:
    """Write each label beside its point where it covers no other label, no point and as few lines as can be.

    Args:
        axes: with its limits and everything else already set.
        lines: ends of the straight lines (error bars, in data coordinates) that are better not covered.
    """
    figure = typing.cast(Figure, axes.get_figure())
    figure.draw_without_rendering()  # settles the layout, so that data coordinates have their final pixels
    scale = figure.dpi / 72
    taken = [_square(axes, label.x, label.y, 6 * scale) for label in labels]
    soft = [_segment(axes, *line) for line in lines]
    frame = axes.get_window_extent()
    written = []
    for label in labels:
        note = axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=NOTE_POINTS + 0.5,
            color=theme.ink,
            fontweight="bold" if label.bold else "normal",
            zorder=6,
        )
        note.set_in_layout(False)
        others = [tuple(axes.transData.transform((other.x, other.y))) for other in labels if other is not label]
        ground = _Ground(frame, _corners(taken), _corners(soft), np.array(others, float).reshape(-1, 2))
        box = _best(note, ground, scale)
        taken.append(box)
        written.append(note)
        _tie(axes, label, box, others, theme)
    return written


@dataclass(frozen=True)
class _Ground:
    """What a label has to mind, in pixels: the axes, boxes never to cover, lines better not covered, other points.

    Boxes are rows of (x0, y0, x1, y1), points rows of (x, y).
    """

    frame: Bbox
    taken: np.ndarray
    soft: np.ndarray
    others: np.ndarray

    def cost(self, box: Bbox, own: Sequence[float]) -> float:
        hard = _overlap(box, self.taken) + box.width * box.height - _overlap(box, _corners([self.frame]))
        light = _overlap(box, self.soft)
        reach = math.dist(own, _nearest(box, own))
        # A label that is nearer to another point than to its own would be read as that point's.
        nearest = np.clip(self.others, (box.x0, box.y0), (box.x1, box.y1))
        stolen = int((np.hypot(*(self.others - nearest).T) < 1.2 * reach).sum())
        # Covering a label is never worth a shorter way; covering a bit of a line sometimes is.
        return 1000 * hard + 4 * light + 60 * stolen


def _best(note: Annotation, ground: _Ground, scale: float) -> Bbox:
    """Move the note to the cheapest place around its point and return the box that it then fills."""
    extent = note.get_window_extent()
    x, y = note.axes.transData.transform(note.xy)  # type: ignore[union-attr]
    costs = []
    for distance in _DISTANCES_POINTS:
        for rank, (right, up) in enumerate(_DIRECTIONS):
            length = distance / math.hypot(right, up)
            # Aligned left where it stands to the right, and so on; measured once, because measuring text is slow.
            left = x + right * length * scale - extent.width * (1 - right) / 2
            bottom = y + up * length * scale - extent.height * (1 - up) / 2
            box = Bbox.from_bounds(left, bottom, extent.width, extent.height).padded(1.5 * scale)
            cost = ground.cost(box, (x, y)) + (distance + 1.5 * rank) * scale
            costs.append((cost, rank, length, box))
    _, rank, length, box = min(costs, key=lambda item: item[:3])
    right, up = _DIRECTIONS[rank]
    note.set_position((right * length, up * length))
    note.set_horizontalalignment("left" if right > 0 else "right" if right < 0 else "center")
    note.set_verticalalignment("bottom" if up > 0 else "top" if up < 0 else "center")
    return box


def _tie(axes: Axes, label: Label, box: Bbox, others: Sequence[Sequence[float]], theme: Theme) -> None:
    """Draw a thin line from a label to its point where it stands far off, or as near to another point as to its own."""
    scale = typing.cast(Figure, axes.get_figure()).dpi / 72
    x, y = axes.transData.transform((label.x, label.y))
    near = _nearest(box, (x, y))
    own = math.dist((x, y), near)
    rivals = [math.dist(other, _nearest(box, other)) for other in others]
    if own < _LEADER_POINTS * scale and all(rival > 1.6 * own for rival in rivals):
        return
    line = axes.annotate(
        "",
        (label.x, label.y),
        xytext=((near[0] - x) / scale, (near[1] - y) / scale),
        textcoords="offset points",
        arrowprops={"arrowstyle": "-", "color": theme.quiet, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 6},
        zorder=2,
    )
    line.set_in_layout(False)


def _nearest(box: Bbox, point: Sequence[float]) -> tuple[float, float]:
    """Return the place in the box that is nearest to the point."""
    return min(max(point[0], box.x0), box.x1), min(max(point[1], box.y0), box.y1)


def _square(axes: Axes, x: float, y: float, half: float) -> Bbox:
    across, up = axes.transData.transform((x, y))
    return Bbox.from_extents(across - half, up - half, across + half, up + half)


def _segment(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> Bbox:
    (x0, y0), (x1, y1) = axes.transData.transform((start, end))
    return Bbox.from_extents(min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1)


def _corners(boxes: Sequence[Bbox]) -> np.ndarray:
    return np.array([box.extents for box in boxes], float).reshape(-1, 4)


def _overlap(box: Bbox, others: np.ndarray) -> float:
    """Return the area that a box shares with others, (n, 4), summed."""
    width = np.minimum(box.x1, others[:, 2]) - np.maximum(box.x0, others[:, 0])
    height = np.minimum(box.y1, others[:, 3]) - np.maximum(box.y0, others[:, 1])
    return float((np.clip(width, 0, None) * np.clip(height, 0, None)).sum())
