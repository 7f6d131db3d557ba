"""TensorRT as a backend: 8.6, 10 and 11 behind one set of functions (see `workbench.engines.base.Backend`).

Precision lives in the ONNX file; builder flags only allow what the file and the recipe say. Imports neither tensorrt
nor cuda-python before they are needed. The switches in `BuildOptions.extra` are those of `switches.Switches`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from workbench.engines.base import BuildRequest, Missing
from workbench.engines.tensorrt import (
    building,
    capabilities,
    cuda,
    inspecting,
    layers,
    log,
    parsing,
    refitting,
    running,
    timing,
)
from workbench.engines.tensorrt.capabilities import INSTALL, Capabilities
from workbench.errors import BackendMissing, WorkbenchError
from workbench.records import Engine, LayerTime, Variant


def missing(name: str) -> Missing | None:
    """Return why TensorRT cannot be used here, or None where it can."""
    try:
        capabilities.library()
        count = cuda.load().device_count()
    except BackendMissing as error:
        reason, _, _ = str(error).partition(" Run: ")
        return Missing(reason, INSTALL)
    except WorkbenchError as error:
        return Missing(
            f"TensorRT is installed, but CUDA finds no device: {error}", "Install NVIDIA's driver (nvidia-smi)."
        )
    if count == 0:
        return Missing(
            "TensorRT is installed, but this machine has no CUDA device.", "Use the backend onnxruntime-cpu."
        )
    return None


def version(name: str) -> str:
    """Return TensorRT's version."""
    return _capabilities().version


def device(name: str) -> str:
    """Return the GPU's name, such as `NVIDIA H200`."""
    return cuda.load().device().name


def dialect(name: str) -> str:
    """Return the Q/DQ dialect: `trt-8.6` before TensorRT 10.12, `strong` from there on."""
    return _capabilities().dialect


def lacks(name: str, onnx_path: Path) -> dict[str, str]:
    """Return the operator types of the file that TensorRT cannot run -> the reason; empty where it can run all.

    Raises:
        BackendMissing: TensorRT is not here; BuildError: the file is no ONNX, or TensorRT cannot start.
    """
    caps = _capabilities()
    journal = log.Journal()
    logger = log.logger(caps.trt, journal)
    flags = ("EXPLICIT_BATCH",) if caps.needs_explicit_batch else ()
    builder, network = building.new_builder(caps, logger, flags)
    found = parsing.lacks(caps, network, logger, onnx_path)
    del network, builder  # in this order, and before the logger
    return found


def build(request: BuildRequest, log: Callable[[str], None]) -> Engine:
    """Build an engine; see `building.build`."""
    return building.build(_capabilities(), cuda.load(), request, log)


def refit(engine: Engine, variant: Variant, folder: Path, log: Callable[[str], None] = lambda line: None) -> Engine:
    """Return the engine with the weights of another variant of the same structure; see `refitting.refit`."""
    runtime = cuda.load()
    return refitting.refit(_capabilities(), runtime.device(), engine, variant, folder=folder, sink=log)


def open_runner(engine: Engine, threads: int | None) -> running.TensorRTRunner:
    """Open a built engine; `threads` has no meaning on a GPU.

    Raises:
        EngineError: the plan is missing or damaged, or was built for another version or device.
    """
    return running.TensorRTRunner(_capabilities(), cuda.load(), engine)


def layer_table(
    engine: Engine,
    feeds: Mapping[str, np.ndarray] | None = None,
    modules: Mapping[str, str] | None = None,
    runs: int = 20,
) -> tuple[tuple[layers.LayerInfo, ...], layers.ActivationMemory]:
    """Return an engine's layers and how its activation memory compares with the sum of their outputs.

    Args:
        feeds: with them the layers are timed, in runs of their own.
        modules: ONNX node name -> PyTorch module path, as in `Model.modules`.
        runs: timed runs; each layer's median counts.

    Raises:
        EngineError: the engine cannot be opened or tells nothing of its layers.
    """
    with open_runner(engine, None) as runner:
        if feeds is None:
            found = layers.parse(inspecting.describe(runner))
        else:
            seconds = timing.profile(runner, feeds, runs)  # and the context has the shapes of the feeds
            found = layers.parse(layers.information(runner.caps, runner.engine, runner.context))
            found = layers.with_times(found, seconds)
        memory = layers.activation_memory(found, runner.activation_bytes)
    return layers.with_modules(found, modules or {}), memory


def layer_times(engine: Engine, feeds: Mapping[str, np.ndarray], runs: int) -> list[LayerTime]:
    """Return an engine's layers with their times, in runs with TensorRT's profiler; see `layer_table`."""
    found, _ = layer_table(engine, feeds, runs=runs)
    return [
        LayerTime(
            name=layer.name,
            operator="reformat" if layer.is_reformat else layer.kind,
            seconds=layer.seconds or 0.0,
            nodes=layer.nodes,
            precision=layer.precision or "",
        )
        for layer in found
    ]


def _capabilities() -> Capabilities:
    return Capabilities(capabilities.library())
