"""Graphs inside nodes (branches of If, bodies of Loop and Scan), each opened as a graph of its own, so that a step reaches them.

What a body reads from outside is an input of the opened graph, or a constant where it is one outside; like its own inputs and
outputs it keeps its name and type. So whatever a step may do to a model it may do to a body. Knows nothing of steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import onnx

from workbench.graph.editing import Graph, captured, subgraphs
from workbench.graph.tensor_types import TensorTypes, tensor_types
from workbench.records import Skipped

LOOPS = ("Loop", "Scan")

_Done = TypeVar("_Done")


def in_every_graph(graph: Graph, work: Callable[[Graph], _Done]) -> tuple[list[_Done], list[Skipped]]:
    """Do something to every body, the innermost first, and to the graph itself.

    Args:
        graph: of a model, or a body that was opened; changed in place.
        work: gets one graph at a time and calls its `finish`; it must not change a constant in place that is pinned.

    Returns:
        What `work` gave, the graph's own last, and the nodes with a body that could not be opened, with the reason.
    """
    done: list[_Done] = []
    left: list[Skipped] = []
    for node, body, inner in opened(graph):
        if isinstance(inner, str):
            left.append(Skipped(node.name, f"its body is left as it is: {inner}"))
            continue
        found, more = in_every_graph(inner, work)
        done += found
        left += more
        _put_back(body, inner)
    done.append(work(graph))
    return done, left


def opened(
    graph: Graph, types: TensorTypes | None = None
) -> Iterator[tuple[onnx.NodeProto, onnx.GraphProto, Graph | str]]:
    """Yield each node with a body, the body, and a copy of it as a graph of its own; or the reason why it cannot be one.

    Args:
        types: of the graph's tensors, where the caller has inferred them already.
    """
    for node in list(graph.nodes):
        for body in subgraphs(node):
            types = types or tensor_types(graph.model)
            model = _as_model(graph, body, types)
            if isinstance(model, str):
                yield node, body, model
                continue
            inner = Graph(model, (graph, node))
            inner.pinned.update(captured(body))  # a constant from outside may have readers there
            yield node, body, inner


def in_a_loop(graph: Graph) -> bool:
    """Whether a graph is, or is part of, a body that runs more than once."""
    if graph.owner is None:
        return False
    outer, node = graph.owner
    return node.op_type in LOOPS or in_a_loop(outer)


def _as_model(graph: Graph, body: onnx.GraphProto, types: TensorTypes) -> onnx.ModelProto | str:
    outer = graph.model
    model = onnx.ModelProto(ir_version=outer.ir_version, opset_import=outer.opset_import, functions=outer.functions)
    constants = {tensor.name for tensor in body.initializer}
    for value in body.input:
        if value.type.WhichOneof("value") is None:
            return f"the file does not say of what type its input {value.name!r} is"
        if value.name in constants:
            return f"its input {value.name!r} is a constant too"
    model.graph.CopyFrom(body)
    for name in captured(body):
        if name in graph.initializers:
            model.graph.initializer.append(graph.initializers[name])
        elif name in types.elements:
            value = onnx.helper.make_tensor_value_info(name, types.elements[name], types.shapes.get(name))
            model.graph.input.append(value)
        else:
            return f"the type of {name!r}, which it reads from outside, is not known"
    return model


def _put_back(body: onnx.GraphProto, inner: Graph) -> None:
    """Replace what a body computes by what the opened graph does; constants from outside are read there as before."""
    outside = set(captured(body))
    kept = [tensor for tensor in inner.proto.initializer if tensor.name not in outside]
    del body.node[:], body.initializer[:], body.value_info[:]
    body.node.extend(inner.proto.node)
    body.initializer.extend(kept)
    body.value_info.extend(inner.proto.value_info)
