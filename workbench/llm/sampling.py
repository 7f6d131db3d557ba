"""Choose the next token from logits: greedy, or drawn with temperature, top-k and top-p. Knows numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from workbench.errors import RunError


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the most probable token; 1 draws from the model's distribution, less sharpens it.
        top_k: only the k most probable tokens may be drawn; None allows all.
        top_p: only the smallest set of most probable tokens that holds this probability; None allows all
            (Holtzman et al. 2020, arXiv:1904.09751).
        seed: sequence `i` of a call draws from the stream (seed, i), whatever batch it is in.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"Sampling.temperature is {self.temperature}; it must be 0 (greedy) or more, and finite")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"Sampling.top_k is {self.top_k}; it must be at least 1, or None")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"Sampling.top_p is {self.top_p}; it must lie in (0, 1], or be None")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise ValueError("Sampling.top_k and top_p need a temperature above 0; temperature 0 takes the best token")


def choose(logits: np.ndarray, sampling: Sampling, streams: list[np.random.Generator]) -> np.ndarray:
    """Return the next token of each sequence, (N,) int64.

    Args:
        logits: (N, V) float32.
        streams: one a sequence; not used by greedy choice.

    Raises:
        RunError: logits are NaN or infinite.
    """
    if not np.isfinite(logits).all():
        bad = int((~np.isfinite(logits).all(axis=-1)).sum())
        raise RunError(
            f"The logits of {bad} of {len(logits)} sequences are NaN or infinite, so no token can be chosen. The variant "
            f"overflows: try BF16, or keep more of it in FP32 with the recipe's exclude."
        )
    if sampling.temperature == 0:
        return np.asarray(logits.argmax(axis=-1), dtype=np.int64)
    drawn = [_draw(row, sampling, stream) for row, stream in zip(logits, streams, strict=True)]
    return np.array(drawn, dtype=np.int64)


def probabilities(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Return the distribution (V,) that a token is drawn from, given logits (V,) and a temperature above 0."""
    scaled = logits.astype(np.float64) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < len(scaled):
        # Tokens as probable as the k-th stay: which of them come first in the vocabulary must not decide.
        scaled[scaled < np.partition(scaled, -sampling.top_k)[-sampling.top_k]] = -np.inf
    weights = np.exp(scaled - scaled.max())
    weights /= weights.sum()
    if sampling.top_p is not None and sampling.top_p < 1.0:
        order = np.argsort(-weights, kind="stable")
        before = np.cumsum(weights[order]) - weights[order]
        weights[order[before >= sampling.top_p]] = 0.0
        weights /= weights.sum()
    return np.asarray(weights)


def _draw(logits: np.ndarray, sampling: Sampling, stream: np.random.Generator) -> int:
    cumulative = np.cumsum(probabilities(logits, sampling))
    # Rounding may leave the last sum a hair below 1; a token of probability 0 is never taken.
    return int(np.searchsorted(cumulative, stream.random() * cumulative[-1], side="right"))
