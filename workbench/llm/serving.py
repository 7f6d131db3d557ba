"""A server loop in front of a decoder: requests queue, a policy admits them, every step gives each admitted one a token.

One loop serves all policies; they differ only in when they admit. The clock is passed in, so that a test can script it.
Knows nothing of statistics or processes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from workbench.engines.decoding import Decoder
from workbench.engines.slot_decoding import SlotDecoder
from workbench.llm.generation import Sequences, sequences_of
from workbench.llm.requests import Request
from workbench.llm.slot_sequences import SlotSequences


@dataclass(frozen=True)
class NoBatching:
    """One request at a time, in order of arrival."""

    @property
    def most(self) -> int:
        """Requests that run at once, at most."""
        return 1

    @property
    def label(self) -> str:
        """Name in tables."""
        return "no batching"

    def admit(self, waiting: Sequence[float], running: int, now: float) -> int:
        """Return how many of the waiting requests to start now."""
        return int(bool(waiting) and running == 0)

    def wake(self, waiting: Sequence[float]) -> float:
        """Return when to look again, though nothing arrives or ends before."""
        return float("inf")


@dataclass(frozen=True)
class DynamicBatching:
    """Start a batch when it is full, or when its first request has waited long enough; no one joins a running batch.

    Attributes:
        largest: requests in a batch.
        longest_wait_seconds: how long the first one waits for company.
    """

    largest: int = 8
    longest_wait_seconds: float = 0.01

    def __post_init__(self) -> None:
        if self.largest < 1 or not self.longest_wait_seconds >= 0:
            raise ValueError(
                f"DynamicBatching needs largest >= 1 and longest_wait_seconds >= 0, got {self.largest} and "
                f"{self.longest_wait_seconds}"
            )

    @property
    def most(self) -> int:
        """Requests that run at once, at most."""
        return self.largest

    @property
    def label(self) -> str:
        """Name in tables."""
        return f"dynamic, {self.largest} or {self.longest_wait_seconds * 1e3:g} ms"

    def admit(self, waiting: Sequence[float], running: int, now: float) -> int:
        """Return how many of the waiting requests to start now; `waiting` are their arrivals."""
        if running or not waiting:
            return 0
        ready = len(waiting) >= self.largest or now >= self.wake(waiting)
        return min(len(waiting), self.largest) if ready else 0

    def wake(self, waiting: Sequence[float]) -> float:
        """Return when the first waiting request has waited long enough."""
        return waiting[0] + self.longest_wait_seconds if waiting else float("inf")


@dataclass(frozen=True)
class ContinuousBatching:
    """Let requests join and leave between any two steps, as long as there is a free slot (Yu et al. 2022, Orca).

    Reading a prompt holds up all answers under way, and an engine for several prompts takes about as long for one: while
    others run, newcomers may wait for company.

    Attributes:
        slots: requests that run at once.
        together: newcomers that start at once, however short they have waited.
        longest_wait_seconds: how long the first one waits for that many while others run.
    """

    slots: int = 8
    together: int = 1
    longest_wait_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise ValueError(f"ContinuousBatching.slots is {self.slots}; it must be at least 1")
        if not 1 <= self.together <= self.slots or not self.longest_wait_seconds >= 0:
            raise ValueError(
                f"ContinuousBatching needs together from 1 to slots ({self.slots}) and longest_wait_seconds >= 0, got "
                f"{self.together} and {self.longest_wait_seconds}"
            )

    @property
    def most(self) -> int:
        """Requests that run at once, at most."""
        return self.slots

    @property
    def label(self) -> str:
        """Name in tables."""
        company = f", {self.together} together or {self.longest_wait_seconds * 1e3:g} ms" if self.together > 1 else ""
        return f"continuous, {self.slots} slots{company}"

    def admit(self, waiting: Sequence[float], running: int, now: float) -> int:
        """Return how many of the waiting requests to start now; `waiting` are their arrivals."""
        count = min(len(waiting), self.slots - running)
        if running and count and count < self.together and now < waiting[0] + self.longest_wait_seconds:
            return 0
        return count

    def wake(self, waiting: Sequence[float]) -> float:
        """Return when to look again, though nothing arrives or ends before."""
        return float("inf")


Policy = NoBatching | DynamicBatching | ContinuousBatching


class Clock(Protocol):
    """Time as the server sees it."""

    def now(self) -> float:
        """Return seconds since the start."""

    def sleep_until(self, moment: float) -> None:
        """Return at that moment, or at once where it has passed."""


class WallClock:
    """Real time from when it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def now(self) -> float:
        """Return seconds since the start."""
        return time.perf_counter() - self._start

    def sleep_until(self, moment: float) -> None:
        """Return at that moment, or at once where it has passed."""
        time.sleep(max(0.0, moment - self.now()))


@dataclass
class Served:
    """What became of the requests so far.

    Attributes:
        first_token, finished: when each request got its first and its last token, in seconds after the start; NaN where
            it has not.
        answers: the tokens of each request.
        steps, step_requests: decode steps, and the sum of the requests that were in them.
        widest: most requests in one step.
    """

    first_token: np.ndarray
    finished: np.ndarray
    answers: list[list[int]]
    steps: int = 0
    step_requests: int = 0
    widest: int = 0


@dataclass
class _Running:
    """A request that has a row in the batch, and how many tokens it still gets."""

    index: int
    left: int


def serve(
    decoder: Decoder | SlotDecoder,
    requests: Sequence[Request],
    policy: Policy,
    clock: Clock | None = None,
    *,
    hopeless: Callable[[Served, float], bool] = lambda served, now: False,
) -> Served:
    """Serve requests as they arrive, whether or not the server keeps up; greedy tokens, end of text ignored.

    Args:
        requests: in order of arrival.
        clock: None takes real time.
        hopeless: asked whenever a request was finished; True ends the serving early.
    """
    clock = clock or WallClock()
    served = Served(np.full(len(requests), np.nan), np.full(len(requests), np.nan), [[] for _ in requests])
    arriving = deque(range(len(requests)))
    waiting: deque[int] = deque()
    running: list[_Running] = []
    sequences = sequences_of(decoder)
    while arriving or waiting or running:
        now = clock.now()
        while arriving and requests[arriving[0]].arrival_seconds <= now:
            waiting.append(arriving.popleft())
        arrivals = [requests[index].arrival_seconds for index in waiting]
        count = policy.admit(arrivals, len(running), now)
        if count:
            chosen = [waiting.popleft() for _ in range(count)]
            _start(sequences, chosen, requests, running, served)
            served.first_token[chosen] = clock.now()
        elif running:
            _advance(sequences, running, served)
        else:
            following = requests[arriving[0]].arrival_seconds if arriving else float("inf")
            clock.sleep_until(min(following, policy.wake(arrivals)))
            continue
        if _finish(sequences, running, served, clock.now()) and hopeless(served, clock.now()):
            break
    return served


def _start(
    sequences: Sequences | SlotSequences,
    chosen: list[int],
    requests: Sequence[Request],
    running: list[_Running],
    served: Served,
) -> None:
    before = len(running)
    logits = sequences.add([requests[index].tokens for index in chosen])
    tokens = logits.argmax(axis=-1)
    sequences.accept(tokens, range(before, before + len(chosen)))
    served.widest = max(served.widest, len(sequences))
    for index, token in zip(chosen, tokens.tolist(), strict=True):
        running.append(_Running(index, requests[index].output_tokens - 1))
        served.answers[index].append(token)


def _advance(sequences: Sequences | SlotSequences, running: list[_Running], served: Served) -> None:
    tokens = sequences.greedy_step()
    served.steps += 1
    served.step_requests += len(running)
    for item, token in zip(running, tokens.tolist(), strict=True):
        item.left -= 1
        served.answers[item.index].append(token)


def _finish(sequences: Sequences | SlotSequences, running: list[_Running], served: Served, now: float) -> bool:
    """Let go of the requests that have all their tokens; whether there were any."""
    left = [row for row, item in enumerate(running) if item.left > 0]
    if len(left) == len(running):
        return False
    for item in running:
        if item.left <= 0:
            served.finished[item.index] = now
    sequences.keep(left)
    running[:] = [running[row] for row in left]
    return True
