"""Measure latency: one fresh process a (variant, round), variants taking turns in an order drawn anew each round.

Two variants are only as comparable as the conditions they met; taking turns lets slow drifts of the machine meet both,
and a fresh process a round lets the luck of one memory layout count once. Raw values only: nothing here judges them.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from threading import Barrier, BrokenBarrierError
from typing import Any

import numpy as np

from workbench import engines
from workbench.engines.base import Feeds, Runner
from workbench.engines.feeding import as_feeds
from workbench.errors import Cancelled, DataError, EngineError, WorkbenchError, expect
from workbench.machine import child, conditions, device, ranges
from workbench.machine.handle import QUIET, Handle
from workbench.records import Engine, Failure, Measurement, Progress, Protocol, Round

Clock = Callable[[], float]
Call = Callable[..., child.Answer]
_JOB = "workbench.measuring.latency:measure_job"


def measure(
    built: Sequence[Engine],
    feeds: Feeds,
    protocol: Protocol | None = None,
    *,
    threads: int | None = None,
    progress: Callable[[Progress], None] = lambda step: None,
    handle: Handle = QUIET,
    finished: Mapping[str, Sequence[Round]] | None = None,
    on_round: Callable[[Engine, Round], None] = lambda engine, item: None,
    call: Call = child.call,
) -> dict[str, Measurement | Failure]:
    """Measure engines in turns, each round of each in a fresh process.

    Args:
        built: engines with different variant names.
        feeds: input name -> array with exactly `protocol.batch` samples on axis 0.
        protocol: None takes the defaults of `Protocol`.
        threads: CPU threads of the runner; None takes what each engine was built with.
        progress: called before each round and at the end.
        handle: asked between rounds and while a child runs whether to stop.
        finished: variant -> rounds that are there already; they are not measured again. The first engine takes part in
            every new turn, so that what is measured later has neighbours in time too.
        on_round: called with each finished round, so that it can be stored at once.
        call: runs a job in a fresh process, as `workbench.machine.child.call` does.

    Returns:
        Variant -> its measurement, or the failure that ended it; one that fails does not stop the others.

    Raises:
        DataError: no engines, two of one name, or a wrong batch.
        Cancelled: the caller stopped it; finished rounds were handed to `on_round`.
    """
    built = built if isinstance(built, (list, tuple)) else [built]  # type: ignore[list-item]
    protocol = protocol or Protocol()
    for engine in built:
        expect(engine, Engine, "measure", "Build one first: workbench.build(variant, ...).", EngineError)
    feeds = as_feeds(built[0].inputs, feeds, "measure") if built else feeds
    _check(built, feeds, protocol)
    engines_by_name = {engine.variant: engine for engine in built}
    rounds = {name: {item.index: item for item in (finished or {}).get(name, ())} for name in engines_by_name}
    failures: dict[str, Failure] = {}
    wanted = protocol.rounds * len(built)

    def lacking() -> list[str]:
        return [name for name in rounds if len(rounds[name]) < protocol.rounds and name not in failures]

    def next_turn() -> int:
        return 1 + max((index for taken in rounds.values() for index in taken), default=-1)

    def told(words: str) -> None:
        progress(Progress("measure", "", _done(rounds, protocol) / wanted, words))

    order = turns(lacking, next_turn, seed=protocol.seed, beside=built[0].variant, handle=handle, waiting=told)
    with closing(order):  # whatever ends this loop, the turn goes to whoever waits for it
        for index, name in order:
            if name in failures:
                continue
            if handle.cancelled():
                raise Cancelled(f"Stopped as asked before round {index + 1} of {name!r}. Finished rounds are kept.")
            step = f"round {len(rounds[name]) + 1} of {protocol.rounds}"
            progress(Progress("measure", name, _done(rounds, protocol) / wanted, step))
            engine = engines_by_name[name]
            try:
                item = take_round(engine, feeds, protocol, index, threads=threads, handle=handle, call=call)
            except Cancelled:
                raise
            except WorkbenchError as error:
                failures[name] = Failure(name, "measure", type(error).__name__, str(error), getattr(error, "log", ""))
                continue
            rounds[name][index] = item
            on_round(engine, item)
    progress(Progress("measure", "", 1.0, "done"))
    taken = {name: [found[index] for index in sorted(found)] for name, found in rounds.items()}
    described = device.describe()
    here = {engine.variant: {**described, "threads": _threads(engine, threads)} for engine in built}
    return {
        name: failures.get(name) or measurement(engine, feeds, protocol, taken[name], here[name])
        for name, engine in engines_by_name.items()
    }


def turns(
    lacking: Callable[[], Sequence[str]],
    next_turn: Callable[[], int],
    *,
    seed: int,
    beside: str,
    handle: Handle = QUIET,
    waiting: Callable[[str], None] | None = None,
) -> Generator[tuple[int, str], None, None]:
    """Yield who is measured next, and in which turn, until nobody lacks a round.

    Whoever takes part in a turn is measured next to the others, in an order drawn anew each turn from seed and number.
    The baseline takes part in every turn, so that every ratio has neighbours in time to pair. During a turn nobody else
    measures on this machine (see `workbench.machine.turn`).

    Args:
        lacking: who lacks a round; asked before each turn.
        next_turn: gives the number of a new turn.
        beside: the baseline.
        handle: the caller's, which may stop the waiting for others.
        waiting: told in words whom this waits for.

    Raises:
        Cancelled: the caller stopped it while it waited.
    """
    while names := lacking():
        with child.measuring(handle, waiting):
            index = next_turn()
            together = list(dict.fromkeys([beside, *names]))
            random.Random(f"{seed}-{index}").shuffle(together)
            for name in together:
                yield index, name


def take_round(
    engine: Engine,
    feeds: Feeds,
    protocol: Protocol,
    index: int,
    *,
    threads: int | None = None,
    handle: Handle = QUIET,
    call: Call = child.call,
) -> Round:
    """Measure one round of one engine in a fresh process; arguments as for `measure`.

    Raises:
        EngineError, RunError: the engine cannot be opened, or refuses the feeds.
        ChildKilled: the process crashed or was killed.
        Cancelled: the caller stopped it.
    """
    job = RoundJob(replace(engine, log=""), protocol, index, _threads(engine, threads))
    taken: Round = call(_JOB, job, feeds, returns=Round, handle=handle).record
    return taken


@dataclass(frozen=True)
class RoundJob:
    """What `take_round` sends."""

    engine: Engine
    protocol: Protocol
    index: int
    threads: int | None


def measure_job(job: RoundJob, arrays: Feeds) -> tuple[Round, dict[str, np.ndarray]]:
    """Be the child of `take_round`: open the engine, take one round of samples."""
    with ranges.opened(f"round {job.index} of {job.engine.variant}"):
        return round_here(lambda: engines.open_runner(job.engine, job.threads), arrays, job.protocol, job.index), {}


def round_here(
    open_runner: Callable[[], Runner],
    feeds: Feeds,
    protocol: Protocol,
    index: int = 0,
    clock: Clock = time.perf_counter,
) -> Round:
    """Open a runner (one a stream), warm it up and take the samples of one round, in this process."""
    started_at, started = time.time(), clock()
    with ExitStack() as opened:
        runners = [opened.enter_context(open_runner()) for _ in range(protocol.streams)]
        open_seconds = clock() - started
        latencies, found = sample(runners, feeds, protocol, clock)
    return Round(
        index=index,
        latencies_seconds=latencies,
        open_seconds=open_seconds,
        started_at=started_at,
        peak_memory_bytes=conditions.peak_memory_bytes(),
        conditions=found,
    )


def sample(
    runners: Sequence[Runner], feeds: Feeds, protocol: Protocol, clock: Clock = time.perf_counter
) -> tuple[tuple[float, ...], dict[str, Any]]:
    """Warm up, then time calls until both `min_seconds` and `min_runs` are reached.

    Args:
        runners: open; one a stream. More than one run at once, each on a thread of its own.

    Returns:
        Seconds of each call in the order in which calls ended, and the conditions; for the boundary `throughput` with
        `queries_per_second`: calls over the time from the first start to the last end, as `trtexec` counts it.
    """
    watches = [runner.stopwatch(feeds, protocol.boundary, protocol.cuda_graph) for runner in runners]
    before: list[conditions.Snapshot] = []
    # The last one to reach the barrier notes the counters: all streams are warm, none has begun.
    barrier = Barrier(len(watches), action=lambda: before.append(conditions.snapshot()))
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        timed = _streams(watches, protocol, barrier, clock)
        after = conditions.snapshot()
    finally:
        if collecting:
            gc.enable()
    found = {**conditions.between(before[0], after), "warmup_runs": sum(stream.warmup_runs for stream in timed)}
    found |= {"device": state} if (state := runners[0].conditions()) else {}
    calls = sorted((end, seconds) for stream in timed for end, seconds in zip(stream.ends, stream.seconds, strict=True))
    if protocol.boundary == "throughput":
        found["queries_per_second"] = len(calls) / (calls[-1][0] - min(stream.start for stream in timed))
    return tuple(seconds for _, seconds in calls), found


@dataclass(frozen=True)
class _Stream:
    start: float
    ends: list[float]
    seconds: list[float]
    warmup_runs: int


def _streams(
    watches: Sequence[Callable[[], float]], protocol: Protocol, barrier: Barrier, clock: Clock
) -> list[_Stream]:
    if len(watches) == 1:  # on this thread: nothing to switch between
        return [_stream(watches[0], protocol, barrier, clock)]
    with ThreadPoolExecutor(len(watches)) as pool:
        running = [pool.submit(_stream, watch, protocol, barrier, clock) for watch in watches]
    errors = [error for stream in running if (error := stream.exception()) is not None]
    # A stream that fails breaks the barrier for the others; what it raised is the cause.
    for error in sorted(errors, key=lambda error: isinstance(error, BrokenBarrierError)):
        raise error
    return [stream.result() for stream in running]


def _stream(watch: Callable[[], float], protocol: Protocol, barrier: Barrier, clock: Clock) -> _Stream:
    try:
        warmup_runs = len(_repeat(watch, protocol.warmup_seconds, protocol.warmup_runs, clock)[0])
    except BaseException:
        barrier.abort()  # the other streams must not wait for this one
        raise
    barrier.wait()
    start = clock()
    ends, seconds = _repeat(watch, protocol.min_seconds, protocol.min_runs, clock)
    return _Stream(start, ends, seconds, warmup_runs)


def _repeat(
    watch: Callable[[], float], least_seconds: float, least_runs: int, clock: Clock
) -> tuple[list[float], list[float]]:
    ends: list[float] = []
    seconds: list[float] = []
    deadline = clock() + least_seconds
    now = deadline - least_seconds
    while now < deadline or len(seconds) < least_runs:
        seconds.append(watch())
        now = clock()
        ends.append(now)
    return ends, seconds


def _done(rounds: Mapping[str, Mapping[int, Round]], protocol: Protocol) -> int:
    return sum(min(len(taken), protocol.rounds) for taken in rounds.values())


def _threads(engine: Engine, threads: int | None) -> int | None:
    return engine.options.threads if threads is None else threads


def measurement(
    engine: Engine, feeds: Feeds, protocol: Protocol, rounds: Sequence[Round], environment: Mapping[str, Any]
) -> Measurement:
    """Return the record of an engine's rounds, in their order.

    Args:
        environment: of the machine, the engine's threads with it; the version of its library is added.
    """
    return Measurement(
        variant=engine.variant,
        variant_sha256=engine.variant_sha256,
        backend=engine.backend,
        device=engine.device,
        protocol=protocol,
        shapes={name: tuple(array.shape) for name, array in feeds.items()},
        rounds=tuple(rounds),
        environment={**environment, "backend_version": engine.backend_version},
    )


def _check(built: Sequence[Engine], feeds: Feeds, protocol: Protocol) -> None:
    expect(protocol, Protocol, "measure(protocol=...)", "Pass workbench.Protocol(...), or nothing.", DataError)
    names = [engine.variant for engine in built]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names:
        raise DataError("There is no engine to measure. Build at least one first.")
    if twice:
        raise DataError(f"Two engines are named {twice[0]!r}; rounds are kept by name. Give each variant its own name.")
    fixed = {spec.name for engine in built for spec in engine.inputs if not spec.shape or spec.shape[0] is not None}
    for name, array in feeds.items():
        if name not in fixed and (array.ndim == 0 or len(array) != protocol.batch):
            raise DataError(
                f"Input {name!r} was fed {array.shape}, but the protocol says {protocol.batch} samples a call. Feed "
                f"exactly that many, or set Protocol(batch=...)."
            )
