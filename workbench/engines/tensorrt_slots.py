"""TensorRT as a decoder with slots: one engine a size, the cache in device memory, a CUDA graph a length of the cache.

TensorRT for RTX is driven by the same calls; its builds are tested, and its runs on stand-ins alone so far.

A captured step uploads positions, runs the engine, copies the most probable tokens to where the next step reads them,
and downloads them. Behind it, keys and values of the new tokens go to their column by one strided copy each, and the
column is shown in the mask: both move on every step, so they are no part of the graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.engines import tensorrt_decoding
from workbench.engines.slot_decoding import Piece
from workbench.engines.slots import (
    HIDDEN_SCORE,
    LENGTHS,
    LOGITS,
    MASK,
    NEW,
    NEXT,
    POSITIONS,
    TOKENS,
    VALUES,
    SlotLayout,
    slot_layout,
)
from workbench.engines.tensorrt import cuda as cuda_runtime
from workbench.engines.tensorrt import tensors
from workbench.engines.tensorrt.capabilities import PRODUCTS, Capabilities, library
from workbench.engines.tensorrt.context import PlacedContext
from workbench.engines.tensorrt.cuda import Cuda, DeviceMemory, Graph, HostMemory, Stream
from workbench.errors import EngineError
from workbench.records import Engine

_ALIGNMENT_BYTES = 256
_SMALL = (TOKENS, POSITIONS, LENGTHS, NEXT)


def open_device(
    prefills: Sequence[Engine],
    steps: Sequence[Engine],
    *,
    slots: int | None = None,
    columns: Sequence[int] | None = None,
    threads: int | None = None,
) -> TensorRTSlots:
    """Open built engines as one device; sizes are theirs, and `threads` has no meaning on a GPU.

    Raises:
        BackendMissing: TensorRT or cuda-python is not installed.
        EngineError: a plan is missing or damaged or was built elsewhere, or a size was left free.
    """
    layouts = [slot_layout(engine.inputs, engine.outputs) for engine in (*prefills, *steps)]
    if any(layout.batch is None or layout.columns is None for layout in layouts):
        raise EngineError(
            "A decoder with slots on TensorRT takes engines of fixed sizes. Name them when exporting: "
            "load_slots(source, [GraphSize('prefill', 1, 128), GraphSize('step', 8, 256)])."
        )
    if len({layout.batch for layout in layouts[len(prefills) :]}) > 1:
        raise EngineError("The steps have different numbers of slots. Open those of one number.")
    backend = steps[0].backend
    cuda = cuda_runtime.load(PRODUCTS[backend].install)
    return TensorRTSlots(Capabilities(library(backend)), cuda, prefills, steps)


@dataclass(frozen=True)
class Lattice:
    """Tensors of one kind (keys, or values) of all layers in a block: rows of columns of bytes.

    Attributes:
        rows: of one slot: heads, and for transposed keys each of their elements.
        column_bytes: of one column of a row.
    """

    layers: int
    slots: int
    rows: int
    columns: int
    column_bytes: int

    @property
    def pitch(self) -> int:
        """Bytes from one row to the next."""
        return self.columns * self.column_bytes

    @property
    def stride(self) -> int:
        """Bytes from one layer to the next: TensorRT wants every tensor to begin at a multiple of 256."""
        size = self.slots * self.rows * self.pitch
        return -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES

    @property
    def size_bytes(self) -> int:
        """Bytes of the whole block."""
        return self.layers * self.stride

    @property
    def dense(self) -> bool:
        """Whether the layers follow each other without a gap, as rows of one rectangle."""
        return self.stride == self.slots * self.rows * self.pitch

    def offset(self, layer: int, slot: int = 0, column: int = 0) -> int:
        """Return where a column of the first row of a slot lies."""
        return layer * self.stride + slot * self.rows * self.pitch + column * self.column_bytes

    @classmethod
    def of(cls, layout: SlotLayout, *, keys: bool, slots: int, columns: int) -> Lattice:
        """Return the lattice of a layout's keys or values."""
        turned = keys and layout.keys_transposed
        rows, width = (layout.heads * layout.width, 1) if turned else (layout.heads, layout.width)
        return cls(layout.layers, slots, rows, columns, width * layout.itemsize)


class _Block:
    """Keys and values of a number of slots and columns, in device memory."""

    def __init__(self, cuda: Cuda, layout: SlotLayout, slots: int, columns: int) -> None:
        self.lattices = tuple(Lattice.of(layout, keys=keys, slots=slots, columns=columns) for keys in (True, False))
        self.memories = tuple(DeviceMemory(cuda, lattice.size_bytes) for lattice in self.lattices)

    def parts(self) -> Iterator[tuple[Lattice, int]]:
        """Return keys, then values: how they lie, and the address where."""
        return zip(self.lattices, (memory.address for memory in self.memories), strict=True)

    def address(self, index: int, name: str) -> int:
        """Return the address of the tensor at this index of `SlotLayout.names`."""
        kind = int(name.startswith(VALUES))
        return self.memories[kind].address + self.lattices[kind].offset(index // 2)

    def free(self) -> None:
        for memory in self.memories:
            memory.free()


class TensorRTSlots:
    """See `slot_decoding.SlotDevice`."""

    compact = False

    def __init__(self, caps: Capabilities, cuda: Cuda, prefills: Sequence[Engine], steps: Sequence[Engine]) -> None:
        self._cuda = cuda
        self._resources = contextlib.ExitStack()
        self._graph: Graph | None = None
        self._cache: _Block | None = None
        try:
            self._stream = Stream(cuda)
            self._resources.callback(self._stream.free)
            self._prefills = [self._opened(caps, engine) for engine in prefills]
            self._steps = {layout.columns: (context, layout) for context, layout in map(self._opened_of(caps), steps)}
            self.layout = next(iter(self._steps.values()))[1]
            self.slots = int(self.layout.batch or 0)
            self.columns = tuple(sorted(int(columns or 0) for columns in self._steps))
            self.prompt_sizes = tuple((layout.batch, layout.columns) for _, layout in self._prefills)
            self._blocks: dict[int, _Block] = {}
            self._new = self._owned(_Block(cuda, self.layout, self.slots, 1))
            self._prompts: dict[int, _Block] = {}
            self._prompt: _Block | None = None
            names = (*_SMALL, LOGITS, MASK)
            self._host = {name: self._owned(HostMemory(cuda)) for name in names}
            self._device = {name: self._owned(DeviceMemory(cuda)) for name in names}
            self._prompt_device = {name: self._owned(DeviceMemory(cuda)) for name in (TOKENS, LENGTHS, LOGITS, NEXT)}
            self._prompt_host = {name: self._owned(HostMemory(cuda)) for name in (TOKENS, LENGTHS, LOGITS)}
            self._types = {tensor.name: tensor for context, _ in self._steps.values() for tensor in context.tensors}
            for name in (TOKENS, POSITIONS, NEXT):
                self._host[name].grow(4 * self.slots)
                self._device[name].grow(4 * self.slots)
            for memory in (self._host[LOGITS], self._device[LOGITS]):
                memory.grow(self.slots * self.layout.vocabulary * self._types[LOGITS].dtype.itemsize)
            self._cuda.call("cudaMemsetAsync", self._device[TOKENS].address, 0, 4 * self.slots, self._stream.raw)
        except BaseException:
            self._resources.close()
            raise

    def _opened_of(self, caps: Capabilities) -> Any:
        return lambda engine: self._opened(caps, engine)

    def _opened(self, caps: Capabilities, engine: Engine) -> tuple[PlacedContext, SlotLayout]:
        context = PlacedContext(caps, self._cuda, engine)
        self._resources.callback(context.close)
        own, context.stream = context.stream, self._stream  # all in one stream: each sees what the one before it did
        own.synchronize()
        return context, slot_layout(engine.inputs, engine.outputs)

    def _owned(self, memory: Any) -> Any:
        self._resources.callback(memory.free)
        return memory

    def close(self) -> None:
        """Give everything back."""
        self._stream.synchronize()
        self._forget_graph()
        self._resources.close()

    def resize(self, columns: int, pieces: Sequence[Piece]) -> None:
        """Go over to a cache of so many columns."""
        old = self._cache
        if columns not in self._blocks:
            self._blocks[columns] = self._owned(_Block(self._cuda, self.layout, self.slots, columns))
        new = self._blocks[columns]
        for lattice, address in new.parts():
            # Hidden columns must hold numbers: old memory may hold NaN, and 0 * NaN is NaN.
            self._cuda.call("cudaMemsetAsync", address, 0, lattice.size_bytes, self._stream.raw)
        if old is not None:
            for (source, start), (target, end) in zip(old.parts(), new.parts(), strict=True):
                for piece in pieces:
                    self._copy_all(target, end, piece.target, source, start, piece.source, piece.count)
        self._cache = new
        item = self._types[MASK].dtype.itemsize
        for memory in (self._host[MASK], self._device[MASK]):
            memory.grow(self.slots * columns * item)
        self._stream.synchronize()
        self._host[MASK].view((self.slots, columns), self._types[MASK].dtype)[...] = HIDDEN_SCORE
        self._upload(MASK, 0, self.slots * columns * item)
        self._forget_graph()

    def prefill(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Run prompts and hold their keys and values."""
        index = next(place for place, size in enumerate(self.prompt_sizes) if size == tokens.shape)
        context, layout = self._prefills[index]
        if index not in self._prompts:
            block = _Block(self._cuda, layout, *tokens.shape)
            self._prompts[index] = self._owned(block)
        self._prompt = block = self._prompts[index]
        types = {tensor.name: tensor for tensor in context.tensors}
        host, device = self._prompt_host, self._prompt_device
        size = len(tokens) * layout.vocabulary * types[LOGITS].dtype.itemsize
        for memory in (host[LOGITS], device[LOGITS]):
            memory.grow(size)
        device[NEXT].grow(4 * len(tokens))
        self._stream.synchronize()
        for name, array in ((TOKENS, tokens), (LENGTHS, lengths)):
            typed = tensors.checked(types[name], array)
            host[name].grow(typed.nbytes)
            device[name].grow(typed.nbytes)
            host[name].view(typed.shape, typed.dtype)[...] = typed
            self._cuda.upload(device[name].address, host[name].address, typed.nbytes, self._stream)
        addresses = {name: device[name].address for name in (TOKENS, LENGTHS)}
        context.set_addresses(addresses, {TOKENS: tokens.shape, LENGTHS: lengths.shape})
        for name in (LOGITS, NEXT):
            context.set_address(name, device[name].address)
        for place, name in enumerate(layout.names):
            context.set_address(NEW + name, block.address(place, name))
        context.enqueue()
        self._cuda.download(host[LOGITS].address, device[LOGITS].address, size, self._stream)
        self._stream.synchronize()
        shape = (len(tokens), layout.vocabulary)
        return host[LOGITS].view(shape, types[LOGITS].dtype).astype(np.float32, copy=True)

    def insert(self, prompt: int, slot: int, pieces: Sequence[Piece]) -> None:
        """Copy keys and values of the last prefill's prompt into a slot."""
        assert self._prompt is not None and self._cache is not None
        for (source, start), (target, end) in zip(self._prompt.parts(), self._cache.parts(), strict=True):
            for layer in range(source.layers):
                for piece in pieces:
                    self._copy_2d(
                        (end + target.offset(layer, slot, piece.target), target.pitch),
                        (start + source.offset(layer, prompt, piece.source), source.pitch),
                        piece.count * source.column_bytes,
                        source.rows,
                    )

    def move(self, source: int, target: int) -> None:
        """Not needed: holes between slots cost nothing here."""
        raise AssertionError("slots do not move on TensorRT")

    def show(self, slot: int, visible: np.ndarray) -> None:
        """Set a slot's row of the mask."""
        dtype = self._types[MASK].dtype
        self._stream.synchronize()
        rows = self._host[MASK].view((self.slots, len(visible)), dtype)
        rows[slot] = np.where(visible, 0.0, HIDDEN_SCORE)
        size = len(visible) * dtype.itemsize
        self._upload(MASK, slot * size, size)

    def step(self, tokens: np.ndarray | None, positions: np.ndarray, column: int, *, logits: bool) -> np.ndarray:
        """Run one step over all slots; see `slot_decoding.SlotDevice`."""
        if tokens is not None:
            self._host[TOKENS].view((self.slots,), np.dtype(np.int32))[...] = tokens
            self._upload(TOKENS, 0, 4 * self.slots)
        self._host[POSITIONS].view((self.slots,), np.dtype(np.int32))[...] = positions
        if self._graph is None:
            self._prepare()
        assert self._graph is not None and self._cache is not None
        self._graph.launch()
        self._write(column)
        if logits:
            size = self.slots * self.layout.vocabulary * self._types[LOGITS].dtype.itemsize
            self._cuda.download(self._host[LOGITS].address, self._device[LOGITS].address, size, self._stream)
        self._stream.synchronize()
        if logits:
            shape = (self.slots, self.layout.vocabulary)
            return self._host[LOGITS].view(shape, self._types[LOGITS].dtype).astype(np.float32, copy=True)
        return self._host[NEXT].view((self.slots,), np.dtype(np.int32)).copy()

    def read_bandwidth(self, size_bytes: int) -> float:
        """Return the bytes/s at which the device copies a block of that size, reads and writes both counted."""
        return tensorrt_decoding.copy_bandwidth(self._cuda, self._stream, size_bytes)

    def memory(self) -> dict[str, int]:
        """Return the device memory in use by all programs, and what the contexts planned for activations."""
        contexts = [context for context, _ in (*self._prefills, *self._steps.values())]
        return {
            "device_bytes": self._cuda.used_bytes(),
            "activation_bytes": sum(context.activation_bytes for context in contexts),
        }

    def launch(self) -> None:
        """Put the captured step, and the write of its column 0, on the stream: what a stopwatch of the device repeats."""
        if self._graph is None:
            self._prepare()
        assert self._graph is not None
        self._graph.launch()
        self._write(0)

    @property
    def stream(self) -> Stream:
        """The stream that everything is put on."""
        return self._stream

    def _prepare(self) -> None:
        """Bind the step of the cache's length, run it once and capture it."""
        assert self._cache is not None
        columns = self._cache.lattices[0].columns
        context, layout = self._steps[columns]
        shapes: dict[str, tuple[int, ...]] = {TOKENS: (self.slots,), POSITIONS: (self.slots,)}
        shapes[MASK] = (self.slots, 1, 1, columns)
        addresses = {name: self._device[name].address for name in (TOKENS, POSITIONS, MASK)}
        for place, name in enumerate(layout.names):
            shapes[name] = layout.shape(name, self.slots, columns)
            addresses[name] = self._cache.address(place, name)
        context.set_addresses(addresses, shapes)
        context.set_address(LOGITS, self._device[LOGITS].address)
        context.set_address(NEXT, self._device[NEXT].address)
        for place, name in enumerate(layout.names):
            context.set_address(NEW + name, self._new.address(place, name))

        def enqueue() -> None:
            self._upload(POSITIONS, 0, 4 * self.slots)
            context.enqueue()
            self._on_device(self._device[TOKENS].address, self._device[NEXT].address, 4 * self.slots)
            self._cuda.download(self._host[NEXT].address, self._device[NEXT].address, 4 * self.slots, self._stream)

        self._upload(POSITIONS, 0, 4 * self.slots)
        context.enqueue()  # the first launch of new shapes sets TensorRT up, and must not be captured
        self._stream.synchronize()
        self._graph = Graph(self._cuda, self._stream, enqueue)

    def _write(self, column: int) -> None:
        """Put the new keys and values into a column, and show it to all slots."""
        assert self._cache is not None
        for (source, start), (target, end) in zip(self._new.parts(), self._cache.parts(), strict=True):
            self._copy_all(target, end, column, source, start, 0, 1)
        dtype, columns = self._types[MASK].dtype, self._cache.lattices[0].columns
        place = self._device[MASK].address + column * dtype.itemsize
        sizes = (columns * dtype.itemsize, 0, dtype.itemsize, self.slots)
        self._cuda.call("cudaMemset2DAsync", place, *sizes, self._stream.raw)

    def _copy_all(
        self, target: Lattice, end: int, to_column: int, source: Lattice, start: int, from_column: int, count: int
    ) -> None:
        """Copy columns of all rows, slots and layers: one rectangle where no gaps lie between the layers."""
        dense = target.dense and source.dense
        height = source.slots * source.rows * (source.layers if dense else 1)
        for layer in range(1 if dense else source.layers):
            self._copy_2d(
                (end + target.offset(layer, 0, to_column), target.pitch),
                (start + source.offset(layer, 0, from_column), source.pitch),
                count * source.column_bytes,
                height,
            )

    def _copy_2d(self, target: tuple[int, int], source: tuple[int, int], width: int, rows: int) -> None:
        kind = self._cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._cuda.call("cudaMemcpy2DAsync", *target, *source, width, rows, kind, self._stream.raw)

    def _on_device(self, target: int, source: int, size_bytes: int) -> None:
        kind = self._cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._cuda.call("cudaMemcpyAsync", target, source, size_bytes, kind, self._stream.raw)

    def _upload(self, name: str, offset: int, size_bytes: int) -> None:
        device, host = self._device[name].address + offset, self._host[name].address + offset
        self._cuda.upload(device, host, size_bytes, self._stream)

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self._graph.free()
        self._graph = None
