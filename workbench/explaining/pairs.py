"""Q/DQ pairs of a file by what they quantize, and the file without some of them. Edits copies; runs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from workbench.graph.cost import MULTIPLIES

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)


@dataclass(frozen=True)
class Grid:
    """The numbers that 8 bits can be, in units of the scale: whole ones, or those of float8 (e4m3).

    Attributes:
        low, high: the smallest and the largest.
    """

    low: float
    high: float
    float8: bool = False

    def nearest(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the number of the grid that each value becomes."""
        inside = np.clip(values, self.low, self.high)
        return inside.astype(_FLOAT8).astype(np.float64) if self.float8 else np.rint(inside)

    def levels(self, magnitude: float) -> float:
        """Return how many numbers of the grid lie between zero and a magnitude: those of float8 are dense near zero."""
        if not self.float8:
            return magnitude
        return float(np.array(min(magnitude, self.high)).astype(_FLOAT8).view(np.uint8))

    def beyond(self, values: NDArray[np.float64]) -> int:
        """Count the values that are cut off, and not only rounded."""
        # Half a step beyond the last code is rounding still; the last step of float8 is 32.
        half = 16.0 if self.float8 else 0.5
        return int(np.count_nonzero((values < self.low - half) | (values > self.high + half)))


@dataclass(frozen=True)
class Pair:
    """How one activation is quantized.

    Attributes:
        grid: what its values become, in units of the scale.
        dequantized: the tensors that its codes become again.
        readers: nodes that read those.
        producer: the multiplying node whose result it is, over an activation; empty where there is none.
    """

    tensor: str
    scale: float
    grid: Grid
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
        restored = [one for one in file.graph.node if one.op_type == _DEQUANTIZE and one.input[0] == node.output[0]]
        outputs = tuple(one.output[0] for one in restored)
        readers = tuple(one.name for one in file.graph.node if set(one.input) & set(outputs))
        product = _product_behind(file, node.input[0])
        found.append(Pair(node.input[0], float(scale.item()), _grid(zero), outputs, readers, product))
    return tuple(found)


def _product_behind(file: onnx.ModelProto, tensor: str) -> str:
    producer = {name: node for node in file.graph.node for name in node.output}
    node = producer.get(tensor)
    while node is not None and node.op_type in ("Relu", "Clip"):
        node = producer.get(node.input[0])
    return node.name if node is not None and node.op_type in MULTIPLIES else ""


@dataclass(frozen=True)
class Weight:
    """A quantized constant.

    Attributes:
        name: in the parent.
        reader: the node that multiplies it.
        before, after: its values.
        unrounded: its values in units of its scales.
    """

    name: str
    reader: str
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    unrounded: NDArray[np.float64]
    grid: Grid


def dequantized_weights(file: onnx.ModelProto, parent: onnx.ModelProto) -> Iterator[Weight]:
    """Yield the quantized constants that nodes of both graphs read."""
    for node, place, name in _constant_inputs(file, parent):
        want = _array(parent, name)
        found = _weight_codes(file, node.input[place])
        if want is None or found is None or found[0].shape != want.shape:
            continue
        codes, scale, grid = found
        yield Weight(name, node.name, want, codes * scale, want / scale, grid)


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


def _weight_codes(file: onnx.ModelProto, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64], Grid] | None:
    """Return the codes of a dequantized constant and its scales, shaped to multiply; None where they are not static."""
    producer = {output: node for node in file.graph.node for output in node.output}
    node = producer[name]
    constants = {tensor.name: tensor for tensor in file.graph.initializer}
    place = node.input[2] if len(node.input) > 2 else ""
    scale, zero = _array(file, node.input[1]), _array(file, place) if place else np.zeros(())
    # -128 is left out of symmetric codes.
    grid = Grid(-448.0, 448.0, True) if _is_float8(constants.get(place)) else Grid(-127.0, 127.0)
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
        return grid.nearest(stored / scale), scale, grid
    scale, zero = _along(scale, axis, stored.ndim), _along(zero, axis, stored.ndim)
    return stored - zero, scale, grid


def _along(values: NDArray[np.float64], axis: int, rank: int) -> NDArray[np.float64]:
    if values.ndim != 1 or values.size == 1:
        return values.reshape(()) if values.size == 1 else values
    shape = [1] * rank
    shape[axis] = -1
    return values.reshape(shape)


def _grid(zero: onnx.TensorProto | None) -> Grid:
    """Return what the codes around a zero point stand for."""
    if zero is None:
        return Grid(0.0, 255.0)
    if _is_float8(zero):
        return Grid(-448.0, 448.0, True)
    array = onnx.numpy_helper.to_array(zero)
    info, middle = np.iinfo(array.dtype), float(array.reshape(-1)[0])
    return Grid(info.min - middle, info.max - middle)


def _is_float8(zero: onnx.TensorProto | None) -> bool:
    return zero is not None and zero.data_type == onnx.TensorProto.FLOAT8E4M3FN


def _array(model: onnx.ModelProto, name: str) -> NDArray[np.float64] | None:
    found = next((tensor for tensor in model.graph.initializer if tensor.name == name), None)
    return None if found is None else np.asarray(onnx.numpy_helper.to_array(found), np.float64)
