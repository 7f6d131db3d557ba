"""What child processes do with engines: build one, or run one over a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench import engines
from workbench.datasets.outputs import Answers, joined_calls
from workbench.engines.base import Feeds
from workbench.engines.feeding import as_feeds, fixed_batch
from workbench.engines.sample_axes import sample_axes
from workbench.errors import BuildError, EngineError, RunError, expect
from workbench.machine import child, ranges
from workbench.machine.handle import QUIET, Handle
from workbench.machine.store import Store
from workbench.records import BuildOptions, Engine, LayerProfile, LayerTime, Variant


@dataclass(frozen=True)
class BuildJob:
    """What `build` sends; paths as text."""

    variant: Variant
    backend: str
    options: BuildOptions
    store: str
    calibration: str | None


@dataclass(frozen=True)
class InferJob:
    """What `infer` sends."""

    engine: Engine
    batch: int
    threads: int | None
    axes: dict[str, int | None]


@dataclass(frozen=True)
class ProfileJob:
    """What `layer_profile` sends."""

    engine: Engine
    runs: int


def build(
    variant: Variant,
    backend: str = "auto",
    options: BuildOptions | None = None,
    *,
    store: Store | None = None,
    calibration: Path | None = None,
    handle: Handle = QUIET,
) -> Engine:
    """Build an engine from a variant, in another process (one for several builds where starting takes seconds).

    Args:
        backend: a name from `workbench.backends()`, or `auto` for the fastest that is here.
        options: None takes one thread and the engine's own choices.
        store: keeps the engine's files; None takes the default store.
        calibration: `.npz` of calibration feeds, for native calibrators only.
        handle: the caller's, which may end the build and is told each line of its log.

    Raises:
        BackendMissing: the backend cannot be used here.
        BuildError: the backend refuses the variant (UnsupportedOperator, OutOfMemory where that is why).
        ChildKilled: the builder crashed or was killed.
        Cancelled: the caller stopped it.
    """
    remedy = "Apply a recipe first, if only 'fp32': workbench.transform(model, 'fp32')."
    expect(variant, Variant, "build", remedy, BuildError)
    name, _ = engines.choose(backend, to_build=True)
    store = store or Store()
    job = BuildJob(
        variant, name, options or BuildOptions(), str(store.root), None if calibration is None else str(calibration)
    )
    target = "workbench.engines.jobs:build_job"
    engine: Engine = child.call(target, job, returns=Engine, handle=handle, kept=engines.kept_process(name)).record
    return engine


def build_job(job: BuildJob, arrays: Feeds) -> tuple[Engine, dict[str, np.ndarray]]:
    """Be the child of `build`."""
    with ranges.opened(f"build {job.variant.name}"):
        engine = engines.build(
            job.variant,
            job.backend,
            job.options,
            store=Store(job.store),
            calibration=None if job.calibration is None else Path(job.calibration),
            log=lambda line: print(line, flush=True),  # noqa: T201 - the parent reads the child's output as the log
        )
    return engine, {}


def infer(
    engine: Engine,
    feeds: Feeds,
    batch: int,
    *,
    threads: int | None = None,
    axes: Mapping[str, int | None] | None = None,
    handle: Handle = QUIET,
) -> Answers:
    """Run an engine over many samples, in the process that builds of its backend share or in a fresh one.

    Args:
        feeds: input name -> samples on axis 0.
        batch: samples a call; an engine with a batch of its own, or limits to it, takes that, the last call filled up with
            copies.
        axes: output name -> the axis that counts its samples, None where none does; outputs that are not named are
            looked at (see `sample_axes`).

    Returns:
        Output name -> outputs of all samples, joined on the axis that counts them; outputs without one keep what each
        call gave, see `workbench.datasets.outputs.joined_calls`.

    Raises:
        RunError: the feeds do not fit, or an axis does not; ChildKilled: the engine crashed; Cancelled: the caller
            stopped it.
    """
    job = InferJob(replace(engine, log=""), batch, threads, dict(axes or {}))
    kept = engines.kept_process(engine.backend)
    answer = child.call("workbench.engines.jobs:infer_job", job, feeds, handle=handle, kept=kept)
    return Answers(answer.arrays, **answer.record)


def infer_job(job: InferJob, arrays: Feeds) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Be the child of `infer`."""
    engine = job.engine
    count = len(next(iter(arrays.values())))
    fixed = fixed_batch(engine.inputs)
    calls: list[tuple[int, dict[str, np.ndarray]]] = []
    with ranges.opened(f"check {engine.variant}"), engines.open_runner(engine, job.threads) as runner:
        # What an engine was built for need not hold the batch that a check would like.
        limits: tuple[int, int] | None = getattr(runner, "batches", None)
        fewest, most = limits or (1, job.batch)
        fixed = fewest if limits is not None and fewest == most else fixed
        batch = fixed or max(min(job.batch, most), fewest)
        for start in range(0, count, batch):
            rows = np.arange(start, min(start + batch, count))
            fed = np.resize(rows, fixed or max(len(rows), fewest))
            calls.append((len(fed), runner.infer({name: array[fed] for name, array in arrays.items()})))
        given = {name: axis for name, axis in job.axes.items() if name in calls[0][1]}
        axes = dict(given)
        if set(given) != set(calls[0][1]):
            first = {name: array[np.arange(calls[0][0]) % count] for name, array in arrays.items()}
            axes = {**sample_axes(runner.infer, first, calls, fixed, engine.outputs), **given}
    answers = _joined(calls, axes, count, {spec.name: spec.shape for spec in engine.outputs})
    return answers.about(), answers


def _joined(
    calls: Sequence[tuple[int, Mapping[str, np.ndarray]]],
    axes: Mapping[str, int | None],
    count: int,
    stated: Mapping[str, tuple[int | None, ...]],
) -> Answers:
    outputs, counts = {}, {}
    for name in calls[0][1]:
        parts, axis = [value[name] for _, value in calls], axes[name]
        if axis is None:
            outputs[name], sizes = joined_calls(parts, stated.get(name, ()))
            if sizes:
                counts[name] = sizes
            continue
        for (size, _), part in zip(calls, parts, strict=True):
            if not -part.ndim <= axis < part.ndim or part.shape[axis] != size:
                raise RunError(
                    f"Output {name!r} has the shape {part.shape} for {size} samples: axis {axis} does not count them. "
                    f"Name the axis that does in sample_axes, or None where there is none."
                )
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)
        # The copies that filled up the last call are at its end.
        outputs[name] = whole if whole.shape[axis] == count else np.take(whole, np.arange(count), axis=axis)
    return Answers(outputs, axes, samples=count, counts=counts, calls=len(calls))


def layer_times(engine: Engine, feeds: Feeds, *, runs: int = 30, handle: Handle = QUIET) -> tuple[LayerTime, ...]:
    """Profile an engine's layers in a fresh process; see `engines.base.Backend.layer_times`.

    Nobody else measures on this machine meanwhile; who waits for another measurement is told so.

    Args:
        feeds: input name -> one batch.
        runs: profiled calls.

    Raises:
        EngineError: the backend has no profiler of layers, or refuses the engine or the feeds.
        ChildKilled, Cancelled: as every child process.
    """
    expect(engine, Engine, "layer_times", "Build one first: workbench.build(variant, ...).", EngineError)
    feeds = as_feeds(engine.inputs, feeds, "layer_times")
    return layer_profile(engine, feeds, runs=runs, handle=handle).layers


def layer_profile(engine: Engine, feeds: Feeds, *, runs: int = 30, handle: Handle = QUIET) -> LayerProfile:
    """Profile an engine's layers and whole calls in a fresh process; arguments and errors as for `layer_times`."""
    job = ProfileJob(replace(engine, log=""), runs)
    with child.measuring(handle):
        return child.call("workbench.engines.jobs:profile_job", job, feeds, returns=LayerProfile, handle=handle).record


def profile_job(job: ProfileJob, arrays: Feeds) -> tuple[LayerProfile, dict[str, np.ndarray]]:
    """Be the child of `layer_profile`."""
    module = engines.backend(job.engine.backend)
    with ranges.opened(f"profile {job.engine.variant}"):
        if hasattr(module, "layer_profile"):
            found = module.layer_profile(job.engine, arrays, job.runs)
        else:
            found = LayerProfile(tuple(module.layer_times(job.engine, arrays, job.runs)))
    with engines.open_runner(job.engine, job.engine.options.threads) as runner:
        watch = runner.stopwatch(arrays, "compute")
        taken = [watch() for _ in range(min(job.runs, 5) + job.runs)][min(job.runs, 5) :]
    return replace(found, plain_seconds=float(np.median(taken))), {}
