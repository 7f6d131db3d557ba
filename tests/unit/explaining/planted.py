"""Q/DQ files written by hand, pair by pair, so that what is wrong with them is known by construction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper
from small_nets import copied, run

# 7 bits, so that no CPU's kernels saturate where saturation is not what is planted.
_LARGEST_CODE = 64
_LARGEST_FLOAT8 = 448


@dataclass(frozen=True)
class Pairs:
    """Which activations get a pair.

    Attributes:
        tensors: names.
        signed: those with codes on both sides of zero; the others are not negative.
        scales: instead of what the values need.
        readers: tensor -> the only nodes that read it behind its pair; the others keep the float.
        per_channel: of weights.
        unweighted: nodes whose weight stays in floating point.
        float8: e4m3 instead of INT8.
    """

    tensors: Sequence[str]
    scales: Mapping[str, float] = field(default_factory=dict)
    readers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    per_channel: bool = True
    unweighted: Sequence[str] = ()
    float8: bool = False


def quantized(parent: onnx.ModelProto, feeds: dict[str, np.ndarray], pairs: Pairs) -> onnx.ModelProto:
    """Return a copy with these pairs, with scales from the values that the feeds give."""
    model = copied(parent)
    seen = _values(parent, feeds, pairs.tensors)
    if pairs.float8:
        model.opset_import[
            0
        ].version = 19  # the first with float8; nothing else in these nets means another thing there
    for name in pairs.tensors:
        low, high = float(seen[name].min()), float(seen[name].max())
        if pairs.float8:
            scale, zero = max(-low, high) / _LARGEST_FLOAT8, np.zeros((), ml_dtypes.float8_e4m3fn)
        else:
            scale = (2 * max(-low, high) if low < 0 else high) / 255
            zero = np.array(128 if low < 0 else 0, np.uint8)
        _put_pair(model, name, pairs.scales.get(name) or scale, zero, pairs.readers.get(name))
    for node in list(model.graph.node):
        if node.op_type in ("Conv", "Gemm", "MatMul", "ConvTranspose") and node.name not in pairs.unweighted:
            _put_weight(model, node, pairs)
    onnx.checker.check_model(model, full_check=True)
    return model


def save(folder: Path, name: str, model: onnx.ModelProto) -> Path:
    path = folder / f"{name}.onnx"
    onnx.save(model, str(path))
    return path


def _values(parent: onnx.ModelProto, feeds: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    exposed = copied(parent)
    held = {value.name for value in exposed.graph.output} | set(feeds)
    exposed.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in held
    )
    return {**feeds, **run(exposed, feeds)}


def _put_pair(
    model: onnx.ModelProto, tensor: str, scale: float, zero: np.ndarray, readers: Sequence[str] | None
) -> None:
    graph = model.graph
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name == tensor and (readers is None or node.name in readers):
                node.input[place] = f"{tensor}_dq"
    constants = [f"{tensor}_scale", f"{tensor}_zero"]
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.float32(scale), constants[0]),
            numpy_helper.from_array(zero, constants[1]),
        ]
    )
    place = next((index for index, node in enumerate(graph.node) if tensor in node.output), -1) + 1
    pair = [
        helper.make_node("QuantizeLinear", [tensor, *constants], [f"{tensor}_q"], f"{tensor}_Q"),
        helper.make_node("DequantizeLinear", [f"{tensor}_q", *constants], [f"{tensor}_dq"], f"{tensor}_DQ"),
    ]
    for offset, node in enumerate(pair):
        graph.node.insert(place + offset, node)


def _put_weight(model: onnx.ModelProto, node: onnx.NodeProto, pairs: Pairs) -> None:
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    name = node.input[1]
    if name not in held:
        return
    array = numpy_helper.to_array(held[name])
    axis = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}[node.op_type]
    others = tuple(place for place in range(array.ndim) if place != axis)
    largest = _LARGEST_FLOAT8 if pairs.float8 else _LARGEST_CODE
    scale = (np.abs(array).max(axis=others if pairs.per_channel else None) / largest).astype(np.float32)
    shape = [1] * array.ndim
    if pairs.per_channel:
        shape[axis] = -1
    scaled = np.clip(array / scale.reshape(shape), -largest, largest)
    codes = scaled.astype(ml_dtypes.float8_e4m3fn) if pairs.float8 else np.rint(scaled).astype(np.int8)
    constants = [f"{name}_codes", f"{name}_scale", f"{name}_zero"]
    for label, value in zip(constants, (codes, scale, np.zeros(scale.shape, codes.dtype)), strict=True):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), label))
    extra = {"axis": axis} if pairs.per_channel else {}
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", constants, [f"{name}_dq"], f"{name}_DQ", **extra))
    node.input[1] = f"{name}_dq"
