"""Measure generation: prefill and decode apart, in fresh processes that take turns, for a table of sizes.

Lengths are fixed and the end-of-text token is ignored, so every sequence generates exactly what the workload says and
nothing else is counted. Raw values only; `workbench.llm.rates` derives from them.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from workbench import codec
from workbench.engines.base import Feeds
from workbench.engines.decoding import Decoder, open_decoder
from workbench.engines.slot_decoding import SlotDecoder, check_engines, open_slots
from workbench.engines.slots import slot_layout
from workbench.errors import Cancelled, DataError
from workbench.llm.generation import sequences_of
from workbench.llm.loading import LanguageModel
from workbench.llm.memory import weights_read_bytes
from workbench.machine import child, conditions, device
from workbench.machine.handle import QUIET, Handle
from workbench.measuring import latency
from workbench.records import Engine, Measurement, Progress, Protocol, Round
from workbench.study.progress import Listener

# A repetition is a whole generation; two of them warm up what the first one allocates.
DEFAULT_PROTOCOL = Protocol(
    boundary="end_to_end", batch=1, rounds=5, min_seconds=0.5, min_runs=3, warmup_seconds=0.1, warmup_runs=2
)
_JOB = "workbench.llm.timing:round_job"


@dataclass(frozen=True)
class Workload:
    """Sizes of one row of the table: every sequence has the same lengths."""

    input_tokens: int
    output_tokens: int
    batch: int = 1

    def __post_init__(self) -> None:
        for name, least in (("input_tokens", 1), ("output_tokens", 2), ("batch", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"Workload.{name} is {getattr(self, name)}; it must be at least {least}")

    @property
    def label(self) -> str:
        """Such as `128 + 64 x 8`: input tokens, output tokens, sequences."""
        return f"{self.input_tokens} + {self.output_tokens} x {self.batch}"


@dataclass(frozen=True)
class GenerationMeasurement:
    """Raw seconds of one engine under one workload.

    Attributes:
        first_token: one value a repetition: from the prompts on the host to the first token of each sequence.
        step: one value a decode step (a token of every sequence), repetition after repetition.
        weights_bytes: weights that one step reads; None for what is no engine (PyTorch).
        token_bytes: cache of one token of one sequence.
        file_bytes: the engine as it lies on disk.

    Each round's `conditions` hold `read_bandwidth_bytes_per_second` and `memory` (open, and at most).
    """

    workload: Workload
    first_token: Measurement
    step: Measurement
    weights_bytes: int | None
    token_bytes: int
    file_bytes: int

    @property
    def variant(self) -> str:
        """Name of what was measured."""
        return self.step.variant


@dataclass(frozen=True)
class Contestant:
    """What is measured: a job in a fresh process, and what is known of it without running.

    Attributes:
        target: `workbench.module:function` with the contract of `round_job`.
        job: its own part of the job.
    """

    name: str
    sha256: str
    backend: str
    device: str
    target: str
    job: dict[str, Any]
    weights_bytes: int | None
    token_bytes: int
    file_bytes: int


def measure_generation(
    language: LanguageModel,
    contestants: Sequence[Engine | Contestant],
    workloads: Sequence[Workload],
    protocol: Protocol = DEFAULT_PROTOCOL,
    *,
    threads: int | None = None,
    cuda_graph: bool = False,
    progress: Listener = lambda step: None,
    handle: Handle = QUIET,
) -> list[GenerationMeasurement]:
    """Measure engines in turns: a round is a fresh process a contestant, which runs every workload.

    Args:
        contestants: engines of the model with different names; and what `workbench.llm.eager` gives.
        protocol: `batch` is the workload's; `min_runs` and `warmup_runs` count whole generations.
        threads: CPU threads; None takes what each engine was built with.
        cuda_graph: launch decode steps through CUDA graphs, on TensorRT.

    Returns:
        One record a contestant and workload, contestants in the given order.

    Raises:
        DataError: no contestant or workload, two of one name, or more tokens than the model takes.
        ChildKilled, RunError, EngineError: a process failed; Cancelled: the caller stopped it.
    """
    runners = [_contestant(item, threads, cuda_graph) for item in contestants]
    _check(language, runners, workloads)
    plain = {
        "workloads": [codec.to_plain(item) for item in workloads],
        "protocol": codec.to_plain(protocol),
        "vocabulary": language.vocabulary,
    }
    by_name = {runner.name: runner for runner in runners}
    taken: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in by_name}

    def lacking() -> list[str]:
        return [name for name, rounds in taken.items() if len(rounds) < protocol.rounds]

    def done() -> float:
        return sum(len(rounds) for rounds in taken.values()) / (protocol.rounds * len(runners))

    numbers = itertools.count()
    order = latency.turns(
        lacking,
        lambda: next(numbers),
        seed=protocol.seed,
        beside=runners[0].name,
        handle=handle,
        waiting=lambda words: progress(Progress("measure", "", done(), words)),
    )
    with contextlib.closing(order):  # whatever ends this loop, the turn goes to whoever waits for it
        for index, name in order:
            if handle.cancelled():
                raise Cancelled(f"Stopped as asked before round {index + 1} of {name!r}.")
            progress(Progress("measure", name, done(), f"round {index + 1} of {protocol.rounds}"))
            runner = by_name[name]
            answer = child.call(runner.target, {**plain, **runner.job, "index": index}, handle=handle)
            taken[name].append(answer.record["workloads"])
    progress(Progress("measure", "", 1.0, "done"))
    environment = device.describe()
    return [
        _record(runner, workload, protocol, [rounds[place] for rounds in taken[runner.name]], environment)
        for runner in runners
        for place, workload in enumerate(workloads)
    ]


def round_job(job: dict[str, Any], arrays: Feeds) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Be the child of `measure_generation` for an engine: open it, run every workload."""
    engines = [codec.from_plain(Engine, plain) for plain in job["engines"]]
    started = time.perf_counter()
    with _opened(engines, job) as decoder:
        open_seconds = time.perf_counter() - started
        machine = decoder.device if isinstance(decoder, SlotDecoder) else decoder
        open_memory = machine.memory()
        weights = weights_read_bytes(engines[-1])

        def repeat(prompts: np.ndarray, new_tokens: int) -> tuple[float, list[float]]:
            return generate_timed(decoder, prompts, new_tokens)

        found = []
        for plain in job["workloads"]:
            workload = codec.from_plain(Workload, plain)
            extra = {"open_seconds": open_seconds, "memory_open": open_memory}
            item = run_workload(repeat, workload, job, extra)
            middle = workload.input_tokens + workload.output_tokens // 2
            step_bytes = weights + workload.batch * middle * decoder.layout.token_bytes
            item["conditions"]["read_bandwidth_bytes_per_second"] = machine.read_bandwidth(step_bytes)
            item["conditions"]["memory_after"] = machine.memory()
            found.append(item)
    return {"workloads": found}, {}


def _opened(engines: Sequence[Engine], job: dict[str, Any]) -> Decoder | SlotDecoder:
    if len(engines) == 1:
        return open_decoder(engines[0], job["threads"], job["cuda_graph"])
    batches = [codec.from_plain(Workload, plain).batch for plain in job["workloads"]]
    return open_slots(engines, slots=max(batches), threads=job["threads"])


def run_workload(
    repeat: Callable[[np.ndarray, int], tuple[float, list[float]]],
    workload: Workload,
    job: dict[str, Any],
    extra: dict[str, Any],
) -> dict[str, Any]:
    """Warm up, then repeat the generation until both `min_seconds` and `min_runs` are reached; as plain data."""
    protocol = codec.from_plain(Protocol, job["protocol"])
    generator = np.random.default_rng(protocol.seed)
    prompts = generator.integers(0, job["vocabulary"], (workload.batch, workload.input_tokens))
    _repetitions(repeat, prompts, workload, protocol.warmup_seconds, protocol.warmup_runs)
    started_at, before = time.time(), conditions.snapshot()
    repetitions = _repetitions(repeat, prompts, workload, protocol.min_seconds, protocol.min_runs)
    return {
        "started_at": started_at,
        "first": [first for first, _ in repetitions],
        "steps": [seconds for _, steps in repetitions for seconds in steps],
        "peak_memory_bytes": conditions.peak_memory_bytes(),
        "conditions": {**conditions.between(before, conditions.snapshot()), **extra},
    }


def generate_timed(decoder: Decoder | SlotDecoder, prompts: np.ndarray, new_tokens: int) -> tuple[float, list[float]]:
    """Generate greedily; returns the seconds to the first tokens, and those of each further step."""
    rows = prompts.tolist()
    started = time.perf_counter()
    sequences = sequences_of(decoder)
    sequences.accept(sequences.add(rows).argmax(axis=-1))
    first = time.perf_counter() - started
    steps = []
    for _ in range(new_tokens - 1):
        started = time.perf_counter()
        sequences.greedy_step()
        steps.append(time.perf_counter() - started)
    return first, steps


def engine_contestant(engine: Engine, threads: int | None = None, cuda_graph: bool = False) -> Contestant:
    """Return an engine as a contestant; the process that measures opens it."""
    from workbench.engines.decoding import cache_layout

    return Contestant(
        name=engine.variant,
        sha256=engine.variant_sha256,
        backend=engine.backend,
        device=engine.device,
        target=_JOB,
        job={"engines": [codec.to_plain(replace(engine, log=""))], "threads": threads, "cuda_graph": cuda_graph},
        weights_bytes=weights_read_bytes(engine),
        token_bytes=cache_layout(engine.inputs, engine.outputs).token_bytes,
        file_bytes=engine.size_bytes,
    )


def slots_contestant(engines: Sequence[Engine], name: str, threads: int | None = None) -> Contestant:
    """Return a prefill and a step with slots as one contestant; the step comes last.

    Raises:
        EngineError: the engines do not belong together.
    """
    prefills, steps = check_engines(engines)
    step = steps[0]
    ordered = [codec.to_plain(replace(engine, log="")) for engine in (*prefills, *steps)]
    return Contestant(
        name=name,
        sha256=step.variant_sha256,
        backend=step.backend,
        device=step.device,
        target=_JOB,
        job={"engines": ordered, "threads": threads, "cuda_graph": True},
        weights_bytes=weights_read_bytes(step),
        token_bytes=slot_layout(step.inputs, step.outputs).token_bytes,
        file_bytes=sum(engine.size_bytes for engine in engines),
    )


def _contestant(item: Engine | Contestant, threads: int | None, cuda_graph: bool) -> Contestant:
    return item if isinstance(item, Contestant) else engine_contestant(item, threads, cuda_graph)


def _repetitions(
    repeat: Callable[[np.ndarray, int], tuple[float, list[float]]],
    prompts: np.ndarray,
    workload: Workload,
    least_seconds: float,
    least_runs: int,
) -> list[tuple[float, list[float]]]:
    taken: list[tuple[float, list[float]]] = []
    deadline = time.perf_counter() + least_seconds
    while len(taken) < least_runs or time.perf_counter() < deadline:
        taken.append(repeat(prompts, workload.output_tokens))
    return taken


def _record(
    runner: Contestant,
    workload: Workload,
    protocol: Protocol,
    rounds: Sequence[dict[str, Any]],
    environment: dict[str, Any],
) -> GenerationMeasurement:
    def measurement(part: str, shape: tuple[int, ...]) -> Measurement:
        return Measurement(
            variant=runner.name,
            variant_sha256=runner.sha256,
            backend=runner.backend,
            device=runner.device,
            protocol=replace(protocol, batch=workload.batch),
            shapes={"input_ids": shape},
            rounds=tuple(_round(index, item, part) for index, item in enumerate(rounds)),
            environment=environment,
        )

    return GenerationMeasurement(
        workload=workload,
        first_token=measurement("first", (workload.batch, workload.input_tokens)),
        step=measurement("steps", (workload.batch, 1)),
        weights_bytes=runner.weights_bytes,
        token_bytes=runner.token_bytes,
        file_bytes=runner.file_bytes,
    )


def _round(index: int, item: dict[str, Any], part: str) -> Round:
    return Round(
        index=index,
        latencies_seconds=tuple(item[part]),
        open_seconds=item["conditions"].get("open_seconds", 0.0),
        started_at=item["started_at"],
        peak_memory_bytes=item["peak_memory_bytes"],
        conditions=item["conditions"],
    )


def _check(language: LanguageModel, runners: Sequence[Contestant], workloads: Sequence[Workload]) -> None:
    names = [runner.name for runner in runners]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not runners or not workloads:
        raise DataError(f"Got {len(runners)} engines and {len(workloads)} workloads; both need at least one.")
    if twice:
        raise DataError(f"Two engines are named {twice[0]!r}. Give each variant its own name.")
    for item in workloads:
        total = item.input_tokens + item.output_tokens
        if total > language.largest_length:
            raise DataError(
                f"The workload {item.label} needs {total} tokens a sequence; {language.model.name} takes "
                f"{language.largest_length} at most. Shorten it."
            )
