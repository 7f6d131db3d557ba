"""A network as boxes and arrows in Graphviz's language, coloured by what is known of its nodes. Pure; lays nothing out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from workbench.errors import RecipeError
from workbench.records.formats import milliseconds

# More boxes than these make a picture that nobody reads, and a browser that works for seconds.
MOST_BOXES = 500
# All carry black text; the first kinds differ most.
PRECISIONS = {
    "fp32": "#dfe4ea", "fp16": "#b9d8f3", "bf16": "#a8dcd9", "int8": "#ffcf9e", "int4": "#f7b2bd", "fp8": "#d9c2ee",
    "tf32": "#cfe3b4",
}  # fmt: skip
_LEAST, _MOST = (255, 246, 232), (233, 120, 20)
_FEWEST_PARTS = 1


@dataclass(frozen=True)
class Box:
    """What is drawn as one: a node, or all nodes of a module.

    Attributes:
        operators: operator -> count.
    """

    label: str
    nodes: tuple[str, ...]
    operators: Mapping[str, int]


@dataclass(frozen=True)
class Drawn:
    """Boxes, and arrows between them by place.

    Attributes:
        operators: every node that has a name -> its operator.
    """

    boxes: tuple[Box, ...]
    arrows: tuple[tuple[int, int], ...]
    operators: Mapping[str, str] = field(default_factory=dict)


def drawn(model: onnx.ModelProto, modules: Mapping[str, str], depth: int | None) -> Drawn:
    """Return the boxes of a network.

    Args:
        modules: node name -> module path; a node without one belongs to the path that its name spells.
        depth: parts of the module path that make a box; None draws every node.

    Raises:
        RecipeError: there are too many boxes to draw.
    """
    groups: dict[str, list[onnx.NodeProto]] = {}
    for place, node in enumerate(model.graph.node):
        if node.op_type == "Constant":
            continue
        name = node.name or f"{node.op_type} {place}"
        path = _path(node, modules)
        key = name if depth is None or not path else ".".join(path[:depth])
        groups.setdefault(key, []).append(node)
    if len(groups) > MOST_BOXES:
        raise RecipeError(
            f"The network has {len(groups)} boxes at this level of detail; more than {MOST_BOXES} cannot be read. Choose a "
            f"coarser one."
        )
    boxes = tuple(_box(key, nodes) for key, nodes in groups.items())
    owner = {output: place for place, nodes in enumerate(groups.values()) for node in nodes for output in node.output}
    arrows = {
        (owner[name], place): None
        for place, nodes in enumerate(groups.values())
        for node in nodes
        for name in node.input
        if name in owner and owner[name] != place
    }
    return Drawn(boxes, tuple(arrows), {node.name: node.op_type for node in model.graph.node if node.name})


def dot(found: Drawn, paint: Callable[[Box], tuple[str, str]], selected: int | None = None) -> str:
    """Return the graph in Graphviz's language; a box's name is its place.

    Args:
        paint: box -> its colour, and what hovering says of it.
    """
    lines = [
        "digraph network {",
        'bgcolor="transparent"; rankdir="TB"; ranksep=0.3; nodesep=0.25;',
        'node [shape="box", style="filled,rounded", fontname="sans-serif", fontsize=11, color="#767676", fontcolor="#111111", '
        'margin="0.12,0.05", height=0.3];',
        'edge [color="#767676", arrowsize=0.6];',
    ]
    for place, box in enumerate(found.boxes):
        colour, words = paint(box)
        ring = ', penwidth=4, color="#1976d2"' if place == selected else ""
        lines.append(f'"{place}" [label={_quoted(box.label)}, tooltip={_quoted(words)}, fillcolor="{colour}"{ring}];')
    lines += [f'"{one}" -> "{other}";' for one, other in found.arrows]
    return "\n".join([*lines, "}"])


def by_precision(types: Mapping[str, str]) -> Callable[[Box], tuple[str, str]]:
    """Paint a box by the format that most of its nodes compute in.

    Args:
        types: node -> format; of the others nothing was changed.
    """

    def paint(box: Box) -> tuple[str, str]:
        counts: dict[str, int] = {}
        for node in box.nodes:
            counts[types.get(node, "fp32")] = counts.get(types.get(node, "fp32"), 0) + 1
        lowered = {kind: count for kind, count in counts.items() if kind != "fp32"} or counts
        kind = max(lowered, key=lambda one: lowered[one])
        told = ", ".join(f"{count} in {one}" for one, count in counts.items())
        return PRECISIONS.get(kind, "#ffffff"), f"{_told(box)}\n{told}"

    return paint


def by_amount(amounts: Mapping[str, float], words: Callable[[float], str]) -> Callable[[Box], tuple[str, str]]:
    """Paint a box by its share of an amount that is known of nodes, such as seconds; white where nothing is known."""

    def paint(box: Box) -> tuple[str, str]:
        known = [amounts[node] for node in box.nodes if node in amounts]
        if not known:
            return "#ffffff", f"{_told(box)}\nnothing known"
        share = min(1.0, sum(known) / most)
        colour = "#" + "".join(
            f"{round(low + share * (high - low)):02x}" for low, high in zip(_LEAST, _MOST, strict=True)
        )
        return colour, f"{_told(box)}\n{words(sum(known))}"

    # The hottest node is the hottest colour; a module that holds several such is no hotter.
    most = max(amounts.values(), default=0.0) or 1.0
    return paint


def seconds_words(seconds: float) -> str:
    """Say a time."""
    return f"{milliseconds(seconds)} ms"


def _path(node: onnx.NodeProto, modules: Mapping[str, str]) -> list[str]:
    path = modules.get(node.name, "")
    if path:
        return path.split(".")
    return [part for part in node.name.strip("/").split("/") if part][:-1]


def _box(key: str, nodes: Sequence[onnx.NodeProto]) -> Box:
    operators: dict[str, int] = {}
    for node in nodes:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    single = len(nodes) == _FEWEST_PARTS
    last = key.strip("/").replace("/", ".").split(".")
    label = f"{nodes[0].op_type}\n{'.'.join(last[-3:])}" if single else f"{key}\n{len(nodes)} nodes"
    return Box(label, tuple(node.name for node in nodes if node.name), operators)


def _told(box: Box) -> str:
    counted = ", ".join(f"{name} x {count}" if count > 1 else name for name, count in box.operators.items())
    return f"{counted}\n{', '.join(box.nodes[:6])}{' ...' if len(box.nodes) > 6 else ''}"


def _quoted(text: str) -> str:
    clean = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{clean}"'
