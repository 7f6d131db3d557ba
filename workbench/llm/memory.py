"""How many bytes a decode step must read: weights and cache. Reads graphs, runs nothing."""

from __future__ import annotations

import math
from pathlib import Path

import onnx

from workbench.records import Engine

_FOUR_BITS = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
_ROW_READERS = ("Gather", "GatherElements", "GatherND")


def weights_read_bytes(engine: Engine) -> int:
    """Return the bytes of weights that one step reads.

    All constants of the graph, but for tables of which only single rows are taken (embeddings that the head does not
    share). For a plan, whose weights cannot be listed, its size.
    """
    path = Path(engine.path)
    if path.suffix != ".onnx":
        return engine.size_bytes
    return graph_read_bytes(onnx.load(str(path), load_external_data=False))


def graph_read_bytes(proto: onnx.ModelProto) -> int:
    """Return the bytes of a graph's constants that one run reads."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return sum(
        _tensor_bytes(tensor)
        for tensor in proto.graph.initializer
        if not _only_rows(readers.get(tensor.name, []), tensor.name, readers)
    )


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    whole = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    bits = 4 if tensor.data_type in _FOUR_BITS else whole
    return math.ceil(math.prod(tensor.dims) * bits / 8)


def _only_rows(nodes: list[onnx.NodeProto], name: str, readers: dict[str, list[onnx.NodeProto]]) -> bool:
    """Whether every reader takes single rows of the table, also behind a cast of the whole."""
    return bool(nodes) and all(
        (node.op_type in _ROW_READERS and node.input[0] == name)
        or (
            node.op_type in ("Cast", "Identity")
            and _only_rows(readers.get(node.output[0], []), node.output[0], readers)
        )
        for node in nodes
    )
