"""Find average pools that TensorRT can run in INT8 between two quantized layers. Changes nothing.

TensorRT moves quantization over a MaxPool by itself, since the largest code is the code of the largest value. An average
is another number, so an average pool without a pair before it runs in floating point, and codes are turned into FP16,
into another layout, and back: 30 microseconds of 745 in ResNet-50 at batch 32 (H200, TensorRT 8.6.0).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx

from workbench.graph.editing import Graph

_POOLS = ("AveragePool", "GlobalAveragePool")
# What TensorRT moves quantization over on its way from a pool to the layer that reads it.
_COPIES = ("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity")
_ACTIVATIONS = ("Relu", "Clip")


def integer_pools(
    graph: Graph, lowered: Iterable[onnx.NodeProto], sums: Iterable[onnx.NodeProto], quantized: Collection[str]
) -> list[onnx.NodeProto]:
    """Return the average pools that read what an integer kernel gives, and are read by one.

    Args:
        lowered: the Conv, Gemm and MatMul nodes to be quantized.
        sums: residual additions that run within the kernel of a convolution.
        quantized: tensors that get a Q/DQ pair already.
    """
    kernels = {id(node) for node in (*lowered, *sums)}
    coded = set(quantized)
    pools = [node for node in graph.nodes if node.op_type in _POOLS]
    return [
        node for node in pools if _from_kernel(graph, node.input[0], kernels, coded) and _ends_in(graph, node, coded)
    ]


def _from_kernel(graph: Graph, name: str, kernels: set[int], coded: set[str]) -> bool:
    """Whether codes of a tensor cost nothing: they exist already, or the kernel that gives it can write them."""
    while name not in coded and name in graph.producer:
        producer = graph.producer[name]
        if id(producer) in kernels:
            return True
        if producer.op_type not in (*_ACTIVATIONS, "BatchNormalization", *_COPIES):
            return False
        name = producer.input[0]
    return name in coded


def _ends_in(graph: Graph, pool: onnx.NodeProto, coded: set[str]) -> bool:
    """Whether all that is made of a pool's result, past copies, is quantized."""
    front = [pool.output[0]]
    while front:
        name = front.pop()
        if name in graph.pinned:
            return False
        if name in coded:
            continue
        readers = graph.consumers.get(name, [])
        if not readers or any(node.op_type not in _COPIES for node in readers):
            return False
        front += [node.output[0] for node in readers]
    return True
