"""ONNX files of any size: weights go beside the graph where protobuf could not hold them; and the batch a graph insists on."""

from __future__ import annotations

from pathlib import Path

import onnx

from workbench.graph.editing import graphs
from workbench.machine import disk

# Protobuf refuses messages of 2 GB, and ByteSize itself fails near that: stay well below.
INLINE_LIMIT_BYTES = 1_500_000_000


def save(proto: onnx.ModelProto, path: Path) -> Path:
    """Write a model; its weights go to `<stem>.onnx.data` beside it where they would exceed protobuf's limit.

    Raises:
        StoreError: there is no room, or the folder is read-only.
    """
    with disk.writing(path):
        onnx.save(proto, str(path), save_as_external_data=is_large(proto), location=f"{path.stem}.onnx.data")
    return path


def is_large(proto: onnx.ModelProto) -> bool:
    """Return whether a model's weights go beside its file."""
    return weights_bytes(proto) > INLINE_LIMIT_BYTES


def weights_bytes(proto: onnx.ModelProto) -> int:
    """Return the size of the initialisers held in the message itself, those in bodies of nodes among them."""
    held = (tensor for graph in graphs(proto.graph) for tensor in graph.initializer)
    return sum(len(tensor.raw_data) or tensor.ByteSize() for tensor in held)


def fixed_batch(proto: onnx.ModelProto) -> int | None:
    """Return the first axis that a graph's inputs insist on, or None where it is free."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    axes = [value.type.tensor_type.shape.dim for value in proto.graph.input if value.name not in constants]
    return next((int(dims[0].dim_value) for dims in axes if dims and dims[0].dim_value > 0), None)
