"""Per-layer times from ONNX Runtime's own profiler, on the CPU. Run it in a child process: profiling slows a session.

The times of layers are those of a profiled run; they say where the time goes, and do not add up to a measured latency.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from workbench.errors import EngineError
from workbench.graph.fused_layers import fusion_map
from workbench.records import Engine, LayerTime

_SUFFIX = "_kernel_time"
_MICROSECOND = 1e-6
_LEVELS = {"off": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "all": "ORT_ENABLE_ALL"}


def profile(engine: Engine, feeds: Mapping[str, np.ndarray], runs: int) -> list[LayerTime]:
    """Run an engine with profiling on, and join what is executed with the nodes of the variant's file.

    Args:
        runs: calls that count, after as many to warm up (at most 5).

    Raises:
        EngineError: another provider than the CPU's, or ONNX Runtime refuses the file or the feeds.
    """
    if engine.backend != "onnxruntime-cpu":
        raise EngineError(
            f"ONNX Runtime times the host's side of layers only where they run on its CPU provider, and "
            f"{engine.variant!r} was built for {engine.backend}. Build it for onnxruntime-cpu or tensorrt."
        )
    path = Path(engine.path)
    times, executed = _run(path, engine.fusion, engine.options.threads, feeds, runs)
    mapped = fusion_map(onnx.load(str(path), load_external_data=False), executed)
    sources = {layer.name: layer.sources for layer in mapped.layers}
    return [replace(one, nodes=tuple(sources.get(one.name, ()))) for one in times]


def _run(
    path: Path, fusion: str, threads: int | None, feeds: Mapping[str, np.ndarray], runs: int
) -> tuple[list[LayerTime], onnx.ModelProto]:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, _LEVELS[fusion])
    options.log_severity_level = 3
    options.enable_profiling = True
    if threads is not None:
        options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory(prefix="workbench-") as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        warmup = min(runs, 5)
        try:
            session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for _ in range(warmup + runs):
                session.run(None, dict(feeds))
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime could not profile {path.name}: {error}. Build the engine again."
            ) from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        optimized = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return _times(events, warmup), optimized


def _times(events: list[dict[str, object]], warmup: int) -> list[LayerTime]:
    found: dict[str, tuple[str, list[float]]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_SUFFIX):
            continue
        arguments = event.get("args")
        operator = str(arguments.get("op_name", "")) if isinstance(arguments, dict) else ""
        seconds = float(str(event["dur"])) * _MICROSECOND
        found.setdefault(name.removesuffix(_SUFFIX), (operator, []))[1].append(seconds)
    return [LayerTime(name, operator, float(np.median(each[warmup:]))) for name, (operator, each) in found.items()]
