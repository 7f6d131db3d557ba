"""Find attention in a graph, and what keeps an engine from computing it in one kernel.

Attention here is a product of two activations, a Softmax, and the product of its result with a third activation; Q/DQ
pairs, casts and operators that only move data may stand between. Knows no engine: which of them it fuses is asked elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from workbench.graph.editing import Graph, attribute

QUANTIZE = "QuantizeLinear"
MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten")
_THROUGH = (QUANTIZE, "DequantizeLinear", "Cast", "Dropout", *MOVES)


@dataclass(frozen=True)
class Attention:
    """One attention.

    Attributes:
        softmax, product: names of its Softmax and of the product of that with the values.
        quantized: whether the values are quantized on the way into the product.
        obstacle: what keeps its quantized form from being one kernel, in words; empty where the graph shows nothing.
    """

    softmax: str
    product: str
    quantized: bool
    obstacle: str = ""


def attentions(model: onnx.ModelProto) -> tuple[Attention, ...]:
    """Return every attention of a graph, in its order; the graph is only read, but nodes without a name get one."""
    graph = Graph(model)
    found = []
    for node in graph.nodes:
        if node.op_type != "Softmax":
            continue
        for product in _readers(graph, node.output[0]):
            if product.op_type != "MatMul" or any(graph.is_constant(name) for name in product.input):
                continue
            operands = [_restored(graph, name) for name in product.input]
            quantized = any(operands)
            found.append(
                Attention(node.name, product.name, quantized, _obstacle(graph, node, product) if quantized else "")
            )
            break
    return tuple(found)


def product_behind(graph: Graph, name: str) -> onnx.NodeProto | None:
    """Return the second product of the attention whose result a tensor is, moved at most; None where it is none's."""
    product = graph.producer.get(name)
    while product is not None and product.op_type in MOVES:
        product = graph.producer.get(product.input[0])
    if product is None or product.op_type != "MatMul" or any(graph.is_constant(item) for item in product.input):
        return None
    weights = graph.producer.get(product.input[0])
    while weights is not None and weights.op_type in _THROUGH:
        weights = graph.producer.get(weights.input[0])
    return product if weights is not None and weights.op_type == "Softmax" else None


def values_before_heads(graph: Graph, name: str, channels: int) -> str | None:
    """Return the tensor of an attention's values whose last axis has the channels of the attention's result, in their order.

    That is where heads are split off and put together by the same Reshape and Transpose, and nothing else reads what lies
    between: dividing a channel there divides the same channel of the result.

    Args:
        name: the result, of shape (..., channels).

    Returns:
        None where it is no attention's result, or where the order cannot be told from the graph.
    """
    product = product_behind(graph, name)
    merged = graph.producer.get(name)
    if product is None or merged is None or merged.op_type != "Reshape" or _sizes(graph, merged)[-1:] != [channels]:
        return None
    turned = _only_source(graph, merged)
    if turned is None or not _swaps_heads(turned) or _only_source(graph, turned) is not product:
        return None
    split = _only_source(graph, product, 1)
    parted = _only_source(graph, split) if split is not None and _swaps_heads(split) else None
    if parted is None or parted.op_type != "Reshape" or not _sole_reader(graph, parted.input[0]):
        return None
    heads = _sizes(graph, parted)
    if len(heads) != 4 or min(heads[2:]) < 1 or heads[2] * heads[3] != channels:
        return None
    return str(parted.input[0])


def _only_source(graph: Graph, node: onnx.NodeProto, index: int = 0) -> onnx.NodeProto | None:
    """Return what makes a node's input, where nothing else reads it."""
    return graph.producer.get(node.input[index]) if _sole_reader(graph, node.input[index]) else None


def _sole_reader(graph: Graph, name: str) -> bool:
    return len(graph.consumers.get(name, [])) == 1 and name not in graph.pinned


def _swaps_heads(node: onnx.NodeProto) -> bool:
    return node.op_type == "Transpose" and list(attribute(node, "perm", [])) == [0, 2, 1, 3]


def _sizes(graph: Graph, reshape: onnx.NodeProto) -> list[int]:
    sizes = graph.array(reshape.input[1])
    return [] if sizes is None else [int(size) for size in sizes]


def _readers(graph: Graph, name: str) -> Iterator[onnx.NodeProto]:
    """Yield what reads a tensor, past what only moves or converts it."""
    for reader in graph.consumers.get(name, []):
        if reader.op_type in _THROUGH:
            yield from _readers(graph, reader.output[0])
        else:
            yield reader


def _restored(graph: Graph, name: str) -> bool:
    """Whether a tensor comes out of a Q/DQ pair."""
    maker = graph.producer.get(name)
    while maker is not None and maker.op_type in ("Cast", *MOVES):
        maker = graph.producer.get(maker.input[0])
    return maker is not None and maker.op_type == "DequantizeLinear"


def _obstacle(graph: Graph, softmax: onnx.NodeProto, product: onnx.NodeProto) -> str:
    index = next((place for place, name in enumerate(product.input) if not _restored(graph, name)), None)
    if index is not None:
        return f"input {index} of its second product ({product.name}) is not quantized"
    name = product.output[0]
    while True:
        readers = graph.consumers.get(name, [])
        if len(readers) != 1:
            return f"its result has {len(readers)} readers" if readers else ""
        reader = readers[0]
        if reader.op_type == QUANTIZE:
            return ""
        if reader.op_type not in ("Cast", *MOVES):
            return f"a {reader.op_type} ({reader.name}) stands between it and the quantization of its result"
        name = reader.output[0]
