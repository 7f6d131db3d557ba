"""TensorRT as a backend: 8.6, 10, 11 and TensorRT for RTX behind one set of functions (see `workbench.engines.base.Backend`).

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
    kernels,
    layers,
    log,
    offering,
    parsing,
    refitting,
    running,
    targets,
    timing,
)
from workbench.engines.tensorrt.capabilities import Capabilities
from workbench.errors import BackendMissing, WorkbenchError
from workbench.records import BuildOptions, Engine, LayerTime, Variant

KEEPS_PROCESS = True  # a fresh one spends ten seconds of 8.6's builds on starting (benchmarks/results/h200)


def missing(name: str) -> Missing | None:
    """Return why TensorRT cannot be used here, or None where it can."""
    product = capabilities.PRODUCTS[name]
    try:
        caps = _capabilities(name)
    except BackendMissing as error:
        return _absent(error, product)
    found = f"{product.name} is installed, but"
    if caps.ahead_of_time:
        found = f"{product.name} is installed and builds here (workbench.preview shows what it makes of a model), but"
    try:
        runtime = cuda.load(product.install)
        count = runtime.device_count()
    except BackendMissing as error:
        if caps.ahead_of_time:
            return Missing(f"{found} running wants an NVIDIA GPU of compute capability {_able()} and cuda-python, which is "
                           f"not installed.", product.install)  # fmt: skip
        return _absent(error, product)
    except WorkbenchError as error:
        said, _, _ = str(error).partition(" If it persists")  # which is for kernels that used a device before
        return Missing(
            f"{found} CUDA finds no device: {said}",
            "With an NVIDIA GPU, install its driver (nvidia-smi tells); without one, use the backend onnxruntime-cpu.",
        )
    if count == 0:
        return Missing(f"{found} this machine has no CUDA device.", "Use the backend onnxruntime-cpu.")
    device = runtime.device()
    if caps.ahead_of_time and device.compute_capability not in targets.RUNS_ON:
        return Missing(
            f"{found} it runs on GPUs of compute capability {_able()} only; {device.name} has {device.capability}.",
            "Use the backend tensorrt on this GPU.",
        )
    return None


def _able() -> str:
    return ", ".join(f"{major}.{minor}" for major, minor in targets.RUNS_ON)


def missing_to_build(name: str) -> Missing | None:
    """Return why nothing can be built here, or None: TensorRT for RTX needs neither GPU nor driver to build."""
    try:
        ahead_of_time = _capabilities(name).ahead_of_time
    except BackendMissing as error:
        return _absent(error, capabilities.PRODUCTS[name])
    return None if ahead_of_time else missing(name)


def _absent(error: BackendMissing, product: capabilities.Product) -> Missing:
    reason, _, _ = str(error).partition(" Run: ")
    return Missing(reason, product.install)


def version(name: str) -> str:
    """Return TensorRT's version."""
    return _capabilities(name).version


def device(name: str) -> str:
    """Return the GPU's name, such as `NVIDIA H200`."""
    return cuda.load().device().name


def dialect(name: str) -> str:
    """Return the Q/DQ dialect: `trt-8.6` before TensorRT 10.12, `strong` from there on and for RTX."""
    return _capabilities(name).dialect


def refuses(name: str, target: str | None = None) -> dict[str, str]:
    """Return what this release or its target cannot do -> the reason; see `offering.refused`.

    Raises:
        BackendMissing: the library is not here; BuildError: it knows no such target, or wants a GPU and there is none.
    """
    caps = _capabilities(name)
    runtime = _gpu(name)
    here = None if runtime is None else runtime.device()
    found, _ = targets.read(caps, BuildOptions(target=target), here)
    if target is None and here is not None and found.devices:
        found = targets.Targets((here,))  # people know their GPU by its name
    return offering.refused(caps, found)


def lacks(name: str, onnx_path: Path) -> dict[str, str]:
    """Return the operator types of the file that TensorRT cannot run -> the reason; empty where it can run all.

    Raises:
        BackendMissing: TensorRT is not here; BuildError: the file is no ONNX, or TensorRT cannot start.
    """
    caps = _capabilities(name)
    journal = log.Journal()
    logger = log.logger(caps.trt, journal)
    flags = ("EXPLICIT_BATCH",) if caps.needs_explicit_batch else ()
    builder, network = building.new_builder(caps, logger, flags)
    found = parsing.lacks(caps, network, logger, onnx_path)
    del network, builder  # in this order, and before the logger
    return found


def build(request: BuildRequest, log: Callable[[str], None]) -> Engine:
    """Build an engine; see `building.build`."""
    caps = _capabilities(request.backend)
    return building.build(caps, _gpu(request.backend) if caps.ahead_of_time else cuda.load(), request, log)


def refit(engine: Engine, variant: Variant, folder: Path, log: Callable[[str], None] = lambda line: None) -> Engine:
    """Return the engine with the weights of another variant of the same structure; see `refitting.refit`."""
    runtime = cuda.load()
    return refitting.refit(_capabilities(engine.backend), runtime.device(), engine, variant, folder=folder, sink=log)


def open_runner(engine: Engine, threads: int | None) -> running.TensorRTRunner:
    """Open a built engine; `threads` has no meaning on a GPU.

    Raises:
        EngineError: the plan is missing or damaged, or was built for another version or device.
    """
    product = capabilities.PRODUCTS[engine.backend]
    return running.TensorRTRunner(_capabilities(engine.backend), cuda.load(product.install), engine)


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
    if feeds is None and _capabilities(engine.backend).ahead_of_time:
        found, planned = kernels.of_engine(engine)
        memory = layers.activation_memory(found, planned.get("activation", 0))
        return layers.with_modules(found, modules or {}), memory
    with open_runner(engine, None) as runner:
        if feeds is None:
            found = layers.parse(inspecting.describe(runner))
        else:
            seconds = timing.profile(runner, feeds, runs)  # and the context has the shapes of the feeds
            found = layers.parse(layers.information(runner.caps, runner.engine, runner.context))
            found = layers.with_times(found, seconds)
        memory = layers.activation_memory(found, runner.activation_bytes)
    return layers.with_modules(found, modules or {}), memory


def planned_memory(engine: Engine) -> dict[str, int]:
    """Return the bytes of an engine by purpose, read from the log that its build left in its record."""
    return log.digest(engine.log.splitlines()).memory_bytes


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
            reads=tuple(layers.spec(one) for one in (*layer.inputs, *layer.constants)),
            writes=tuple(layers.spec(one) for one in layer.outputs),
            constants=tuple(one.name for one in layer.constants),
        )
        for layer in found
    ]


def _capabilities(name: str) -> Capabilities:
    return Capabilities(capabilities.library(name))


def _gpu(name: str) -> cuda.Cuda | None:
    """Return the CUDA runtime where there is a GPU, for those who can do without."""
    return cuda.load() if missing(name) is None else None
