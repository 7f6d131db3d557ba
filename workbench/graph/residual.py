"""Find residual additions and their skip branch, as TensorRT wants them quantized. Changes nothing.

TensorRT runs Conv + Add (+ Relu) as one INT8 kernel where the other summand arrives quantized, and not where a Q/DQ
pair stands between Conv and Add. So the pair belongs on the skip branch alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from workbench.graph.editing import FLOAT_TYPES, Graph
from workbench.graph.tensor_types import TensorTypes

# How far back the two summands' common ancestor is searched; a residual block is much shorter.
_FARTHEST = 64


def skip_branches(
    graph: Graph, lowered: Iterable[onnx.NodeProto], types: TensorTypes
) -> list[tuple[onnx.NodeProto, str]]:
    """Return each residual Add with the name of its skip branch.

    An Add is residual where one summand comes from a lowered convolution that nothing else reads, and both have the
    same shape. Where both do (a projected shortcut), the one closer to their common ancestor is the skip branch.
    """
    convolutions = {id(node) for node in lowered if node.op_type in ("Conv", "ConvTranspose")}
    found = []
    for node in graph.nodes:
        if node.op_type != "Add" or node.input[0] == node.input[1] or not _same_kind(node, types):
            continue
        if any(graph.is_constant(name) for name in node.input):
            continue
        mains = [name for name in node.input if _from_convolution(graph, name, convolutions)]
        if mains:
            found.append((node, _skip(graph, node, mains)))
    return found


def _skip(graph: Graph, node: onnx.NodeProto, mains: list[str]) -> str:
    first, second = node.input
    if len(mains) == 1:
        return second if mains[0] == first else first
    near, far = _distances(graph, first), _distances(graph, second)
    common = [(near[name] + far[name], near[name], far[name]) for name in near.keys() & far.keys()]
    if common:
        _, to_first, to_second = min(common)
        return first if to_first < to_second else second
    return second


def _from_convolution(graph: Graph, name: str, convolutions: set[int]) -> bool:
    """Whether a tensor is what a lowered convolution gives, past BatchNormalization and bias, read by one node only."""
    while len(graph.consumers.get(name, [])) == 1 and name not in graph.pinned and name in graph.producer:
        producer = graph.producer[name]
        if id(producer) in convolutions:
            return True
        if producer.op_type == "BatchNormalization":
            name = producer.input[0]
        elif producer.op_type == "Add" and any(map(graph.is_constant, producer.input)):
            name = next((term for term in producer.input if not graph.is_constant(term)), "")
        else:
            return False
    return False


def _same_kind(node: onnx.NodeProto, types: TensorTypes) -> bool:
    if any(types.elements.get(name, onnx.TensorProto.FLOAT) not in FLOAT_TYPES for name in node.input):
        return False
    shapes = [types.shapes[name] for name in node.input if name in types.shapes]
    return len(shapes) < 2 or (len(shapes[0]) == len(shapes[1]) and not any(map(_unequal, *shapes)))


def _unequal(one: int | str | None, other: int | str | None) -> bool:
    return isinstance(one, int) and isinstance(other, int) and one != other


def _distances(graph: Graph, name: str) -> dict[str, int]:
    """Return how many nodes lie between a tensor and each of its ancestors, itself included."""
    distances, front = {name: 0}, [name]
    for distance in range(1, _FARTHEST):
        parents = [term for item in front if item in graph.producer for term in graph.producer[item].input if term]
        front = [term for term in dict.fromkeys(parents) if term not in distances and not graph.is_constant(term)]
        distances.update(dict.fromkeys(front, distance))
    return distances
