"""A stand-in for cuda-python's runtime module, with behaviour: memory, streams, events and graphs.

There is no GPU where the contract tests run. This one keeps what a test must be able to catch: work is done only when
a stream is waited for, copies outside an allocation fail, and whatever is not given back is counted. Function names
and argument lists are those of `cuda.bindings.runtime` 12.9.
"""

# ruff: noqa: N801, N802, N815 - the names are those of the real libraries
from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from types import SimpleNamespace


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorStreamCaptureUnsupported = 900


OK = cudaError_t.cudaSuccess


class Handle:
    """A stream, event or graph: an opaque object that int() takes."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.reached_ms: float | None = None
        self.work: list[Callable[[], None]] = []  # of a graph

    def __int__(self) -> int:
        return self.number


class Runtime:
    """The module. `world` knobs: devices, name, capability, memory_limit_bytes, capture_fails."""

    cudaError_t = cudaError_t
    cudaHostAllocDefault = 0
    cudaStreamNonBlocking = 1
    cudaMemcpyKind = enum.IntEnum("cudaMemcpyKind", {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2})
    cudaStreamCaptureMode = enum.IntEnum("cudaStreamCaptureMode", {"cudaStreamCaptureModeThreadLocal": 1})

    def __init__(self) -> None:
        self.devices, self.name, self.capability = 1, "NVIDIA H200", (9, 0)
        self.memory_limit_bytes = 2**30
        self.capture_fails = False
        self.shares_memory = False  # as where GPU and host have one memory: any address may be the device's
        self.clock_ms = 0.0
        self.kernel_ms = 2.0
        self.launches: list[str] = []
        self._device: dict[int, ctypes.Array] = {}
        self._host: dict[int, ctypes.Array] = {}
        self._handles: dict[int, Handle] = {}
        self._kinds: dict[int, str] = {}
        self._next = 1000

    # For tests

    def live(self) -> dict[str, int]:
        """Return what was not given back."""
        counts = {"device memory": len(self._device), "host memory": len(self._host)}
        for kind in self._kinds.values():
            counts[kind] = counts.get(kind, 0) + 1
        return {name: count for name, count in counts.items() if count}

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Put work on a stream; a capturing stream keeps it for its graph."""
        handle = self._handles[int(stream)] if int(stream) > 2 else self._default()  # 1 and 2 name default streams
        (handle.queue if handle.captured is None else handle.captured).append(work)

    def kernel(self, stream: int, work: Callable[[], None]) -> bool:
        """Put a kernel on a stream; it takes `kernel_ms` of the device's clock."""
        handle = self._handles[int(stream)]
        if handle.captured is not None and self.capture_fails:
            return False

        def run() -> None:
            work()
            self.clock_ms += self.kernel_ms

        self.enqueue(stream, run)
        return True

    def device_bytes(self, address: int, size: int) -> int:
        """Check that an address range lies in one live device allocation; return the address."""
        if self.shares_memory and address:
            return address
        return self._inside(self._device, address, size, "device")

    def _inside(self, blocks: dict[int, ctypes.Array], address: int, size: int, kind: str) -> int:
        for start, block in blocks.items():
            if start <= address and address + size <= start + len(block):
                return address
        raise AssertionError(f"{size} bytes at {address:#x} are not inside live {kind} memory")

    def _default(self) -> Handle:
        return self._handles.setdefault(0, Handle(0))

    def _new(self, kind: str) -> Handle:
        self._next += 1
        handle = Handle(self._next)
        self._handles[self._next], self._kinds[self._next] = handle, kind
        return handle

    def _drop(self, handle: Handle, kind: str) -> tuple:
        if self._kinds.pop(int(handle), None) != kind:
            return (cudaError_t.cudaErrorInvalidValue,)
        self._handles.pop(int(handle))
        return (OK,)

    def _finish(self, handle: Handle) -> None:
        while handle.queue:
            handle.queue.pop(0)()

    def _finish_all(self) -> None:
        for handle in list(self._handles.values()):
            self._finish(handle)

    # The runtime

    def cudaGetErrorString(self, error):
        return OK, f"error {error.name}".encode()

    def cudaGetLastError(self):
        return (OK,)

    def cudaGetDeviceCount(self):
        if self.devices == 0:
            return cudaError_t.cudaErrorNoDevice, None
        return OK, self.devices

    def cudaGetDeviceProperties(self, device):
        return OK, SimpleNamespace(name=self.name.encode(), major=self.capability[0], minor=self.capability[1])

    def cudaGetDevice(self):
        return OK, 0

    def cudaDeviceGetPCIBusId(self, length, device):
        return OK, b"0000:3B:00.0".ljust(length, b"\0")

    def cudaMemGetInfo(self):
        used = sum(len(block) for block in self._device.values())
        return OK, self.memory_limit_bytes - used, self.memory_limit_bytes

    def _allocate(self, blocks, size):
        block = (ctypes.c_uint8 * size)()
        ctypes.memset(block, 0xA5, size)  # nobody may rely on fresh memory being zero
        blocks[ctypes.addressof(block)] = block
        return OK, ctypes.addressof(block)

    def cudaMalloc(self, size):
        if sum(len(block) for block in self._device.values()) + size > self.memory_limit_bytes:
            return cudaError_t.cudaErrorMemoryAllocation, None
        return self._allocate(self._device, size)

    def cudaFree(self, devPtr):
        self._finish_all()
        return (OK if self._device.pop(devPtr, None) is not None else cudaError_t.cudaErrorInvalidValue,)

    def cudaHostAlloc(self, size, flags):
        return self._allocate(self._host, size)

    def cudaFreeHost(self, ptr):
        return (OK if self._host.pop(ptr, None) is not None else cudaError_t.cudaErrorInvalidValue,)

    def cudaMemcpyAsync(self, dst, src, count, kind, stream):
        down = kind == self.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._inside(self._device, src if down else dst, count, "device")
        self._inside(self._host, dst if down else src, count, "pinned host")

        def copy():
            ctypes.memmove(dst, src, count)
            self.clock_ms += 0.25

        self.enqueue(int(stream), copy)
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags):
        return OK, self._new("stream")

    def cudaStreamDestroy(self, stream):
        return self._drop(stream, "stream")

    def cudaStreamSynchronize(self, stream):
        if stream.captured is not None:
            return (cudaError_t.cudaErrorStreamCaptureUnsupported,)
        self._finish_all()
        return (OK,)

    def cudaStreamWaitEvent(self, stream, event, flags):
        self.enqueue(int(stream), lambda: None)
        return (OK,)

    def cudaEventCreate(self):
        return OK, self._new("event")

    def cudaEventDestroy(self, event):
        return self._drop(event, "event")

    def cudaEventRecord(self, event, stream):
        event.reached_ms = None
        self.enqueue(int(stream), lambda: setattr(event, "reached_ms", self.clock_ms))
        return (OK,)

    def cudaEventSynchronize(self, event):
        self._finish_all()
        return (OK if event.reached_ms is not None else cudaError_t.cudaErrorInvalidValue,)

    def cudaEventElapsedTime(self, start, end):
        if start.reached_ms is None or end.reached_ms is None:
            return cudaError_t.cudaErrorInvalidValue, None
        return OK, end.reached_ms - start.reached_ms

    def cudaStreamBeginCapture(self, stream, mode):
        stream.captured = []
        return (OK,)

    def cudaStreamEndCapture(self, stream):
        graph = self._new("graph")
        graph.work, stream.captured = stream.captured, None
        return OK, graph

    def cudaGraphDestroy(self, graph):
        return self._drop(graph, "graph")

    def cudaGraphInstantiate(self, graph, flags):
        executable = self._new("graph executable")
        executable.work = list(graph.work)
        return OK, executable

    def cudaGraphLaunch(self, graphExec, stream):
        self.launches.append("graph")
        for work in graphExec.work:
            self.enqueue(int(stream), work)
        return (OK,)

    def cudaGraphExecDestroy(self, graphExec):
        return self._drop(graphExec, "graph executable")
