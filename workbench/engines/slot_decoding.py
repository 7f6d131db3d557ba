"""Decode with a cache of fixed length: who has which slot, which column is written next, and when the cache must grow.

All slots write the same column in a step and the column goes round, so a step's new keys and values are one strided
copy. A sequence's tokens lie in the columns just before that one; its row of the mask says which they are. What is
copied where is decided here; engines only do it (`SlotDevice`). Knows no tokens' meaning and no policy of serving.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from workbench.engines.slots import SlotLayout, slot_layout
from workbench.errors import EngineError, RunError
from workbench.records import Engine

# Backend -> the module with `open_device(prefills, steps, slots, columns, threads)`.
_MODULES = {
    "onnxruntime-cpu": "workbench.engines.onnxruntime_slots",
    "tensorrt": "workbench.engines.tensorrt_slots",
    "tensorrt-rtx": "workbench.engines.tensorrt_slots",
}


@dataclass(frozen=True)
class Piece:
    """Neighbouring columns that go to neighbouring columns elsewhere."""

    source: int
    target: int
    count: int


class SlotDevice(Protocol):
    """What an engine does for a `SlotDecoder`.

    Attributes:
        layout: of the step.
        slots: that there is memory for.
        columns: lengths that the cache can have, ascending.
        prompt_sizes: (prompts, tokens) that a prefill can take; None where it takes any number.
        compact: whether a step runs over the first slots only, so that holes between them cost time.
    """

    layout: SlotLayout
    slots: int
    columns: tuple[int, ...]
    prompt_sizes: tuple[tuple[int | None, int | None], ...]
    compact: bool

    def close(self) -> None:
        """Give everything back."""

    def resize(self, columns: int, pieces: Sequence[Piece]) -> None:
        """Go over to a cache of so many columns; pieces of the old one are taken along, the rest is zero."""

    def prefill(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Run prompts (n, S) int32 and hold their keys and values; returns the logits (n, V) float32."""

    def insert(self, prompt: int, slot: int, pieces: Sequence[Piece]) -> None:
        """Copy keys and values of the last prefill's prompt into a slot."""

    def move(self, source: int, target: int) -> None:
        """Copy a slot over another."""

    def show(self, slot: int, visible: np.ndarray) -> None:
        """Set a slot's row of the mask, (columns,) bool."""

    def step(self, tokens: np.ndarray | None, positions: np.ndarray, column: int, *, logits: bool) -> np.ndarray:
        """Run one step over the first `len(positions)` slots, and put what is new into a column, shown to all of them.

        Args:
            tokens: int32; None takes the most probable ones of the step before, which are on the device.
            logits: return the logits (n, V) float32; else the most probable next tokens (n,) int32.
        """

    def read_bandwidth(self, size_bytes: int) -> float:
        """Return the bytes/s at which this device reads a block of that size again and again, measured now."""

    def memory(self) -> dict[str, int]:
        """Return what the device or process holds now, in bytes, by what it is for."""


class SlotDecoder:
    """An open decoder with slots. Use it as a context manager; not for two threads at once.

    Attributes:
        lengths: tokens of each slot that the cache holds; 0 where the slot is free.
    """

    def __init__(self, device: SlotDevice) -> None:
        self.layout = device.layout
        self.device = device
        self.slots = device.slots
        self.lengths = np.zeros(device.slots, np.int64)
        self.columns = 0
        self._taken = np.zeros(device.slots, bool)
        self._column = 0
        self._told: np.ndarray | None = None  # the tokens that the device would feed by itself

    def __enter__(self) -> SlotDecoder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.device.close()

    @property
    def largest_length(self) -> int:
        """Tokens that the longest cache holds."""
        return self.device.columns[-1]

    @property
    def largest_prompt(self) -> int | None:
        """Tokens that the longest prefill takes; None where it takes any number."""
        sizes = [size for _, size in self.device.prompt_sizes]
        return None if None in sizes else max(size for size in sizes if size is not None)

    @property
    def free(self) -> int:
        """Number of free slots."""
        return int((~self._taken).sum())

    def add(self, prompts: Sequence[Sequence[int]]) -> tuple[list[int], np.ndarray]:
        """Run prompts through the prefill and give each a slot.

        Returns:
            The slots, and the logits after each prompt, (len(prompts), V).

        Raises:
            RunError: no prompts, an empty one, too few free slots, or a prompt that no prefill or cache can take.
        """
        lengths = [len(prompt) for prompt in prompts]
        if not lengths or min(lengths) == 0:
            raise RunError(f"Got {len(prompts)} prompts, some of them empty. Pass at least one token each.")
        if len(prompts) > self.free:
            raise RunError(f"{len(prompts)} prompts need a slot each, and {self.free} of {self.slots} are free.")
        self._make_room(max(lengths))
        taken, logits = [], []
        for part in self._parts(lengths):
            tokens, counts = self._padded([prompts[index] for index in part])
            logits.append(self.device.prefill(tokens, counts)[: len(part)])
            for row, index in enumerate(part):
                taken.append(self._insert(row, lengths[index]))
        self._told = None
        return taken, np.concatenate(logits)

    def step(self, tokens: Mapping[int, int], *, logits: bool = True) -> np.ndarray:
        """Feed a token of every taken slot.

        Args:
            tokens: slot -> token.
            logits: return logits (slots, V) float32; else only the most probable next tokens (slots,) int32, which the
                next step feeds without a way over the host where they are what it is given.

        Returns:
            One row a slot, up to the last one taken; rows of free slots mean nothing.

        Raises:
            RunError: the tokens are not those of the taken slots, or a sequence has outgrown the longest cache.
        """
        taken = np.flatnonzero(self._taken)
        if sorted(tokens) != taken.tolist() or not len(taken):
            raise RunError(f"Tokens came for the slots {sorted(tokens)}; taken are {taken.tolist()}.")
        self._make_room(int(self.lengths.max()) + 1)
        count = int(taken[-1]) + 1 if self.device.compact else self.slots
        fed = np.zeros(count, np.int32)
        fed[list(tokens)] = list(tokens.values())
        told = self._told is not None and len(self._told) == count and bool((self._told[taken] == fed[taken]).all())
        positions = self.lengths[:count].astype(np.int32)
        found = self.device.step(None if told else fed, positions, self._column, logits=logits)
        self._told = None if logits else found
        self._column = (self._column + 1) % self.columns
        self.lengths[taken] += 1
        return found

    def release(self, slots: Sequence[int]) -> dict[int, int]:
        """Free slots.

        Returns:
            Which slots were moved to close the holes, from -> to; nothing moves where holes cost nothing.
        """
        for slot in slots:
            self._taken[slot], self.lengths[slot] = False, 0
        moved: dict[int, int] = {}
        while self.device.compact:
            holes, taken = np.flatnonzero(~self._taken), np.flatnonzero(self._taken)
            if not len(holes) or not len(taken) or holes[0] > taken[-1]:
                break
            source, target = int(taken[-1]), int(holes[0])
            self.device.move(source, target)
            self.lengths[target], self.lengths[source] = self.lengths[source], 0
            self._taken[target], self._taken[source] = True, False
            self._show(target)
            moved[source] = target
            self._told = None
        return moved

    def _insert(self, row: int, length: int) -> int:
        slot = int(np.flatnonzero(~self._taken)[0])
        start = (self._column - length) % self.columns
        first = min(length, self.columns - start)
        pieces = [Piece(0, start, first), Piece(first, 0, length - first)]
        self.device.insert(row, slot, [piece for piece in pieces if piece.count])
        self._taken[slot], self.lengths[slot] = True, length
        self._show(slot)
        return slot

    def _show(self, slot: int) -> None:
        """Show a slot the columns that hold its tokens: as many as it has, before the one that is written next."""
        ages = (self._column - 1 - np.arange(self.columns)) % self.columns
        self.device.show(slot, ages < self.lengths[slot])

    def _make_room(self, length: int) -> None:
        """Go over to the shortest cache that holds sequences of this length, and those that are here."""
        running = bool(self._taken.any())
        needed = max(length, int(self.lengths.max()))
        fitting = [columns for columns in self.device.columns if columns >= needed]
        if not fitting:
            raise RunError(
                f"A sequence needs {needed} columns of the cache; the longest has {self.largest_length}. Shorten the prompt "
                f"or the answer, or export with more columns (workbench.llm.load_slots)."
            )
        if self.columns == fitting[0] or (running and self.columns > fitting[0]):
            return
        pieces = []
        if running:  # the oldest column comes first: the one that would be written next
            back = self.columns - self._column
            pieces = [Piece(self._column, 0, back), Piece(0, back, self._column)]
        self.device.resize(fitting[0], [piece for piece in pieces if piece.count])
        self._column = self.columns if running else 0
        self.columns = fitting[0]
        for slot in np.flatnonzero(self._taken):
            self._show(int(slot))

    def _parts(self, lengths: Sequence[int]) -> list[list[int]]:
        """Split prompts into calls of the prefill: as many at once as one takes."""
        longest = max(lengths)
        sizes = [size for size in self.device.prompt_sizes if size[1] is None or size[1] >= longest]
        if not sizes:
            raise RunError(
                f"A prompt has {longest} tokens; the longest prefill takes {self.largest_prompt}. Shorten it, or export a "
                f"longer prefill (workbench.llm.load_slots)."
            )
        most = max(size[0] or len(lengths) for size in sizes)
        order = list(range(len(lengths)))
        return [order[start : start + most] for start in range(0, len(order), most)]

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens and lengths in the smallest size that a prefill takes; prompts are padded at the end."""
        longest = max(len(prompt) for prompt in prompts)
        fitting = [
            (batch or len(prompts), tokens or longest)
            for batch, tokens in self.device.prompt_sizes
            if (batch is None or batch >= len(prompts)) and (tokens is None or tokens >= longest)
        ]
        rows, width = min(fitting, key=lambda size: (size[0] * size[1], size))
        tokens = np.zeros((rows, width), np.int32)
        lengths = np.ones(rows, np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
            lengths[row] = len(prompt)
        return tokens, lengths


def check_engines(engines: Sequence[Engine]) -> tuple[list[Engine], list[Engine]]:
    """Return prefills and steps, after a check that they belong together.

    Raises:
        EngineError: one kind is missing, they are of several backends, or their caches differ.
    """
    layouts = {id(engine): slot_layout(engine.inputs, engine.outputs) for engine in engines}
    prefills = [engine for engine in engines if layouts[id(engine)].kind == "prefill"]
    steps = [engine for engine in engines if layouts[id(engine)].kind == "step"]
    if not prefills or not steps:
        raise EngineError(
            f"A decoder with slots takes at least one prefill and one step; got {len(prefills)} and {len(steps)} engines."
        )
    backends = sorted({engine.backend for engine in engines})
    if len(backends) > 1:
        raise EngineError(f"The engines are of several backends ({', '.join(backends)}). Build all for one.")
    first = layouts[id(steps[0])]
    for engine in engines:
        if not first.fits(layouts[id(engine)]):
            raise EngineError(
                f"The engine {engine.variant!r} keeps another cache than {steps[0].variant!r}: {layouts[id(engine)]} and "
                f"{first}. Build all from one export."
            )
    return prefills, steps


def open_slots(
    engines: Sequence[Engine],
    *,
    slots: int | None = None,
    columns: Sequence[int] | None = None,
    threads: int | None = None,
) -> SlotDecoder:
    """Open a prefill and a step, or several sizes of each, as one decoder; a context manager.

    Args:
        slots: sequences at once; None takes the step's, or 8 where it takes any number.
        columns: lengths of the cache where the step takes any, ascending; None takes 128, 256, 512, 1024 and 2048.
        threads: CPU threads inside an operator; None takes what the step was built with.

    Raises:
        EngineError: the engines do not belong together, cannot be opened, or are of a backend that has no such decoder.
    """
    prefills, steps = check_engines(engines)
    backend = steps[0].backend
    if backend not in _MODULES:
        raise EngineError(
            f"The backend {backend!r} has no decoder with slots. Build the variants for one of "
            f"{', '.join(sorted(_MODULES))}."
        )
    options: dict[str, Any] = {"slots": slots, "columns": columns, "threads": threads}
    return SlotDecoder(importlib.import_module(_MODULES[backend]).open_device(prefills, steps, **options))
