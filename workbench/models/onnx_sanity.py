"""What ONNX's own checker lets pass and later code stumbles over: element types, names, sizes, axes; and nodes out of order.

Each finding names the place in the file. Knows nothing of what a graph computes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
from onnx import helper

from workbench.errors import LoadError
from workbench.graph.editing import graphs, subgraphs

# Beyond these there is no tensor: a million million elements, and a thousand axes.
_MOST_ELEMENTS = 1 << 40
_MOST_AXES = 1 << 10
_KNOWN = frozenset(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}


def refuse_nonsense(proto: onnx.ModelProto, file: Path) -> None:
    """Refuse what no engine could make sense of.

    Raises:
        LoadError: names the place.
    """
    for graph in graphs(proto.graph):
        for what, value in (*(("input", one) for one in graph.input), *(("output", one) for one in graph.output)):
            _readable(file, f"{what} name", value.name)
            if value.type.HasField("tensor_type") and graph is proto.graph:
                _check_tensor_type(file, f"{what} {value.name!r}", value.type.tensor_type)
        for value in graph.value_info:
            _readable(file, "tensor name", value.name)
        for tensor in graph.initializer:
            _readable(file, "weight name", tensor.name)
            _check_weights(file, tensor)
        for node in graph.node:
            _check_node(file, node)


def sort(proto: onnx.ModelProto) -> bool:
    """Put nodes behind those whose outputs they take, in every graph; return whether any was moved.

    ONNX demands that order, and some engines do not. Nodes in a circle stay where they are: the checker names them.
    """
    moved = False
    for graph in graphs(proto.graph):
        order = _order(graph.node)
        if order != list(range(len(graph.node))):
            nodes = [graph.node[index] for index in order]
            copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
            del graph.node[:]
            graph.node.extend(copies)
            moved = True
    return moved


def _order(nodes: Sequence[onnx.NodeProto]) -> list[int]:
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    waits = [{makers[name] for name in _taken(node) if name in makers} - {index} for index, node in enumerate(nodes)]
    if all(other < index for index, others in enumerate(waits) for other in others):
        return list(range(len(nodes)))
    takers: list[list[int]] = [[] for _ in nodes]
    for index, others in enumerate(waits):
        for other in others:
            takers[other].append(index)
    order: list[int] = []
    ready = [index for index, others in enumerate(waits) if not others][::-1]
    while ready:
        order.append(ready.pop())
        for index in reversed(takers[order[-1]]):
            waits[index].discard(order[-1])
            if not waits[index]:
                ready.append(index)
    return order if len(order) == len(nodes) else list(range(len(nodes)))


def _taken(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for graph in subgraphs(node):
        for inner in graph.node:
            yield from _taken(inner)
        yield from (value.name for value in graph.output)


def _check_node(file: Path, node: onnx.NodeProto) -> None:
    for what, text in (("node name", node.name), ("operator", node.op_type), ("domain", node.domain)):
        _readable(file, what, text)
    for text in (*node.input, *node.output):
        _readable(file, f"tensor of node {node.name!r}", text)
    for attribute in node.attribute:
        _readable(file, f"attribute of node {node.name!r}", attribute.name)
        if attribute.HasField("t"):
            _check_weights(file, attribute.t)
        axes = {"axis": [attribute.i], "axes": attribute.ints}.get(attribute.name, ())
        if beyond := [axis for axis in axes if not -_MOST_AXES <= axis < _MOST_AXES]:
            raise LoadError(
                f"{file}: node {node.name!r} ({node.op_type}) works along axis {beyond[0]}, and no tensor has that many. "
                f"The file is damaged; export it again."
            )


def _check_tensor_type(file: Path, where: str, kind: onnx.TypeProto.Tensor) -> None:
    # An output without a shape may be without a type as well: both are inferred.
    if kind.elem_type not in _KNOWN and kind.HasField("shape"):
        raise LoadError(
            f"{file}: {where} has the element type {kind.elem_type}, which ONNX {onnx.__version__} does not know. Export "
            f"it again, or update onnx."
        )
    for dim in kind.shape.dim:
        _readable(file, f"axis name of {where}", dim.dim_param)
    elements = math.prod(max(dim.dim_value, 1) for dim in kind.shape.dim)
    if elements > _MOST_ELEMENTS:
        raise LoadError(f"{file}: {where} has at least {elements} elements, which no machine holds. Export it again.")


def _check_weights(file: Path, tensor: onnx.TensorProto) -> None:
    if tensor.data_type not in _KNOWN:
        raise LoadError(
            f"{file}: weight {tensor.name!r} has the element type {tensor.data_type}, which ONNX {onnx.__version__} does not "
            f"know. Export it again, or update onnx."
        )
    if not tensor.HasField("raw_data") or tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    bits = _bits(tensor.data_type)
    wanted = (math.prod(tensor.dims) * bits + 7) // 8
    if min(tensor.dims, default=0) >= 0 and len(tensor.raw_data) > wanted:
        raise LoadError(
            f"{file}: weight {tensor.name!r} of shape {tuple(tensor.dims)} holds {len(tensor.raw_data)} bytes instead of "
            f"{wanted}. The file is damaged; export it again."
        )


def _bits(element: int) -> int:
    name = onnx.TensorProto.DataType.Name(element)  # type: ignore[arg-type]
    if name.endswith("INT4") or name.startswith("FLOAT4"):
        return 4
    if name.endswith("INT2"):
        return 2
    return 8 * helper.tensor_dtype_to_np_dtype(element).itemsize


def _readable(file: Path, what: str, text: str) -> None:
    if not isinstance(text, str):  # protobuf hands out what is not UTF-8 as bytes
        raise LoadError(f"{file}: the {what} {text!r} is not UTF-8 text. The file is damaged; export it again.")
