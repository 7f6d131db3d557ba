"""Products that read one activation become one product and a Split: query, key and value; gate and up of a gated layer.

One wide matrix is read in one go, where several narrow ones each start anew. Knows nothing of what the parts are for.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx

from workbench.graph.editing import Graph

# Split takes its sizes as an input from there on.
_FIRST_OPSET = 13


def merge_products(graph: Graph) -> list[str]:
    """Merge in place; returns the names of the nodes that were merged.

    A MatMul is merged where its second input is a constant of two axes and another such MatMul reads the same first input
    with weights of the same type. Each part keeps the name of its output, so that statistics by tensor hold.
    """
    if graph.opset < _FIRST_OPSET:
        return []
    groups: dict[tuple[str, str], list[tuple[onnx.NodeProto, np.ndarray]]] = defaultdict(list)
    for node in graph.nodes:
        if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx"):
            continue
        weight = graph.array(node.input[1])
        if weight is not None and weight.ndim == 2 and not graph.is_constant(node.input[0]):
            groups[node.input[0], str(weight.dtype)].append((node, weight))
    merged = []
    for (source, _), parts in groups.items():
        if len(parts) > 1:
            merged += _merge(graph, source, parts)
    return merged


def _merge(graph: Graph, source: str, parts: list[tuple[onnx.NodeProto, np.ndarray]]) -> list[str]:
    names = [node.name for node, _ in parts]
    outputs = [node.output[0] for node, _ in parts]
    stem = _stem(names)
    weight = graph.add_initializer(f"{stem}.weight", np.concatenate([weight for _, weight in parts], axis=1))
    sizes = graph.add_initializer(f"{stem}.sizes", np.array([weight.shape[1] for _, weight in parts], np.int64))
    for node, _ in parts:
        graph.remove_node(node)
    whole = graph.unique(f"{stem}_output")
    graph.add_node("MatMul", [source, weight], [whole], stem)
    graph.add_node("Split", [whole, sizes], outputs, f"{stem}_split", axis=-1)
    return names


def _stem(names: list[str]) -> str:
    """Return `/layer/q_proj+k_proj+v_proj/MatMul` for nodes of these three modules."""
    paths = [name.split("/") for name in names]
    same = 0
    while all(len(path) > same + 1 and path[same] == paths[0][same] for path in paths):
        same += 1
    inner = "+".join(path[same] for path in paths)
    return "/".join([*paths[0][:same], inner, "MatMul"])
