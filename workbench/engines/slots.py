"""A decoder in two graphs around a cache of fixed length: what their tensors are called and how the cache lies.

A *prefill* reads prompts, padded at the end, and gives their keys and values and the logits after each. A *step* reads
one token of every slot and the whole cache in place, and gives the new keys and values alone; whoever runs it writes
them into the cache. All slots write the same column in a step, and go round: a sequence's tokens are the columns just
before the one that is written next, as many as it has. Rotary positions are in the keys, so columns need no order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import ml_dtypes  # noqa: F401 - gives numpy its names of bfloat16 and float8
import numpy as np

from workbench.errors import EngineError
from workbench.records import TensorSpec

TOKENS, LENGTHS, POSITIONS, MASK = "tokens", "lengths", "positions", "mask"
LOGITS, NEXT = "logits", "next_tokens"
# The name of a key tensor says how it lies: (slots, heads, columns, width), or transposed (slots, heads, width, columns).
KEYS, KEYS_TRANSPOSED, VALUES, NEW = "keys.", "keys_transposed.", "values.", "new_"
# Added to the scores of hidden columns. Finite, because a row of -inf alone would make Softmax NaN; small enough for
# FP16, where exp(-3e4) is 0 as well. What lies in a hidden column must be finite too: 0 * NaN is NaN.
HIDDEN_SCORE = -3.0e4

Kind = Literal["prefill", "step"]


@dataclass(frozen=True)
class SlotLayout:
    """How a graph takes and gives keys and values.

    Attributes:
        layers, heads, width: key/value heads and elements a head.
        dtype: of the cache's elements, a numpy name.
        vocabulary: number of logits a token.
        keys_transposed: keys lie as (slots, heads, width, columns); values never do.
        batch: slots of a step or prompts of a prefill; None where the graph takes any number.
        columns: of the cache, or tokens of a prompt; None where the graph takes any number.
        scores: type of mask and logits, a numpy name: the cache may be kept in fewer bits.
    """

    kind: Kind
    layers: int
    heads: int
    width: int
    dtype: str
    vocabulary: int
    keys_transposed: bool
    batch: int | None
    columns: int | None
    scores: str = "float32"

    @property
    def itemsize(self) -> int:
        """Bytes of an element of the cache."""
        return np.dtype(self.dtype).itemsize

    @property
    def token_bytes(self) -> int:
        """Bytes that one token of one sequence takes."""
        return 2 * self.layers * self.heads * self.width * self.itemsize

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the cache's tensors: keys and values of the first layer, of the second, ..."""
        return names(self.layers, keys_transposed=self.keys_transposed)

    def shape(self, name: str, batch: int, columns: int) -> tuple[int, int, int, int]:
        """Return the shape of one of the cache's tensors with so many slots and columns."""
        if name.removeprefix(NEW).startswith(KEYS_TRANSPOSED):
            return (batch, self.heads, self.width, columns)
        return (batch, self.heads, columns, self.width)

    def fits(self, other: SlotLayout) -> bool:
        """Whether keys and values of one graph can be those of the other."""
        ours, theirs = (
            (item.layers, item.heads, item.width, item.dtype, item.vocabulary, item.keys_transposed)
            for item in (self, other)
        )
        return ours == theirs


def names(layers: int, *, keys_transposed: bool) -> tuple[str, ...]:
    """Return the names of the cache's tensors, layer by layer, keys before values."""
    keys = KEYS_TRANSPOSED if keys_transposed else KEYS
    return tuple(f"{kind}{index}" for index in range(layers) for kind in (keys, VALUES))


def slot_layout(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> SlotLayout:
    """Read the layout from a graph's inputs and outputs.

    Raises:
        EngineError: they are not those of a prefill or a step with a cache of fixed length.
    """
    taken, given = {spec.name: spec for spec in inputs}, {spec.name: spec for spec in outputs}
    kind: Kind = "step" if MASK in taken else "prefill"
    wanted = (TOKENS, POSITIONS, MASK) if kind == "step" else (TOKENS, LENGTHS)
    new = [name for name in given if name.startswith(NEW)]
    layers, transposed = len(new) // 2, any(name.startswith(NEW + KEYS_TRANSPOSED) for name in new)
    cache = names(layers, keys_transposed=transposed)
    absent = [name for name in (*wanted, *(cache if kind == "step" else ())) if name not in taken]
    absent += [name for name in (LOGITS, NEXT, *(NEW + name for name in cache)) if name not in given]
    if absent or not layers:
        raise EngineError(
            f"This is neither graph of a decoder with a cache of fixed length: it lacks {', '.join(absent) or NEW + '...'}. "
            f"Its inputs are {', '.join(taken)}. Export both with workbench.llm.load_slots(folder)."
        )
    values = given[NEW + cache[1]]
    heads, width, vocabulary = values.shape[1], values.shape[3], given[LOGITS].shape[-1]
    if heads is None or width is None or vocabulary is None:
        raise EngineError(
            f"{values.name!r} has the shape {values.shape} and the logits {given[LOGITS].shape}; heads, head width and "
            f"vocabulary must be fixed. Export both graphs again with workbench.llm.load_slots(folder)."
        )
    columns = taken[MASK].shape[-1] if kind == "step" else taken[TOKENS].shape[-1]
    batch = taken[TOKENS].shape[0]
    scores = given[LOGITS].dtype
    return SlotLayout(kind, layers, heads, width, values.dtype, vocabulary, transposed, batch, columns, scores)
