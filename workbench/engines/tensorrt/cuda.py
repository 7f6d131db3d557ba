"""The CUDA runtime through cuda-python, every return code checked. Knows nothing of TensorRT."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import warnings
from typing import Any

import numpy as np

from workbench.engines.tensorrt.capabilities import INSTALL, Device
from workbench.errors import BackendMissing, OutOfMemory, RunError

_ADDRESS_BYTES = 32


def load(install: str = INSTALL) -> Cuda:
    """Return the CUDA runtime.

    Args:
        install: the line that installs it.

    Raises:
        BackendMissing: cuda-python is not installed.
    """
    for name in ("cuda.bindings.runtime", "cuda.cudart"):  # the second is what it was called before 12.6
        with contextlib.suppress(ImportError), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return Cuda(importlib.import_module(name))
    raise BackendMissing(f"TensorRT needs cuda-python, which is not installed. {install}")


class Cuda:
    """The runtime's functions as methods that raise where the runtime returns a code."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the runtime and return what it gives: nothing, one value or a tuple.

        Raises:
            OutOfMemory: the device or the host has no memory left.
            RunError: any other code than success.
        """
        code, *values = getattr(self.runtime, function)(*arguments)
        if code != self.runtime.cudaError_t.cudaSuccess:
            raise self._error(code, function, arguments)
        return tuple(values) if len(values) > 1 else values[0] if values else None

    def _error(self, code: Any, function: str, arguments: tuple[Any, ...]) -> Exception:
        self.runtime.cudaGetLastError()  # forgotten here, or it would surface in somebody's later call
        name = getattr(code, "name", str(code))
        text = self.runtime.cudaGetErrorString(code)[1]
        words = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
        if code == self.runtime.cudaError_t.cudaErrorMemoryAllocation:
            size = f" of {arguments[0]:,} bytes" if arguments and isinstance(arguments[0], int) else ""
            return OutOfMemory(
                f"{function}{size} failed: {name} ({words}). Use a smaller batch or workspace, or end other programs "
                f"that hold memory of the GPU (nvidia-smi lists them)."
            )
        return RunError(
            f"{function} failed: {name} ({words}). If it persists, restart the kernel: a CUDA error sticks."
        )

    def device_count(self) -> int:
        """Return how many devices there are."""
        return int(self.call("cudaGetDeviceCount"))

    def device(self, index: int = 0) -> Device:
        """Return a device's name and compute capability."""
        properties = self.call("cudaGetDeviceProperties", index)
        name = properties.name
        words = name.decode(errors="replace") if isinstance(name, bytes) else str(name)
        return Device(words.rstrip("\0"), (int(properties.major), int(properties.minor)))

    def pci_address(self) -> str:
        """Return where on the PCI bus the current device is, such as `0000:3B:00.0`."""
        raw = self.call("cudaDeviceGetPCIBusId", _ADDRESS_BYTES, self.call("cudaGetDevice"))
        return (raw.decode() if isinstance(raw, bytes) else str(raw)).rstrip("\0")

    def used_bytes(self) -> int:
        """Return how much of the device's memory is in use now, by all programs."""
        free, total = self.call("cudaMemGetInfo")
        return int(total) - int(free)

    def upload(self, device: int, host: int, size_bytes: int, stream: Stream) -> None:
        """Copy from host to device, in the stream's order."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self.call("cudaMemcpyAsync", device, host, size_bytes, kind, stream.raw)

    def download(self, host: int, device: int, size_bytes: int, stream: Stream) -> None:
        """Copy from device to host, in the stream's order."""
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self.call("cudaMemcpyAsync", host, device, size_bytes, kind, stream.raw)


class DeviceMemory:
    """A block of device memory that grows and never shrinks; its address changes when it grows."""

    def __init__(self, cuda: Cuda, size_bytes: int = 0) -> None:
        self._cuda = cuda
        self.address = 0
        self.size_bytes = 0
        self.grow(size_bytes)

    def grow(self, size_bytes: int) -> bool:
        """Make room for so many bytes; contents are lost where it grew. Returns whether the address changed."""
        needed = max(size_bytes, 1)  # TensorRT wants an address even for an empty tensor
        if needed <= self.size_bytes:
            return False
        self.free()
        self.address = int(self._cuda.call("cudaMalloc", needed))
        self.size_bytes = needed
        return True

    def free(self) -> None:
        """Give the block back."""
        if self.address:
            address, self.address, self.size_bytes = self.address, 0, 0
            self._cuda.call("cudaFree", address)


class Pool:
    """Device memory that is handed out, comes back and is handed out again: cudaMalloc would stall the device."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._free: list[DeviceMemory] = []
        self._closed = False

    def take(self, size_bytes: int) -> DeviceMemory:
        """Return a block of at least so many bytes."""
        fitting = [memory for memory in self._free if memory.size_bytes >= size_bytes]
        if fitting:
            best = min(fitting, key=lambda memory: memory.size_bytes)
            self._free.remove(best)
            return best
        return DeviceMemory(self._cuda, size_bytes)

    def give(self, memory: DeviceMemory) -> None:
        """Take a block back."""
        if self._closed:
            memory.free()
        else:
            self._free.append(memory)

    def close(self) -> None:
        """Free what is here; blocks that are out are freed when they come back."""
        self._closed = True
        while self._free:
            self._free.pop().free()


class HostMemory:
    """A block of pinned host memory that grows and never shrinks: the only kind that is copied asynchronously."""

    def __init__(self, cuda: Cuda, size_bytes: int = 0) -> None:
        self._cuda = cuda
        self.address = 0
        self.size_bytes = 0
        self.grow(size_bytes)

    def grow(self, size_bytes: int) -> bool:
        """Make room for so many bytes; contents are lost where it grew. Returns whether the address changed."""
        needed = max(size_bytes, 1)
        if needed <= self.size_bytes:
            return False
        self.free()
        flag = self._cuda.runtime.cudaHostAllocDefault
        self.address = int(self._cuda.call("cudaHostAlloc", needed, flag))
        self.size_bytes = needed
        return True

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Return the first bytes as an array; it is valid until the block grows or is freed."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if size == 0:
            return np.empty(shape, dtype)
        raw = (ctypes.c_uint8 * size).from_address(self.address)
        return np.frombuffer(memoryview(raw), dtype=np.uint8).view(dtype).reshape(shape)

    def free(self) -> None:
        """Give the block back."""
        if self.address:
            address, self.address, self.size_bytes = self.address, 0, 0
            self._cuda.call("cudaFreeHost", address)


class Stream:
    """A stream of its own: on the default stream TensorRT adds synchronisations of its own."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.raw = cuda.call("cudaStreamCreateWithFlags", cuda.runtime.cudaStreamNonBlocking)

    @property
    def handle(self) -> int:
        """The stream as the integer that TensorRT takes."""
        return int(self.raw)

    def synchronize(self) -> None:
        """Wait until all that was put on the stream is done."""
        self._cuda.call("cudaStreamSynchronize", self.raw)

    def wait_for(self, event: Event) -> None:
        """Let what is put on the stream from now on wait for an event."""
        self._cuda.call("cudaStreamWaitEvent", self.raw, event.raw, 0)

    def free(self) -> None:
        """Destroy the stream."""
        if self.raw is not None:
            raw, self.raw = self.raw, None
            self._cuda.call("cudaStreamDestroy", raw)


class Event:
    """A point in a stream; two of them are a stop-watch of the device."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.raw = cuda.call("cudaEventCreate")

    def record(self, stream: Any) -> None:
        """Mark this point in a stream (a raw stream or its handle)."""
        self._cuda.call("cudaEventRecord", self.raw, stream)

    def synchronize(self) -> None:
        """Wait until the point is reached."""
        self._cuda.call("cudaEventSynchronize", self.raw)

    def seconds_since(self, start: Event) -> float:
        """Return the device time between two points that were both reached."""
        return float(self._cuda.call("cudaEventElapsedTime", start.raw, self.raw)) / 1e3

    def free(self) -> None:
        """Destroy the event."""
        if self.raw is not None:
            raw, self.raw = self.raw, None
            self._cuda.call("cudaEventDestroy", raw)


class Graph:
    """Work of a stream, captured once and launched as a whole."""

    def __init__(self, cuda: Cuda, stream: Stream, enqueue: Any) -> None:
        """Capture what `enqueue()` puts on the stream.

        Raises:
            RunError: the work cannot be captured; the stream is usable again afterwards.
        """
        self._cuda = cuda
        self._stream = stream
        self._executable: Any = None
        mode = cuda.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        cuda.call("cudaStreamBeginCapture", stream.raw, mode)
        try:
            enqueue()
        except BaseException:
            with contextlib.suppress(RunError):  # the capture is broken already; this only ends it
                self._discard(cuda.call("cudaStreamEndCapture", stream.raw))
            raise
        graph = cuda.call("cudaStreamEndCapture", stream.raw)
        try:
            self._executable = cuda.call("cudaGraphInstantiate", graph, 0)
        finally:
            self._discard(graph)

    def _discard(self, graph: Any) -> None:
        if graph is not None:
            self._cuda.call("cudaGraphDestroy", graph)

    def launch(self) -> None:
        """Put the captured work on the stream."""
        self._cuda.call("cudaGraphLaunch", self._executable, self._stream.raw)

    def free(self) -> None:
        """Destroy the graph."""
        if self._executable is not None:
            executable, self._executable = self._executable, None
            self._cuda.call("cudaGraphExecDestroy", executable)
