"""What every graph step gets (`Context`) and works with (`Graph`): one ONNX model and an index over it.

Knows nothing of recipes' meaning, calibration or engines. Subgraphs (If, Loop, Scan) are left untouched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import numpy_helper

if TYPE_CHECKING:
    from workbench.graph.calibration_table import CalibrationTable

FLOAT_TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


@dataclass(frozen=True)
class Context:
    """What a step may need besides the graph and its own config.

    Attributes:
        dialect: `ort-cpu`, `trt-8.6` or `strong`.
        modules: ONNX node name -> PyTorch module path; may be empty.
        table: calibration statistics of the parent model's tensors, or None where nothing was calibrated.
        calibrators: tensor name -> calibrator chosen for it (what `auto` found); overrides the step's own.
        channel_maxima: tensor name -> (channels,) largest |x| along its last axis; what SmoothQuant needs.
    """

    dialect: str = "ort-cpu"
    modules: Mapping[str, str] = field(default_factory=dict)
    table: CalibrationTable | None = None
    calibrators: Mapping[str, str] = field(default_factory=dict)
    channel_maxima: Mapping[str, np.ndarray] = field(default_factory=dict)

    def excluded_by(self, node: onnx.NodeProto, patterns: Iterable[str]) -> str | None:
        """Return the first pattern found in the node's name or module path, or None."""
        labels = (node.name, self.modules.get(node.name, ""))
        return next((pattern for pattern in patterns if any(re.search(pattern, label) for label in labels)), None)


class Graph:
    """An ONNX model that is being edited, with producers, consumers and initializers by tensor name.

    Steps change `model` through the methods below, which keep the index true. Node order is restored by `finish`.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.proto = model.graph
        self.initializers: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in self.proto.initializer}
        self.inputs = [value.name for value in self.proto.input if value.name not in self.initializers]
        self.outputs = [value.name for value in self.proto.output]
        self._names: set[str] = set()
        self.refresh()

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

    def array(self, name: str) -> np.ndarray | None:
        """Return a copy of the constant of that name (an initializer, or the output of a Constant node), or None."""
        if name in self.initializers:
            return np.array(numpy_helper.to_array(self.initializers[name]))
        node = self.producer.get(name)
        if node is not None and node.op_type == "Constant":
            value = next((item for item in node.attribute if item.name == "value"), None)
            return None if value is None else np.array(numpy_helper.to_array(value.t))
        return None

    def add_initializer(self, name: str, array: np.ndarray) -> str:
        """Add a constant under a unique name derived from `name`; return the name it got."""
        fresh = self.unique(name)
        self.proto.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), fresh))
        self.initializers[fresh] = self.proto.initializer[-1]
        return fresh

    def replace_initializer(self, name: str, array: np.ndarray) -> None:
        """Give a constant new values, for all its consumers (a Constant node's output included)."""
        if name in self.initializers:
            self.initializers[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
            return
        value = next(item for item in self.producer[name].attribute if item.name == "value")
        value.t.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array)))

    def add_node(
        self, op_type: str, inputs: list[str], outputs: list[str], name: str, domain: str = "", **attributes: object
    ) -> onnx.NodeProto:
        """Append a node with a unique name; `finish` puts it where it belongs."""
        node = onnx.helper.make_node(op_type, inputs, outputs, name=self.unique(name), domain=domain, **attributes)
        self.proto.node.append(node)
        added = self.proto.node[-1]
        self.nodes.append(added)
        self._register(added)
        return added

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
        chosen = self.consumers.get(old, []) if only is None else list(only)
        for node in chosen:
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new
            if node not in self.consumers.setdefault(new, []):
                self.consumers[new].append(node)
        self.consumers[old] = [node for node in self.consumers.get(old, []) if old in node.input]

    def finish(self) -> onnx.ModelProto:
        """Drop unused constants, sort nodes topologically, and return the model.

        Sorting keeps the given order where it can, so that a diff of two files stays readable.
        """
        used = {name for node in self.proto.node for name in node.input} | set(self.outputs)
        used |= _captured(self.proto.node)
        kept = [tensor for tensor in self.proto.initializer if tensor.name in used]
        if len(kept) != len(self.proto.initializer):
            copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
            del self.proto.initializer[:]
            self.proto.initializer.extend(copies)
        self.initializers = {tensor.name: tensor for tensor in self.proto.initializer}
        ordered = _sorted(list(self.proto.node))
        del self.proto.node[:]
        self.proto.node.extend(ordered)
        self.refresh()
        return self.model


def _captured(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Names that subgraphs read from outside."""
    found: set[str] = set()
    for node in nodes:
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs] if attribute.HasField("g") or attribute.graphs else []:
                found |= {name for inner in graph.node for name in inner.input} | _captured(graph.node)
    return found


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
