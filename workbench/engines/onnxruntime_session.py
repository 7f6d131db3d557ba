"""Open a session of ONNX Runtime as asked, or say why not. The only place that imports `onnxruntime`.

Knows nothing of variants, engines or measuring.
"""

from __future__ import annotations

import collections
import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from workbench.engines import onnxruntime_flaws
from workbench.errors import BuildError, OutOfMemory, UnsupportedOperator
from workbench.machine import disk

PROVIDERS = {
    "onnxruntime-cpu": "CPUExecutionProvider",
    "onnxruntime-cuda": "CUDAExecutionProvider",
    "onnxruntime-tensorrt": "TensorrtExecutionProvider",
}
LEVELS = {"off": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "all": "ORT_ENABLE_ALL"}
LEFT_OUT = "optimization.disable_specified_optimizers"
_SEVERITY_ERROR = 3


def runtime() -> ModuleType:
    """Return the library."""
    # From 1.29 on it reports names and hashes of models to its makers, and keeps a database in the home folder, from the
    # moment that it is imported. Whoever wants that says ORT_DISABLE_TELEMETRY=0.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return importlib.import_module("onnxruntime")


def session_settings(
    model: Path | str | bytes, fusion: str, threads: int | None, backend: str, tf32: bool = False
) -> dict[str, Any]:
    """Return what a session of a file is opened with as plain data, for whoever opens it without the workbench.

    Returns:
        `level` (a name in GraphOptimizationLevel), `threads` (None: ONNX Runtime's own choice), `entries` of the session's
        configuration, `providers`, and `provider_options`, one dict a provider.
    """
    # Spinning workers steal the core from whoever runs beside them, and so from the next measurement.
    entries = {} if threads is None else {"session.intra_op.allow_spinning": "0" if threads == 1 else "1"}
    if backend != "onnxruntime-cpu":
        entries["session.record_ep_graph_assignment_info"] = "1"
    elif fusion == "all" and (flawed := onnxruntime_flaws.left_out(model)):
        entries[LEFT_OUT] = ";".join(flawed)
    providers = _providers(backend)
    # The CUDA provider computes FP32 products in TF32 unless it is told not to.
    options = [{"use_tf32": str(int(tf32))} if name == "CUDAExecutionProvider" else {} for name in providers]
    return {
        "level": LEVELS[fusion], "threads": threads, "entries": entries, "providers": providers,
        "provider_options": options,
    }  # fmt: skip


def session_options(settings: dict[str, Any]) -> Any:
    """Return the SessionOptions of `session_settings`."""
    library = runtime()
    options = library.SessionOptions()
    options.graph_optimization_level = getattr(library.GraphOptimizationLevel, settings["level"])
    options.log_severity_level = _SEVERITY_ERROR
    if settings["threads"] is not None:
        options.intra_op_num_threads = settings["threads"]
    for key, value in settings["entries"].items():
        options.add_session_config_entry(key, value)
    return options


def open_session(model: Path | str | bytes, settings: dict[str, Any], optimized: Path | None = None) -> Any:
    """Open a session with `session_settings`, and with nothing else: ONNX Runtime would go on without a provider."""
    library, options = runtime(), session_options(settings)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    source, wanted = model if isinstance(model, bytes) else str(model), settings["providers"][0]
    if wanted != "CPUExecutionProvider" and hasattr(library, "preload_dlls"):
        library.preload_dlls()  # CUDA and cuDNN from their wheels, where they came with PyTorch or by themselves
    try:
        session = library.InferenceSession(
            source, options, providers=settings["providers"], provider_options=settings["provider_options"]
        )
    except Exception as error:
        # What ONNX Runtime says where it could not write the optimized graph.
        if optimized is not None and "Protobuf serialization failed" in str(error):
            raise disk.full(optimized, "ONNX Runtime could not write all of the optimized graph") from error
        raise _build_error(error) from error
    if session.get_providers()[0] != wanted:
        raise BuildError(
            f"ONNX Runtime {library.__version__} could not start {wanted} and would have run on "
            f"{session.get_providers()[0]} instead. Mostly a library of CUDA or cuDNN is missing or too old; its own error "
            f"is in the log. Install the versions that it was made for: pip install 'onnxruntime-gpu[cuda,cudnn]'."
        )
    return session


def placement_notes(session: Any, backend: str) -> list[str]:
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
            f"ONNX Runtime {runtime().__version__} cannot run an operator of this model: {text}. "
            f"Define it by others (workbench.define), choose another backend or opset, or leave the node out of the recipe "
            f"if that put it there.",
            log=text,
        )
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate" in text:
        return OutOfMemory(f"ONNX Runtime ran out of memory: {text}. Use a smaller batch or model.", log=text)
    return BuildError(f"ONNX Runtime {runtime().__version__} refuses the model: {text}", log=text)
