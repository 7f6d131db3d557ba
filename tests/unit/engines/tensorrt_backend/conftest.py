"""Puts the stand-ins of tensorrt and cuda-python where the backend imports them from, for one release at a time."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tensorrt_stand_in
from cuda_stand_in import Runtime
from world import World

from workbench.engines.base import BuildRequest
from workbench.engines.tensorrt import plugins
from workbench.records import BuildOptions, Engine, Variant


@dataclass
class Machine:
    """A machine with one release of TensorRT and one GPU, none of it real."""

    trt: tensorrt_stand_in.Module
    world: World
    cuda: Runtime
    folder: Path
    count: int = 0
    backend: str = "tensorrt"

    @property
    def dialect(self) -> str:
        """The dialect that the release wants, said without asking the backend."""
        return "trt-8.6" if self.trt.__version__.startswith("8.") else "strong"

    def new_folder(self) -> Path:
        self.count += 1
        folder = self.folder / f"engine{self.count}"
        folder.mkdir()
        return folder

    def build(self, variant: Variant, log: Callable[[str], None] = lambda line: None, **given: object) -> Engine:
        """Build; `given` is for BuildOptions, but `calibration` and `cache`, which are for the request."""
        from workbench.engines import tensorrt as backend

        calibration, cache = given.pop("calibration", None), given.pop("cache", None)
        request = BuildRequest(
            variant,
            self.backend,
            BuildOptions(**given),  # type: ignore[arg-type]
            str(self.new_folder()),
            None if calibration is None else str(calibration),
            None if cache is None else str(cache),
        )
        return backend.build(request, log)


@pytest.fixture(params=tensorrt_stand_in.VERSIONS)
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    """Each release in turn; what was not given back at the end is a failure."""
    cuda = Runtime()
    world = World(cuda)
    trt = tensorrt_stand_in.make(request.param, world)
    monkeypatch.setattr(plugins, "_opened", {})  # every stand-in is a process of its own
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    yield Machine(trt, world, cuda, tmp_path)
    assert cuda.live() == {}


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    """TensorRT for RTX on a GPU that it runs on; what was not given back at the end is a failure."""
    cuda = Runtime()
    cuda.name, cuda.capability = "NVIDIA GeForce RTX 4090", (8, 9)
    world = World(cuda)
    trt = tensorrt_stand_in.make("rtx-1.7.1", world)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    yield Machine(trt, world, cuda, tmp_path, backend="tensorrt-rtx")
    assert cuda.live() == {}
