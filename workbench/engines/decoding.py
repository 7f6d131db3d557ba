"""Run a decoder step by step with its key/value cache left on the device. Knows no tokens, texts or policies.

A decoder is an ONNX graph with the inputs `input_ids`, `attention_mask`, `position_ids` and `past_key_values.<i>.key` /
`.value`, and the outputs `logits` and `present.<i>.key` / `.value`. The rows of a batch end at the same column: a
shorter sequence has columns before it that its attention mask hides. So every row grows by one column a step.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from workbench.errors import EngineError, RunError
from workbench.records import Engine, TensorSpec

TOKENS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
PAST, PRESENT = "past_key_values.", "present."

# Backend -> the module with `open_decoder(engine, threads, cuda_graph)`.
_MODULES = {
    "onnxruntime-cpu": "workbench.engines.onnxruntime_decoding",
    "onnxruntime-cuda": "workbench.engines.onnxruntime_decoding",
    "tensorrt": "workbench.engines.tensorrt_decoding",
}


@dataclass(frozen=True)
class CacheLayout:
    """The key/value cache of a decoder: which tensors it has and what one token of one sequence costs.

    Attributes:
        past: names of the inputs, in the graph's order.
        present: names of the outputs that become those inputs in the next step, in the same order.
        heads, width: key/value heads and elements a head.
        dtype: of its elements, a numpy name.
        vocabulary: number of logits a token.
    """

    past: tuple[str, ...]
    present: tuple[str, ...]
    heads: int
    width: int
    dtype: str
    vocabulary: int

    @property
    def token_bytes(self) -> int:
        """Bytes that one token of one sequence takes."""
        return len(self.past) * self.heads * self.width * np.dtype(self.dtype).itemsize


class Cache(Protocol):
    """Keys and values of a batch, on the device. It is used up by the step that it is given to."""

    @property
    def batch(self) -> int:
        """Number of sequences."""

    @property
    def length(self) -> int:
        """Number of columns, the same for all sequences."""

    @property
    def size_bytes(self) -> int:
        """Bytes that its elements take."""


class Decoder(Protocol):
    """An open decoder. Use it as a context manager; not for two threads at once."""

    layout: CacheLayout

    def __enter__(self) -> Decoder: ...

    def __exit__(self, *exception: object) -> None: ...

    def empty(self, batch: int) -> Any:
        """Return a cache of `batch` sequences and no columns."""

    def step(self, tokens: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Any) -> tuple[np.ndarray, Any]:
        """Run once over new tokens.

        Args:
            tokens: (N, S) int64, the new tokens; (N, S) of the prompt in a prefill, (N, 1) in a decode step.
            mask: (N, P + S) int64, 1 where a column holds a token and 0 where it is padding.
            positions: (N, S) int64, place of each new token in its sequence.
            cache: of N sequences and P columns.

        Returns:
            The logits of the last column, (N, V) float32 on the host, and the cache with P + S columns.

        Raises:
            RunError: shapes do not fit, or the backend reports an error.
        """

    def join(self, first: Any, second: Any) -> Any:
        """Return one cache with the sequences of both, padded at the front to the longer of the two."""

    def keep(self, cache: Any, rows: Sequence[int], length: int) -> Any:
        """Return a cache of these sequences, in this order, with their last `length` columns."""

    def read_bandwidth(self, size_bytes: int) -> float:
        """Return the bytes/s at which this device reads a block of that size again and again, measured now."""

    def memory(self) -> dict[str, int]:
        """Return what the device or process holds now, in bytes, by what it is for."""


def cache_layout(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> CacheLayout:
    """Read the layout of a decoder's cache from its inputs and outputs.

    Raises:
        EngineError: they are not those of a decoder with a cache.
    """
    taken, given = {spec.name: spec for spec in inputs}, {spec.name: spec for spec in outputs}
    past = tuple(name for name in taken if name.startswith(PAST))
    present = tuple(PRESENT + name.removeprefix(PAST) for name in past)
    absent = [name for name in (TOKENS, MASK, POSITIONS) if name not in taken]
    absent += [name for name in (LOGITS, *present) if name not in given]
    if absent or not past:
        raise EngineError(
            f"This is no decoder with a key/value cache: it lacks {', '.join(absent) or PAST + '0.key'}. Its inputs are "
            f"{', '.join(taken)}. Export it with workbench.llm.load(folder)."
        )
    shape, vocabulary = taken[past[0]].shape, given[LOGITS].shape[-1]
    heads, width = (shape[1], shape[3]) if len(shape) == 4 else (None, None)
    if heads is None or width is None or vocabulary is None:
        raise EngineError(
            f"The cache input {past[0]!r} has the shape {shape} and the logits {given[LOGITS].shape}; heads, head width and "
            f"vocabulary must be fixed: (batch, heads, length, width). Export it again with workbench.llm.load(folder)."
        )
    return CacheLayout(past, present, heads, width, taken[past[0]].dtype, vocabulary)


def check_step(tokens: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: Cache) -> None:
    """Check that the arguments of `Decoder.step` fit each other and the cache.

    Raises:
        RunError: they do not.
    """
    wanted = (len(tokens), cache.length + tokens.shape[1])
    if len(tokens) != cache.batch or mask.shape != wanted or positions.shape != tokens.shape:
        raise RunError(
            f"Tokens {tokens.shape}, mask {mask.shape} and positions {positions.shape} do not fit a cache of "
            f"{cache.batch} sequences and {cache.length} columns: the mask must be {wanted}."
        )


def open_decoder(engine: Engine, threads: int | None = None, cuda_graph: bool = False) -> Decoder:
    """Open an engine for decoding step by step; a context manager.

    Args:
        threads: CPU threads inside an operator; None takes what the engine was built with.
        cuda_graph: launch decode steps through CUDA graphs, where the backend is TensorRT; others ignore it.

    Raises:
        EngineError: the engine has no cache, cannot be opened, or its backend cannot keep a cache on the device.
    """
    if engine.backend not in _MODULES:
        raise EngineError(
            f"The backend {engine.backend!r} cannot keep a cache on its device. Build the variant for one of "
            f"{', '.join(sorted(_MODULES))}."
        )
    module = importlib.import_module(_MODULES[engine.backend])
    decoder: Decoder = module.open_decoder(engine, engine.options.threads if threads is None else threads, cuda_graph)
    return decoder
