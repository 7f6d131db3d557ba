"""Collect the evidence for one variant: profiles in turns, what its file asks for, where its noise comes in.

Runs engines in child processes and files in another one; judges nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from workbench import engines
from workbench.engines import jobs
from workbench.engines.base import Feeds
from workbench.errors import EngineError, WorkbenchError
from workbench.explaining.evidence import Evidence, LayerNoise, Memory, Noise, Pass
from workbench.explaining.noise import Noises
from workbench.explaining.passes import memory_of, pass_of
from workbench.explaining.structure import facts_of, precision_of
from workbench.graph.exact import exact_form
from workbench.judging.roofline import Ceilings
from workbench.judging.statistics import Ratio
from workbench.machine.handle import QUIET, Handle
from workbench.measuring.arithmetic import compared
from workbench.records import Accuracy, Engine, LayerProfile
from workbench.tuning.sensitivity import LayerCost, LayerCosts

# Each variant is profiled this often, in turns; a layer's least median counts, so that a disturbance meets one turn only.
_TURNS, _RUNS = 2, 15


@dataclass(frozen=True)
class Side:
    """One of the two that are compared.

    Attributes:
        file: the ONNX file that it was built from.
        seconds: median latency in the study; None where it was not measured.
        process_bytes: high-water mark of the processes that measured it.
        replayed: whether calls were measured as replays of a CUDA graph.
    """

    engine: Engine
    file: str
    seconds: float | None = None
    process_bytes: int | None = None
    replayed: bool = False


@dataclass(frozen=True)
class Subject:
    """What is to be explained.

    Attributes:
        modules: ONNX node name -> module path.
        feeds: input name -> one batch, as it is measured.
        samples: input name -> samples to look at errors with; None looks at none.
        parent: the FP32 graph that was lowered, where it is not the baseline's file.
        same_weights: whether the variant's weights are the parent's.
        accuracy: of the variant, where its answers were checked, and whether they are distinguishably worse.
        speed: of the variant against the baseline, with its interval, where both were measured in turns.
    """

    backend: str
    baseline: Side
    variant: Side
    feeds: Feeds
    modules: Mapping[str, str]
    samples: Feeds | None = None
    parent: onnx.ModelProto | None = None
    same_weights: bool = True
    accuracy: Accuracy | None = None
    worse: bool | None = None
    speed: Ratio | None = None
    flipped: tuple[tuple[int, int, int], ...] = ()
    flipped_inputs: Feeds | None = None


def refuse_gone(engine: Engine, file: str) -> None:
    """Refuse what cannot be profiled.

    Args:
        file: the ONNX file that the engine was built from.

    Raises:
        EngineError: one of them is not here, or was changed.
    """
    if not engines.intact(engine) or not Path(file).is_file():
        raise EngineError(
            f"The engine of {engine.variant!r} is gone or damaged ({engine.path}), or the file that it was built from "
            f"({file}), so there is nothing to profile. Run the study again here: what is missing is made anew."
        )


def gather(
    subject: Subject, ceilings: Ceilings | None, costs: LayerCosts | None = None, handle: Handle = QUIET
) -> Evidence:
    """Profile both variants, and look where noise comes in.

    Args:
        costs: what each layer costs alone, where it was measured.

    Raises:
        EngineError: an engine's file is gone, or the backend has no profiler of layers.
    """
    for side in (subject.baseline, subject.variant):
        refuse_gone(side.engine, side.file)
    files = [onnx.load(side.file) for side in (subject.baseline, subject.variant)]
    passes = profiled(subject, files, ceilings, handle)
    precision = precision_of(files[1])
    noise, notes = None, []
    if subject.samples is not None and precision in ("int8", "fp8"):
        try:
            noise = noise_of(subject, files, costs, handle)
        except WorkbenchError as error:
            notes.append(f"Where noise comes in was not looked at: {error}")
    batch = next((len(array) for array in subject.feeds.values() if array.ndim), 1)
    memory = tuple(
        _with_plan(memory_of(found, side.engine.size_bytes, side.process_bytes, batch), side.engine)
        for found, side in zip(passes, (subject.baseline, subject.variant), strict=True)
    )
    return Evidence(
        subject.backend,
        passes[0],
        passes[1],
        ceilings,
        precision,
        facts_of(files[1]),
        noise,
        (memory[0], memory[1]),
        subject.accuracy,
        subject.worse,
        tuple(notes),
        subject.speed,
    )


def _with_plan(memory: Memory, engine: Engine) -> Memory:
    told = engines.planned_memory(engine)
    return replace(memory, planned=told.get("activation"), workspace=told.get("scratch"))


def profiled(
    subject: Subject, files: list[onnx.ModelProto], ceilings: Ceilings | None, handle: Handle
) -> tuple[Pass, Pass]:
    """Profile both in turns; one alone where they are the same engine."""
    sides = (subject.baseline, subject.variant)
    same = sides[0].engine == sides[1].engine
    turns: list[list[LayerProfile]] = [[], []]
    for _ in range(_TURNS):
        for place, side in enumerate(sides[:1] if same else sides):
            turns[place].append(jobs.layer_profile(side.engine, subject.feeds, runs=_RUNS, handle=handle))
    shapes = {name: tuple(array.shape) for name, array in subject.feeds.items()}
    found = [
        pass_of(
            side.engine.variant,
            least(turns[0 if same else place]),
            files[place],
            shapes,
            modules=subject.modules,
            ceilings=ceilings,
            measured_seconds=side.seconds,
            replayed=side.replayed,
        )
        for place, side in enumerate(sides)
    ]
    return found[0], found[1]


def least(turns: list[LayerProfile]) -> LayerProfile:
    """Return the turn with the fastest call, each layer with the least of its times."""
    names = [[layer.name for layer in turn.layers] for turn in turns]
    best = min(turns, key=lambda turn: turn.call_seconds or sum(layer.seconds for layer in turn.layers))
    if any(one != names[0] for one in names):
        return best  # an engine that plans anew each time: layers cannot be paired
    times = [min(turn.layers[place].seconds for turn in turns) for place in range(len(best.layers))]
    layers = tuple(replace(layer, seconds=seconds) for layer, seconds in zip(best.layers, times, strict=True))
    plain = [turn.plain_seconds for turn in turns if turn.plain_seconds is not None]
    return LayerProfile(layers, best.call_seconds, min(plain, default=None))


def noise_of(subject: Subject, files: list[onnx.ModelProto], costs: LayerCosts | None, handle: Handle) -> Noise:
    """Look where noise comes in: at the tensors, at the layers, and at the engine's own arithmetic."""
    assert subject.samples is not None
    parent = files[0] if subject.parent is None else subject.parent
    noises = Noises(parent, files[1], subject.samples, subject.same_weights, handle)
    found = noises.found(subject.flipped, subject.flipped_inputs)
    notes, engine_nsr = list(found.notes), None
    exact = exact_form(files[1])
    if exact is None:
        notes.append("The file holds integer operators of an engine's own, whose exact result is not defined.")
    else:
        engine_nsr = _engine_nsr(subject, noises, exact, found.file_nsr, handle)
    layers = () if costs is None else tuple(_layer_noise(row) for row in costs.rows)
    unit = "" if costs is None else costs.unit
    return replace(found, engine_nsr=engine_nsr, layers=layers, unit=unit, notes=tuple(notes))


def _engine_nsr(
    subject: Subject, noises: Noises, exact: onnx.ModelProto, file_nsr: float, handle: Handle
) -> float | None:
    """Return the engine's own error, where it is its own: other kernels round a code here and there to the other side."""
    answers = jobs.infer(subject.variant.engine, noises.inputs, noises.samples, handle=handle)
    clean, ours = noises.run(noises.parent), noises.run(exact)
    told = [
        compared(name, np.asarray(answers[name]), ours[name], want) for name, want in clean.items() if name in answers
    ]
    if not told or max(one.between for one in told) <= file_nsr:
        return file_nsr
    return float(np.mean([one.engine for one in told]))


def _layer_noise(row: LayerCost) -> LayerNoise:
    kept = None if row.kept_db is None else 10 ** (-row.kept_db / 10)
    return LayerNoise(row.name, row.nodes, row.alone_nsr, kept, row.alone_drop)
