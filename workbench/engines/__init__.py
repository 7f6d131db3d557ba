"""Backends and the verbs `build` and `open_runner`. One dict names the module that serves each backend.

A build runs in another process by default: a crash or an out-of-memory kill of a builder is then a BuildError
with its log, and the notebook lives on.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

from workbench.engines.base import Backend, BuildRequest, Missing, Runner
from workbench.errors import BackendMissing, EngineError, expect, nearest
from workbench.machine import device, disk
from workbench.machine.store import Store, digest
from workbench.records import BuildOptions, Engine, Variant

MODULES = {
    "onnxruntime-cpu": "workbench.engines.onnxruntime",
    "onnxruntime-cuda": "workbench.engines.onnxruntime",
    "onnxruntime-tensorrt": "workbench.engines.onnxruntime",
    "openvino": "workbench.engines.openvino",
    "tensorrt": "workbench.engines.tensorrt",
    "tensorrt-rtx": "workbench.engines.tensorrt",
    "torch": "workbench.engines.torch",
    "torch-compile": "workbench.engines.torch",
    "torch-cudagraph": "workbench.engines.torch",
}
# The order in which `auto` looks: the fastest that is present.
_PREFERENCE = ("tensorrt", "onnxruntime-cuda", "onnxruntime-cpu")


def backend(name: str) -> Backend:
    """Return the module that serves a backend.

    Raises:
        BackendMissing: no backend has that name.
    """
    if not isinstance(name, str) or name not in MODULES:
        raise BackendMissing(f"There is no backend {repr(name)[:60]}. {nearest(str(name), MODULES)}")
    return cast(Backend, importlib.import_module(MODULES[name]))


def backends() -> dict[str, Missing | None]:
    """Return every backend -> why it cannot be used here, or None where it can."""
    return {name: backend(name).missing(name) for name in MODULES}


def missing_to_build(name: str) -> Missing | None:
    """Return why a backend cannot build here, or None where it can; some build where they cannot run.

    Raises:
        BackendMissing: no backend has that name.
    """
    module = backend(name)
    return getattr(module, "missing_to_build", module.missing)(name)


def kept_process(name: str) -> str | None:
    """Return the name of the process that builds and checks of a backend share; None where each has a fresh one."""
    return name if getattr(backend(name), "KEEPS_PROCESS", False) else None


def choose(name: str = "auto", *, to_build: bool = False) -> tuple[str, str]:
    """Return the backend to use and the reason, in a sentence.

    Args:
        name: a backend, which must be usable here, or `auto` for the fastest that is.
        to_build: it is enough that a named backend can build here, even where it cannot run.

    Raises:
        BackendMissing: the asked-for backend, or every backend, cannot be used; the message holds what mends it.
    """
    if name != "auto":
        absent = missing_to_build(name) if to_build else backend(name).missing(name)
        if absent is not None:
            raise BackendMissing(f"The backend {name!r} cannot be used here: {absent}")
        return name, f"{name} was asked for."
    reasons: list[str] = []
    for candidate in _PREFERENCE:
        absent = backend(candidate).missing(candidate)
        if absent is None:
            before = f" ({'; '.join(reasons)})" if reasons else ""
            return candidate, f"{candidate} is the fastest backend that can be used on {device.cpu_device()}{before}."
        reasons.append(f"not {candidate}: {absent.reason.rstrip('.')}")
    raise BackendMissing('No backend can be used here. Run: pip install "trt-workbench[cpu]"')


def build(
    variant: Variant,
    backend: str = "auto",
    options: BuildOptions | None = None,
    *,
    store: Store,
    calibration: Path | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> Engine:
    """Build an engine from a variant, in this process.

    `workbench.build` is the same in another process, which survives a builder that crashes.

    Args:
        backend: a name from `backends()`, or `auto`.
        store: keeps the engine's files.
        calibration: `.npz` of calibration feeds, for native calibrators only.
        log: called with each line that the backend says.

    Raises:
        BackendMissing: the backend cannot be used here.
        BuildError: the backend refuses the variant.
    """
    name, _ = choose(backend, to_build=True)
    module = _module(name)
    with store.scratch() as scratch:
        folder = scratch / "engine"
        disk.folder(folder)
        request = BuildRequest(
            variant=variant,
            backend=name,
            options=options or BuildOptions(),
            folder=str(folder),
            calibration_path=None if calibration is None else str(calibration),
            cache_folder=str(store.cache_folder(name)),
        )
        engine = module.build(request, log)
        return _kept(engine, folder, store)


def open_runner(engine: Engine, threads: int | None = None) -> Runner:
    """Open an engine for inference; a context manager.

    Args:
        threads: CPU threads inside an operator; None takes what the engine was built with.

    Raises:
        EngineError: the engine's file is gone or damaged, or was built for another device or version.
        BackendMissing: its backend cannot be used here.
    """
    expect(engine, Engine, "open_runner", "Build one first: workbench.build(variant, ...).", EngineError)
    choose(engine.backend)
    return _module(engine.backend).open_runner(engine, threads if threads is not None else engine.options.threads)


def planned_memory(engine: Engine) -> dict[str, int]:
    """Return the bytes that an engine sets aside, as its builder told: `activation`, `scratch` and others; may be empty.

    The activations hold the scratch memory (workspace) of the kernels too.
    """
    module = _module(engine.backend)
    return module.planned_memory(engine) if hasattr(module, "planned_memory") else {}


_module = backend


def refit(engine: Engine, variant: Variant, *, store: Store, log: Callable[[str], None] = lambda line: None) -> Engine:
    """Return an engine with the weights of another variant of the same structure, without building it anew.

    Args:
        engine: built for TensorRT with BuildOptions(extra={"refit": True}).
        variant: such as the same recipe after more training.
        store: keeps the new engine's files.

    Raises:
        EngineError: the backend cannot exchange weights, the engine was not built for it, or the graphs differ in more.
    """
    module = _module(engine.backend)
    if not hasattr(module, "refit"):
        raise EngineError(
            f"Only TensorRT exchanges the weights of a built engine, and {engine.variant!r} was built for "
            f"{engine.backend}. Build the variant {variant.name!r} instead."
        )
    with store.scratch() as scratch:
        folder = scratch / "engine"
        disk.folder(folder)
        return _kept(module.refit(engine, variant, folder, log), folder, store)


def intact(engine: Engine) -> bool:
    """Whether what was built is still there and still what it was; where it was never hashed, whether it is there."""
    folder = None if engine.folder is None else Path(engine.folder)
    if not Path(engine.path).is_file() or (folder is not None and not folder.is_dir()):
        return False
    return engine.sha256 in ("", _content(engine, folder))


def _kept(engine: Engine, folder: Path, store: Store) -> Engine:
    """Move what the backend wrote into the store, point the engine there and say what its content is."""
    place = None
    if any(folder.iterdir()):
        inside = Path(engine.path)
        _, place = store.add(folder)
        if inside.is_relative_to(folder):
            engine = replace(engine, path=str(place / inside.relative_to(folder)))
        engine = replace(engine, folder=str(place))
    return replace(engine, sha256=_content(engine, place))


def _content(engine: Engine, folder: Path | None) -> str:
    """Return the sha256 of what was built."""
    if folder is not None and Path(engine.path).is_relative_to(folder):
        # The sidecar decides how a plan is loaded. Caches that runners keep beside it are no part of what was built.
        beside = sorted(item for item in folder.iterdir() if item.suffix == ".json")
        if not beside:
            return digest(Path(engine.path))
        together = " ".join(digest(item) for item in (Path(engine.path), *beside))
        return hashlib.sha256(together.encode()).hexdigest()
    # The file that is opened is the variant's own, or its program: what was left beside it decides how it runs.
    left = "" if folder is None else digest(folder)
    return hashlib.sha256(f"{engine.variant_sha256} {engine.fusion} {left}".encode()).hexdigest()
