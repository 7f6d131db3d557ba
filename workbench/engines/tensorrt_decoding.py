"""TensorRT as a decoder: the cache stays in device memory; only tokens, masks and the last logits cross to the host.

Without CUDA graph each step writes a cache one column longer into other memory, and the two are swapped. A captured
graph needs fixed shapes, so with one the cache has room for more columns than it holds, the mask hides what is free, and
the new column is copied into its place behind the launch; the graph belongs to a context of its own, whose shapes
nobody else changes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.engines.decoding import LOGITS, MASK, POSITIONS, TOKENS, CacheLayout, cache_layout, check_step
from workbench.engines.tensorrt import cuda as cuda_runtime
from workbench.engines.tensorrt import tensors
from workbench.engines.tensorrt.capabilities import Capabilities, library
from workbench.engines.tensorrt.context import PlacedContext
from workbench.engines.tensorrt.cuda import Cuda, DeviceMemory, Event, Graph, HostMemory, Pool, Stream
from workbench.records import Engine

# A graph is captured anew when the cache outgrows its room; more room makes attention read more hidden columns.
_ROOM_COLUMNS = 64
_ALIGNMENT_BYTES = 256
_BANDWIDTH_RUNS = 10


def open_decoder(engine: Engine, threads: int | None, cuda_graph: bool = False) -> TensorRTDecoder:
    """Open a built engine as a decoder; `threads` has no meaning on a GPU.

    Raises:
        EngineError: the plan is missing or damaged, was built elsewhere, or is no decoder with a cache.
    """
    layout = cache_layout(engine.inputs, engine.outputs)
    return TensorRTDecoder(Capabilities(library()), cuda_runtime.load(), engine, layout, cuda_graph)


class DeviceCache:
    """Keys and values in one block of device memory, which goes back to its pool when the cache is dropped.

    Attributes:
        room: columns that there is memory for; `length` of them hold tokens, from the front.
        stride_bytes: from one tensor to the next.
    """

    def __init__(self, pool: Pool, layout: CacheLayout, batch: int, length: int, room: int) -> None:
        self.batch, self.length, self.room = batch, length, room
        self.column_bytes = layout.width * np.dtype(layout.dtype).itemsize
        self.rows = batch * layout.heads
        self._pool, self._token_bytes = pool, layout.token_bytes
        tensor_bytes = self.rows * room * self.column_bytes
        self.stride_bytes = -(-max(tensor_bytes, 1) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self.block_bytes = self.stride_bytes * len(layout.past)
        self.memory: DeviceMemory = pool.take(self.block_bytes)

    @property
    def size_bytes(self) -> int:
        """Bytes that its elements take."""
        return self.batch * self.length * self._token_bytes

    def address(self, tensor: int, row: int = 0, column: int = 0) -> int:
        """Return the device address of a column of a row (a head of a sequence) of one of its tensors."""
        return self.memory.address + tensor * self.stride_bytes + (row * self.room + column) * self.column_bytes

    def __del__(self) -> None:
        if hasattr(self, "memory"):
            self._pool.give(self.memory)


@dataclass(frozen=True)
class _Block:
    """Where a rectangle of bytes begins, and the bytes from one of its rows to the next."""

    address: int
    pitch: int


class TensorRTDecoder:
    """An open decoder. Use it as a context manager; not for two threads at once."""

    def __init__(self, caps: Capabilities, cuda: Cuda, engine: Engine, layout: CacheLayout, cuda_graph: bool) -> None:
        self.layout = layout
        self._cuda = cuda
        self._resources = contextlib.ExitStack()
        try:
            self._growing = self._opened(PlacedContext(caps, cuda, engine))
            self._fixed = self._opened(PlacedContext(caps, cuda, engine)) if cuda_graph else None
            self._pool = Pool(cuda)
            self._resources.callback(self._pool.close)
            names = (TOKENS, MASK, POSITIONS, LOGITS)
            self._host = {name: self._owned(HostMemory(cuda)) for name in names}
            self._device = {name: self._owned(DeviceMemory(cuda)) for name in names}
        except BaseException:
            self._resources.close()
            raise
        self._types = {tensor.name: tensor for tensor in self._growing.tensors}
        self._graph: Graph | None = None
        self._graph_key: tuple[Any, ...] = ()
        self._scratch: DeviceCache | None = None

    def _opened(self, context: PlacedContext) -> PlacedContext:
        self._resources.callback(context.close)
        return context

    def _owned(self, memory: Any) -> Any:
        self._resources.callback(memory.free)
        return memory

    def __enter__(self) -> TensorRTDecoder:
        return self

    def __exit__(self, *exception: object) -> None:
        self._growing.stream.synchronize()
        self._forget_graph()
        self._resources.close()

    def empty(self, batch: int) -> DeviceCache:
        """Return a cache of `batch` sequences and no columns."""
        return DeviceCache(self._pool, self.layout, batch, 0, 0)

    def step(
        self, tokens: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: DeviceCache
    ) -> tuple[np.ndarray, DeviceCache]:
        """Run once over new tokens; see `decoding.Decoder.step`."""
        check_step(tokens, mask, positions, cache)
        self._make_room_for_logits(tokens.shape)
        if self._fixed is not None and tokens.shape[1] == 1:
            grown = self._fixed_step(self._fixed, tokens, mask, positions, cache)
        else:
            grown = self._growing_step(tokens, mask, positions, cache)
        return self._last_logits(tokens.shape), grown

    def _growing_step(
        self, tokens: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: DeviceCache
    ) -> DeviceCache:
        cache = cache if cache.room == cache.length else self.keep(cache, range(cache.batch), cache.length)
        grown = DeviceCache(self._pool, self.layout, cache.batch, mask.shape[1], mask.shape[1])
        runner = self._growing
        self._upload({TOKENS: tokens, MASK: mask, POSITIONS: positions})
        self._bind(runner, cache, grown, tokens.shape, mask.shape)
        runner.enqueue()
        runner.stream.synchronize()  # the old cache's memory may be taken again from here on
        return grown

    def _fixed_step(
        self, runner: PlacedContext, tokens: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: DeviceCache
    ) -> DeviceCache:
        if cache.room <= cache.length:
            cache = self._with_room(cache)
        batch, columns = cache.batch, cache.room + 1
        # The new token's own column comes behind the room; free columns before it are hidden.
        wide = np.zeros((batch, columns), np.int64)
        wide[:, : cache.length], wide[:, -1] = mask[:, :-1], mask[:, -1]
        self._upload({TOKENS: tokens, MASK: wide, POSITIONS: positions})
        self._growing.stream.synchronize()
        if self._scratch is None or (self._scratch.batch, self._scratch.room) != (batch, columns):
            self._scratch = DeviceCache(self._pool, self.layout, batch, columns, columns)
        self._launch(runner, cache, self._scratch)
        for tensor in range(len(self.layout.past)):
            self._copy_2d(
                _Block(cache.address(tensor, 0, cache.length), cache.room * cache.column_bytes),
                _Block(self._scratch.address(tensor, 0, cache.room), columns * cache.column_bytes),
                cache.column_bytes,
                cache.rows,
                runner,
            )
        runner.stream.synchronize()
        cache.length += 1
        return cache

    def _with_room(self, cache: DeviceCache) -> DeviceCache:
        """Return a copy of a cache with free columns behind those that hold tokens."""
        room = (cache.length // _ROOM_COLUMNS + 1) * _ROOM_COLUMNS
        roomy = DeviceCache(self._pool, self.layout, cache.batch, cache.length, room)
        self._clear(roomy)
        self._copy(roomy, cache)
        self._growing.stream.synchronize()
        return roomy

    def _clear(self, cache: DeviceCache) -> None:
        """Hidden columns must hold numbers: old memory may hold NaN, and 0 * NaN is NaN."""
        self._cuda.call("cudaMemsetAsync", cache.memory.address, 0, cache.block_bytes, self._growing.stream.raw)

    def _launch(self, runner: PlacedContext, past: DeviceCache, present: DeviceCache) -> None:
        """Launch the captured graph, or run once and capture for the next time."""
        inputs = tuple(self._device[name].address for name in (TOKENS, MASK, POSITIONS, LOGITS))
        key = (past.memory.address, present.memory.address, past.batch, past.room, *inputs)
        if self._graph is not None and key == self._graph_key:
            self._graph.launch()
            return
        self._forget_graph()
        self._bind(runner, past, present, (past.batch, 1), (past.batch, present.room))
        runner.enqueue()  # the first launch of new shapes sets TensorRT up, and must not be captured
        runner.stream.synchronize()
        self._graph, self._graph_key = Graph(self._cuda, runner.stream, runner.enqueue), key

    def _bind(
        self,
        runner: PlacedContext,
        past: DeviceCache,
        present: DeviceCache,
        tokens: tuple[int, ...],
        mask: tuple[int, ...],
    ) -> None:
        layout = self.layout
        shape = (past.batch, layout.heads, past.room, layout.width)
        shapes = {TOKENS: tokens, MASK: mask, POSITIONS: tokens, **dict.fromkeys(layout.past, shape)}
        addresses = {name: self._device[name].address for name in (TOKENS, MASK, POSITIONS)}
        addresses |= {name: past.address(index) for index, name in enumerate(layout.past)}
        runner.set_addresses(addresses, shapes)
        runner.set_address(LOGITS, self._device[LOGITS].address)
        for index, name in enumerate(layout.present):
            runner.set_address(name, present.address(index))

    def _upload(self, arrays: dict[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            typed = tensors.checked(self._types[name], array)
            self._host[name].grow(typed.nbytes)
            self._device[name].grow(typed.nbytes)
            self._host[name].view(typed.shape, typed.dtype)[...] = typed
            self._cuda.upload(self._device[name].address, self._host[name].address, typed.nbytes, self._growing.stream)

    def _make_room_for_logits(self, shape: tuple[int, ...]) -> None:
        self._device[LOGITS].grow(shape[0] * shape[1] * self.layout.vocabulary * self._types[LOGITS].dtype.itemsize)

    def _last_logits(self, shape: tuple[int, ...]) -> np.ndarray:
        """Copy the last column's logits of each sequence to the host."""
        batch, new = shape
        dtype = self._types[LOGITS].dtype
        row = self.layout.vocabulary * dtype.itemsize
        stream, host, device = self._growing.stream, self._host[LOGITS], self._device[LOGITS]
        host.grow(batch * row)
        for index in range(batch):
            source = device.address + ((index + 1) * new - 1) * row
            self._cuda.download(host.address + index * row, source, row, stream)
        stream.synchronize()
        return host.view((batch, self.layout.vocabulary), dtype).astype(np.float32, copy=True)

    def join(self, first: DeviceCache, second: DeviceCache) -> DeviceCache:
        """Return one cache with the sequences of both, padded at the front to the longer of the two."""
        length = max(first.length, second.length)
        joined = DeviceCache(self._pool, self.layout, first.batch + second.batch, length, length)
        self._clear(joined)
        row = 0
        for part in (first, second):
            self._copy(joined, part, row, length - part.length)
            row += part.rows
        self._growing.stream.synchronize()
        return joined

    def keep(self, cache: DeviceCache, rows: Sequence[int], length: int) -> DeviceCache:
        """Return a cache of these sequences, in this order, with their last `length` columns."""
        kept = DeviceCache(self._pool, self.layout, len(rows), length, length)
        heads, first = self.layout.heads, cache.length - length
        for place, row in enumerate(rows):
            for tensor in range(len(self.layout.past)):
                self._copy_2d(
                    _Block(kept.address(tensor, place * heads), kept.room * kept.column_bytes),
                    _Block(cache.address(tensor, row * heads, first), cache.room * cache.column_bytes),
                    length * cache.column_bytes,
                    heads,
                )
        self._growing.stream.synchronize()
        return kept

    def read_bandwidth(self, size_bytes: int) -> float:
        """Return the bytes/s at which the device copies a block of that size, reads and writes both counted."""
        return copy_bandwidth(self._cuda, self._growing.stream, size_bytes)

    def memory(self) -> dict[str, int]:
        """Return the device memory in use by all programs, and what this engine's contexts planned for activations."""
        contexts = 1 if self._fixed is None else 2
        return {
            "device_bytes": self._cuda.used_bytes(),
            "activation_bytes": contexts * self._growing.activation_bytes,
        }

    def _copy(self, target: DeviceCache, source: DeviceCache, row: int = 0, column: int = 0) -> None:
        """Copy all columns of a cache to a row and column of another."""
        for tensor in range(len(self.layout.past)):
            self._copy_2d(
                _Block(target.address(tensor, row, column), target.room * target.column_bytes),
                _Block(source.address(tensor), source.room * source.column_bytes),
                source.length * source.column_bytes,
                source.rows,
            )

    def _copy_2d(
        self, target: _Block, source: _Block, width: int, rows: int, runner: PlacedContext | None = None
    ) -> None:
        if width == 0:
            return
        kind = self._cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        stream = (runner or self._growing).stream.raw
        sizes = (target.address, target.pitch, source.address, source.pitch, width, rows)
        self._cuda.call("cudaMemcpy2DAsync", *sizes, kind, stream)

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self._graph.free()
        self._graph, self._graph_key = None, ()


def copy_bandwidth(cuda: Cuda, stream: Stream, size_bytes: int) -> float:
    """Return the bytes/s at which the device copies a block of that size, reads and writes both counted."""
    blocks = [DeviceMemory(cuda, size_bytes) for _ in range(2)]
    start, end = Event(cuda), Event(cuda)
    kind = cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
    fastest = float("inf")
    try:
        for _ in range(_BANDWIDTH_RUNS):
            start.record(stream.raw)
            cuda.call("cudaMemcpyAsync", blocks[0].address, blocks[1].address, size_bytes, kind, stream.raw)
            end.record(stream.raw)
            end.synchronize()
            fastest = min(fastest, end.seconds_since(start))
    finally:
        for event in (start, end):
            event.free()
        for block in blocks:
            block.free()
    return 2 * size_bytes / fastest
