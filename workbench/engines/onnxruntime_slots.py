"""ONNX Runtime on a CPU as a decoder with slots: the cache is one preallocated block that steps read in place.

Everything stays bound from step to step while batch and cache keep their size, so a step is one call and one strided
write of the new column.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from workbench.engines import onnxruntime_decoding
from workbench.engines.onnxruntime import _run_error, open_file
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
from workbench.errors import EngineError
from workbench.records import Engine

_SLOTS = 8
_COLUMNS = (128, 256, 512, 1024, 2048)


def open_device(
    prefills: Sequence[Engine],
    steps: Sequence[Engine],
    *,
    slots: int | None,
    columns: Sequence[int] | None,
    threads: int | None,
) -> OnnxRuntimeSlots:
    """Open built engines as one device.

    Raises:
        EngineError: a file is gone.
    """
    opened = []
    for engine in (*prefills, *steps):
        if not Path(engine.path).exists():
            raise EngineError(f"The engine file {engine.path} is gone. Build the variant {engine.variant!r} again.")
        threads_here = engine.options.threads if threads is None else threads
        session = open_file(engine.path, engine.fusion, threads_here, engine.backend)._session
        opened.append(_Graph(session, slot_layout(engine.inputs, engine.outputs)))
    count = len(prefills)
    return OnnxRuntimeSlots(opened[:count], opened[count:], slots, columns, threads)


@dataclass(frozen=True)
class _Graph:
    session: Any
    layout: SlotLayout


class OnnxRuntimeSlots:
    """See `slot_decoding.SlotDevice`."""

    def __init__(
        self,
        prefills: Sequence[_Graph],
        steps: Sequence[_Graph],
        slots: int | None,
        columns: Sequence[int] | None,
        threads: int | None,
    ) -> None:
        self.layout = steps[0].layout
        self._prefills, self._steps, self._threads = list(prefills), list(steps), threads
        self.compact = self.layout.batch is None
        self.slots = self.layout.batch or slots or _SLOTS
        fixed = sorted({graph.layout.columns for graph in steps if graph.layout.columns is not None})
        self.columns = tuple(fixed) or tuple(columns or _COLUMNS)
        self.prompt_sizes = tuple((graph.layout.batch, graph.layout.columns) for graph in prefills)
        self._dtype, self._scores = np.dtype(self.layout.dtype), np.dtype(self.layout.scores)
        self._keys = self._values = self._mask = np.zeros(0)
        self._prompt: dict[str, np.ndarray] = {}
        self._bound: tuple[int, int] = (0, 0)
        self._binding: Any = None
        self._length = 0
        count = self.slots
        self._tokens, self._positions, self._next = (np.zeros(count, np.int32) for _ in range(3))
        self._logits = np.zeros((count, self.layout.vocabulary), self._scores)
        self._new_keys = self._block(count, 1, keys=True)
        self._new_values = self._block(count, 1, keys=False)

    def close(self) -> None:
        """Give everything back."""
        self._prefills, self._steps, self._binding = [], [], None
        self._keys = self._values = np.zeros(0)

    def resize(self, columns: int, pieces: Sequence[Piece]) -> None:
        """Go over to a cache of so many columns."""
        keys, values = self._block(self.slots, columns, keys=True), self._block(self.slots, columns, keys=False)
        for piece in pieces:
            source, target = _columns(piece.source, piece.count), _columns(piece.target, piece.count)
            self._key_columns(keys, target)[...] = self._key_columns(self._keys, source)
            values[..., target, :] = self._values[..., source, :]
        self._keys, self._values, self._length = keys, values, columns
        self._mask = np.full((self.slots, 1, 1, columns), HIDDEN_SCORE, self._scores)
        self._bound = (0, 0)

    def prefill(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Run prompts and hold their keys and values."""
        graph = next(item for item in self._prefills if _takes(item.layout, tokens.shape))
        layout, (count, length) = graph.layout, tokens.shape
        found = {NEW + name: np.empty(layout.shape(name, count, length), self._dtype) for name in layout.names}
        found |= {LOGITS: np.empty((count, layout.vocabulary), self._scores), NEXT: np.empty(count, np.int32)}
        binding = graph.session.io_binding()
        _bind(binding.bind_input, {TOKENS: tokens, LENGTHS: lengths})
        _bind(binding.bind_output, found)
        try:
            graph.session.run_with_iobinding(binding)
        except Exception as error:
            raise _run_error(error) from error
        self._prompt = found
        return np.ascontiguousarray(self._prompt[LOGITS], dtype=np.float32)

    def insert(self, prompt: int, slot: int, pieces: Sequence[Piece]) -> None:
        """Copy keys and values of the last prefill's prompt into a slot."""
        for index, name in enumerate(self.layout.names):
            new, layer = self._prompt[NEW + name][prompt], index // 2
            for piece in pieces:
                source, target = _columns(piece.source, piece.count), _columns(piece.target, piece.count)
                if name.startswith(VALUES):
                    self._values[layer, slot, :, target] = new[:, source]
                else:
                    self._key_columns(self._keys[layer, slot], target)[...] = self._key_columns(new, source)

    def move(self, source: int, target: int) -> None:
        """Copy a slot over another."""
        self._keys[:, target], self._values[:, target] = self._keys[:, source], self._values[:, source]

    def show(self, slot: int, visible: np.ndarray) -> None:
        """Set a slot's row of the mask."""
        self._mask[slot, 0, 0] = np.where(visible, 0.0, HIDDEN_SCORE)

    def step(self, tokens: np.ndarray | None, positions: np.ndarray, column: int, *, logits: bool) -> np.ndarray:
        """Run one step over the first slots; see `slot_decoding.SlotDevice`."""
        count = len(positions)
        if self._bound != (count, self._length):
            self._bind(count)
        self._tokens[:count] = self._next[:count] if tokens is None else tokens
        self._positions[:count] = positions
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:
            raise _run_error(error) from error
        place = slice(column, column + 1)
        self._key_columns(self._keys[:, :count], place)[...] = self._new_keys[:, :count]
        self._values[:, :count, :, place] = self._new_values[:, :count]
        self._mask[:count, ..., column] = 0.0
        if logits:
            return self._logits[:count].astype(np.float32)
        return self._next[:count].copy()

    def read_bandwidth(self, size_bytes: int) -> float:
        """Return the bytes/s at which this CPU reads a block of that size again and again, measured now."""
        return onnxruntime_decoding.host_read_bandwidth(size_bytes, self._threads or 1)

    def memory(self) -> dict[str, int]:
        """Return the resident memory of this process."""
        import psutil

        return {"process_bytes": int(psutil.Process().memory_info().rss)}

    def _bind(self, count: int) -> None:
        """Bind the first slots of everything; valid until their number or the cache changes."""
        graph = next(item for item in self._steps if item.layout.columns in (None, self._length))
        self._session, binding = graph.session, graph.session.io_binding()
        arrays: dict[str, np.ndarray] = {
            TOKENS: self._tokens[:count],
            POSITIONS: self._positions[:count],
            MASK: self._mask[:count],
        }
        outputs: dict[str, np.ndarray] = {LOGITS: self._logits[:count], NEXT: self._next[:count]}
        for index, name in enumerate(self.layout.names):
            kind = (self._values, self._new_values) if name.startswith(VALUES) else (self._keys, self._new_keys)
            arrays[name], outputs[NEW + name] = (block[index // 2, :count] for block in kind)
        _bind(binding.bind_input, arrays)
        _bind(binding.bind_output, outputs)
        self._binding, self._bound = binding, (count, self._length)

    def _block(self, slots: int, columns: int, *, keys: bool) -> np.ndarray:
        name = self.layout.names[0 if keys else 1]
        return np.zeros((self.layout.layers, *self.layout.shape(name, slots, columns)), self._dtype)

    def _key_columns(self, keys: np.ndarray, columns: slice) -> np.ndarray:
        return keys[..., columns] if self.layout.keys_transposed else keys[..., columns, :]


def _bind(bind: Callable[..., None], table: Mapping[str, np.ndarray]) -> None:
    """Bind arrays where they lie; numpy's own types go by their name, bfloat16 and float8 by ONNX's number."""
    for name, array in table.items():
        kind = array.dtype if array.dtype.kind in "iuf" else onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        bind(name, "cpu", 0, kind, array.shape, array.ctypes.data)


def _takes(layout: SlotLayout, shape: tuple[int, ...]) -> bool:
    return layout.batch in (None, shape[0]) and layout.columns in (None, shape[1])


def _columns(start: int, count: int) -> slice:
    return slice(start, start + count)
