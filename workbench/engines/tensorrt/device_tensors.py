"""Run an engine on tensors that lie on the device, and hand its outputs out there. Copies nothing.

torch is never imported: its tensors are known by `data_ptr`, everybody else's by `__dlpack__`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.engines.tensorrt import dlpack, tensors
from workbench.engines.tensorrt.cuda import Cuda, DeviceMemory, Event, HostMemory
from workbench.errors import RunError

if TYPE_CHECKING:
    from workbench.engines.tensorrt.running import TensorRTRunner

_LEGACY_STREAM = 0


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


class DeviceTensor:
    """An output on the device. Its memory goes back to the runner when the last user drops it."""

    def __init__(self, exchange: Exchange, memory: DeviceMemory, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype.name
        self._exchange, self._memory, self._numpy = exchange, memory, dtype

    def data_ptr(self) -> int:
        """Return the device address."""
        return self._memory.address

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._exchange.place

    def __dlpack__(self, *, stream: int | None = None, **newer: Any) -> Any:
        """Return a DLPack capsule; what is put on the consumer's stream afterwards waits for the data."""
        if stream != -1:  # -1: the consumer wants no synchronisation
            self._exchange.let_wait(stream or _LEGACY_STREAM)
        return dlpack.export(self, self._memory.address, self.shape, self.dtype, self._exchange.place)

    def numpy(self) -> np.ndarray:
        """Return a copy on the host."""
        return self._exchange.copy(self._memory, self.shape, self._numpy)

    def __del__(self) -> None:
        self._exchange.pool.give(self._memory)


class Exchange:
    """Takes tensors of others in and gives a runner's outputs out, with both streams ordered by events."""

    def __init__(self, runner: TensorRTRunner, place: tuple[int, int] = (dlpack.CUDA, 0)) -> None:
        self.place = place
        self.pool = Pool(runner.cuda)
        self._runner = runner
        self._before, self._after = Event(runner.cuda), Event(runner.cuda)

    def run(self, feeds: Mapping[str, Any], stream: int) -> dict[str, DeviceTensor]:
        """Run once; see `TensorRTRunner.infer_device`."""
        runner = self._runner
        tensors.check_names(runner.tensors, feeds)
        if runner.has_host_tensors or runner.allocators:
            raise RunError(
                "This engine has inputs or outputs whose values decide shapes; use infer() with host arrays."
            )
        views = {tensor.name: self._view(tensor, feeds[tensor.name]) for tensor in runner.tensors if tensor.is_input}
        self._before.record(stream)
        runner.stream.wait_for(self._before)  # the inputs may still be being written, and old outputs still be read
        shapes = {name: view.shape for name, view in views.items()}
        runner.set_addresses({name: view.address for name, view in views.items()}, shapes)
        if runner.allocators:
            raise RunError("An output's shape depends on data; use infer() with host arrays.")
        outputs = self._make_outputs()
        runner.layout += 1  # the context points to memory of others now: a stopwatch has to bind again
        runner.enqueue()
        self._after.record(runner.stream.raw)
        self.let_wait(stream)
        return outputs

    def _make_outputs(self) -> dict[str, DeviceTensor]:
        outputs = {}
        types = {tensor.name: tensor.dtype for tensor in self._runner.tensors}
        for name, shape in self._runner.output_shapes().items():
            memory = self.pool.take(int(np.prod(shape, dtype=np.int64)) * types[name].itemsize)
            self._runner.set_address(name, memory.address)
            outputs[name] = DeviceTensor(self, memory, shape, types[name])
        return outputs

    def _view(self, tensor: tensors.Tensor, value: Any) -> dlpack.View:
        if hasattr(value, "data_ptr") and hasattr(value, "is_contiguous"):
            view = _torch_view(tensor.name, value)
        elif hasattr(value, "__dlpack__"):
            view = self._dlpack_view(tensor.name, value)
        else:
            raise RunError(
                f"The input {tensor.name!r} is a {type(value).__name__}; infer_device takes torch CUDA tensors and objects "
                f"with __dlpack__. For host arrays use infer()."
            )
        if view.device_type != self.place[0]:
            raise RunError(f"The input {tensor.name!r} is not on the device. Move it there, or use infer().")
        if view.device_id != self.place[1]:
            raise RunError(
                f"The input {tensor.name!r} is on device {view.device_id}, the engine is on {self.place[1]}."
            )
        if view.dtype != tensor.dtype.name:
            raise RunError(f"The input {tensor.name!r} is {view.dtype}, the engine wants {tensor.dtype.name}.")
        if not view.contiguous:
            raise RunError(f"The input {tensor.name!r} is not contiguous. Call .contiguous() on it.")
        return view

    def _dlpack_view(self, name: str, value: Any) -> dlpack.View:
        on_device = value.__dlpack_device__()[0] == dlpack.CUDA
        try:
            capsule = value.__dlpack__(stream=self._runner.stream.handle) if on_device else value.__dlpack__()
            return dlpack.peek(capsule)
        except (ValueError, BufferError) as error:
            raise RunError(f"The input {name!r} cannot be taken through DLPack: {error}.") from error

    def let_wait(self, stream: int) -> None:
        """Let a stream wait for the last run."""
        self._runner.cuda.call("cudaStreamWaitEvent", stream, self._after.raw, 0)

    def copy(self, memory: DeviceMemory, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Copy a block to a new host array."""
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        host = HostMemory(self._runner.cuda, size)
        try:
            self._runner.cuda.download(host.address, memory.address, size, self._runner.stream)
            self._runner.stream.synchronize()
            return host.view(shape, dtype).copy()
        finally:
            host.free()

    def free(self) -> None:
        """Give events and unused memory back."""
        self._before.free()
        self._after.free()
        self.pool.close()


def _torch_view(name: str, value: Any) -> dlpack.View:
    device = str(getattr(value, "device", "cpu"))
    return dlpack.View(
        address=int(value.data_ptr()),
        shape=tuple(int(size) for size in value.shape),
        dtype=str(value.dtype).removeprefix("torch."),
        device_type=dlpack.CUDA if device.startswith("cuda") else dlpack.CPU,
        device_id=int(device.partition(":")[2] or 0),
        contiguous=bool(value.is_contiguous()),
        capsule=value,
    )
