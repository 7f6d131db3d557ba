"""Generate: prefill, then one token of every sequence a step, the cache staying on the device in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from workbench.engines.decoding import Decoder
from workbench.engines.slot_decoding import SlotDecoder
from workbench.errors import DataError
from workbench.llm import feeding
from workbench.llm.loading import LanguageModel
from workbench.llm.sampling import Sampling, choose
from workbench.llm.slot_sequences import SlotSequences

Ending = Literal["stop", "length"]


@dataclass(frozen=True)
class Generation:
    """What came out, a prompt at a time.

    Attributes:
        tokens: the new tokens of each prompt; the stop token is the last one where it ended the answer.
        endings: `stop` where a stop token came, `length` where the asked-for number was reached.
        texts: the tokens as text, without special tokens; empty where there is no tokenizer.
    """

    tokens: tuple[tuple[int, ...], ...]
    endings: tuple[Ending, ...]
    texts: tuple[str, ...] = ()


class Sequences:
    """Sequences that are being decoded: their cache, their mask, and each one's last token and position.

    Rows end at the same column (see `workbench.engines.decoding`), so rows may join and leave between any two steps.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._cache: Any = None
        self._mask = np.zeros((0, 0), np.int64)
        self._last = np.zeros(0, np.int64)

    def __len__(self) -> int:
        return len(self._last)

    @property
    def columns(self) -> int:
        """Columns that the cache holds: tokens of the longest sequence."""
        return self._mask.shape[1]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence that the cache holds, (N,)."""
        return np.asarray(self._mask.sum(axis=1))

    def add(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """Run the prompts through the model and put them below the sequences here.

        Returns:
            The logits after each new prompt, (len(prompts), V).
        """
        new = feeding.batch(prompts)
        empty = self._decoder.empty(len(prompts))
        logits, cache = self._decoder.step(new.tokens, new.mask, new.positions, empty)
        mask = new.mask
        if len(self):
            cache = self._decoder.join(self._cache, cache)
            width = max(self.columns, mask.shape[1])
            mask = np.concatenate([_widened(self._mask, width), _widened(mask, width)])
        self._cache, self._mask = cache, mask
        self._last = np.concatenate([self._last, np.zeros(len(prompts), np.int64)])
        return logits

    def accept(self, tokens: np.ndarray, rows: Sequence[int] | None = None) -> None:
        """Say which token follows each sequence (or these rows); the next step feeds it."""
        self._last[slice(None) if rows is None else list(rows)] = tokens

    def step(self) -> np.ndarray:
        """Feed each sequence's accepted token; returns the logits after it, (N, V)."""
        positions = self.lengths[:, None]
        mask = np.concatenate([self._mask, np.ones((len(self), 1), np.int64)], axis=1)
        logits, self._cache = self._decoder.step(self._last[:, None], mask, positions, self._cache)
        self._mask = mask
        return logits

    def greedy_step(self) -> np.ndarray:
        """Feed each sequence's accepted token; returns and accepts the most probable next ones, (N,)."""
        tokens = np.asarray(self.step().argmax(axis=-1))
        self.accept(tokens)
        return tokens

    def keep(self, rows: Sequence[int]) -> None:
        """Let all sequences but these go, and columns that no sequence uses any more."""
        if len(rows) == len(self):
            return
        if not rows:
            self._cache, self._mask, self._last = None, np.zeros((0, 0), np.int64), np.zeros(0, np.int64)
            return
        mask = self._mask[list(rows)]
        longest = int(mask.sum(axis=1).max())
        self._cache = self._decoder.keep(self._cache, rows, longest)
        self._mask = np.ascontiguousarray(mask[:, mask.shape[1] - longest :])
        self._last = self._last[list(rows)]


def sequences_of(decoder: Decoder | SlotDecoder) -> Sequences | SlotSequences:
    """Return no sequences yet, for this decoder."""
    return SlotSequences(decoder) if isinstance(decoder, SlotDecoder) else Sequences(decoder)


def generate(
    language: LanguageModel,
    decoder: Decoder | SlotDecoder,
    prompts: Sequence[str | Sequence[int]],
    *,
    new_tokens: int = 64,
    sampling: Sampling | None = None,
    stop: Sequence[int] | None = None,
    on_token: Callable[[int, int], None] = lambda prompt, token: None,
) -> Generation:
    """Continue prompts, all in one batch.

    Args:
        decoder: open, of an engine of this model (`workbench.llm.open_decoder` or `open_slots`).
        prompts: texts, or token ids.
        new_tokens: at most so many for each prompt.
        sampling: None takes the most probable token each time.
        stop: tokens that end an answer; None takes the model's end-of-text tokens, () none.
        on_token: called with (prompt's index, token) as tokens come.

    Raises:
        DataError: no prompts, an empty one, an id outside the vocabulary, or more tokens than the model takes.
        RunError: the engine failed, or logits are not finite.
    """
    sampling = sampling or Sampling()
    ids = prompt_ids(language, prompts, new_tokens)
    stops = frozenset(language.end_ids if stop is None else stop)
    streams = [np.random.default_rng([sampling.seed, index]) for index in range(len(ids))]
    answers: list[list[int]] = [[] for _ in ids]
    endings: list[Ending] = ["length"] * len(ids)
    sequences = sequences_of(decoder)
    active = list(range(len(ids)))
    logits = sequences.add(ids)
    while True:
        chosen = choose(logits, sampling, [streams[index] for index in active])
        for index, token in zip(active, chosen.tolist(), strict=True):
            answers[index].append(token)
            on_token(index, token)
            if token in stops:
                endings[index] = "stop"
        left = [
            row for row, index in enumerate(active) if endings[index] != "stop" and len(answers[index]) < new_tokens
        ]
        if not left:
            break
        sequences.accept(chosen)
        sequences.keep(left)
        active = [active[row] for row in left]
        logits = sequences.step()
    texts = tuple(language.decode(answer) for answer in answers) if language.tokenizer else ()
    return Generation(tuple(tuple(answer) for answer in answers), tuple(endings), texts)


def prompt_ids(
    language: LanguageModel, prompts: Sequence[str | Sequence[int]], new_tokens: int
) -> list[tuple[int, ...]]:
    """Return prompts as token ids, checked against the model.

    Raises:
        DataError: as `generate`.
    """
    if isinstance(prompts, str):
        raise DataError("prompts is one string; pass a list of prompts, also for one.")
    if new_tokens < 1:
        raise DataError(f"new_tokens is {new_tokens}; ask for at least 1.")
    found = []
    for number, prompt in enumerate(prompts):
        ids = language.encode(prompt) if isinstance(prompt, str) else tuple(int(token) for token in prompt)
        where = f"Prompt {number}"
        if not ids:
            raise DataError(f"{where} is empty: there is nothing to continue. Pass at least one token.")
        feeding.check_tokens(language, np.array(ids), where)
        feeding.check_length(
            language, len(ids) + new_tokens, f"{where} of {len(ids)} tokens with {new_tokens} new ones"
        )
        found.append(ids)
    if not found:
        raise DataError("There are no prompts. Pass at least one.")
    return found


def _widened(mask: np.ndarray, width: int) -> np.ndarray:
    return np.pad(mask, ((0, 0), (width - mask.shape[1], 0)))
