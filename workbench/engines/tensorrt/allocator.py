"""Memory for outputs whose shape depends on data: TensorRT asks for it while it runs."""

from __future__ import annotations

from typing import Any

from workbench.engines.tensorrt.cuda import DeviceMemory


class OutputAllocator:
    """An IOutputAllocator (`native`) over one block of device memory, and the shape that came out."""

    def __init__(self, trt: Any, memory: DeviceMemory) -> None:
        self.shape: tuple[int, ...] = ()
        owner = self

        class Native(trt.IOutputAllocator):  # type: ignore[misc,name-defined]
            def __init__(self) -> None:
                trt.IOutputAllocator.__init__(self)

            def reallocate_output(self, tensor_name: str, memory_address: Any, size: int, alignment: int) -> int:
                return owner._reallocate(memory, int(size))

            def reallocate_output_async(
                self, tensor_name: str, memory_address: Any, size: int, alignment: int, stream: int
            ) -> int:
                return owner._reallocate(memory, int(size))

            def notify_shape(self, tensor_name: str, shape: Any) -> None:
                owner.shape = tuple(shape)

        self.native = Native()

    @staticmethod
    def _reallocate(memory: DeviceMemory, size_bytes: int) -> int:
        try:
            memory.grow(size_bytes)
        except Exception:  # noqa: BLE001 - called from TensorRT; 0 tells it that there is no memory
            return 0
        return memory.address
