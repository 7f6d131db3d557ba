"""Requests to a chatbot: when they arrive, what they ask, and how long the answer is. Drawn from a seed, runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench.errors import DataError


@dataclass(frozen=True)
class Lengths:
    """A distribution of token counts: log-normal with this median and spread, cut to `least`..`most`.

    Attributes:
        spread: standard deviation of the logarithm; 0 gives the median every time.
    """

    median: int
    spread: float = 0.5
    least: int = 1
    most: int = 1 << 20

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.median <= self.most:
            raise ValueError(
                f"Lengths needs 1 <= least <= median <= most, got {self.least}, {self.median}, {self.most}"
            )
        if not 0 <= self.spread < float("inf"):
            raise ValueError(f"Lengths.spread is {self.spread}; it must be 0 or more, and finite")

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Return `count` lengths, int64."""
        drawn = self.median * np.exp(self.spread * generator.standard_normal(count))
        return np.clip(np.rint(drawn), self.least, self.most).astype(np.int64)


@dataclass(frozen=True)
class Traffic:
    """Poisson arrivals with lengths from distributions.

    The same seed gives the same requests at any rate: only the gaps between them are scaled, so that rates and policies
    are compared on the same requests.
    """

    requests: int = 200
    input_tokens: Lengths = Lengths(32, 0.5, 4, 128)
    output_tokens: Lengths = Lengths(16, 0.5, 2, 64)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise ValueError(f"Traffic.requests is {self.requests}; it must be at least 1")


@dataclass(frozen=True)
class Request:
    """One question: when it arrives (seconds after the start), its tokens, and how many the answer gets."""

    arrival_seconds: float
    tokens: tuple[int, ...]
    output_tokens: int


def draw(traffic: Traffic, rate: float, text: np.ndarray) -> tuple[Request, ...]:
    """Return the requests of a traffic at a rate, in order of arrival.

    Args:
        rate: requests/s on average.
        text: token ids (L,) that prompts are cut from.

    Raises:
        DataError: the rate is not positive, or the text is shorter than the longest prompt.
    """
    if not 0 < rate < float("inf"):
        raise DataError(f"The rate is {rate} requests/s; it must be positive and finite.")
    gaps, inputs, outputs, places = (np.random.default_rng([traffic.seed, part]) for part in range(4))
    arrivals = np.cumsum(gaps.exponential(1.0, traffic.requests)) / rate
    prompts = traffic.input_tokens.draw(inputs, traffic.requests)
    answers = traffic.output_tokens.draw(outputs, traffic.requests)
    if len(text) < int(prompts.max()):
        raise DataError(
            f"The text has {len(text)} tokens and the longest prompt {int(prompts.max())}. Pass more text or shorter prompts."
        )
    starts = places.integers(0, len(text) - prompts + 1)
    return tuple(
        Request(float(arrival), tuple(text[start : start + length].tolist()), int(answer))
        for arrival, start, length, answer in zip(arrivals, starts, prompts, answers, strict=True)
    )


def longest(requests: Sequence[Request]) -> int:
    """Return the most tokens that one of the requests needs, prompt and answer together."""
    return max(len(request.tokens) + request.output_tokens for request in requests)
