"""An open TensorRT engine and what its calls need: own stream, pinned host memory, device memory that is kept and grows.

The steps of one call are methods here; who takes them in which order, and times them, is not known. All memory is used
again by the next call. Not for two threads at once.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from workbench.engines import feeding
from workbench.engines.base import Feeds
from workbench.engines.tensorrt import just_in_time, log, plan, tensors
from workbench.engines.tensorrt.allocator import OutputAllocator
from workbench.engines.tensorrt.capabilities import Capabilities
from workbench.engines.tensorrt.cuda import Cuda, DeviceMemory, Graph, HostMemory, Stream
from workbench.errors import EngineError, OutOfMemory, RunError
from workbench.records import Engine

Shapes = dict[str, tuple[int, ...]]


class Context:
    """An open engine with an execution context; whoever opens it closes it.

    Attributes:
        resources: what is given back when it closes, the last first.
        layout: grows whenever shapes or addresses change: a captured graph is valid for one layout.
        graph_refusal: why the last capture was not possible, or None.
        jit: what finishes kernels here, for engines that were built ahead of time; else None.
        first_run_seconds: of making the context and of its first call, which finishes kernels; None before, and without `jit`.
    """

    def __init__(self, caps: Capabilities, cuda: Cuda, engine: Engine) -> None:
        """Load the plan and make room for its context.

        Raises:
            EngineError: the plan is missing or damaged, was built for another version or device, or cannot be run.
            OutOfMemory: the device has no room for weights or activations.
        """
        self.inputs, self.outputs = engine.inputs, engine.outputs
        self.caps, self.cuda = caps, cuda
        self.resources = contextlib.ExitStack()
        try:
            self._open(engine)
        except BaseException:
            self.close()
            raise

    def _open(self, engine: Engine) -> None:
        self.before_bytes = self.cuda.used_bytes()
        data, sidecar = plan.read(Path(engine.path), self.caps, self.cuda.device())
        self._journal = log.Journal()
        self._logger = log.logger(self.caps.trt, self._journal)
        self._runtime, self.engine = plan.deserialize(
            self.caps,
            self._logger,
            data,
            version_compatible=sidecar.version_compatible,
            libraries=sidecar.plugins,
        )
        self.first_run_seconds: float | None = None
        self.jit: just_in_time.JustInTime | None = None
        self.doubt: str | None = None
        self._captures_itself = False
        if self.caps.ahead_of_time:
            self.doubt = just_in_time.doubt(self.caps, self._runtime, data)
            self.jit = just_in_time.JustInTime(self.caps, self.engine, Path(engine.path))
        self._make_context()
        self._specs = engine.inputs
        specs = {spec.name: spec for spec in (*engine.inputs, *engine.outputs)}
        self.tensors = tensors.of_engine(self.caps, self.engine, specs)
        self.stream = Stream(self.cuda)
        self.resources.callback(self.stream.free)
        self._host = {tensor.name: self._owned(HostMemory(self.cuda)) for tensor in self.tensors}
        self._device = {tensor.name: self._owned(DeviceMemory(self.cuda)) for tensor in self.tensors}
        self.resources.callback(self._forget)  # before the memory goes, and after graphs that were captured later
        if self.jit is not None:
            self.resources.callback(self.jit.keep)
        self.allocators: dict[str, OutputAllocator] = {}
        self._shapes: Shapes = {}
        self._addresses: dict[str, int] = {}
        self._profile = 0
        self.graph_refusal: str | None = None
        self.layout = 0
        self.peak_bytes = self.cuda.used_bytes()

    def _make_context(self, *, graphs: bool = False) -> None:
        self._opened_at = time.perf_counter()
        made = self.engine.create_execution_context() if self.jit is None else self.jit.context(graphs=graphs)
        if made is None:
            raise self._no_context()
        self.context = made

    def prefer_graphs(self) -> None:
        """Say that launches are to go through a CUDA graph, before the feeds are bound: TensorRT for RTX captures by itself."""
        if self.jit is None or self._captures_itself:
            return
        self._make_context(graphs=True)
        self._captures_itself = True
        self._shapes, self._profile = {}, 0
        self._addresses.clear()
        self.allocators.clear()
        self.layout += 1

    def _no_context(self) -> Exception:
        said = "; ".join(self._journal.errors[-2:]) or "nothing"
        if log.short_of_memory(said):
            return OutOfMemory(
                f"TensorRT made no execution context, which needs {self.activation_bytes:,} bytes of device memory for "
                f"the largest shape of its profile. Free memory of the GPU or build for smaller shapes. TensorRT said: {said}"
            )
        return EngineError(
            f"{self.caps.name} built the engine but makes no execution context for it, so it cannot run. It "
            f"said: {said}. Build it with another optimization profile or recipe, or use the backend onnxruntime-cuda."
        )

    def _owned(self, memory: Any) -> Any:
        self.resources.callback(memory.free)
        return memory

    def close(self) -> None:
        """Give everything back; the runner cannot be used afterwards."""
        self.resources.close()
        self._forget()

    def _forget(self) -> None:
        for name in ("context", "engine", "_runtime"):  # in this order: each needs the next one
            if hasattr(self, name):
                delattr(self, name)

    @property
    def activation_bytes(self) -> int:
        """Device memory that the context plans for activations and scratch."""
        v2 = self.caps.has("ICudaEngine", "device_memory_size_v2")
        return int(self.engine.device_memory_size_v2 if v2 else self.engine.device_memory_size)

    def bind(self, feeds: Feeds) -> None:
        """Check feeds, give the engine their shapes, and put their upload on the stream."""
        tensors.check_names(self.tensors, feeds)
        arrays = {tensor.name: tensors.checked(tensor, feeds[tensor.name]) for tensor in self._inputs()}
        for tensor in self._inputs():
            array, host = arrays[tensor.name], self._host[tensor.name]
            grown = host.grow(array.nbytes)
            if not tensor.on_host:
                grown = self._device[tensor.name].grow(array.nbytes)
            self.layout += grown
            host.view(array.shape, array.dtype)[...] = array
        self.set_addresses(
            {name: self._host[name].address if self._on_host(name) else self._device[name].address for name in arrays},
            {name: tuple(array.shape) for name, array in arrays.items()},
        )
        for tensor in self._inputs():
            if not tensor.on_host:
                self.cuda.upload(
                    self._device[tensor.name].address,
                    self._host[tensor.name].address,
                    arrays[tensor.name].nbytes,
                    self.stream,
                )

    def set_addresses(self, addresses: dict[str, int], shapes: Shapes) -> None:
        """Give the context the inputs' addresses and shapes, and outputs of the shapes that follow."""
        if shapes != self._shapes or any(self._on_host(name) for name in shapes):
            self._set_shapes(addresses, shapes)
        for name in shapes:  # an empty tensor may have no address, and TensorRT wants one
            self.set_address(name, addresses.get(name) or self._device[name].address)
        for tensor in self.tensors:
            if not tensor.is_input and tensor.name not in self.allocators:
                memory = self._host[tensor.name] if tensor.on_host else self._device[tensor.name]
                self.set_address(tensor.name, memory.address)

    def _set_shapes(self, addresses: dict[str, int], shapes: Shapes) -> None:
        self._shapes = {}
        feeding.check_limits(self._specs, shapes)
        self._choose_profile(shapes)
        for name, shape in shapes.items():
            if not self.context.set_input_shape(name, shape):
                raise RunError(f"TensorRT refuses the shape {shape} of the input {name!r}. {self._errors()}")
            if self._on_host(name):
                self.set_address(name, addresses[name])  # its values decide shapes, so infer_shapes reads them
        unknown = self.context.infer_shapes()
        if unknown:
            raise RunError(f"TensorRT cannot tell the shapes of {', '.join(unknown)}. {self._errors()}")
        for tensor in self.tensors:
            if not tensor.is_input:
                self._make_room(tensor)
        self._shapes = dict(shapes)
        self.layout += 1

    @property
    def batches(self) -> tuple[int, int] | None:
        """The fewest and the most samples on axis 0 that the profiles take; None where the batch is fixed."""
        free = (tensor.name for tensor in self._inputs() if tensor.spec.shape[:1] == (None,) and not tensor.on_host)
        name = next(free, None)
        if name is None:
            return None
        profiles = range(self.engine.num_optimization_profiles)
        limits = [self.engine.get_tensor_profile_shape(name, index) for index in profiles]
        return min(int(limit[0][0]) for limit in limits), max(int(limit[-1][0]) for limit in limits)

    def _choose_profile(self, shapes: Shapes) -> None:
        dynamic = [tensor.name for tensor in self._inputs() if None in tensor.spec.shape and not tensor.on_host]
        if not dynamic:
            return  # static shapes were checked against the model's
        ranges = []
        for index in range(self.engine.num_optimization_profiles):
            limits = {name: self.engine.get_tensor_profile_shape(name, index) for name in dynamic}
            if all(_within(shapes[name], limit) for name, limit in limits.items()):
                self._use_profile(index)
                return
            ranges.append({name: f"{tuple(limit[0])} to {tuple(limit[-1])}" for name, limit in limits.items()})
        raise RunError(
            f"The shapes {shapes} lie outside what the engine was built for: {ranges}. Build with "
            f"BuildOptions(profiles=...) or extra={{'batch': (smallest, typical, largest)}} that hold them."
        )

    def _use_profile(self, index: int) -> None:
        if index == self._profile:
            return
        if not self.context.set_optimization_profile_async(index, self.stream.handle):
            raise RunError(f"TensorRT cannot change to profile {index}. {self._errors()}")
        self.stream.synchronize()
        self._profile = index
        self._addresses.clear()

    def _make_room(self, tensor: tensors.Tensor) -> None:
        shape = tuple(self.context.get_tensor_shape(tensor.name))
        if any(size < 0 for size in shape):
            self._allocate_on_demand(tensor.name)
            return
        size = _size_bytes(shape, tensor.dtype)
        self._host[tensor.name].grow(size)
        if not tensor.on_host:
            self._device[tensor.name].grow(size)

    def _allocate_on_demand(self, name: str) -> None:
        """Let TensorRT ask for the memory of an output whose shape depends on data."""
        if name not in self.allocators:
            self.allocators[name] = OutputAllocator(self.caps.trt, self._device[name])
            if not self.context.set_output_allocator(name, self.allocators[name].native):
                raise RunError(f"TensorRT refuses an allocator for the output {name!r}. {self._errors()}")

    def set_address(self, name: str, address: int) -> None:
        """Tell TensorRT where a tensor lies, unless it knows."""
        if self._addresses.get(name) == address:
            return
        if not self.context.set_tensor_address(name, address):
            raise RunError(f"TensorRT refuses the address of {name!r}. {self._errors()}")
        self._addresses[name] = address

    def enqueue(self) -> None:
        """Put one inference on the stream."""
        if not self.context.execute_async_v3(self.stream.handle):
            raise RunError(f"TensorRT could not run the engine. {self._errors()}")
        if self.jit is not None and self.first_run_seconds is None:
            self.stream.synchronize()
            self.first_run_seconds = time.perf_counter() - self._opened_at
            self.jit.keep()

    def download(self) -> Shapes:
        """Put the download of the outputs on the stream; returns their shapes."""
        if self.allocators:
            self.stream.synchronize()  # only then are the shapes that depend on data known
        shapes = self.output_shapes()
        for tensor in self.tensors:
            if not tensor.is_input and not tensor.on_host:
                size = _size_bytes(shapes[tensor.name], tensor.dtype)
                self._host[tensor.name].grow(size)
                if size:
                    self.cuda.download(
                        self._host[tensor.name].address, self._device[tensor.name].address, size, self.stream
                    )
        return shapes

    def output_shapes(self) -> Shapes:
        """Return the shapes of the outputs of the last call."""
        return {
            tensor.name: self.allocators[tensor.name].shape
            if tensor.name in self.allocators
            else tuple(self.context.get_tensor_shape(tensor.name))
            for tensor in self.tensors
            if not tensor.is_input
        }

    def collect(self, shapes: Shapes) -> dict[str, np.ndarray]:
        """Return new arrays with what was downloaded, in the model's types."""
        return {
            tensor.name: self._host[tensor.name]
            .view(shapes[tensor.name], tensor.dtype)
            .astype(np.dtype(tensor.spec.dtype), copy=True)
            for tensor in self.tensors
            if not tensor.is_input
        }

    def capture(self) -> Graph | None:
        """Capture one inference, or return None where this engine cannot be captured; `conditions` says why."""
        if self.allocators:
            self.graph_refusal = "an output's shape depends on data"
            return None
        if self._captures_itself:
            return None  # the first launch for new shapes captures, later ones replay
        self.enqueue()  # TensorRT finishes its set-up for new shapes in the first launch, which must not be captured
        self.stream.synchronize()
        try:
            graph = Graph(self.cuda, self.stream, self.enqueue)
        except RunError as error:
            self.graph_refusal = str(error)
            return None
        self.graph_refusal = None
        return graph

    @property
    def has_host_tensors(self) -> bool:
        """Whether the engine reads or writes a tensor in host memory."""
        return any(tensor.on_host for tensor in self.tensors)

    def _inputs(self) -> list[tensors.Tensor]:
        return [tensor for tensor in self.tensors if tensor.is_input]

    def _on_host(self, name: str) -> bool:
        return any(tensor.name == name and tensor.on_host for tensor in self.tensors)

    def _errors(self) -> str:
        errors, self._journal.errors = self._journal.errors[-2:], []
        return f"TensorRT said: {'; '.join(errors)}" if errors else ""


class PlacedContext(Context):
    """An open engine whose outputs go where its caller says; it keeps no room for them itself.

    Each one loads the plan by itself: contexts of one engine would need an optimization profile each on TensorRT 8.6.
    """

    def _make_room(self, tensor: tensors.Tensor) -> None:
        pass


def _within(shape: tuple[int, ...], limits: Any) -> bool:
    low, high = tuple(limits[0]), tuple(limits[-1])
    return len(shape) == len(low) and all(
        least <= size <= most for least, size, most in zip(low, shape, high, strict=True)
    )


def _size_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
