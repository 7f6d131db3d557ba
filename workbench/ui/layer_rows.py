"""Two passes side by side as rows: what ran for the same nodes, how long, in which type. Draws nothing, runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.explaining.evidence import Layer, Pass
from workbench.explaining.passes import grouped

# What an engine put in by itself: a change of type or of layout.
_ADDED = ("convert", "layout")
NO_MODULE = "(no module)"


@dataclass(frozen=True)
class Side:
    """What one variant runs for a row.

    Attributes:
        seconds: of one call; 0 where it runs nothing there.
        share: of the whole call, 0..1.
        precision: its types, the slowest layer's first.
        layers: names as the engine calls them.
        is_added: whether it only changes types or layouts.
    """

    seconds: float
    share: float
    precision: str
    layers: tuple[str, ...]
    is_added: bool


@dataclass(frozen=True)
class LayerRow:
    """Layers of two variants that stand for the same nodes.

    Attributes:
        name: a short one, such as the last part of the module path and the operators.
        module: path of the module that most of it belongs to; `NO_MODULE` where the export left none.
        nodes: of the file; empty where an engine added it.
        shape: of what it writes, in words.
    """

    name: str
    module: str
    nodes: tuple[str, ...]
    shape: str
    first: Side
    second: Side

    @property
    def words(self) -> str:
        """What a filter looks through."""
        parts = (self.name, self.module, *self.nodes, self.first.precision, self.second.precision)
        return " ".join((*parts, *self.first.layers, *self.second.layers)).lower()


def layer_rows(first: Pass, second: Pass) -> tuple[LayerRow, ...]:
    """Return the rows in the order in which the first variant executes them."""
    totals = first.total_seconds or 1.0, second.total_seconds or 1.0
    return tuple(_row(ours, theirs, totals) for ours, theirs in grouped(first, second))


def matching(rows: Sequence[LayerRow], query: str) -> tuple[LayerRow, ...]:
    """Return the rows that hold every word of a query, in any order and case."""
    words = query.lower().split()
    return tuple(row for row in rows if all(word in row.words for word in words))


def by_module(rows: Sequence[LayerRow], depth: int = 2) -> dict[str, list[LayerRow]]:
    """Return the first parts of module paths -> rows, in the order of execution.

    Args:
        depth: parts of the path that make a group.
    """
    found: dict[str, list[LayerRow]] = {}
    for row in rows:
        found.setdefault(".".join(row.module.split(".")[:depth]), []).append(row)
    return found


def _row(ours: tuple[Layer, ...], theirs: tuple[Layer, ...], totals: tuple[float, float]) -> LayerRow:
    both = (*ours, *theirs)
    paths = [path for layer in both for path in layer.modules]
    nodes = tuple(dict.fromkeys(node for layer in both for node in layer.nodes))
    operators = " + ".join(dict.fromkeys(layer.operator for layer in ours or theirs))
    module = max(paths, key=paths.count) if paths else NO_MODULE
    last = module.rpartition(".")[2] if paths else (nodes[0] if nodes else both[0].name)
    writes = next((spec for layer in ours or theirs for spec in layer.writes), None)
    shape = "" if writes is None else " x ".join("any" if axis is None else str(axis) for axis in writes.shape)
    sides = (_side(layers, total) for layers, total in zip((ours, theirs), totals, strict=True))
    return LayerRow(f"{last}: {operators}", module, nodes, shape, *sides)


def _side(layers: tuple[Layer, ...], total: float) -> Side:
    seconds = sum(layer.seconds for layer in layers)
    slowest = sorted(layers, key=lambda layer: -layer.seconds)
    types = " ".join(dict.fromkeys(layer.precision for layer in slowest if layer.precision))
    added = bool(layers) and all(layer.kind in _ADDED for layer in layers)
    return Side(seconds, seconds / total, types, tuple(layer.name for layer in layers), added)
