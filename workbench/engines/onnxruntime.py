"""ONNX Runtime as a backend: its CPU, CUDA and TensorRT providers.

On a CPU there is no FP16 or BF16 arithmetic for most operators: an FP16 file is stored small and computed in FP32,
a BF16 one does not load. The notes of the engine say so.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from workbench.engines import feeding, onnxruntime_flaws, onnxruntime_profiling
from workbench.engines.base import BuildRequest, Feeds, Missing
from workbench.engines.cpu import fit_notes
from workbench.engines.onnxruntime_session import (
    LEFT_OUT,
    PROVIDERS,
    open_session,
    placement_notes,
    runtime,
    session_settings,
)
from workbench.errors import BuildError, EngineError, RunError
from workbench.graph.dialects import of_this_cpu
from workbench.machine import device as hardware
from workbench.records import Boundary, BuildOptions, Engine, LayerProfile, LayerTime, TensorSpec

# The optimized graph is kept beside the engine, to show what was fused, where it stays below protobuf's 2 GB.
_KEEP_OPTIMIZED_BELOW_BYTES = 1 << 30
_TF32_NAME = "tf32.json"  # beside an engine whose products may round their inputs to TF32

_ELEMENT_TYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16", "tensor(double)": "float64",
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(int16)": "int16", "tensor(int8)": "int8",
    "tensor(uint8)": "uint8", "tensor(bool)": "bool", "tensor(uint16)": "uint16", "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64", "tensor(string)": "str", "tensor(float8e4m3fn)": "float8_e4m3fn",
}  # fmt: skip


def missing(name: str) -> Missing | None:
    """Return why this provider cannot be used here, or None."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Missing("onnxruntime is not installed.", 'Run: pip install "trt-workbench[cpu]"')
    library = runtime()
    if not hasattr(library, "InferenceSession"):
        return Missing(
            "onnxruntime is installed but empty: onnxruntime and onnxruntime-gpu overwrote each other.",
            "Run: pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime",
        )
    provider = PROVIDERS[name]
    if provider not in library.get_available_providers():
        return Missing(
            f"The installed onnxruntime has no {provider}.",
            "Run: pip uninstall -y onnxruntime && pip install onnxruntime-gpu (and have an NVIDIA driver)",
        )
    if name != "onnxruntime-cpu" and not hardware.gpus():
        return Missing(f"{provider} needs an NVIDIA GPU, and none was found here.", "Use backend='onnxruntime-cpu'.")
    return None


def version(name: str) -> str:
    """Return the version of the installed onnxruntime."""
    return str(runtime().__version__)


def device(name: str) -> str:
    """Return the device in words."""
    return hardware.cpu_device() if name == "onnxruntime-cpu" else hardware.gpus()[0].name


def dialect(name: str) -> str:
    """Return the Q/DQ dialect: unsigned activations on the CPU, as this one multiplies them; symmetric signed elsewhere."""
    return of_this_cpu() if name == "onnxruntime-cpu" else "strong"


def refuses(name: str, target: str | None = None) -> dict[str, str]:
    """Return what cannot be had here -> the reason: TF32 on a CPU, scales found at run time on a GPU."""
    if name == "onnxruntime-cpu":
        return {"tf32": "TF32 exists on NVIDIA GPUs only"}
    return {"int8-dynamic": f"{name} takes static scales; onnxruntime-cpu finds scales at run time"}


def lacks(name: str, onnx_path: Path) -> dict[str, str]:
    """Return the operator types that no kernel of this provider (or of the CPU, its fallback) implements."""
    import onnx

    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    usable = {PROVIDERS[name], "CPUExecutionProvider"}
    kernels = {(kernel.domain, kernel.op_name) for kernel in state.get_all_opkernel_def() if kernel.provider in usable}
    # Operators defined as functions of others need no kernel of their own.
    functions = {
        (schema.domain, schema.name)
        for schema in onnx.defs.get_all_schemas()
        if getattr(schema, "has_function", False) or getattr(schema, "has_context_dependent_function", False)
    }
    graph = onnx.load(onnx_path, load_external_data=False).graph
    absent = {}
    for node in graph.node:
        key = (node.domain if node.domain != "ai.onnx" else "", node.op_type)
        if key not in kernels and key not in functions:
            label = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            absent[label] = f"ONNX Runtime {version(name)} has no {PROVIDERS[name]} kernel for it"
    return absent


def build(request: BuildRequest, log: Callable[[str], None]) -> Engine:
    """Open a session once, so that every error shows now, and keep the optimized graph for the fusion view.

    Raises:
        UnsupportedOperator: ONNX Runtime has no kernel for an operator (or not for its element type).
        OutOfMemory: the session did not fit.
        BuildError: anything else that it refuses.
    """
    variant = request.variant
    notes = _notes(request)
    optimized = Path(request.folder) / "optimized.onnx"
    keep = variant.recipe.fusion != "off" and variant.size_bytes < _KEEP_OPTIMIZED_BELOW_BYTES
    tf32 = request.backend != "onnxruntime-cpu" and _precision(request) == "tf32"
    if tf32:
        (Path(request.folder) / _TF32_NAME).write_text(json.dumps({"tf32": True}), encoding="utf-8")
    started = time.perf_counter()
    log(f"opening {Path(variant.path).name} with {PROVIDERS[request.backend]}, fusion {variant.recipe.fusion}")
    settings = session_settings(variant.path, variant.recipe.fusion, request.options.threads, request.backend, tf32)
    session = open_session(variant.path, settings, optimized if keep else None)
    seconds = time.perf_counter() - started
    log(f"ready after {seconds:.2f} s")
    notes = (*notes, *placement_notes(session, request.backend))
    if LEFT_OUT in settings["entries"]:
        notes = (*notes, onnxruntime_flaws.NOTE)
    return Engine(
        variant=variant.name,
        variant_sha256=variant.sha256,
        fusion=variant.recipe.fusion,
        backend=request.backend,
        backend_version=version(request.backend),
        device=device(request.backend),
        path=variant.path,
        inputs=_limited(_specs(session.get_inputs()), variant.inputs),
        outputs=_specs(session.get_outputs()),
        build_seconds=seconds,
        size_bytes=variant.size_bytes,
        options=request.options,
        notes=notes,
    )


def layer_times(engine: Engine, feeds: Feeds, runs: int) -> list[LayerTime]:
    """Return the executed layers with their times; see `onnxruntime_profiling.profile`."""
    return list(layer_profile(engine, feeds, runs).layers)


def layer_profile(engine: Engine, feeds: Feeds, runs: int) -> LayerProfile:
    """Return the same with the time of whole calls."""
    return onnxruntime_profiling.profile(engine, feeds, runs)


def open_runner(engine: Engine, threads: int | None) -> OnnxRuntimeRunner:
    """Open a built engine.

    Raises:
        EngineError: the file is gone, damaged, or refused now.
    """
    if not Path(engine.path).exists():
        raise EngineError(f"The engine file {engine.path} is gone. Build the variant {engine.variant!r} again.")
    try:
        session = open_session(engine.path, settings_of(engine, threads))
    except BuildError as error:
        raise EngineError(f"The engine of {engine.variant!r} cannot be opened: {error} Build it again.") from error
    runner = OnnxRuntimeRunner(session, engine.backend)
    runner.inputs = _limited(runner.inputs, engine.inputs)
    return runner


def settings_of(engine: Engine, threads: int | None) -> dict[str, Any]:
    """Return what a session of a built engine is opened with; see `onnxruntime_session.session_settings`."""
    tf32 = engine.folder is not None and (Path(engine.folder) / _TF32_NAME).exists()
    return session_settings(engine.path, engine.fusion, threads, engine.backend, tf32)


def open_file(
    model: Path | str | bytes,
    fusion: str = "all",
    threads: int | None = None,
    backend: str = "onnxruntime-cpu",
) -> OnnxRuntimeRunner:
    """Open a bare ONNX file, or its bytes, without a recipe (what calibration and previews need).

    Raises:
        BuildError: ONNX Runtime refuses the model, or cannot start the provider; UnsupportedOperator where it lacks an
            operator.
    """
    return OnnxRuntimeRunner(open_session(model, session_settings(model, fusion, threads, backend)), backend)


class OnnxRuntimeRunner:
    """An open session. Not for two threads at once."""

    def __init__(self, session: Any, backend: str) -> None:
        self._session = session
        self._backend = backend
        self.inputs = _specs(session.get_inputs())
        self.outputs = _specs(session.get_outputs())
        self._names = [spec.name for spec in self.outputs]

    def __enter__(self) -> OnnxRuntimeRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        self._session = None

    def infer(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run once, from host arrays to host arrays.

        Raises:
            RunError: names, dtypes or shapes do not fit, or the runtime reports an error.
        """
        self._check(feeds)
        try:
            values = self._session.run(self._names, dict(feeds))
        except Exception as error:
            raise _run_error(error) from error
        return dict(zip(self._names, values, strict=True))

    def stopwatch(self, feeds: Feeds, boundary: Boundary, cuda_graph: bool = False) -> Callable[[], float]:
        """Return a function that runs once and returns the seconds within the boundary.

        `compute` binds inputs and outputs once (on a CPU this leaves the bare call); the others go through `infer`.
        """
        self._check(feeds)
        if boundary != "compute":
            return lambda: _timed(lambda: self.infer(feeds))
        binding = self._session.io_binding()
        place = "cpu" if self._backend == "onnxruntime-cpu" else "cuda"
        for name, array in feeds.items():
            binding.bind_ortvalue_input(
                name, runtime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), place)
            )
        for name in self._names:
            binding.bind_output(name, place)
        session = self._session

        def launch() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return lambda: _timed(launch)

    def conditions(self) -> dict[str, Any]:
        """Return nothing: ONNX Runtime tells nothing of the device's state."""
        return {}

    def _check(self, feeds: Feeds) -> None:
        if self._session is None:
            raise RunError("This runner was closed. Open the engine again with workbench.open_runner(engine).")
        feeding.check(self.inputs, feeds)


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _run_error(error: Exception) -> RunError:
    return RunError(f"ONNX Runtime failed while running: {error}. Check the sizes of the dynamic axes that were fed.")


def _notes(request: BuildRequest) -> tuple[str, ...]:
    notes = []
    to = _precision(request)
    if request.backend == "onnxruntime-cpu" and to == "fp16":
        notes.append(
            "FP16 on a CPU is storage only: ONNX Runtime computes in FP32 after casts, so this shows accuracy and file "
            "size; its speed says nothing about a GPU."
        )
    if to == "tf32" and request.backend == "onnxruntime-cpu":
        notes.append("TF32 exists on NVIDIA GPUs only; on this CPU the variant is FP32.")
    if request.variant.recipe.fusion == "off" and request.variant.recipe.step("quantize") is not None:
        notes.append(
            "With fusion off, Q/DQ nodes are run one by one in floating point: accuracy holds, speed does not."
        )
    if request.backend == "onnxruntime-cpu":
        notes += fit_notes(Path(request.variant.path))
    defaults = BuildOptions()
    for name in ("profiles", "workspace_bytes", "optimization_level", "target", "extra"):
        if getattr(request.options, name) != getattr(defaults, name):
            notes.append(f"ONNX Runtime has no use for the build option {name!r}; it was ignored.")
    return tuple(notes)


def _precision(request: BuildRequest) -> str:
    return str(getattr(request.variant.recipe.step("precision"), "to", "fp32"))


def _limited(specs: tuple[TensorSpec, ...], known: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
    """Add the limits on sizes that the file's description has and a session does not know."""
    limits = {spec.name: spec.limits for spec in known}
    return tuple(replace(spec, limits=limits.get(spec.name, ())) for spec in specs)


def _specs(nodes: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            node.name,
            _ELEMENT_TYPES.get(node.type, node.type),
            tuple(size if isinstance(size, int) and size >= 0 else None for size in node.shape),
        )
        for node in nodes
    )
