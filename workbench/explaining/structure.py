"""What a quantized file asks for, node by node, read off its dataflow and never off its names.

Knows ONNX graphs; runs nothing and knows no engine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx

from workbench.explaining.evidence import NodeFact
from workbench.graph.cost import MULTIPLIES
from workbench.graph.editing import FLOAT_TYPES
from workbench.graph.tensor_types import tensor_types

_JOINS = ("Add", "Sub", "Mul", "Sum", "Max", "Min")
# They hand on what they get; codes pass through them in every engine.
_COPIES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Transpose")
# What an integer kernel does to its result before it writes codes, and copies.
_HANDED_ON = ("Relu", "Clip", *_COPIES)
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# Integer kernels as ONNX Runtime's own quantizer writes them.
_INTEGER = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul")


def precision_of(file: onnx.ModelProto) -> str:
    """Return the type that a file asks for: `int8`, `fp8`, `bf16`, `fp16` or `fp32`."""
    operators = Counter(node.op_type for node in file.graph.node)
    elements = tensor_types(file).elements
    if any(operators[name] for name in _INTEGER):
        return "int8"
    graph = _Dataflow(file)
    if any(graph.is_activation_pair(node) for node in file.graph.node):
        zeros = {
            elements.get(node.input[2]) for node in file.graph.node if node.op_type == _QUANTIZE and len(node.input) > 2
        }
        return "fp8" if onnx.TensorProto.FLOAT8E4M3FN in zeros else "int8"
    made = Counter(elements.get(name) for node in file.graph.node for name in node.output)
    for element, name in ((onnx.TensorProto.FLOAT16, "fp16"), (onnx.TensorProto.BFLOAT16, "bf16")):
        if made[element] > made[onnx.TensorProto.FLOAT]:
            return name
    return "fp32"


def facts_of(file: onnx.ModelProto) -> tuple[NodeFact, ...]:
    """Return what the file says of every node that is neither QuantizeLinear nor DequantizeLinear."""
    graph = _Dataflow(file)
    return tuple(graph.fact(node) for node in file.graph.node if node.op_type not in (_QUANTIZE, _DEQUANTIZE))


class _Dataflow:
    def __init__(self, file: onnx.ModelProto) -> None:
        self.producer = {name: node for node in file.graph.node for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in file.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in file.graph.output}
        self.constants = {tensor.name: tensor for tensor in file.graph.initializer}
        self.elements = tensor_types(file).elements

    def fact(self, node: onnx.NodeProto) -> NodeFact:
        asked = self._asked(node)
        floats = self._float_readers(node) if asked else ()
        obstacle = ""
        if asked and any(name in self.outputs for name in self._results(node)):
            obstacle = "its result is an output of the model, in floating point"
        elif floats:
            obstacle = f"its result is read in floating point, by {floats[-1]}"
        data = list(self._data(node))
        low = [self.is_dequantized(name) for name in data]
        mixed = node.op_type in _JOINS and len(data) > 1 and any(low) and not all(low)
        scales: tuple[float, ...] = ()
        if node.op_type == "Concat" and all(low) and len(data) > 1:
            scales = (*(self._scale(self.producer[name]) for name in data), self._written_scale(node.output[0]))
        behind = self._behind_pair_of(node, data)
        signed = asked and any(self._is_signed(self.producer[name]) for name in data)
        return NodeFact(node.name, node.op_type, asked, obstacle, floats, signed, mixed, behind, scales)

    def is_activation_pair(self, node: onnx.NodeProto) -> bool:
        """Whether a node dequantizes codes that were made at run time."""
        return node.op_type == _DEQUANTIZE and node.input[0] in self.producer

    def is_dequantized(self, name: str) -> bool:
        node = self.producer.get(name)
        return node is not None and node.op_type == _DEQUANTIZE

    def _data(self, node: onnx.NodeProto) -> Iterator[str]:
        """The floating-point inputs that are no constants; a dequantized constant is one."""
        for name in node.input:
            if not name or name in self.constants or self.elements.get(name, onnx.TensorProto.FLOAT) not in FLOAT_TYPES:
                continue
            source = self.producer.get(name)
            if source is not None and source.op_type == _DEQUANTIZE and source.input[0] in self.constants:
                continue
            if source is None or source.op_type != "Constant":
                yield name

    def _asked(self, node: onnx.NodeProto) -> bool:
        data = list(self._data(node))
        multiplies = node.op_type in MULTIPLIES
        if not data or not all(self.is_dequantized(name) for name in data):
            return False
        if multiplies:  # asked for whatever becomes of its result; anything else only between codes
            return all(self.is_dequantized(name) for name in node.input[1:2])
        return all(
            any(reader.op_type == _QUANTIZE for reader in self.readers.get(name, ())) for name in node.output if name
        )

    def _results(self, node: onnx.NodeProto) -> list[str]:
        """What a product's result is called until it is quantized: integer kernels round and clip on the way."""
        found = [name for name in node.output if name]
        for name in found:
            found += [
                out for reader in self.readers.get(name, ()) if reader.op_type in _HANDED_ON for out in reader.output
            ]
        return found

    def _float_readers(self, node: onnx.NodeProto) -> tuple[str, ...]:
        """Return who reads a result in floating point; an activation all of whose readers quantize is no such reader."""
        found = []
        for name in self._results(node):
            for reader in self.readers.get(name, ()):
                if reader.op_type == _QUANTIZE:
                    continue
                handed = reader.op_type in _HANDED_ON and any(self.readers.get(out) for out in reader.output)
                if not handed:
                    found.append(reader.name or reader.op_type)
        return tuple(dict.fromkeys(found))

    def _behind_pair_of(self, node: onnx.NodeProto, data: list[str]) -> str:
        """Follow one dequantized input back over its pair to what multiplies; copies on the way do not count."""
        if node.op_type in MULTIPLIES or len(data) != 1 or not self.is_dequantized(data[0]):
            return ""
        coder = self.producer.get(self.producer[data[0]].input[0])
        if coder is None or coder.op_type != _QUANTIZE:
            return ""
        source = self.producer.get(coder.input[0])
        while source is not None and source.op_type in _COPIES:
            source = self.producer.get(source.input[0])
        return source.name if source is not None and source.op_type in MULTIPLIES else ""

    def _is_signed(self, node: onnx.NodeProto) -> bool:
        tensor = self.constants.get(node.input[2]) if len(node.input) > 2 else None
        return tensor is not None and tensor.data_type == onnx.TensorProto.INT8

    def _written_scale(self, name: str) -> float:
        coder = next((node for node in self.readers.get(name, ()) if node.op_type == _QUANTIZE), None)
        return 0.0 if coder is None else self._scale(coder)

    def _scale(self, node: onnx.NodeProto) -> float:
        """Return the scale of a Q or DQ node; the largest where it has several, 0 where it is computed at run time."""
        tensor = self.constants.get(node.input[1])
        return 0.0 if tensor is None else float(np.max(onnx.numpy_helper.to_array(tensor)))
