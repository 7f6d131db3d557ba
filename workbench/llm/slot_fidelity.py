"""What a cache costs in a language model's answers: held-out text read token by token through slots, beside a parent's.

Every token but those of the first column is predicted from keys and values as they lie in the cache, which a graph that
reads whole windows never touches. See `fidelity` for the values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.datasets import Dataset
from workbench.engines.slot_decoding import SlotDecoder, check_engines, open_slots
from workbench.errors import DataError
from workbench.llm import feeding
from workbench.llm.fidelity import Quality, compare_logits, match_length, quality_of
from workbench.llm.generation import generate
from workbench.llm.loading import LanguageModel
from workbench.records import Engine


def slots_quality(
    language: LanguageModel,
    engines: Sequence[Engine],
    parent: Sequence[Engine],
    windows: Dataset,
    *,
    prompts: Sequence[str | Sequence[int]] = (),
    new_tokens: int = 32,
    slots: int = 32,
    threads: int | None = None,
) -> Quality:
    """Compare a decoder with slots with its FP32 parent on held-out text read through the cache, and on greedy answers.

    Args:
        engines, parent: prefills and steps of each, from `build_slots`.
        windows: of token ids, such as `workbench.datasets.stdlib_text()`; the evaluation split's labels are used.
        prompts: texts or token ids to answer greedily; none leaves the match length out.
        new_tokens: tokens of each greedy answer; end of text is ignored.
        slots: windows at once where the steps take any number.

    Raises:
        DataError: there are no labels, they are no token ids of this model, or they are longer than a sequence may be.
        EngineError: engines do not belong together or cannot be opened; RunError: one failed.
    """
    tokens = _windows(language, windows)
    parts = []
    with (
        open_slots(engines, slots=slots, threads=threads) as ours,
        open_slots(parent, slots=slots, threads=threads) as theirs,
    ):
        both = (ours, theirs)
        longest = min(decoder.largest_length for decoder in both)
        if tokens.shape[1] > longest:
            raise DataError(
                f"Windows of {windows.name} have {tokens.shape[1]} tokens, and the longest cache has {longest} columns. "
                f"Export a longer step (workbench.llm.load_slots)."
            )
        at_once = min(decoder.slots for decoder in both)
        for start in range(0, len(tokens), at_once):  # logits of all windows at once may not fit into memory
            part = tokens[start : start + at_once]
            parts.append(compare_logits(read_through(ours, part), read_through(theirs, part), part))
        match = tuple(
            match_length(*(_answer(language, decoder, prompt, new_tokens) for decoder in both)) for prompt in prompts
        )
    names = [check_engines(built)[1][0] for built in (engines, parent)]
    return quality_of(names[0], names[1], windows.name, parts, match, new_tokens if prompts else 0)


def read_through(decoder: SlotDecoder, tokens: np.ndarray) -> np.ndarray:
    """Feed windows (N, T) one column a step, whatever the model would have said; returns the logits (N, T, V)."""
    slots, logits = decoder.add([[int(token)] for token in tokens[:, 0]])
    found = [logits]
    for column in range(1, tokens.shape[1]):
        fed = {slot: int(token) for slot, token in zip(slots, tokens[:, column], strict=True)}
        found.append(decoder.step(fed)[slots])
    decoder.release(slots)
    return np.stack(found, axis=1)


def _answer(
    language: LanguageModel, decoder: SlotDecoder, prompt: str | Sequence[int], new_tokens: int
) -> tuple[int, ...]:
    return generate(language, decoder, [prompt], new_tokens=new_tokens, stop=()).tokens[0]


def _windows(language: LanguageModel, windows: Dataset) -> np.ndarray:
    labels = windows.evaluation.labels
    if labels is None or np.ndim(labels) != 2:
        raise DataError(f"{windows.name} has no labels (N, T), which are the token ids. Pass windows of token ids.")
    tokens = np.asarray(labels)
    feeding.check_tokens(language, tokens, windows.name)
    feeding.check_length(language, tokens.shape[1], f"A window of {windows.name}")
    return tokens
