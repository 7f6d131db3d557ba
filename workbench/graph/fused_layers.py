"""Which nodes of a file became which layer of a runtime's own graph: compares two ONNX graphs, runs nothing.

ONNX Runtime writes the graph it executes. Its layers keep the name of a node or tensor that they end at (with a suffix
such as `_nchwc` or `_token_7`); from there the nodes behind a layer are those up to where its inputs come from. What a
layer absorbs at its end (a sum, an activation, a quantization) is known from its attributes and inputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import onnx

_SUFFIX = re.compile(r"(_nchwc|_token_\d+|_quant)$")
# What an integer kernel rounds and clips its result with.
_ABSORBED_BY_INTEGERS = ("Relu", "Clip", "QuantizeLinear")
_SUM_INPUT = 3
# What a runtime adds of its own, to move values between layouts and types.
_ADDED = ("ReorderInput", "ReorderOutput", "Transpose", "Cast")


@dataclass(frozen=True)
class RuntimeLayer:
    """One node of the runtime's graph.

    Attributes:
        operator: with its domain where that is not ONNX's own.
        sources: names of the nodes it stands for, in the order of the file; empty where the runtime added it.
    """

    name: str
    operator: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class FusionMap:
    """The layers of the runtime in order, and the nodes of the file that are in none: folded away before it runs."""

    layers: tuple[RuntimeLayer, ...]
    folded: tuple[str, ...]


def fusion_map(before: onnx.ModelProto, after: onnx.ModelProto) -> FusionMap:
    """Map each node of the runtime's graph (`after`) to the nodes of the file (`before`) that it stands for."""
    return _Matcher(before.graph, after.graph).match()


def node_label(node: onnx.NodeProto) -> str:
    """Return the node's name, or where it has none its first output."""
    return node.name or f"{node.op_type} -> {next(iter(node.output), '')}"


class _Matcher:
    def __init__(self, before: onnx.GraphProto, after: onnx.GraphProto) -> None:
        self.nodes = list(before.node)
        self.runtime = list(after.node)
        self.by_name = {node.name: index for index, node in enumerate(self.nodes) if node.name}
        self.producer = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}
        self.readers: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in node.input:
                self.readers.setdefault(name, []).append(index)

    def match(self) -> FusionMap:
        ends = [None if self._is_added(node) else self._end(node) for node in self.runtime]
        taken = {end for end in ends if end is not None}
        # Where a tensor that only the runtime has would be in the file.
        origin = {
            name: self.nodes[end].output[0]
            for node, end in zip(self.runtime, ends, strict=True)
            if end is not None
            for name in node.output
        }
        groups: list[set[int]] = []
        for node, end in zip(self.runtime, ends, strict=True):
            stops = {origin.get(name, name) for name in node.input}
            groups.append(set() if end is None else self._behind(end, stops, taken))
        found = set().union(*groups) if groups else set()
        layers = tuple(
            RuntimeLayer(node_label(node), _operator(node), self._labels(group))
            for node, group in zip(self.runtime, groups, strict=True)
        )
        return FusionMap(layers, self._labels(set(range(len(self.nodes))) - found))

    def _end(self, node: onnx.NodeProto) -> int | None:
        """The last node of the file that a layer stands for."""
        for name in node.output:
            if name in self.producer:
                return self.producer[name]
        bare = _SUFFIX.sub("", node.name)
        start = self.by_name.get(bare, self.producer.get(bare))
        return None if start is None else self._forward(start, node)

    def _is_added(self, node: onnx.NodeProto) -> bool:
        ends = [self.nodes[self.producer[name]].op_type for name in node.output if name in self.producer]
        return node.op_type in _ADDED and node.op_type not in ends and node.name not in self.by_name

    def _forward(self, index: int, layer: onnx.NodeProto) -> int:
        """Go on over what the layer absorbs at its end."""
        if len(layer.input) > _SUM_INPUT and layer.domain == "com.microsoft.nchwc" and layer.input[_SUM_INPUT]:
            index = self._next(index, ("Add",))
        activation = next((item.s.decode() for item in layer.attribute if item.name == "activation"), None)
        if activation:
            index = self._next(index, (activation,))
        if layer.op_type.startswith("QLinear"):
            for _ in _ABSORBED_BY_INTEGERS:
                index = self._next(index, _ABSORBED_BY_INTEGERS)
        return index

    def _next(self, index: int, operators: Iterable[str]) -> int:
        readers = [reader for name in self.nodes[index].output for reader in self.readers.get(name, [])]
        return readers[0] if len(readers) == 1 and self.nodes[readers[0]].op_type in operators else index

    def _behind(self, end: int, stops: set[str], taken: set[int]) -> set[int]:
        """The nodes from `end` back to the layer's inputs or to where another layer ends."""
        group, ahead = {end}, [end]
        while ahead:
            for name in self.nodes[ahead.pop()].input:
                index = self.producer.get(name)
                if index is not None and name not in stops and index not in taken and index not in group:
                    group.add(index)
                    ahead.append(index)
        return group

    def _labels(self, indices: set[int]) -> tuple[str, ...]:
        return tuple(node_label(self.nodes[index]) for index in sorted(indices))


def _operator(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
