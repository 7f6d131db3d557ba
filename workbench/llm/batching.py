"""Requests that come at any time, answered together: continuous batching of one open decoder in a thread of its own.

A request joins between two steps as soon as a slot is free, and leaves when it is answered (Yu et al. 2022, Orca, OSDI).
The decoder's cache grows, or has slots of a fixed length; `sequences_of` makes both look alike. Knows no network;
`workbench.llm.endpoint` speaks HTTP in front of it.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from workbench.engines.decoding import Decoder, open_decoder
from workbench.engines.slot_decoding import SlotDecoder, open_slots
from workbench.errors import Cancelled, DataError, WorkbenchError
from workbench.llm.generation import Ending, Sequences, sequences_of
from workbench.llm.sampling import Sampling, choose
from workbench.llm.slot_sequences import SlotSequences
from workbench.records import Engine

SLOTS = 8
# What answers: an engine whose cache grows, or a prefill and a step (or several sizes of each) with slots.
Served = Engine | Sequence[Engine]


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
    """Answers requests with one decoder, at most `slots` at a time; a context manager.

    Args:
        engines: one engine whose cache grows, or the prefills and steps of one decoder with slots.
        slots: None takes the number that the steps were exported with, or 8 where they take any.

    Raises:
        EngineError: the engines do not belong together, or cannot be opened for decoding.
    """

    def __init__(self, engines: Served, slots: int | None = None, threads: int | None = None) -> None:
        self._waiting: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._decoder: Decoder | SlotDecoder
        if isinstance(engines, Engine):
            self._decoder, self.slots, name = open_decoder(engines, threads), slots or SLOTS, engines.variant
        else:
            self._decoder = open_slots(engines, slots=slots, threads=threads)
            self.slots, name = min(self._decoder.slots, slots or self._decoder.slots), engines[0].variant
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name=f"serve-{name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def submit(self, request: Request) -> None:
        """Put a request in the queue; its callbacks hear the rest.

        Raises:
            Cancelled: the batcher was closed.
            DataError: the prompt, or the prompt with its answer, is longer than the slots are.
        """
        if self._closed:
            raise Cancelled("The server is shutting down and takes no more requests.")
        if isinstance(self._decoder, SlotDecoder):  # refused here: in the batch it would end everybody's answer
            _check_length(self._decoder, len(request.ids), request.new_tokens)
        self._waiting.put(request)

    def close(self) -> None:
        """End: requests that are not answered yet hear that it was stopped."""
        self._closed = True
        self._waiting.put(None)
        self._thread.join()

    def _serve(self) -> None:
        active: list[Request] = []
        with self._decoder as decoder:
            sequences = sequences_of(decoder)
            while not self._closed:
                try:
                    self._advance(sequences, active)
                except WorkbenchError as error:  # the engine failed: everybody in the batch hears it, and it goes on
                    for request in active:
                        request.on_end(error)
                    active.clear()
                    sequences = sequences_of(decoder)
        stopped = Cancelled("The server was stopped before the answer was complete.")
        for request in (*active, *self._left()):
            request.on_end(stopped)

    def _advance(self, sequences: Sequences | SlotSequences, active: list[Request]) -> None:
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

    def _give(
        self,
        requests: Sequence[Request],
        logits: np.ndarray,
        sequences: Sequences | SlotSequences,
        first_row: int,
    ) -> None:
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


def _check_length(decoder: SlotDecoder, prompt: int, answer: int) -> None:
    longest = decoder.largest_prompt
    if longest is not None and prompt > longest:
        raise DataError(
            f"The prompt has {prompt} tokens; the longest prefill that is served takes {longest}. Shorten it, or export a "
            f"longer prefill (workbench.llm.load_slots)."
        )
    # The last token of an answer is given and never read, so it needs no column.
    if prompt + answer - 1 > decoder.largest_length:
        raise DataError(
            f"A prompt of {prompt} tokens with {answer} new ones needs {prompt + answer - 1} columns of the cache; the "
            f"longest that is served has {decoder.largest_length}. Ask for fewer tokens, or export a longer step "
            f"(workbench.llm.load_slots)."
        )
