"""Shape profiles of a decoder, for engines that compile for shapes: one for prompts, one for decode steps."""

from __future__ import annotations

from workbench.engines.decoding import MASK, POSITIONS, TOKENS
from workbench.errors import DataError
from workbench.llm.loading import LanguageModel
from workbench.records import ShapeProfile

Profile = dict[str, ShapeProfile]


def profiles(
    language: LanguageModel,
    *,
    largest_batch: int,
    largest_prompt: int,
    largest_length: int,
    typical_batch: int = 1,
    typical_prompt: int | None = None,
    room: int = 64,
) -> tuple[Profile, Profile]:
    """Return `BuildOptions.profiles` for a decoder: a prefill from an empty cache, and a step of one token.

    Args:
        largest_prompt: tokens of a prompt.
        largest_length: tokens of prompt and answer together.
        typical_batch, typical_prompt: what kernels are chosen for; None takes the largest prompt.
        room: columns that a captured step may have free (see `workbench.engines.tensorrt_decoding`).

    Raises:
        DataError: sizes that contradict each other or the model.
    """
    typical = largest_prompt if typical_prompt is None else typical_prompt
    if not 1 <= typical_batch <= largest_batch or not 1 <= typical <= largest_prompt < largest_length:
        raise DataError(
            f"Profiles need 1 <= typical_batch <= largest_batch and 1 <= typical_prompt <= largest_prompt < "
            f"largest_length; got batches {typical_batch}, {largest_batch} and lengths {typical}, {largest_prompt}, "
            f"{largest_length}."
        )
    if largest_length > language.largest_length:
        raise DataError(
            f"The profile reaches to {largest_length} tokens; {language.model.name} takes {language.largest_length} at most."
        )
    batches = (1, typical_batch, largest_batch)
    prefill = _profile(language, batches, (1, typical, largest_prompt), (0, 0, 0))
    middle = min((typical + largest_length) // 2, largest_length)
    decode = _profile(language, batches, (1, 1, 1), (1, middle, largest_length + room))
    return prefill, decode


def _profile(
    language: LanguageModel, batches: tuple[int, int, int], new: tuple[int, int, int], past: tuple[int, int, int]
) -> Profile:
    layout = language.layout

    def shapes(*axes: tuple[int, int, int] | int) -> ShapeProfile:
        columns = [(axis, axis, axis) if isinstance(axis, int) else axis for axis in axes]
        smallest, middle, largest = (tuple(column[place] for column in columns) for place in range(3))
        return ShapeProfile(smallest, middle, largest)

    total = (new[0] + past[0], new[1] + past[1], new[2] + past[2])
    cache = shapes(batches, layout.heads, past, layout.width)
    return {
        TOKENS: shapes(batches, new),
        MASK: shapes(batches, total),
        POSITIONS: shapes(batches, new),
        **dict.fromkeys(layout.past, cache),
    }
