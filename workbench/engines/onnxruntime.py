"""ONNX Runtime as a backend: its CPU, CUDA and TensorRT providers. The only user of `onnxruntime`.

On a CPU there is no FP16 or BF16 arithmetic for most operators: an FP16 file is stored small and computed in FP32,
a BF16 one does not load. The notes of the engine say so.
"""

from __future__ import annotations

import collections
import importlib
import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from workbench.engines import feeding, onnxruntime_profiling
from workbench.engines.base import BuildRequest, Feeds, Missing
from workbench.engines.cpu import fit_notes
from workbench.errors import BuildError, EngineError, OutOfMemory, RunError, UnsupportedOperator
from workbench.graph.dialects import of_this_cpu
from workbench.machine import device as hardware
from workbench.machine import disk
from workbench.records import Boundary, BuildOptions, Engine, LayerProfile, LayerTime, TensorSpec

PROVIDERS = {
    "onnxruntime-cpu": "CPUExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
}
_LEVELS = {"off": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "all": "ORT_ENABLE_ALL"}
# The optimized graph is kept beside the engine, to show what was fused, where it stays below protobuf's 2 GB.
_KEEP_OPTIMIZED_BELOW_BYTES = 1 << 30
_SEVERITY_ERROR = 3
_TF32_NAME = "tf32.json"  # beside an engine whose products may round their inputs to TF32

_ELEMENT_TYPES = {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16", "tensor(double)": "float64",
    "tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(int16)": "int16", "tensor(int8)": "int8",
    "tensor(uint8)": "uint8", "tensor(bool)": "bool", "tensor(uint16)": "uint16", "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64", "tensor(string)": "str",
}  # fmt: skip


def missing(name: str) -> Missing | None:
    """Return why this provider cannot be used here, or None."""
    if importlib.util.find_spec("onnxruntime") is None:
        return Missing("onnxruntime is not installed.", 'Run: pip install "trt-workbench[cpu]"')
    runtime = _runtime()
    if not hasattr(runtime, "InferenceSession"):
        return Missing(
            "onnxruntime is installed but empty: onnxruntime and onnxruntime-gpu overwrote each other.",
            "Run: pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime",
        )
    provider = PROVIDERS[name]
    if provider not in runtime.get_available_providers():
        return Missing(
            f"The installed onnxruntime has no {provider}.",
            "Run: pip uninstall -y onnxruntime && pip install onnxruntime-gpu (and have an NVIDIA driver)",
        )
    if name != "onnxruntime-cpu" and not hardware.gpus():
        return Missing(f"{provider} needs an NVIDIA GPU, and none was found here.", "Use backend='onnxruntime-cpu'.")
    return None


def version(name: str) -> str:
    """Return the version of the installed onnxruntime."""
    return str(_runtime().__version__)


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
    settings = session_settings(variant.recipe.fusion, request.options.threads, request.backend, tf32)
    session = _session(variant.path, settings, optimized if keep else None)
    seconds = time.perf_counter() - started
    log(f"ready after {seconds:.2f} s")
    notes = (*notes, *_placement_notes(session, request.backend))
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
        tf32 = engine.folder is not None and (Path(engine.folder) / _TF32_NAME).exists()
        runner = open_file(engine.path, engine.fusion, threads, engine.backend, tf32=tf32)
    except BuildError as error:
        raise EngineError(f"The engine of {engine.variant!r} cannot be opened: {error} Build it again.") from error
    runner.inputs = _limited(runner.inputs, engine.inputs)
    return runner


def open_file(
    model: Path | str | bytes,
    fusion: str = "all",
    threads: int | None = None,
    backend: str = "onnxruntime-cpu",
    *,
    tf32: bool = False,
) -> OnnxRuntimeRunner:
    """Open a bare ONNX file, or its bytes, without a recipe (what calibration and previews need).

    Args:
        tf32: products on a GPU may round their inputs to TF32.

    Raises:
        BuildError: ONNX Runtime refuses the model, or cannot start the provider; UnsupportedOperator where it lacks an
            operator.
    """
    return OnnxRuntimeRunner(_session(model, session_settings(fusion, threads, backend, tf32)), backend)


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
                name, _runtime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), place)
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


def session_settings(fusion: str, threads: int | None, backend: str, tf32: bool = False) -> dict[str, Any]:
    """Return what a session is opened with as plain data, for whoever opens the same file without the workbench.

    Returns:
        `level` (a name in GraphOptimizationLevel), `threads` (None: ONNX Runtime's own choice), `entries` of the session's
        configuration, `providers`, and `provider_options`, one dict a provider.
    """
    # Spinning workers steal the core from whoever runs beside them, and so from the next measurement.
    entries = {} if threads is None else {"session.intra_op.allow_spinning": "0" if threads == 1 else "1"}
    if backend != "onnxruntime-cpu":
        entries["session.record_ep_graph_assignment_info"] = "1"
    providers = _providers(backend)
    # The CUDA provider computes FP32 products in TF32 unless it is told not to.
    options = [{"use_tf32": str(int(tf32))} if name == "CUDAExecutionProvider" else {} for name in providers]
    return {
        "level": _LEVELS[fusion], "threads": threads, "entries": entries, "providers": providers,
        "provider_options": options,
    }  # fmt: skip


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _runtime() -> ModuleType:
    return importlib.import_module("onnxruntime")


def _session(model: Path | str | bytes, settings: dict[str, Any], optimized: Path | None = None) -> Any:
    """Open a session with `session_settings`, and with nothing else: ONNX Runtime would go on without a provider."""
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, settings["level"])
    options.log_severity_level = _SEVERITY_ERROR
    if settings["threads"] is not None:
        options.intra_op_num_threads = settings["threads"]
    for key, value in settings["entries"].items():
        options.add_session_config_entry(key, value)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    source, wanted = model if isinstance(model, bytes) else str(model), settings["providers"][0]
    if wanted != "CPUExecutionProvider" and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()  # CUDA and cuDNN from their wheels, where they came with PyTorch or by themselves
    try:
        session = runtime.InferenceSession(
            source, options, providers=settings["providers"], provider_options=settings["provider_options"]
        )
    except Exception as error:
        # What ONNX Runtime says where it could not write the optimized graph.
        if optimized is not None and "Protobuf serialization failed" in str(error):
            raise disk.full(optimized, "ONNX Runtime could not write all of the optimized graph") from error
        raise _build_error(error) from error
    if session.get_providers()[0] != wanted:
        raise BuildError(
            f"ONNX Runtime {runtime.__version__} could not start {wanted} and would have run on "
            f"{session.get_providers()[0]} instead. Mostly a library of CUDA or cuDNN is missing or too old; its own error "
            f"is in the log. Install the versions that it was made for: pip install 'onnxruntime-gpu[cuda,cudnn]'."
        )
    return session


def _placement_notes(session: Any, backend: str) -> list[str]:
    """Say how many nodes a GPU's session runs on the CPU, with copies there and back."""
    if backend == "onnxruntime-cpu" or not hasattr(session, "get_provider_graph_assignment_info"):
        return []
    elsewhere: collections.Counter[str] = collections.Counter()
    count = 0
    for part in session.get_provider_graph_assignment_info():
        nodes = part.get_nodes()
        count += len(nodes)
        if part.ep_name == "CPUExecutionProvider":
            elsewhere.update(node.op_type for node in nodes)
    if not elsewhere:
        return []
    kinds = ", ".join(f"{kind} {number}" for kind, number in elsewhere.most_common(5))
    return [f"{sum(elsewhere.values())} of {count} nodes run on the CPU, with copies there and back: {kinds}."]


def _providers(backend: str) -> list[str]:
    chain = [PROVIDERS[backend]]
    if backend == "onnxruntime-tensorrt":
        chain.append("CUDAExecutionProvider")
    if chain[-1] != "CPUExecutionProvider":
        chain.append("CPUExecutionProvider")
    return chain


def _build_error(error: Exception) -> BuildError:
    text = str(error)
    kind = type(error).__name__
    if kind == "NotImplemented" or "is not a registered function/op" in text or "No opset import" in text:
        return UnsupportedOperator(
            f"ONNX Runtime {_runtime().__version__} cannot run an operator of this model: {text}. "
            f"Replace the operator, choose another backend or opset, or leave the node out of the recipe if that put it there.",
            log=text,
        )
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate" in text:
        return OutOfMemory(f"ONNX Runtime ran out of memory: {text}. Use a smaller batch or model.", log=text)
    return BuildError(f"ONNX Runtime {_runtime().__version__} refuses the model: {text}", log=text)


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
