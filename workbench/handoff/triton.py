"""A variant as a model repository for the Triton Inference Server: files in a new folder. Starts no server."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench import codec, engines
from workbench.engines import onnxruntime
from workbench.errors import EngineError, StoreError, WorkbenchError, nearest
from workbench.handoff import batching, triton_config, triton_program, triton_text
from workbench.handoff.triton_config import Served
from workbench.handoff.triton_text import Language
from workbench.machine import disk
from workbench.machine.arrays import dtype_of
from workbench.machine.store import write_text
from workbench.models import onnx_file
from workbench.records import Engine, Measurement, StudyRecord, VariantResult

PLATFORMS = ("onnxruntime_onnx", "tensorrt_plan", "python")
_VERSION = "1"


@dataclass(frozen=True)
class Options:
    """How a variant is served.

    Attributes:
        backend: one of PLATFORMS, or `auto`: that of the engine where Triton has it, else `python`.
        at_most_seconds: latency that a request may have; None where nothing shall wait.
        instances: copies of the engine; None takes as many as were measured at once.
        beside: studies of the same model, recipe and machine, with other batches.
        name: of the model on the server; None takes the model's and the variant's.
        language: the language model whose decoder the variant is: text goes in and comes out then, and the decoder itself
            is called `<name>-decoder`.
    """

    backend: str = "auto"
    at_most_seconds: float | None = None
    instances: int | None = None
    beside: tuple[StudyRecord, ...] = ()
    name: str | None = None
    language: Language | None = None


@dataclass(frozen=True)
class Deployment:
    """What was written.

    Attributes:
        folder: the model repository.
        name: of the model on the server.
        batching: None where requests are not gathered.
        parsed: whether config.pbtxt was parsed with Triton's own definition (needs `tritonclient[grpc]`).
        notes: what whoever serves it must know, one sentence each.
        command: starts the server.
    """

    folder: str
    name: str
    backend: str
    batching: batching.Batching | None
    parsed: bool
    notes: tuple[str, ...]
    command: str


def deploy(record: StudyRecord, variant: str, folder: Path, options: Options) -> Deployment:
    """Write a model repository, whole or not at all.

    Args:
        folder: is made; must not exist.

    Raises:
        EngineError: the variant failed, was not built or measured, its files are gone, or the backend cannot serve it.
        StoreError: the folder exists or cannot be written.
        DataError, CompareError: no measured batch is fast enough, the studies beside are of something else, or the
            language model has no tokenizer.
    """
    result = _result(record, variant)
    engine, measurement = _usable(record, result)
    platform = _platform(engine, options.backend)
    language = None if options.language is None else triton_text.check(options.language, record.model, engine)
    if options.instances is not None and (not isinstance(options.instances, int) or options.instances < 1):
        raise EngineError(f"instances is {options.instances}; it must be a whole number of at least 1.")
    disk.refuse_existing(folder)
    name = options.name or re.sub(r"[^\w.-]+", "_", f"{record.model.name}-{variant}").strip("._") or "model"
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise StoreError(f"The name {name!r} is no name of a folder: use letters, digits, dots, dashes, underscores.")
    notes: list[str] = []
    found = _batching(engine, measurement, options, variant, notes)
    served = Served(
        name if language is None else f"{name}-decoder", platform, engine.inputs, engine.outputs, measurement.shapes, found,
        options.instances or record.protocol.streams, _on_gpu(engine), engine.fusion, engine.options.threads,
        (f"Variant {variant!r} of the study {record.name!r}, measured on {measurement.device}.",
         *(() if found is None else found.reasons), *notes),
    )  # fmt: skip
    config = triton_config.text(served)
    parsed = triton_config.check(config)
    if not parsed:
        notes.append("config.pbtxt was not parsed here, as tritonclient[grpc] is not installed.")
    with disk.whole_folder(folder) as made:
        _write(made, served, config, engine)
        if language is not None:
            triton_text.write(made, name, served, engine, language)
    notes += [*_for_the_server(platform, engine), *(() if language is None else triton_text.NOTES)]
    return Deployment(
        str(folder), name, platform, found, parsed, tuple(notes), f"tritonserver --model-repository {folder}"
    )


def _result(record: StudyRecord, variant: str) -> VariantResult:
    for result in record.results:
        if result.recipe.name == variant:
            return result
    names = [result.recipe.name for result in record.results]
    raise EngineError(f"The study {record.name!r} has no variant {variant!r}. {nearest(str(variant), names)}")


def _usable(record: StudyRecord, result: VariantResult) -> tuple[Engine, Measurement]:
    name, again = result.recipe.name, "Run the study again with workbench.run(...): what is missing is made anew."
    if result.failure is not None:
        raise EngineError(
            f"The variant {name!r} failed at the stage {result.failure.stage!r}: {result.failure.message} There is nothing "
            f"to deploy; take one of the others."
        )
    if result.engine is None or result.measurement is None or not result.measurement.rounds:
        raise EngineError(f"The variant {name!r} was not built and measured to the end. {again}")
    if not engines.intact(result.engine):
        raise EngineError(
            f"The engine of {name!r} ({result.engine.path}) is gone, or is not what was built; a study that came from "
            f"another machine has none. {again}"
        )
    return result.engine, result.measurement


def _platform(engine: Engine, asked: str) -> str:
    known = "onnxruntime" if engine.backend.startswith("onnxruntime") else engine.backend
    own = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}.get(known, "python")
    if asked == "auto":
        return own
    if asked not in PLATFORMS:
        raise EngineError(f"Triton has no backend {asked!r} here. {nearest(str(asked), PLATFORMS)}")
    if asked not in (own, "python"):
        raise EngineError(
            f"The variant was built for {engine.backend}, which Triton serves with {own!r} or 'python', not {asked!r}. "
            f"Run a study with the other backend to serve it there."
        )
    return asked


def _on_gpu(engine: Engine) -> bool:
    return engine.backend in ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt") or "NVIDIA" in engine.device


def _batching(
    engine: Engine, measurement: Measurement, options: Options, variant: str, notes: list[str]
) -> batching.Batching | None:
    others = [_result(other, variant).measurement for other in options.beside]
    if any(other is None for other in others):
        raise EngineError(f"A study beside has not measured {variant!r}. Run it to the end, or leave it out.")
    measured = batching.alike(measurement, [other for other in others if other is not None])
    found = batching.chosen([batching.point(item) for item in measured], options.at_most_seconds)
    if why := _not_batched(engine, measurement):
        notes.append(f"Requests are not gathered: {why}")
        return None
    notes.append(
        f"A request of more than {found.largest} samples is refused by the server: larger batches were not measured."
    )
    smallest = max((shape.smallest[0] for profile in engine.options.profiles for shape in profile.values()), default=1)
    if smallest > 1:
        notes.append(f"The plan takes no fewer than {smallest} samples; a smaller request is refused by it.")
    return found


def _not_batched(engine: Engine, measurement: Measurement) -> str | None:
    """Return why samples of several requests cannot be joined, in a sentence; None where they can."""
    for spec in (*engine.inputs, *engine.outputs):
        if not spec.shape or spec.shape[0] is not None:
            return f"{spec.name!r} has a first axis of fixed size, or none."
    if engines.backend(engine.backend).missing(engine.backend) is not None:
        return None  # cannot be tried here; the configuration rests on what the file states
    try:
        with engines.open_runner(engine) as runner:
            for size in (1, 2):
                feeds = {
                    spec.name: np.zeros((size, *measurement.shapes[spec.name][1:]), dtype_of(spec.dtype))
                    for spec in engine.inputs
                }
                for name, array in runner.infer(feeds).items():
                    if not array.ndim or len(array) != size:
                        return f"the first axis of the output {name!r} does not count the samples."
    except WorkbenchError as error:
        return f"the engine refused a batch of another size ({error})"
    return None


def _write(folder: Path, served: Served, config: str, engine: Engine) -> None:
    model = folder / served.name
    place = model / _VERSION
    place.mkdir(parents=True)
    write_text(model / "config.pbtxt", config)
    if served.platform == "tensorrt_plan":
        shutil.copyfile(engine.path, place / "model.plan")
    elif engine.backend.startswith("onnxruntime"):
        _copy_onnx(Path(engine.path), place, "model.onnx")
    if served.platform == "python":
        triton_program.write(place, "triton_model.py", _settings(served, engine, place))


def _settings(served: Served, engine: Engine, place: Path) -> dict[str, Any]:
    """Return what model.py reads; other engines than ONNX Runtime's are copied beside it, to be opened by the workbench."""
    names = {"inputs": [spec.name for spec in engine.inputs], "outputs": [spec.name for spec in engine.outputs]}
    settings: dict[str, Any] = {**names, "batched": served.batching is not None}
    if engine.backend.startswith("onnxruntime"):
        session = onnxruntime.settings_of(engine, engine.options.threads)
        return {**settings, "opened_with": "onnxruntime", "file": "model.onnx", "session": session}
    path, left = Path(engine.path), None if engine.folder is None else Path(engine.folder)
    moved = Path("engine") / path.name
    if left is not None:
        shutil.copytree(left, place / "left")
        if path.is_relative_to(left):
            moved = Path("left") / path.relative_to(left)
    if not (place / moved).exists():
        (place / "engine").mkdir()
        if path.suffix == ".onnx":
            _copy_onnx(path, place / "engine", path.name)
        else:
            shutil.copyfile(path, place / moved)
    kept = replace(engine, path=moved.as_posix(), folder=None if left is None else "left", log="")
    return {**settings, "opened_with": "workbench", "engine": codec.to_plain(kept)}


def _copy_onnx(path: Path, place: Path, name: str) -> None:
    shutil.copyfile(path, place / name)
    for file in onnx_file.external_files(onnx_file.parse(path), path):
        target = place / file.relative_to(path.parent.resolve())
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _for_the_server(platform: str, engine: Engine) -> list[str]:
    known = {
        "onnxruntime_onnx": f"The latencies are those of ONNX Runtime {engine.backend_version}; the server has its own.",
        "tensorrt_plan": f"The server must have TensorRT {engine.backend_version} and the device {engine.device}.",
    }
    if platform in known:
        libraries = engine.options.extra.get("plugins", ()) if platform == "tensorrt_plan" else ()
        return [
            known[platform],
            *(f"The server must have the plan's plugins, and open them itself: {path}." for path in libraries),
        ]
    needs = "onnxruntime" if engine.backend.startswith("onnxruntime") else f"trt-workbench with {engine.backend}"
    return [f"The server's python needs numpy and {needs} {engine.backend_version}."]


def studies(beside: Any) -> tuple[StudyRecord, ...]:
    """Return the records of studies, given one or several of them.

    Raises:
        StoreError: one is no study.
    """
    given: Sequence[Any] = beside if isinstance(beside, (list, tuple)) else [beside]
    found = [getattr(item, "record", item) for item in given]
    for item in found:
        if not isinstance(item, StudyRecord):
            raise StoreError(
                f"beside holds a {type(item).__name__}; pass studies, such as [workbench.Study.open(name)]."
            )
    return tuple(found)
