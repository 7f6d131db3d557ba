"""Graphs of one network that share one file of weights: traced without them, and given them afterwards by name.

A network whose weights are inputs of the trace exports in seconds whatever its size, and every weight is written once,
turned as its reader wants it. Torch is imported where it is used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto

from workbench.errors import ExportError

if TYPE_CHECKING:
    from torch import Tensor, nn

_ALIGNMENT_BYTES = 4096
_TRANSPOSED = ".transposed"


class Weights:
    """The parameters and buffers of a network, which can be taken out and put back; tied ones count once."""

    def __init__(self, network: nn.Module) -> None:
        self._places: list[tuple[dict[str, Any], str, str]] = []
        self.tensors: dict[str, Tensor] = {}
        named: dict[int, str] = {}
        for path, module in network.named_modules():
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is None:
                        continue
                    full = named.setdefault(id(tensor), f"{path}.{name}" if path else name)
                    self.tensors.setdefault(full, tensor.detach())
                    self._places.append((table, name, full))

    @contextlib.contextmanager
    def out(self) -> Iterator[None]:
        """Leave the network without any within the block; `given` lends it others."""
        originals = [table[name] for table, name, _ in self._places]
        try:
            for table, name, _ in self._places:
                table[name] = None
            yield
        finally:
            for (table, name, _), original in zip(self._places, originals, strict=True):
                table[name] = original

    @contextlib.contextmanager
    def given(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Let the network, whose own are out, compute with these within the block."""
        try:
            for table, name, full in self._places:
                table[name] = tensors[full]
            yield
        finally:
            for table, name, _ in self._places:
                table[name] = None


@dataclass
class _Stored:
    element: int
    dims: tuple[int, ...]
    offset: int
    length: int


@dataclass
class WeightsFile:
    """One file beside the graphs, which grows by what a graph reads and no earlier one did."""

    path: Path
    stored: dict[str, _Stored] = field(default_factory=dict)

    def attach(self, proto: onnx.ModelProto, tensors: Mapping[str, Tensor]) -> None:
        """Make initializers, kept in this file, of the graph's inputs that are named like tensors.

        A weight that is only read turned (a Transpose before a MatMul) is stored turned; one that is read both ways, as
        embeddings tied to the head are, is stored twice: engines and recipes want constants.
        """
        turned: dict[str, str] = {}
        for node in [node for node in proto.graph.node if node.op_type == "Transpose"]:
            name = node.input[0]
            if name in tensors and tensors[name].ndim == 2:
                self._store(name + _TRANSPOSED, tensors[name].t())
                turned[node.output[0]] = name + _TRANSPOSED
                proto.graph.node.remove(node)
        for node in proto.graph.node:
            if any(name in turned for name in node.input):
                node.input[:] = [turned.get(name, name) for name in node.input]
        read = {name for node in proto.graph.node for name in node.input}
        kept = [value for value in proto.graph.input if value.name not in tensors]
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
        for name in sorted(read):
            if name in tensors:
                self._store(name, tensors[name])
            if name in self.stored:
                proto.graph.initializer.append(self._initializer(name))

    def _store(self, name: str, tensor: Tensor) -> None:
        if name in self.stored:
            return
        data = tensor.contiguous().cpu()
        element = _element(data, name)
        raw = data.view(_bits(data)).numpy()
        with self.path.open("ab") as file:
            start = -(-file.tell() // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
            file.write(bytes(start - file.tell()))
            raw.tofile(file)
        self.stored[name] = _Stored(element, tuple(tensor.shape), start, raw.nbytes)

    def _initializer(self, name: str) -> TensorProto:
        stored = self.stored[name]
        tensor = TensorProto(name=name, data_type=stored.element, dims=stored.dims, data_location=TensorProto.EXTERNAL)
        entries = {"location": self.path.name, "offset": str(stored.offset), "length": str(stored.length)}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
        return tensor


def _element(tensor: Tensor, name: str) -> int:
    import torch

    known = {
        torch.float32: TensorProto.FLOAT,
        torch.float16: TensorProto.FLOAT16,
        torch.bfloat16: TensorProto.BFLOAT16,
        torch.int64: TensorProto.INT64,
        torch.int32: TensorProto.INT32,
        torch.bool: TensorProto.BOOL,
    }
    if tensor.dtype not in known:
        raise ExportError(f"The weight {name!r} is {tensor.dtype}; load the model in float32, float16 or bfloat16.")
    return int(known[tensor.dtype])


def _bits(tensor: Tensor) -> Any:
    """Return an integer type of the elements' size: numpy has no bfloat16."""
    import torch

    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
