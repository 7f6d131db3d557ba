"""What a backend offers: the contract that `workbench.engines` relies on. Knows no backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from workbench.records import Boundary, BuildOptions, Engine, LayerTime, TensorSpec, Variant

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Missing:
    """Why a backend cannot be used here, and the line that mends it."""

    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason} {self.remedy}"


@dataclass(frozen=True)
class BuildRequest:
    """All that a backend needs to build; plain data, so that it can travel to a child process.

    Attributes:
        folder: an existing, empty folder for the files of the engine.
        calibration_path: `.npz` of calibration feeds (input name -> samples on axis 0), for native calibrators only.
        cache_folder: where a backend keeps caches that outlive one build (timing caches).
    """

    variant: Variant
    backend: str
    options: BuildOptions
    folder: str
    calibration_path: str | None = None
    cache_folder: str | None = None


class Runner(Protocol):
    """An open engine. Use it as a context manager; not for two threads at once."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __enter__(self) -> Runner: ...

    def __exit__(self, *exception: object) -> None: ...

    def infer(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run once, end to end, from host arrays to host arrays (the caller's own, never reused).

        Raises:
            RunError: names, shapes or dtypes do not fit, or the backend reports an error.
        """

    def stopwatch(self, feeds: Feeds, boundary: Boundary, cuda_graph: bool = False) -> Callable[[], float]:
        """Return a function that runs once and returns the seconds within the boundary.

        For `compute` inputs and outputs are resident before the first call. For `throughput` one call is one
        query, end to end; `workbench.measure` opens one runner a stream.
        """

    def conditions(self) -> dict[str, Any]:
        """Return what the device can tell about its state now (clocks, throttling, temperature); may be empty."""


class Backend(Protocol):
    """One file a backend; the only user of its library. These are module-level functions, not a class.

    `name` is such as `onnxruntime-cpu`, `onnxruntime-cuda`, `tensorrt`, `torch-compile`, `openvino`; one file may
    serve several names.
    """

    def missing(self, name: str) -> Missing | None:
        """Return why this backend cannot be used on this machine, or None where it can. Cheap; no exception."""

    # A backend that can build where it cannot run has `missing_to_build(name)` too, which is like `missing`. One that runs
    # something else than the file has `unfit(name, model)`: why it cannot run this model at all, or None. One that takes
    # seconds to start has `KEEPS_PROCESS = True`: builds and checks of its engines take turns in one process.

    def version(self, name: str) -> str:
        """Return the library's version."""

    def device(self, name: str) -> str:
        """Return the device in words, such as `AMD EPYC (2 cores)` or `NVIDIA H200`."""

    def dialect(self, name: str) -> str:
        """Return the Q/DQ dialect that this backend wants here, one of `workbench.graph.dialects.DIALECTS`."""

    def refuses(self, name: str, target: str | None = None) -> dict[str, str]:
        """Return what a recipe can ask for that cannot be had here, or means nothing here -> the reason.

        Asked are the formats of `recipes.FLOAT_FORMATS`, `int8`, `int8-dynamic`, `int8-smooth`, `fp8`, `int8-weights`,
        `int4-weights`, `sparse`, `fusion-off`, `fusion-basic`, `fusion-all`, and `exclude` (to leave nodes out of a step).

        Args:
            target: see `BuildOptions.target`; for backends that build for other GPUs than the one here.

        Raises:
            BuildError: there is no such target.
        """

    def lacks(self, name: str, onnx_path: Path) -> dict[str, str]:
        """Return the operator types of the file that the backend cannot run -> the reason; empty where it can run all."""

    def build(self, request: BuildRequest, log: Callable[[str], None]) -> Engine:
        """Build an engine. Raises BuildError or a subclass, with the log."""

    def open_runner(self, engine: Engine, threads: int | None) -> Runner:
        """Open a built engine. Raises EngineError."""

    def layer_times(self, engine: Engine, feeds: Feeds, runs: int) -> list[LayerTime]:
        """Return the layers in the order of execution, timed by the backend's own profiler; without module paths.

        Profiling slows an engine down: these times are no part of a latency, and do not add up to one.

        Raises:
            EngineError: the engine cannot be opened, or its backend has no profiler of layers.
        """
