"""Where ONNX Runtime's CPU needs Q/DQ so that 8-bit codes pass from kernel to kernel without floating point between.

It swaps a node for its integer kernel only where the node stands between DequantizeLinear and QuantizeLinear. A Conv
without a quantized output stays in floating point; Gemm and MatMul do not need one. Relu, and a Clip around zero, vanish
into the quantization of what follows. Knows nothing of ranges and scales.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx

from workbench.graph.editing import Graph

# Operators besides Conv, Gemm and MatMul with an integer kernel worth having. Mul, Sigmoid and Softmax have one too,
# but lose accuracy out of proportion to their share of the time.
CARRIERS = ("Add", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu")
# Operators that move codes without computing: scale and zero point must be the same before and after.
COPIES = ("MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze")
_ACTIVATIONS = ("Relu", "Clip")


@dataclass
class Chains:
    """Which tensors become codes.

    Attributes:
        readers: tensor -> nodes that must read its dequantized form.
        ranges: copied tensor -> the tensor whose range, and so whose scale, it takes.
    """

    readers: dict[str, list[onnx.NodeProto]] = field(default_factory=dict)
    ranges: dict[str, tuple[str, ...]] = field(default_factory=dict)


def tail(graph: Graph, node: onnx.NodeProto) -> str:
    """Return the tensor at which a node's kernel ends, past what the limits of its codes stand for (Relu, Clip)."""
    name = node.output[0]
    while name not in graph.pinned:
        consumers = graph.consumers.get(name, [])
        if len(consumers) != 1 or consumers[0].input[0] != name or not _in_codes(graph, consumers[0]):
            break
        name = consumers[0].output[0]
    return name


def clip_bounds(graph: Graph, node: onnx.NodeProto | None) -> tuple[float, float] | None:
    """Return the bounds of a Clip that the limits of codes can stand for, zero being within: constant ones; else None."""
    if node is None or node.op_type != "Clip":
        return None
    bounds = [-math.inf, math.inf]
    for index, name in enumerate(node.input[1:3]):
        array = graph.array(name) if name else np.array(bounds[index])
        if array is None:
            return None
        bounds[index] = float(array.item())
    low, high = bounds
    return (low, high) if low <= 0 < high else None


def _in_codes(graph: Graph, node: onnx.NodeProto) -> bool:
    return node.op_type == "Relu" or clip_bounds(graph, node) is not None


def integer_chains(graph: Graph, lowered: Iterable[onnx.NodeProto], inputs: dict[str, list[onnx.NodeProto]]) -> Chains:
    """Extend the quantized inputs of the lowered nodes to chains of integer kernels.

    Args:
        lowered: the Conv, Gemm and MatMul nodes to be quantized.
        inputs: their activation inputs -> those that read them.
    """
    chains = Chains({name: list(nodes) for name, nodes in inputs.items()})
    convolutions = {id(node) for node in lowered if node.op_type == "Conv"}
    wanted = _wanted(graph, inputs)
    whole: set[str] = set()
    for node in graph.nodes:
        if id(node) in convolutions:
            whole.add(tail(graph, node))
            chains.readers.setdefault(tail(graph, node), [])
        elif node.op_type in (*CARRIERS, *COPIES) and len(node.output) == 1:
            _carry(graph, node, wanted, whole, chains)
    for name in whole:
        chains.readers[name] = list(graph.consumers.get(name, []))
    return chains


def _carry(graph: Graph, node: onnx.NodeProto, wanted: set[str], whole: set[str], chains: Chains) -> None:
    """Let a node work on codes where all it reads are codes and somebody wants its result as codes."""
    copies = node.op_type in COPIES
    end = node.output[0] if copies else tail(graph, node)
    sources = _data_inputs(node)
    if end not in wanted or end in graph.pinned or not all(name in chains.readers for name in sources):
        return
    for name in dict.fromkeys(sources):
        if not any(node is reader for reader in chains.readers[name]):
            chains.readers[name].append(node)
    whole.add(end)
    chains.readers.setdefault(end, [])
    if copies:
        chains.ranges[end] = chains.ranges.get(sources[0], (sources[0],))


def _wanted(graph: Graph, inputs: Iterable[str]) -> set[str]:
    """Return the tensors from which quantized inputs follow by integer kernels and copies alone."""
    wanted = set(inputs)
    for node in reversed(graph.nodes):
        if node.op_type in (*CARRIERS, *COPIES, *_ACTIVATIONS) and wanted.intersection(node.output):
            wanted.update(_data_inputs(node))
    return wanted


def _data_inputs(node: onnx.NodeProto) -> list[str]:
    return list(node.input) if node.op_type in ("Add", "Concat") else [node.input[0]]
