"""Q/DQ pairs of a file by what they quantize, and the file without some of them. Edits copies; runs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from workbench.graph.cost import MULTIPLIES

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


@dataclass(frozen=True)
class Pair:
    """How one activation is quantized.

    Attributes:
        low, high: smallest and largest value of the codes.
        dequantized: the tensors that its codes become again.
        readers: nodes that read those.
        producer: the multiplying node whose result it is, over an activation; empty where there is none.
    """

    tensor: str
    scale: float
    low: float
    high: float
    dequantized: tuple[str, ...]
    readers: tuple[str, ...]
    producer: str = ""


def activation_pairs(file: onnx.ModelProto) -> tuple[Pair, ...]:
    """Return the pairs with one static scale on tensors that are made at run time, in the order of the file."""
    constants = {tensor.name: tensor for tensor in file.graph.initializer}
    found = []
    for node in file.graph.node:
        if node.op_type != _QUANTIZE or node.input[0] in constants or node.input[1] not in constants:
            continue
        scale = onnx.numpy_helper.to_array(constants[node.input[1]]).astype(np.float64)
        zero = constants.get(node.input[2]) if len(node.input) > 2 else None
        if scale.size != 1 or not scale.item():
            continue
        low, high, middle = _codes(zero)
        restored = [one for one in file.graph.node if one.op_type == _DEQUANTIZE and one.input[0] == node.output[0]]
        outputs = tuple(one.output[0] for one in restored)
        readers = tuple(one.name for one in file.graph.node if set(one.input) & set(outputs))
        size = float(scale.item())
        limits = ((low - middle) * size, (high - middle) * size)
        found.append(Pair(node.input[0], size, *limits, outputs, readers, _product_behind(file, node.input[0])))
    return tuple(found)


def _product_behind(file: onnx.ModelProto, tensor: str) -> str:
    producer = {name: node for node in file.graph.node for name in node.output}
    node = producer.get(tensor)
    while node is not None and node.op_type in ("Relu", "Clip"):
        node = producer.get(node.input[0])
    return node.name if node is not None and node.op_type in MULTIPLIES else ""


def dequantized_weights(
    file: onnx.ModelProto, parent: onnx.ModelProto
) -> Iterator[tuple[str, str, NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]:
    """Yield (weight's name in the parent, node, as it was, as it became, codes before rounding) of quantized constants."""
    for node, place, name in _constant_inputs(file, parent):
        want = _array(parent, name)
        codes = _weight_codes(file, node.input[place])
        if want is None or codes is None or codes[0].shape != want.shape:
            continue
        yield name, node.name, want, codes[0] * codes[1], want / codes[1]


def without(file: onnx.ModelProto, parent: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """Return a copy in which these tensors are not quantized: activations by name, weights by their name in the parent."""
    result = onnx.ModelProto()
    result.CopyFrom(file)
    past = {
        output: pair.tensor for pair in activation_pairs(file) if pair.tensor in names for output in pair.dequantized
    }
    for node in result.graph.node:
        for place, name in enumerate(node.input):
            if name in past:
                node.input[place] = past[name]
    for value in result.graph.output:
        if value.name in past:  # an output keeps its name
            result.graph.node.append(onnx.helper.make_node("Identity", [past[value.name]], [value.name + "_kept"]))
            _rename_output(result, value.name)
    places = {(node.name, place): name for node, place, name in _constant_inputs(file, parent) if name in names}
    held = {tensor.name for tensor in result.graph.initializer}
    for node in result.graph.node:
        for place in range(len(node.input)):
            if (name := places.get((node.name, place))) is not None:
                array = _array(parent, name)
                if array is not None and name not in held:
                    result.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
                    held.add(name)
                node.input[place] = name
    return result


def _rename_output(model: onnx.ModelProto, name: str) -> None:
    """Let the float tensor take an output's name from the dequantized one."""
    for node in model.graph.node:
        for place, output in enumerate(node.output):
            if output == name:
                node.output[place] = f"{name}_was"
    model.graph.node[-1].output[0] = name


def _constant_inputs(file: onnx.ModelProto, parent: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, int, str]]:
    """Yield node, place and the parent's name of the weight that a node of both graphs reads dequantized."""
    producer = {name: node for node in file.graph.node for name in node.output}
    theirs = {node.name: node for node in parent.graph.node}
    constants = {tensor.name for tensor in parent.graph.initializer}
    for node in file.graph.node:
        twin = theirs.get(node.name)
        for place in (0, 1) if twin is not None and twin.op_type == node.op_type else ():
            source = producer.get(node.input[place]) if place < len(node.input) else None
            if source is not None and source.op_type == _DEQUANTIZE and twin.input[place] in constants:  # type: ignore[union-attr]
                yield node, place, twin.input[place]  # type: ignore[union-attr]


def _weight_codes(file: onnx.ModelProto, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return the codes of a dequantized constant and its scales, shaped to multiply; None where they are not static."""
    producer = {output: node for node in file.graph.node for output in node.output}
    node = producer[name]
    scale, zero = _array(file, node.input[1]), _array(file, node.input[2]) if len(node.input) > 2 else np.zeros(())
    axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
    stored = _array(file, node.input[0])
    if scale is None or zero is None:
        return None
    if stored is None:
        coder = producer.get(node.input[0])
        stored = None if coder is None or coder.op_type != _QUANTIZE else _array(file, coder.input[0])
        if stored is None:
            return None
        scale, zero = _along(scale, axis, stored.ndim), _along(zero, axis, stored.ndim)
        return np.clip(np.rint(stored / scale), -127, 127), scale
    scale, zero = _along(scale, axis, stored.ndim), _along(zero, axis, stored.ndim)
    return stored - zero, scale


def _along(values: NDArray[np.float64], axis: int, rank: int) -> NDArray[np.float64]:
    if values.ndim != 1 or values.size == 1:
        return values.reshape(()) if values.size == 1 else values
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def _codes(zero: onnx.TensorProto | None) -> tuple[float, float, float]:
    """Return the smallest code, the largest, and the one of zero."""
    if zero is None:
        return 0.0, 255.0, 0.0
    array = onnx.numpy_helper.to_array(zero)
    info = np.iinfo(array.dtype)
    return float(info.min), float(info.max), float(array.reshape(-1)[0])


def _array(model: onnx.ModelProto, name: str) -> NDArray[np.float64] | None:
    found = next((tensor for tensor in model.graph.initializer if tensor.name == name), None)
    return None if found is None else np.asarray(onnx.numpy_helper.to_array(found), np.float64)
