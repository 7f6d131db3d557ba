"""Run an engine on torch tensors that lie on the device, and leave its outputs there. Copies nothing.

Outputs lie in memory that torch allocates, so torch gives it back when the last user drops them. The engine has a
stream of its own; events make it wait for the caller's stream and the other way round.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workbench.engines.tensorrt import tensors
from workbench.engines.tensorrt.context import Context
from workbench.engines.tensorrt.cuda import Event
from workbench.errors import RunError

if TYPE_CHECKING:
    import torch

# Engines are built for and opened on the first device.
DEVICE = "cuda:0"


class Exchange:
    """Takes torch tensors in and gives an engine's outputs out as torch tensors, with both streams in order."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._before, self._after = Event(context.cuda), Event(context.cuda)

    def run(self, feeds: Mapping[str, torch.Tensor], stream: int) -> dict[str, torch.Tensor]:
        """Run once; see `TensorRTRunner.infer_device`."""
        context = self._context
        tensors.check_names(context.tensors, feeds)
        if context.has_host_tensors or context.allocators:
            raise RunError(
                "This engine has inputs or outputs whose values decide shapes; use infer() with host arrays."
            )
        given = {tensor.name: _checked(tensor, feeds[tensor.name]) for tensor in context.tensors if tensor.is_input}
        shapes = {name: tuple(value.shape) for name, value in given.items()}
        context.set_addresses({name: value.data_ptr() for name, value in given.items()}, shapes)
        context.layout += 1  # the context points to memory of others now: a stopwatch has to bind again
        if context.allocators:
            raise RunError("An output's shape depends on data; use infer() with host arrays.")
        outputs = self._make_outputs()
        # The inputs may still be being written, and the outputs' memory still be read by what had it before.
        self._before.record(stream)
        context.stream.wait_for(self._before)
        context.enqueue()
        self._after.record(context.stream.raw)
        # From here on the caller's stream is behind the run, so torch may use the inputs' memory again.
        context.cuda.call("cudaStreamWaitEvent", stream, self._after.raw, 0)
        return outputs

    def _make_outputs(self) -> dict[str, torch.Tensor]:
        import torch

        outputs = {}
        types = {tensor.name: getattr(torch, tensor.dtype.name) for tensor in self._context.tensors}
        for name, shape in self._context.output_shapes().items():
            outputs[name] = torch.empty(shape, dtype=types[name], device=DEVICE)
            if outputs[name].numel():  # an empty one has no address, and TensorRT wants one: it keeps the engine's own
                self._context.set_address(name, outputs[name].data_ptr())
        return outputs

    def free(self) -> None:
        """Give the events back."""
        self._before.free()
        self._after.free()


def _checked(tensor: tensors.Tensor, value: Any) -> torch.Tensor:
    import torch

    if not isinstance(value, torch.Tensor):
        raise RunError(
            f"The input {tensor.name!r} is a {type(value).__name__}; infer_device takes torch CUDA tensors. For host "
            f"arrays use infer()."
        )
    if value.device != torch.device(DEVICE):
        raise RunError(f"The input {tensor.name!r} is on {value.device}, the engine is on {DEVICE}. Move it there.")
    found = str(value.dtype).removeprefix("torch.")
    if found != tensor.dtype.name:
        raise RunError(f"The input {tensor.name!r} is {found}, the engine wants {tensor.dtype.name}.")
    if not value.is_contiguous():
        raise RunError(f"The input {tensor.name!r} is not contiguous. Call .contiguous() on it.")
    return value
