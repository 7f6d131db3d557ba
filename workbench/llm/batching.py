"""Requests that come at any time, answered together: continuous batching of one open decoder in a thread of its own.

A request joins between two steps as soon as a slot is free, and leaves when it is answered (Yu et al. 2022, Orca, OSDI).
Knows no network; `workbench.llm.endpoint` speaks HTTP in front of it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from workbench.engines.decoding import open_decoder
from workbench.errors import Cancelled, WorkbenchError
from workbench.llm.generation import Ending, Sequences
from workbench.llm.sampling import Sampling, choose
from workbench.records import Engine

SLOTS = 8


@dataclass(eq=False)
class Request:
    """One prompt to be continued.

    Attributes:
        ids: the prompt, checked against the model (see `generation.prompt_ids`).
        stops: tokens that end the answer.
        on_token: called in the batcher's thread with each new token.
        on_end: called once, with how it ended or what went wrong.
        abandoned: set by the caller, whose slot is then given to the next one.
    """

    ids: Sequence[int]
    new_tokens: int
    sampling: Sampling
    stops: frozenset[int]
    on_token: Callable[[int], None]
    on_end: Callable[[Ending | WorkbenchError], None]
    abandoned: threading.Event = field(default_factory=threading.Event)
    taken: int = 0

    def __post_init__(self) -> None:
        self.stream = np.random.default_rng([self.sampling.seed, 0])


class Batcher:
    """Answers requests with one engine, at most `slots` at a time; a context manager.

    Raises:
        EngineError: the engine cannot be opened for decoding.
    """

    def __init__(self, engine: Engine, slots: int = SLOTS, threads: int | None = None) -> None:
        self.slots = slots
        self._waiting: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._decoder = open_decoder(engine, threads)
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name=f"serve-{engine.variant}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def submit(self, request: Request) -> None:
        """Put a request in the queue; its callbacks hear the rest.

        Raises:
            Cancelled: the batcher was closed.
        """
        if self._closed:
            raise Cancelled("The server is shutting down and takes no more requests.")
        self._waiting.put(request)

    def close(self) -> None:
        """End: requests that are not answered yet hear that it was stopped."""
        self._closed = True
        self._waiting.put(None)
        self._thread.join()

    def _serve(self) -> None:
        active: list[Request] = []
        with self._decoder as decoder:
            sequences = Sequences(decoder)
            while not self._closed:
                try:
                    self._advance(sequences, active)
                except WorkbenchError as error:  # the engine failed: everybody in the batch hears it, and it goes on
                    for request in active:
                        request.on_end(error)
                    active.clear()
                    sequences = Sequences(decoder)
        stopped = Cancelled("The server was stopped before the answer was complete.")
        for request in (*active, *self._left()):
            request.on_end(stopped)

    def _advance(self, sequences: Sequences, active: list[Request]) -> None:
        """Let who is done leave, let who waits join, and give each a token."""
        if active:
            logits = sequences.step()
            self._give(active, logits, sequences, first_row=0)
        joining = self._joining(len(active))
        if joining:
            rows = len(active)
            active += joining  # from here on they hear of errors
            self._give(joining, sequences.add([request.ids for request in joining]), sequences, first_row=rows)
        left = [row for row, request in enumerate(active) if not _is_done(request)]
        sequences.keep(left)
        active[:] = [active[row] for row in left]

    def _give(self, requests: Sequence[Request], logits: np.ndarray, sequences: Sequences, first_row: int) -> None:
        rows = zip(requests, logits, strict=True)
        tokens = [int(choose(row[None], request.sampling, [request.stream])[0]) for request, row in rows]
        sequences.accept(np.array(tokens, np.int64), range(first_row, first_row + len(tokens)))
        for request, token in zip(requests, tokens, strict=True):
            if request.abandoned.is_set():
                continue
            request.taken += 1
            request.on_token(token)
            if token in request.stops:
                request.taken = request.new_tokens
                request.on_end("stop")
            elif request.taken >= request.new_tokens:
                request.on_end("length")

    def _joining(self, active: int) -> list[Request]:
        found: list[Request] = []
        while active + len(found) < self.slots:
            try:
                item = self._waiting.get(block=not active and not found)
            except queue.Empty:
                break
            if item is None:
                break
            if not item.abandoned.is_set():
                found.append(item)
        return found

    def _left(self) -> list[Request]:
        found = []
        while not self._waiting.empty():
            item = self._waiting.get()
            found += [] if item is None else [item]
        return found


def _is_done(request: Request) -> bool:
    return request.abandoned.is_set() or request.taken >= request.new_tokens
