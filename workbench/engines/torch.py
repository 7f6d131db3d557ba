"""PyTorch as a backend: eager, torch.compile and CUDA graphs, so that other engines have something fair beside them.

Runs the module that the ONNX file was exported from, not the ONNX file: its program is kept by `workbench.load`. So
only recipes that change the floating-point type alone can be built. On a CPU, BF16 is real arithmetic where the
processor has it, and so is FP16, which without hardware for it is far slower than FP32.

Switches in `BuildOptions.extra`: `mode` of torch.compile, and `channels_last` (True, False; None takes it on a GPU
below FP32).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench.engines.base import BuildRequest, Feeds, Missing
from workbench.engines.torch_running import Sidecar, TorchRunner
from workbench.errors import BuildError, EngineError, OutOfMemory, WorkbenchError
from workbench.machine import device as hardware
from workbench.machine.store import digest, write_text
from workbench.recipes import Precision
from workbench.records import BuildOptions, Engine, LayerTime, Model, ShapeProfile, TensorSpec, Variant

NAMES = ("torch", "torch-compile", "torch-cudagraph")
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_INSTALL = 'Run: pip install "trt-workbench[torch]"'
_SIDECAR = "torch.json"
# What a recipe can ask for that is done to the ONNX file, which is not run here.
_GRAPH_STEPS = ("int8", "int8-dynamic", "int8-smooth", "fp8", "int8-weights", "int4-weights", "sparse")
# A build runs once, so that errors and the time to compile show in it; protocols measure this batch by default.
_TRIAL_BATCH = 8


def missing(name: str) -> Missing | None:
    """Return why this backend cannot be used here, or None."""
    if importlib.util.find_spec("torch") is None:
        return Missing("torch is not installed.", _INSTALL)
    on_gpu = bool(hardware.gpus()) and "+cpu" not in version(name)
    if name == "torch-cudagraph" and not on_gpu:
        return Missing("CUDA graphs need an NVIDIA GPU and a CUDA build of torch.", "Use backend='torch-compile'.")
    if name == "torch-compile" and on_gpu and importlib.util.find_spec("triton") is None:
        return Missing("torch.compile needs triton on a GPU, which is not installed.", "Run: pip install triton")
    if name == "torch-compile" and not on_gpu and not _has_compiler():
        return Missing("torch.compile needs a C++ compiler on a CPU, and none was found.", "Run: apt-get install g++")
    return None


def version(name: str) -> str:
    """Return the version of the installed torch."""
    return hardware.version("torch") or "unknown"


def device(name: str) -> str:
    """Return the device in words."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else hardware.cpu_device()


def dialect(name: str) -> str:
    """Return the dialect in which variants are written beside the program; no Q/DQ is ever read from them here."""
    return "ort-cpu"


def unfit(name: str, model: Model) -> str | None:
    """Return why PyTorch cannot run a model: it runs the module that was exported, and there is none in an ONNX file."""
    if model.program is None:
        return (
            "it has no PyTorch program, because it was loaded from an ONNX file or its export kept none. Load the module: "
            "workbench.load(module, inputs)"
        )
    if not Path(model.program.path).is_file():
        return f"its program {model.program.path} is gone. Load the module again: workbench.load(module, inputs)"
    return None


def refuses(name: str, target: str | None = None) -> dict[str, str]:
    """Return what cannot be had of the module as it was before the recipe -> the reason: all but floating-point types."""
    graph = "PyTorch runs the module as it was before the recipe, and this changes the ONNX graph"
    refused = dict.fromkeys((*_GRAPH_STEPS, "exclude"), graph)
    if not hardware.gpus() or "+cpu" in version(name):
        refused["tf32"] = "TF32 exists on NVIDIA GPUs only"
    same = (
        "torch.compile always fuses all it can"
        if name == "torch-compile"
        else "PyTorch without torch.compile runs operator by operator: nothing is fused"
    )
    return {**refused, "fusion-off": same, "fusion-basic": same}


def lacks(name: str, onnx_path: Path) -> dict[str, str]:
    """Return nothing: what PyTorch exported, PyTorch can run."""
    return {}


def build(request: BuildRequest, log: Callable[[str], None]) -> Engine:
    """Check that PyTorch can run what the recipe says, and run it once; torch.compile compiles here.

    Raises:
        BuildError: there is no program, the recipe changes more than a type, or PyTorch fails; OutOfMemory.
    """
    variant = request.variant
    precision = _precision(variant)
    if variant.program is None:
        raise BuildError(
            f"PyTorch cannot run {variant.name!r}: the model has no PyTorch program, because it was loaded from an ONNX "
            f"file or its export kept none (see the model's notes). Load the module: workbench.load(module, inputs)."
        )
    sidecar, notes = _decided(request, precision)
    path = Path(variant.program.path)
    if not path.is_file():
        raise BuildError(f"The program {path} is gone. Load the module again with workbench.load(module, inputs).")
    write_text(Path(request.folder) / _SIDECAR, json.dumps(asdict(sidecar), indent=1))
    engine = Engine(
        variant=variant.name,
        variant_sha256=variant.sha256,
        fusion="all" if request.backend == "torch-compile" else "off",
        backend=request.backend,
        backend_version=version(request.backend),
        device=device(request.backend),
        path=str(path),
        inputs=variant.inputs,
        outputs=variant.outputs,
        build_seconds=0.0,
        size_bytes=path.stat().st_size,
        options=request.options,
        folder=request.folder,
    )
    return _tried(engine, request.options, log, notes)


def open_runner(engine: Engine, threads: int | None) -> TorchRunner:
    """Open a built engine. Thread count and TF32 are settings of the whole process while it is open.

    Raises:
        EngineError: the program or what belongs to it is gone or damaged.
    """
    sidecar = _read_sidecar(Path(engine.folder or "") / _SIDECAR)
    path = Path(engine.path)
    if not path.is_file() or digest(path) != sidecar.sha256:
        raise EngineError(
            f"The program {path} is gone or was changed since the engine of {engine.variant!r} was built; it can hold "
            f"code and is not opened. Load the module and build again."
        )
    try:
        return TorchRunner(engine, sidecar, threads)
    except WorkbenchError:
        raise
    except Exception as error:
        raise EngineError(
            f"PyTorch {version('torch')} cannot open the program of {engine.variant!r}: {error}. It may be from another "
            f"version. Load the module and build again."
        ) from error


def layer_times(engine: Engine, feeds: Feeds, runs: int) -> list[LayerTime]:
    """Return the operations of an eager program with their times; see `torch_profiling.profile`."""
    with open_runner(engine, engine.options.threads) as runner:
        return runner.profile(engine, feeds, runs)


def _precision(variant: Variant) -> str:
    others = [step.kind for step in variant.recipe.steps if step.kind not in ("fuse", "precision")]
    step = variant.recipe.step("precision")
    if others:
        raise BuildError(
            f"PyTorch runs the module as it was before the recipe, so {variant.name!r} cannot be built: the steps "
            f"{', '.join(others)} change the ONNX graph. Use fp32, tf32, fp16 or bf16 here, or another backend."
        )
    if isinstance(step, Precision) and step.exclude:
        raise BuildError(
            f"{variant.name!r} keeps {', '.join(step.exclude)} in FP32, which PyTorch cannot do here: these are names of "
            f"the ONNX graph. Use the recipe without exclusions."
        )
    return step.to if isinstance(step, Precision) else "fp32"


def _decided(request: BuildRequest, precision: str) -> tuple[Sidecar, list[str]]:
    import torch

    program = request.variant.program
    assert program is not None
    absent = set(program.inputs) - {spec.name for spec in request.variant.inputs}
    if absent:
        raise BuildError(
            f"The program takes the inputs {', '.join(sorted(absent))}, which the ONNX file does not have because "
            f"nothing depends on them there. Leave them out of the module's forward."
        )
    on_gpu = torch.cuda.is_available()
    extra = dict(request.options.extra)
    mode, channels_last = extra.pop("mode", "default"), extra.pop("channels_last", None)
    if mode not in MODES or channels_last not in (None, True, False):
        raise BuildError(
            f"The options mode={mode!r}, channels_last={channels_last!r} are not possible. Modes: {', '.join(MODES)}; "
            f"channels_last is True, False or None."
        )
    if channels_last is None:
        channels_last = on_gpu and precision in ("fp16", "bf16")
    sidecar = Sidecar(program.sha256, program.inputs, program.outputs, precision, mode, channels_last)
    return sidecar, _notes(request, sidecar, on_gpu, extra)


def _notes(request: BuildRequest, sidecar: Sidecar, on_gpu: bool, unused: dict[str, Any]) -> list[str]:
    recipe, compiled = request.variant.recipe, request.backend == "torch-compile"
    notes = ["This is the PyTorch module, not the ONNX file of the variant."]
    if compiled and recipe.fusion != "all":
        notes.append(f"The recipe asks for fusion {recipe.fusion!r}; torch.compile always fuses all it can.")
    if not compiled and recipe.step("fuse") is not None and recipe.fusion != "off":
        notes.append("PyTorch without torch.compile runs operator by operator: nothing is fused.")
    if sidecar.mode != "default" and not compiled:
        notes.append(f"mode={sidecar.mode!r} is an option of torch.compile and was ignored.")
    if sidecar.precision in ("fp16", "bf16"):
        notes.append("Weights and matrix operators have the lower type; what the module computes in FP32 stays FP32.")
    if sidecar.precision == "tf32" and not on_gpu:
        notes.append("TF32 exists on NVIDIA GPUs only; on this CPU the variant is FP32.")
    if sidecar.precision == "fp16" and not on_gpu:
        notes.append("FP16 is computed in FP16 here, which is far slower than FP32 on a CPU without hardware for it.")
    if sidecar.channels_last:
        notes.append("4-D tensors are laid out channels last.")
    defaults = BuildOptions()
    ignored = [
        name
        for name in ("workspace_bytes", "optimization_level", "target")
        if getattr(request.options, name) != getattr(defaults, name)
    ]
    for name in (*ignored, *unused):
        notes.append(f"PyTorch has no use for the build option {name!r}; it was ignored.")
    return notes


def _tried(engine: Engine, options: BuildOptions, log: Callable[[str], None], notes: list[str]) -> Engine:
    """Open the engine and run it once, so that errors show now, and the time to compile."""
    started = time.perf_counter()
    feeds = _trial_feeds(engine.inputs, options)
    try:
        with open_runner(engine, options.threads) as runner:
            if feeds is None:
                notes.append("Not tried while building: it has dynamic axes whose sizes no profile tells.")
            else:
                shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
                log(f"running once with {shapes}")
                runner.infer(feeds)
    except OutOfMemory:
        raise
    except WorkbenchError as error:
        raise BuildError(
            f"PyTorch cannot run {engine.variant!r}: {error}", log=str(error.__cause__ or error)
        ) from error
    seconds = time.perf_counter() - started
    log(f"ready after {seconds:.2f} s")
    return replace(engine, build_seconds=seconds, notes=tuple(notes))


def _trial_feeds(inputs: tuple[TensorSpec, ...], options: BuildOptions) -> dict[str, np.ndarray] | None:
    profile: dict[str, ShapeProfile] = options.profiles[0] if options.profiles else {}
    feeds = {}
    for spec in inputs:
        if None in spec.shape[1:] and spec.name not in profile:
            return None
        shape = profile[spec.name].typical if spec.name in profile else [size or _TRIAL_BATCH for size in spec.shape]
        feeds[spec.name] = np.zeros(tuple(shape), spec.dtype)
    return feeds


def _read_sidecar(path: Path) -> Sidecar:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        found = {item.name: plain[item.name] for item in fields(Sidecar)}
        return Sidecar(**{**found, "inputs": tuple(found["inputs"]), "outputs": tuple(found["outputs"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EngineError(f"Cannot read {path}, which belongs to the engine: {error}. Build it again.") from error


def _has_compiler() -> bool:
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++", "cl"]
    return any(shutil.which(name) for name in wanted)
