"""What the deep learning accelerator (DLA) of an Orin refuses of a graph, by NVIDIA's published restrictions.

The rules are those of the developer guide of TensorRT 8.6 to 10.7 ("DLA Supported Layers and Restrictions"), as far as an ONNX
node can be held against them. What the compiler of the device decides counts: its log names the layers that went to the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx

from workbench.graph.editing import attribute

LARGEST_BATCH, LARGEST_DIMENSION, MOST_LOADABLES = 4096, 8192, 16
Shape = tuple[int, ...] | None
_KERNEL, _PADDING, _STRIDE, _WINDOW, _POOL_STRIDE = 32, 31, 8, 8, 16


@dataclass(frozen=True)
class Refusal:
    """A node that a DLA does not run, and why, in a sentence."""

    node: str
    operator: str
    reason: str


def refusals(graph: onnx.GraphProto, shapes: Mapping[str, Shape]) -> tuple[Refusal, ...]:
    """Return the nodes that run on the GPU instead.

    Args:
        graph: in floating point: a DLA knows no QuantizeLinear, its INT8 comes from a calibration cache.
        shapes: of tensors, static; None or absent where not known.
    """
    constants = {item.name for item in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type == "Constant":
            continue
        reason = _general(node, shapes, constants) or _RULES.get(node.op_type, _unknown)(node, shapes, constants)
        if reason:
            found.append(Refusal(node.name or node.output[0], node.op_type, reason))
    return tuple(found)


def _general(node: onnx.NodeProto, shapes: Mapping[str, Shape], constants: set[str]) -> str:
    for name in [*node.input, *node.output]:
        shape = shapes.get(name)
        if name in constants or not shape:
            continue
        if any(size > LARGEST_DIMENSION for size in shape[1:]):
            return f"{name} has an axis of more than {LARGEST_DIMENSION}."
        if len(shape) == 4 and shape[0] > LARGEST_BATCH:
            return f"{name} has a batch of more than {LARGEST_BATCH}."
    return ""


def _unknown(node: onnx.NodeProto, shapes: Mapping[str, Shape], constants: set[str]) -> str:
    return f"A DLA has no {node.op_type}."


def _free(node: onnx.NodeProto, shapes: Mapping[str, Shape], constants: set[str]) -> str:
    return ""


def _convolution(node: onnx.NodeProto, shapes: Mapping[str, Shape], constants: set[str]) -> str:
    shape = shapes.get(node.input[0])
    if shape is not None and len(shape) != 4:
        return "Only two spatial axes."
    if node.input[1] not in constants:
        return "The weights are computed while it runs."
    weight = shapes.get(node.input[1])
    kernel = attribute(node, "kernel_shape") or (weight[2:] if weight else ())
    pads, strides = attribute(node, "pads", ()), attribute(node, "strides", ())
    if any(size > _KERNEL for size in kernel):
        return f"A kernel of {'x'.join(map(str, kernel))}; at most {_KERNEL} an axis."
    if any(size > _PADDING for size in pads):
        return f"Padding of more than {_PADDING}."
    if any(size > _STRIDE for size in strides):
        return f"A stride of more than {_STRIDE}."
    if node.op_type == "ConvTranspose" and any(pads):
        return "A deconvolution with padding."
    return ""


def _pool(node: onnx.NodeProto, shapes: Mapping[str, Shape], constants: set[str]) -> str:
    shape = shapes.get(node.input[0])
    if shape is not None and len(shape) != 4:
        return "Only two spatial axes."
    window = attribute(node, "kernel_shape") or (shape[2:] if shape and node.op_type.startswith("Global") else ())
    if any(size > _WINDOW for size in window):
        return f"A window of {'x'.join(map(str, window))}; at most {_WINDOW} an axis."
    if any(size > _POOL_STRIDE for size in attribute(node, "strides", ())):
        return f"A stride of more than {_POOL_STRIDE}."
    pads = attribute(node, "pads", ())
    if node.op_type == "AveragePool" and any(pads) and not attribute(node, "count_include_pad", 0):
        return "An average that leaves out the padding."
    return ""


def _elementwise(node: onnx.NodeProto, shapes: Mapping[str, Shape], constants: set[str]) -> str:
    known = [shape for name in node.input if (shape := shapes.get(name)) is not None and name not in constants]
    if any(len(shape) != 4 for shape in known):
        return "Only tensors of four axes."
    if len(known) == 2 and known[0] != known[1]:
        small = min(known, key=lambda shape: sum(shape))
        if small[2:] != (1, 1):
            return f"It broadcasts {'x'.join(map(str, small))}; only one value a channel may be."
    return ""


def _concat(node: onnx.NodeProto, shapes: Mapping[str, Shape], constants: set[str]) -> str:
    if attribute(node, "axis") not in (1, -3):
        return f"It joins along axis {attribute(node, 'axis')}; only channels may be joined."
    return ""


def _softmax(node: onnx.NodeProto, shapes: Mapping[str, Shape], constants: set[str]) -> str:
    shape = shapes.get(node.input[0])
    if shape is None:
        return ""
    if len(shape) != 4:
        return "Only tensors of four axes."
    axis = attribute(node, "axis", -1) % 4
    if axis == 0 or any(size != 1 for place, size in enumerate(shape) if place not in (0, axis)):
        return "Every axis but the batch and its own must have one element."
    return ""


def _resize(node: onnx.NodeProto, shapes: Mapping[str, Shape], constants: set[str]) -> str:
    mode = attribute(node, "mode", b"nearest")
    mode = mode.decode() if isinstance(mode, bytes) else mode
    if mode not in ("nearest", "linear"):
        return f"Only nearest and linear, not {mode}."
    before, after = shapes.get(node.input[0]), shapes.get(node.output[0])
    if before and after and len(before) == 4:
        largest = 32 if mode == "nearest" else 4
        factors = [big / small for big, small in zip(after[2:], before[2:], strict=True)]
        if any(factor < 1 or factor > largest or (mode == "nearest" and factor % 1) for factor in factors):
            return (
                f"A factor of {max(factors):g}; {mode} takes 1 to {largest}{' in whole steps' * (mode == 'nearest')}."
            )
    return ""


def _reshape(node: onnx.NodeProto, shapes: Mapping[str, Shape], constants: set[str]) -> str:
    for name in (node.input[0], node.output[0]):
        shape = shapes.get(name)
        if shape is not None and len(shape) != 4:
            return "Only from four axes to four."
    return ""


_RULES: dict[str, Callable[[onnx.NodeProto, Mapping[str, Shape], set[str]], str]] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolution),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), _pool),
    **dict.fromkeys(("Add", "Sub", "Mul", "Max", "Min"), _elementwise),
    **dict.fromkeys(("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Clip", "PRelu", "BatchNormalization", "LRN", "Identity",
                     "Dropout", "Abs"), _free),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"), _reshape),
    "Concat": _concat,
    "Softmax": _softmax,
    "Resize": _resize,
    "Slice": _reshape,
}  # fmt: skip
