"""What every graph step gets (`Context`) and works with (`Graph`): one ONNX model and an index over it.

Knows nothing of recipes' meaning, calibration or engines. A graph inside a node (If, Loop, Scan) is left untouched; it can be
opened as a `Graph` of its own (`bodies`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper

from workbench.graph.dialects import family, of_this_cpu

if TYPE_CHECKING:
    from workbench.calibration.table import CalibrationTable
    from workbench.graph.pruned import Pruned

FLOAT_TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


@dataclass(frozen=True)
class Context:
    """What a step may need besides the graph and its own config.

    Attributes:
        dialect: one of `dialects.DIALECTS`; ONNX Runtime's for this CPU unless given.
        modules: ONNX node name -> PyTorch module path; may be empty.
        table: calibration statistics of the parent model's tensors, or None where nothing was calibrated.
        calibrators: tensor name -> calibrator chosen for it (what `auto` found); overrides the step's own.
        channel_maxima: tensor name -> (channels,) largest |x| along its last axis; what SmoothQuant needs.
        magnitudes: tensor name -> largest |x| over calibration samples (inf where it was NaN or infinite), for FP16; None
            where nothing was observed.
        pruned: node name -> its weight pruned for calibration samples; layers that are not in it are pruned by magnitude.
    """

    dialect: str = field(default_factory=of_this_cpu)
    modules: Mapping[str, str] = field(default_factory=dict)
    table: CalibrationTable | None = None
    calibrators: Mapping[str, str] = field(default_factory=dict)
    channel_maxima: Mapping[str, np.ndarray] = field(default_factory=dict)
    magnitudes: Mapping[str, float] | None = None
    pruned: Mapping[str, Pruned] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The dialect without its range of weights: `ort-cpu`, `trt-8.6` or `strong`."""
        return family(self.dialect)

    def excluded_by(self, node: onnx.NodeProto, patterns: Iterable[str]) -> str | None:
        """Return the first pattern found in the node's name or module path, or None."""
        labels = (node.name, self.modules.get(node.name, ""))
        return next((pattern for pattern in patterns if any(re.search(pattern, label) for label in labels)), None)


def graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the graph and every graph inside its nodes (branches of If, bodies of Loop)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
            for nested in inner:
                yield from graphs(nested)


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of every graph inside its nodes."""
    return (node for level in graphs(graph) for node in level.node)


class Graph:
    """An ONNX model that is being edited, with producers, consumers and initializers by tensor name.

    Steps change `model` through the methods below, which keep the index true. Node order is restored by `finish`.
    Nodes without a name of their own get one, since reports name them.

    Attributes:
        producer: tensor name -> the node that writes it.
        consumers: tensor name -> the nodes that read it; a subgraph's reading is not among them, see `pinned`.
        pinned: tensors whose name and type are visible outside: graph outputs, and what subgraphs capture.
        owner: the graph and the node that this one is a body of; None for a model's main graph.
    """

    def __init__(self, model: onnx.ModelProto, owner: tuple[Graph, onnx.NodeProto] | None = None) -> None:
        self.model = model
        self.owner = owner
        self.proto = model.graph
        self.initializers: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in self.proto.initializer}
        self._fix_overridable()
        self.inputs = [value.name for value in self.proto.input]
        self.outputs = [value.name for value in self.proto.output]
        self.pinned: set[str] = set(self.outputs) | _captured(self.proto.node)
        # Graph and bodies share one set: a name inside must not hide one outside.
        self._names: set[str] = _names_in(self.proto) if owner is None else owner[0]._names
        self.refresh()
        self._name_nodes()

    def refresh(self) -> None:
        """Rebuild the index; call it after changing nodes' inputs or outputs directly."""
        self.nodes = list(self.proto.node)
        self.producer: dict[str, onnx.NodeProto] = {}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            self._register(node)
        self._names.update(
            self.producer, self.consumers, self.initializers, self.inputs, (node.name for node in self.nodes)
        )

    def _fix_overridable(self) -> None:
        """Make weights constants where an old file lists them as inputs that a caller might override."""
        kept = [value for value in self.proto.input if value.name not in self.initializers]
        if len(kept) != len(self.proto.input):
            copies = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in kept]
            del self.proto.input[:]
            self.proto.input.extend(copies)
            self.model.ir_version = max(self.model.ir_version, 4)

    def _name_nodes(self) -> None:
        seen: set[str] = set()
        for index, node in enumerate(self.nodes):
            if not node.name or node.name in seen:
                node.name = self.unique(node.name or f"{node.op_type}_{index}")
            seen.add(node.name)

    def _register(self, node: onnx.NodeProto) -> None:
        self.producer.update({name: node for name in node.output if name})
        for name in dict.fromkeys(node.input):
            if name:
                self.consumers.setdefault(name, []).append(node)

    @property
    def opset(self) -> int:
        """The version of the default operator set."""
        return next(entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx"))

    def unique(self, name: str) -> str:
        """Return `name`, or it with a number, such that no tensor or node has it; and reserve it."""
        fresh, number = name, 1
        while fresh in self._names:
            fresh, number = f"{name}_{number}", number + 1
        self._names.add(fresh)
        return fresh

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """Return the nodes that read a tensor, those of the graphs around this one among them."""
        outside = [] if self.owner is None else self.owner[0].readers(name)
        return [*self.consumers.get(name, []), *outside]

    def places(self, name: str) -> int:
        """Return how many nodes read a tensor, in this graph or, where it may be seen from elsewhere, in the whole model."""
        if name not in self.pinned:
            return len(self.consumers.get(name, []))
        whole = self
        while whole.owner is not None:
            whole = whole.owner[0]
        return sum(name in node.input for node in every_node(whole.proto))

    def is_constant(self, name: str) -> bool:
        """Whether `array` has a value for that name; unlike it, copies nothing."""
        if name in self.initializers:
            return True
        node = self.producer.get(name)
        return node is not None and node.op_type == "Constant" and self.array(name) is not None

    def array(self, name: str) -> np.ndarray | None:
        """Return a copy of the constant of that name (an initializer, or the output of a Constant node), or None."""
        if name in self.initializers:
            return np.array(numpy_helper.to_array(self.initializers[name]))
        node = self.producer.get(name)
        return None if node is None or node.op_type != "Constant" else _constant(node)

    def lift_constants(self) -> list[str]:
        """Turn Constant nodes into initializers of the same name; return the names of the nodes that went."""
        lifted = []
        for node in [node for node in self.nodes if node.op_type == "Constant"]:
            array, name = _constant(node), node.output[0]
            # What subgraphs read may well be an initializer; a graph output may not.
            if array is not None and name not in self.outputs:
                self.remove_node(node)
                self.put_constant(name, array)
                lifted.append(node.name)
        return lifted

    def add_initializer(self, name: str, array: np.ndarray) -> str:
        """Add a constant under a unique name derived from `name`; return the name it got."""
        fresh = self.unique(name)
        self.put_constant(fresh, array)
        return fresh

    def put_constant(self, name: str, array: np.ndarray) -> None:
        """Add a constant under this very name, which no node may write any more."""
        # asarray with order keeps a scalar a scalar, where ascontiguousarray makes it a vector of one.
        self.proto.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        self.initializers[name] = self.proto.initializer[-1]

    def give_constant(self, node: onnx.NodeProto, index: int, array: np.ndarray) -> str:
        """Give input `index` of one node new constant values, leaving other readers of the old ones alone.

        Returns the name of the constant: the old one where the node was its only reader, else a new one.
        """
        old = node.input[index]
        places = sum(list(reader.input).count(old) for reader in self.consumers.get(old, []))
        if places == 1 and old not in self.pinned:
            self.replace_initializer(old, array)
            return old
        fresh = self.add_initializer(old, array)
        self.set_input(node, index, fresh)
        return fresh

    def set_input(self, node: onnx.NodeProto, index: int, name: str) -> None:
        """Make one input of one node read another tensor; `index` may be one past the last input."""
        old = node.input[index] if index < len(node.input) else ""
        if index < len(node.input):
            node.input[index] = name
        else:
            node.input.append(name)
        if old and old not in node.input:
            self.consumers[old] = [other for other in self.consumers.get(old, []) if other is not node]
        readers = self.consumers.setdefault(name, [])
        if not any(other is node for other in readers):
            readers.append(node)

    def rename_output(self, node: onnx.NodeProto, old: str, new: str) -> None:
        """Make a node write `new` instead of `old`; the readers of `old` follow, whoever pins it does not."""
        node.output[list(node.output).index(old)] = new
        self._names.add(new)
        del self.producer[old]
        self.producer[new] = node
        self.rewire(old, new)

    def replace_initializer(self, name: str, array: np.ndarray) -> None:
        """Give a constant new values, for all its consumers (a Constant node's output included)."""
        if name in self.initializers:
            self.initializers[name].CopyFrom(numpy_helper.from_array(np.asarray(array, order="C"), name))
            return
        node = self.producer[name]
        del node.attribute[:]
        node.attribute.append(
            onnx.helper.make_attribute("value", numpy_helper.from_array(np.asarray(array, order="C")))
        )

    def add_node(
        self, op_type: str, inputs: list[str], outputs: list[str], name: str, domain: str = "", **attributes: Any
    ) -> onnx.NodeProto:
        """Append a node with a unique name; `finish` puts it where it belongs."""
        node = onnx.helper.make_node(op_type, inputs, outputs, name=self.unique(name), domain=domain, **attributes)
        self.proto.node.append(node)
        added = self.proto.node[-1]
        self.nodes.append(added)
        self._register(added)
        return added

    def bypass(self, node: onnx.NodeProto) -> str | None:
        """Remove a node that hands its first input on unchanged.

        Returns None, or the reason why the node must stay: the names on both sides of it are fixed.
        """
        before, after = node.input[0], node.output[0]
        if after not in self.outputs:
            self.rewire(after, before)
            self._rewire_bodies(after, before)
            self.remove_node(node)
            return None
        source = self.producer.get(before)
        if source is None or before in self.pinned:
            return f"it gives {before!r} the name {after!r}, and both names are fixed"
        self.remove_node(node)
        self.rename_output(source, before, after)
        return None

    def _rewire_bodies(self, old: str, new: str) -> None:
        """Make bodies that read `old` from outside read `new`; no name inside a body is one of these."""
        if old in self.pinned:
            for inner in (one for node in self.nodes for body in subgraphs(node) for one in every_node(body)):
                for index, name in enumerate(inner.input):
                    if name == old:
                        inner.input[index] = new
            self.pinned.discard(old)
            self.pinned.add(new)

    def remove_node(self, node: onnx.NodeProto) -> None:
        """Remove a node; its outputs must have no consumer left."""
        for name in set(node.input):
            self.consumers[name] = [other for other in self.consumers.get(name, []) if other is not node]
        for name in node.output:
            self.producer.pop(name, None)
        self.nodes = [other for other in self.nodes if other is not node]
        place = next(index for index, other in enumerate(self.proto.node) if other is node)
        del self.proto.node[place]

    def rewire(self, old: str, new: str, only: Iterable[onnx.NodeProto] | None = None) -> None:
        """Make consumers of tensor `old` (all, or those given) read `new` instead. Graph outputs are not renamed."""
        for node in list(self.consumers.get(old, []) if only is None else only):
            for index, name in enumerate(node.input):
                if name == old:
                    self.set_input(node, index, new)

    def finish(self) -> onnx.ModelProto:
        """Drop unused constants, sort nodes topologically, and return the model.

        Sorting keeps the given order where it can, so that a diff of two files stays readable.
        """
        self.pinned = set(self.outputs) | _captured(self.proto.node)
        used = {name for node in self.proto.node for name in node.input} | self.pinned
        for index in reversed(range(len(self.proto.initializer))):
            if self.proto.initializer[index].name not in used:
                del self.proto.initializer[index]
        self.initializers = {tensor.name: tensor for tensor in self.proto.initializer}
        ordered = _sorted(list(self.proto.node))
        del self.proto.node[:]
        self.proto.node.extend(ordered)
        self.refresh()
        return self.model


def label(node: onnx.NodeProto) -> str:
    """Return a node's name, or what tells it apart where it has none."""
    return node.name or f"{node.op_type} -> {node.output[0]}"


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of an attribute, or `default` where the node has none of that name."""
    found = next((item for item in node.attribute if item.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Return the graphs inside a node: branches of If, bodies of Loop and Scan."""
    single = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return single + [graph for attribute in node.attribute for graph in attribute.graphs]


def captured(body: onnx.GraphProto) -> list[str]:
    """Return what a body reads from outside, in the order of its nodes, each once."""
    found: dict[str, None] = {}
    for node in body.node:
        found.update(dict.fromkeys(name for name in node.input if name))
        for inner in subgraphs(node):
            found.update(dict.fromkeys(captured(inner)))
    found.update(dict.fromkeys(value.name for value in body.output))
    own = {item.name for items in (body.input, body.initializer) for item in items}
    own.update(name for node in body.node for name in node.output)
    return [name for name in found if name not in own]


def _names_in(graph: onnx.GraphProto) -> set[str]:
    """Names of all tensors and nodes of a graph and of those inside its nodes."""
    found: set[str] = set()
    for level in graphs(graph):
        found.update(name for node in level.node for name in (node.name, *node.input, *node.output) if name)
        found.update(item.name for items in (level.initializer, level.input, level.output) for item in items)
    return found


def _captured(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Return what the bodies of nodes read from outside."""
    return {name for node in nodes for body in subgraphs(node) for name in captured(body)}


def _constant(node: onnx.NodeProto) -> np.ndarray | None:
    """Return the value of a Constant node, or None where it is sparse or text."""
    attribute = next((item for item in node.attribute if item.name.startswith("value")), None)
    if attribute is None or "string" in attribute.name:
        return None
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return np.array(numpy_helper.to_array(value))
    return np.array(value, np.float32 if "float" in attribute.name else np.int64)


def _sorted(nodes: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    producer = {name: index for index, node in enumerate(copies) for name in node.output if name}
    done: set[int] = set()
    ordered: list[onnx.NodeProto] = []
    for start in range(len(copies)):
        stack = [start]
        while stack:
            index = stack[-1]
            reads = set(copies[index].input) | _captured([copies[index]])
            waiting = [producer[name] for name in reads if name in producer and producer[name] not in done]
            waiting = [other for other in sorted(waiting) if other != index]
            if index in done:
                stack.pop()
            elif waiting:
                stack.extend(reversed(waiting))
            else:
                done.add(index)
                ordered.append(copies[index])
                stack.pop()
    return ordered
