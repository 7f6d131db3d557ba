"""Change the element type of most FP32 tensors of a graph, with as few Cast nodes as that takes.

Which nodes stay in FP32 is decided elsewhere (`workbench.graph.fp32_rules`); graph inputs and outputs, and what
subgraphs read, keep their type.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx

from workbench.graph.editing import Graph, attribute
from workbench.graph.fp32_rules import FLOAT, MOVING, accepts, schema_of, touches_fp32
from workbench.graph.tensor_types import TensorTypes

BFLOAT16 = onnx.TensorProto.BFLOAT16
_NUMPY: dict[int, np.dtype] = {onnx.TensorProto.FLOAT16: np.dtype(np.float16), BFLOAT16: np.dtype(ml_dtypes.bfloat16)}
# Their results need no rounding where their inputs are rounded. A DequantizeLinear is part of an integer kernel.
_EXACT = MOVING | {"Abs", "DequantizeLinear", "GlobalMaxPool", "Max", "MaxPool", "Min", "Neg", "Relu", "Where"}
_LABEL: dict[int, str] = {onnx.TensorProto.FLOAT16: "fp16", BFLOAT16: "bf16", FLOAT: "fp32"}


@dataclass
class Conversion:
    """What `convert` did.

    Attributes:
        changed: names of the nodes that compute in the new type now.
        elements: of the tensors that have it: name -> element type, where it differs from before.
        constants: how many elements of constants were rounded.
        underflowed: how many of them are not zero but below the smallest normal number of the new type.
        overflowed: how many lay beyond its largest and were set to that.
    """

    changed: list[str]
    elements: dict[str, int]
    constants: int = 0
    underflowed: int = 0
    overflowed: int = 0


def convert(graph: Graph, types: TensorTypes, kept: Container[str], target: int) -> Conversion:
    """Give every node not in `kept` tensors of the type `target` where it has FP32 ones, and cast in between.

    Args:
        graph: changed in place; call `finish` afterwards.
        types: of its tensors now.
        kept: names of nodes that keep FP32 tensors.
        target: `FLOAT16` or `BFLOAT16`.
    """
    lowered = [node for node in graph.nodes if node.name not in kept and touches_fp32(node, types)]
    done = Conversion([node.name for node in lowered], {})
    caster = _Caster(graph, types, target, done)
    names = {node.name for node in lowered}
    own = {node.name for node in graph.nodes if node.op_type == "Cast"}
    for node in lowered:
        caster.lower_outputs(node)
    for node in list(graph.nodes):
        if node.op_type == "Cast":
            continue  # reads any type
        for index, name in enumerate(list(node.input)):
            caster.fit_input(node, index, name, node.name in names)
    _remove_idle_casts(graph, done, types, own)
    for value in graph.proto.value_info:
        if value.name in done.elements:
            value.type.tensor_type.elem_type = done.elements[value.name]
    return done


class _Caster:
    def __init__(self, graph: Graph, types: TensorTypes, target: int, done: Conversion) -> None:
        self.graph, self.target, self.done = graph, target, done
        self.before = types.elements
        self.copies: dict[tuple[str, int], str] = {}

    def type_of(self, name: str) -> int | None:
        return self.done.elements.get(name, self.before.get(name))

    def lower_outputs(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Cast":
            if attribute(node, "to") != FLOAT:
                return
            next(item for item in node.attribute if item.name == "to").i = self.target
        for name in [name for name in node.output if self.before.get(name) == FLOAT]:
            if name not in self.graph.pinned:
                self.done.elements[name] = self.target
                continue
            low = self.graph.unique(f"{name}_{_LABEL[self.target]}")
            self.graph.rename_output(node, name, low)
            self.done.elements[low] = self.target
            self.graph.add_node("Cast", [low], [name], f"{name}/to_fp32", to=FLOAT)
            self.copies[low, FLOAT] = name

    def fit_input(self, node: onnx.NodeProto, index: int, name: str, lowered: bool) -> None:
        have = self.type_of(name)
        if have not in (FLOAT, self.target) or (have == self.target and self.before.get(name) == self.target):
            return
        want: int = FLOAT
        if lowered:
            schema = schema_of(node, max(self.graph.opset, 22) if self.target == BFLOAT16 else self.graph.opset)
            want = self.target if schema is None or accepts(schema, index, self.target) else FLOAT
        if want != have:
            self.graph.set_input(node, index, self.copy(name, want))

    def copy(self, name: str, want: int) -> str:
        if (name, want) not in self.copies:
            array = self.graph.array(name)
            if array is not None and want == self.target:
                made = self.graph.add_initializer(f"{name}_{_LABEL[want]}", self.rounded(array))
            else:
                made = self.graph.unique(f"{name}_{_LABEL[want]}")
                self.graph.add_node("Cast", [name], [made], f"{name}/to_{_LABEL[want]}", to=want)
            self.done.elements[made] = want
            self.copies[name, want] = made
        return self.copies[name, want]

    def rounded(self, array: np.ndarray) -> np.ndarray:
        info = ml_dtypes.finfo(_NUMPY[self.target])
        largest, smallest = np.float32(info.max), np.float32(info.smallest_normal)
        size = np.abs(array)
        self.done.constants += array.size
        self.done.underflowed += int(((size > 0) & (size < smallest)).sum())
        beyond = np.isfinite(array) & (size > largest)
        self.done.overflowed += int(beyond.sum())
        return np.where(beyond, np.copysign(largest, array), array).astype(_NUMPY[self.target])


def _remove_idle_casts(graph: Graph, done: Conversion, types: TensorTypes, own: Container[str]) -> None:
    """Take out casts to the type a tensor has already, pairs that lead back to it, and casts nobody reads.

    A pair that the model had itself is left: rounding may be what it is for.
    """
    for node in [node for node in graph.nodes if node.op_type == "Cast" and node.output[0] not in graph.pinned]:
        source, to = node.input[0], attribute(node, "to")
        first = graph.producer.get(source)
        ours = node.name not in own or (first is not None and first.name not in own)
        if first is not None and first.op_type == "Cast" and ours and attribute(first, "to") in _LABEL:
            source = first.input[0]
        for tensor in dict.fromkeys((node.input[0], source)):
            if done.elements.get(tensor, types.elements.get(tensor)) == to:
                graph.rewire(node.output[0], tensor)
    for node in reversed([node for node in graph.nodes if node.op_type == "Cast"]):
        if not graph.consumers.get(node.output[0]) and node.output[0] not in graph.pinned:
            graph.remove_node(node)


def rehearse(graph: Graph, done: Conversion, target: int) -> None:
    """Turn a converted graph back into one of FP32 arithmetic whose values are rounded as the conversion would.

    Every tensor that got the low type is FP32 again and passes through a pair of casts after the node that computes
    it; constants are rounded once. Sums inside a node are FP32, as they are on tensor cores.
    """
    low = {name for name, kind in done.elements.items() if kind == target}
    for name in sorted(low & graph.initializers.keys()):
        graph.replace_initializer(name, np.asarray(graph.array(name)).astype(np.float32))
    for node in list(graph.nodes):
        for name in [name for name in node.output if name in low and node.op_type not in _EXACT]:
            _round_output(graph, node, name, target)
    for node in [node for node in graph.nodes if node.op_type == "Cast"]:
        if node.input[0] in low and attribute(node, "to") == FLOAT:
            graph.bypass(node)
    for value in graph.proto.value_info:
        if value.name in low:
            value.type.tensor_type.elem_type = FLOAT


def _round_output(graph: Graph, node: onnx.NodeProto, name: str, target: int) -> None:
    """Make the node write under another name, and round from there to `name`."""
    label = _LABEL[target]
    written = graph.unique(f"{name}_{label}" if node.op_type == "Cast" else f"{name}_exact")
    node.output[list(node.output).index(name)] = written
    graph.producer[written] = node
    if node.op_type != "Cast":
        short = graph.unique(f"{name}_{label}")
        graph.add_node("Cast", [written], [short], f"{name}/round_to_{label}", to=target)
        written = short
    graph.add_node("Cast", [written], [name], f"{name}/back_to_fp32", to=FLOAT)
