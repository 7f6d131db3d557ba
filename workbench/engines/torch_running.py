"""Run an exported PyTorch program: as it is, compiled, or replayed from a CUDA graph."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.engines import feeding, torch_profiling
from workbench.engines.base import Feeds
from workbench.engines.torch_lowering import lower
from workbench.errors import OutOfMemory, RunError
from workbench.records import Boundary, Engine, LayerTime

if TYPE_CHECKING:
    import torch

# Calls before a capture: libraries choose kernels and allocate in the first ones, which must not be captured.
_CALLS_BEFORE_CAPTURE = 3
_CALLS_REMEMBERED = 1000
# Where handing a call to the device takes this share of its time, the device had nothing queued: it waited for the host.
_LAUNCH_BOUND = 0.9


@dataclass(frozen=True)
class Sidecar:
    """What the runner needs beside the program.

    Attributes:
        sha256: of the program, which is not opened where it has another.
        inputs, outputs: ONNX names in the program's order.
    """

    sha256: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    precision: str
    mode: str
    channels_last: bool


class TorchRunner:
    """An open program. Use it as a context manager; it changes settings of the whole process until it is closed."""

    def __init__(self, engine: Engine, sidecar: Sidecar, threads: int | None) -> None:
        import torch

        self.inputs, self.outputs = engine.inputs, engine.outputs
        self._names, self._sidecar = sidecar.outputs, sidecar
        # With its number: to torch.compile `cuda` and `cuda:0` are two devices.
        self._device = torch.device(f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu")
        self._always_graph = engine.backend == "torch-cudagraph"
        self._graph_refusal: str | None = None
        self._graph: _Graph | None = None
        self._calls: deque[tuple[float, float]] = deque(
            maxlen=_CALLS_REMEMBERED
        )  # host seconds to launch, seconds in all
        self._open = True
        self._settings = contextlib.ExitStack()
        self._set(threads)
        try:
            self._call = self._loaded(engine, sidecar)
        except BaseException:
            self._settings.close()
            raise

    def _set(self, threads: int | None) -> None:
        import torch

        if threads is not None:
            self._settings.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(threads)
        if self._device.type == "cuda":
            # FP32 means FP32: convolutions take TF32 by default.
            tf32 = self._sidecar.precision == "tf32"
            self._settings.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            self._settings.callback(setattr, torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
            torch.set_float32_matmul_precision("high" if tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = tf32

    def _loaded(self, engine: Engine, sidecar: Sidecar) -> Callable[..., Any]:
        import torch

        program = torch.export.load(engine.path)
        if self._device.type == "cuda":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, str(self._device))
        module: Any = program.module(check_guards=False)
        program.state_dict.clear()  # a program refers to itself, so it and FP32 weights would stay for a while
        program.constants.clear()
        if sidecar.precision in ("fp16", "bf16"):
            lower(module, torch.float16 if sidecar.precision == "fp16" else torch.bfloat16)
        if sidecar.channels_last:
            module = module.to(memory_format=torch.channels_last)
        self._settings.callback(_let_go, module)
        if engine.backend != "torch-compile":
            return module  # type: ignore[no-any-return]
        self._settings.callback(torch._dynamo.reset)  # it refers to the tensors of what it compiled
        torch._dynamo.reset()  # what an earlier runner compiled is no use to this one, and fills the cache of variants
        return torch.compile(module, mode=None if sidecar.mode == "default" else sidecar.mode)  # type: ignore[no-any-return]

    def __enter__(self) -> TorchRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._open:
            self._open = False
            self._graph = None
            self._settings.close()
            del self._call

    def infer(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run once, end to end, from host arrays to host arrays of the caller's own.

        Raises:
            RunError: names, dtypes or shapes do not fit, or PyTorch reports an error; OutOfMemory.
        """
        return self._on_host(self._launch(self._resident(feeds)))

    def stopwatch(self, feeds: Feeds, boundary: Boundary, cuda_graph: bool = False) -> Callable[[], float]:
        """Return a function that runs once and returns the seconds within the boundary.

        `compute`: device events around the call on a GPU, the bare call on a CPU; inputs resident, outputs left there.
        """
        graph = self._always_graph or cuda_graph
        if graph and self._device.type != "cuda":
            self._graph_refusal = "there is no CUDA device"
            graph = False
        tensors = self._resident(feeds)
        self._launch(tensors, graph)  # compiles or captures
        if boundary != "compute":
            return lambda: _timed(lambda: self._on_host(self._launch(self._resident(feeds), graph)))
        if self._device.type == "cuda":
            return self._device_stopwatch(tensors, graph)
        return lambda: _timed(lambda: self._launch(tensors))

    def profile(self, engine: Engine, feeds: Feeds, runs: int) -> list[LayerTime]:
        """Return the times of operations; see `torch_profiling.profile`."""
        return torch_profiling.profile(engine, self._call, self._resident(feeds), runs)

    def conditions(self) -> dict[str, Any]:
        """Return how launches are made, what they cost the host, and what memory the device holds.

        `host_launch_seconds`: median host time in which a call of the stopwatch was handed to the device, nothing waited
        for; `launch_bound`: whether that is nearly all of the time measured, so that the device waited for the host.
        """
        if self._device.type != "cuda":
            return {"cuda_graph_refused": self._graph_refusal} if self._graph_refusal else {}
        import torch

        return {
            "device_memory_peak_seen_bytes": torch.cuda.max_memory_allocated(),
            "cuda_graph_refused": self._graph_refusal,
            **launching(self._calls),
        }

    def _device_stopwatch(self, tensors: list[torch.Tensor], graph: bool) -> Callable[[], float]:
        import torch

        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

        def run() -> float:
            start.record()
            began = time.perf_counter()
            if graph and self._graph is not None:
                self._graph.replay()
            else:
                self._launch(tensors)
            host = time.perf_counter() - began
            end.record()
            end.synchronize()
            seconds = float(start.elapsed_time(end)) / 1e3
            self._calls.append((host, seconds))
            return seconds

        return run

    def _resident(self, feeds: Feeds) -> list[torch.Tensor]:
        if not self._open:
            raise RunError("This runner was closed. Open the engine again with workbench.open_runner(engine).")
        feeding.check(self.inputs, feeds)
        with _explained():
            return [self._moved(feeds[name]) for name in self._sidecar.inputs]

    def _moved(self, array: np.ndarray) -> torch.Tensor:
        import torch

        # PyTorch has no read-only tensors, and warns.
        tensor = torch.from_numpy(np.require(array, requirements=("C", "W"))).to(self._device)
        if self._sidecar.channels_last and tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    def _launch(self, tensors: list[torch.Tensor], graph: bool | None = None) -> Any:
        import torch

        with _explained(), torch.inference_mode():
            if self._always_graph if graph is None else graph:
                return self._replayed(tensors)
            return self._call(*tensors)

    def _replayed(self, tensors: list[torch.Tensor]) -> Any:
        shapes = [tensor.shape for tensor in tensors]
        if self._graph is None or self._graph.shapes != shapes:
            self._graph = _Graph(self._call, tensors)
        for mine, theirs in zip(self._graph.inputs, tensors, strict=True):
            mine.copy_(theirs)
        self._graph.replay()
        return self._graph.outputs

    def _on_host(self, outputs: Any) -> dict[str, np.ndarray]:
        # A copy on a CPU too: an output may be one of the inputs, or memory that the next call writes.
        arrays = [np.array(value.cpu().numpy(), order="C") for value in outputs]
        return dict(zip(self._names, arrays, strict=True))


def launching(calls: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return what launches cost the host, from (host seconds, seconds in all) of each call; nothing without calls."""
    if not calls:
        return {}
    host, whole = (float(np.median(column)) for column in zip(*calls, strict=True))
    return {"host_launch_seconds": host, "launch_bound": host >= _LAUNCH_BOUND * whole}


def _let_go(module: torch.nn.Module) -> None:
    """Free a module's tensors now: it is in cycles of references, which Python breaks whenever it likes."""
    for part in module.modules():
        part._parameters.clear()
        part._buffers.clear()


@functools.cache
def _side_stream(device: int) -> torch.cuda.Stream:
    """Return the one stream of a device for captures: cuBLAS keeps a workspace of 32 MiB for each stream it has met."""
    import torch

    return torch.cuda.Stream(device)


class _Graph:
    """One call, captured: it reads and writes the same memory at each replay."""

    def __init__(self, call: Callable[..., Any], tensors: list[torch.Tensor]) -> None:
        import torch

        self.shapes = [tensor.shape for tensor in tensors]
        self.inputs = [tensor.clone() for tensor in tensors]
        side = _side_stream(torch.cuda.current_device())
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_CALLS_BEFORE_CAPTURE):
                call(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=side):  # the stream whose workspaces exist, so the graph owns none
            self.outputs = call(*self.inputs)

    def replay(self) -> None:
        self._graph.replay()


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Raise what PyTorch raises as the errors of this package."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"PyTorch ran out of memory: {error}. Use a smaller batch.") from error
    except Exception as error:
        raise RunError(f"PyTorch failed while running: {type(error).__name__}: {error}") from error


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
