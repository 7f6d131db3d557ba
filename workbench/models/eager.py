"""A PyTorch module as it is: run eagerly, under the names its ONNX model has, and given back as it was.

What exports are compared with. Torch is imported where it is used.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from workbench.errors import ExportError
from workbench.models import signature
from workbench.models.signature import Call

if TYPE_CHECKING:
    from torch import Tensor, nn


class ExampleError(ExportError):
    """A module fails in PyTorch already, on the example inputs; `reason` is PyTorch's own word."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def eager_outputs(
    module: nn.Module, example_inputs: Any, sizes: Mapping[str, Mapping[int, int]] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a module in PyTorch under the names its ONNX model has, to compare an engine with.

    Args:
        sizes: input name -> {axis: length} to try other sizes than the exported ones: the example is repeated along an
            axis, or cut.

    Returns:
        Feeds and expected outputs, each name -> numpy array.

    Raises:
        ExportError: forward fails.
    """
    call = signature.bind(module, example_inputs)
    tensors = [_resized(tensor, (sizes or {}).get(name, {})) for name, tensor in call.tensors.items()]
    with untouched(module):
        outputs = run(module, call, tensors)
    feeds = {name: _numpy(tensor) for name, tensor in zip(call.tensors, tensors, strict=True)}
    return feeds, {name: _numpy(tensor) for name, tensor in outputs.items()}


def answers_depend_on_earlier_calls(module: nn.Module, example_inputs: Any) -> bool:
    """Return whether a module gives another answer to the same inputs in a second call: it keeps state between calls."""
    import torch

    call = signature.bind(module, example_inputs)
    tensors = list(call.tensors.values())
    with untouched(module):
        state = torch.random.get_rng_state()
        first = {name: value.clone() for name, value in run(module, call, tensors).items()}
        torch.random.set_rng_state(state)
        second = run(module, call, tensors)
    return any(not torch.equal(first[name].nan_to_num(), second[name].nan_to_num()) for name in first)


def without_bfloat16(module: nn.Module, example_inputs: Any) -> tuple[nn.Module, Any, list[str]]:
    """Return a module and example inputs in which bfloat16 became float32, exactly; and a note where there was some.

    Half the engines have no bfloat16, and those that have it are asked for it by a recipe. The module itself is left as
    it was: a copy is converted.

    Raises:
        ExportError: the module cannot be copied.
    """
    import torch
    from torch.utils import _pytree

    def is_brain(tensor: Any) -> bool:
        return isinstance(tensor, torch.Tensor) and tensor.dtype == torch.bfloat16

    def widened(tensor: Any) -> Any:
        return tensor.float() if is_brain(tensor) else tensor

    if not any(map(is_brain, (*module.parameters(), *module.buffers()))):
        return module, _pytree.tree_map(widened, example_inputs), []
    try:
        copied = copy.deepcopy(module)
    except Exception as error:
        raise ExportError(
            f"{type(module).__name__} holds bfloat16 weights and cannot be copied to become float32 ({reason(error)}). "
            f"Pass module.float() with float32 example inputs."
        ) from error
    copied._apply(widened)
    note = (
        "The module is in bfloat16. A float32 copy of it was exported, with the same values: ask for BF16 with the recipe "
        "'bf16'."
    )
    return copied, _pytree.tree_map(widened, example_inputs), [note]


@contextlib.contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Run a module in eval mode and give it back bit for bit as it was: modes, and what its forward changes of its own.

    That is parameters, buffers, and attributes that are given another value.
    """
    import torch

    modes = {part: part.training for part in module.modules()}
    attributes = {part: dict(vars(part)) for part in modes}
    held = [
        (tensors, name, tensor, tensor.detach().clone())
        for part in modes
        for tensors in (part._parameters, part._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
    ]
    module.eval()
    try:
        yield
    finally:
        for part, kept in attributes.items():
            vars(part).clear()
            vars(part).update(kept)
        for part, training in modes.items():
            part.training = training
        for tensors, name, tensor, value in held:
            tensors[name] = tensor  # type: ignore[assignment]
            if not torch.equal(tensor, value):
                with contextlib.suppress(
                    RuntimeError
                ):  # a scripted module's own tensors cannot be written in every mode
                    tensor.detach().copy_(value)


def run(module: nn.Module, call: Call, tensors: list[Tensor]) -> dict[str, Tensor]:
    """Call a module without gradients, on copies that it may write into; ExampleError where it fails."""
    import torch

    try:
        with torch.no_grad():
            return call.run(module, [tensor.clone() for tensor in tensors])
    except ExportError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in zip(call.tensors, tensors, strict=True))
        raise ExampleError(
            f"{type(module).__name__} fails in PyTorch already, on example inputs {shapes}: {reason(error)}. Pass inputs "
            "that it can run on.",
            reason(error),
        ) from error


def reason(error: BaseException) -> str:
    """Return the first line of the innermost cause: exporters wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


def _resized(tensor: Tensor, lengths: Mapping[int, int]) -> Tensor:
    import torch

    for axis, length in lengths.items():
        places = torch.arange(length, device=tensor.device) * tensor.shape[axis] // max(length, 1)
        tensor = tensor.index_select(axis, places) if length >= tensor.shape[axis] else tensor.narrow(axis, 0, length)
    return tensor


def _numpy(tensor: Tensor) -> Any:
    tensor = tensor.detach().cpu()
    return (tensor.float() if "bfloat16" in str(tensor.dtype) else tensor).resolve_conj().resolve_neg().numpy()
