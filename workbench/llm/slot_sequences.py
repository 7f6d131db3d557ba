"""Sequences that are being decoded in slots: the same calls as `generation.Sequences`, over a `SlotDecoder`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.engines.slot_decoding import SlotDecoder


class SlotSequences:
    """Sequences in the slots of a decoder, each with its last token; rows are in the order in which they came."""

    def __init__(self, decoder: SlotDecoder) -> None:
        self._decoder = decoder
        decoder.release(range(decoder.slots))
        self._slots: list[int] = []
        self._last = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def columns(self) -> int:
        """Columns of the cache."""
        return self._decoder.columns

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence that the cache holds, (N,)."""
        return np.asarray(self._decoder.lengths[self._slots])

    def add(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Run the prompts through the model and give each a slot; returns the logits after each, (len(prompts), V)."""
        slots, logits = self._decoder.add(prompts)
        self._slots += slots
        self._last = np.concatenate([self._last, np.zeros(len(slots), np.int64)])
        return logits

    def accept(self, tokens: np.ndarray, rows: Sequence[int] | None = None) -> None:
        """Say which token follows each sequence (or these rows); the next step feeds it."""
        self._last[slice(None) if rows is None else list(rows)] = tokens

    def step(self) -> np.ndarray:
        """Feed each sequence's accepted token; returns the logits after it, (N, V)."""
        return self._decoder.step(self._fed())[self._slots]

    def greedy_step(self) -> np.ndarray:
        """Feed each sequence's accepted token; returns and accepts the most probable next ones, chosen on the device."""
        self._last = self._decoder.step(self._fed(), logits=False)[self._slots].astype(np.int64)
        return self._last.copy()

    def keep(self, rows: Sequence[int]) -> None:
        """Let all sequences but these go."""
        if len(rows) == len(self):
            return
        moved = self._decoder.release([slot for row, slot in enumerate(self._slots) if row not in set(rows)])
        self._slots = [moved.get(self._slots[row], self._slots[row]) for row in rows]
        self._last = self._last[list(rows)]

    def _fed(self) -> dict[int, int]:
        return dict(zip(self._slots, self._last.tolist(), strict=True))
