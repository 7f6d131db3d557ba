"""From token ids to what a decoder is fed: padding, masks, positions, empty caches. Knows numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from workbench.datasets import Dataset, Split
from workbench.engines.decoding import MASK, POSITIONS, TOKENS, CacheLayout
from workbench.errors import DataError
from workbench.llm.loading import LanguageModel

Arrays = dict[str, np.ndarray]
# Padding is hidden by the mask, so any token does.
_PADDING = 0


@dataclass(frozen=True)
class Batch:
    """Prompts as arrays (N, S) int64, padded at the front so that all end at the last column."""

    tokens: np.ndarray
    mask: np.ndarray
    positions: np.ndarray


def batch(prompts: Sequence[Sequence[int]]) -> Batch:
    """Pad prompts at the front to the longest.

    Raises:
        DataError: there is no prompt, or one is empty.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise DataError(f"Got {len(prompts)} prompts, some of them empty. Pass at least one token each.")
    longest = max(len(prompt) for prompt in prompts)
    tokens = np.full((len(prompts), longest), _PADDING, np.int64)
    mask = np.zeros((len(prompts), longest), np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return Batch(tokens, mask, np.maximum(np.cumsum(mask, axis=1) - 1, 0))


def feeds(layout: CacheLayout, tokens: np.ndarray, past: int = 0, seed: int = 0) -> Arrays:
    """Return what one call of a decoder takes, with all tokens present.

    Args:
        tokens: (N, S) int64.
        past: columns that the cache holds already; filled with small random numbers, which cost the same time as real ones.

    Returns:
        Input name -> array; with S = 1 and past > 0 these are the feeds of a decode step for `workbench.measure`.
    """
    count, new = tokens.shape
    positions = np.broadcast_to(np.arange(past, past + new, dtype=np.int64), (count, new))
    arrays = {
        TOKENS: np.ascontiguousarray(tokens, dtype=np.int64),
        MASK: np.ones((count, past + new), np.int64),
        POSITIONS: np.ascontiguousarray(positions),
    }
    generator = np.random.default_rng(seed)
    shape = (count, layout.heads, past, layout.width)
    for name in layout.past:
        arrays[name] = generator.standard_normal(shape, dtype=np.float32).astype(layout.dtype)
    return arrays


def dataset(language: LanguageModel, windows: Dataset) -> Dataset:
    """Return windows of token ids as a dataset of a decoder: mask, positions and an empty cache are added.

    Args:
        windows: with one input of token ids (N, T), such as `workbench.datasets.stdlib_text()`.

    Raises:
        DataError: more than one input, no token ids, an id outside the vocabulary, or windows that are too long.
    """
    parts = {
        name: None if split is None else _split(language, split, windows.name)
        for name, split in (("evaluation", windows.evaluation), ("calibration", windows.calibration))
    }
    return replace(windows, **parts)  # type: ignore[arg-type]


def check_tokens(language: LanguageModel, tokens: np.ndarray, where: str) -> None:
    """Check token ids against the vocabulary.

    Raises:
        DataError: they are no integers, or one lies outside.
    """
    if tokens.dtype.kind not in "iu":
        raise DataError(
            f"{where} holds {tokens.dtype}, expected integer token ids. Encode the text with the tokenizer."
        )
    if tokens.size and (int(tokens.min()) < 0 or int(tokens.max()) >= language.vocabulary):
        bad = int(tokens[(tokens < 0) | (tokens >= language.vocabulary)].ravel()[0])
        raise DataError(
            f"{where} holds the token id {bad}; {language.model.name} has {language.vocabulary} ids (0 to "
            f"{language.vocabulary - 1}). Was the text encoded with another model's tokenizer?"
        )


def check_length(language: LanguageModel, length: int, what: str) -> None:
    """Check a number of tokens against what the model was made for.

    Raises:
        DataError: it is too long.
    """
    if length > language.largest_length:
        raise DataError(
            f"{what} needs {length} tokens; {language.model.name} takes {language.largest_length} at most "
            f"(max_position_embeddings). Shorten the prompt or ask for fewer new tokens."
        )


def _split(language: LanguageModel, split: Split, name: str) -> Split:
    if len(split.inputs) != 1:
        raise DataError(
            f"{name} has the inputs {', '.join(split.inputs)}; a language model's data have one, token ids (windows, "
            f"tokens). Mask, positions and cache are added here."
        )
    tokens = next(iter(split.inputs.values()))
    if tokens.ndim != 2:
        raise DataError(f"{name} has token ids of shape {tokens.shape}; expected (windows, tokens).")
    check_tokens(language, tokens, name)
    check_length(language, tokens.shape[1], f"A window of {name}")
    labels = split.labels if split.labels is not None else tokens.astype(np.int64)
    return Split(feeds(language.layout, tokens), labels)
