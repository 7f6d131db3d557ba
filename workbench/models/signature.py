"""How a PyTorch module is called and what it returns, as flat lists of named tensors.

ONNX knows only named tensors in an order. Torch is imported where it is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.errors import ExportError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

DynamicAxes = dict[str, dict[int, str]]


@dataclass(frozen=True)
class Call:
    """A call of a module with every tensor under the name that forward gives it.

    Attributes:
        tensors: input name -> example tensor, in the order of the ONNX inputs.
        positions: for each positional argument the input name, or None where None is passed.
        keywords: input names passed by keyword.
    """

    tensors: dict[str, Tensor]
    positions: tuple[str | None, ...]
    keywords: tuple[str, ...]

    def run(self, module: nn.Module, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Call the module with other tensors in the same order and return its outputs by name."""
        given = dict(zip(self.tensors, tensors, strict=True))
        positional = [None if name is None else given[name] for name in self.positions]
        return name_outputs(module(*positional, **{name: given[name] for name in self.keywords}), set(given))


def bind(module: nn.Module, example_inputs: Any) -> Call:
    """Name the example inputs after the parameters of `module.forward`.

    Args:
        example_inputs: a tensor, a list or tuple of tensors (None for an optional argument), or a dict of keywords.

    Raises:
        ExportError: they do not fit forward's signature, or are no tensors.
    """
    import torch

    if example_inputs is None:
        raise ExportError(
            f"{type(module).__name__} cannot be exported without example inputs: its graph is recorded while it runs. "
            "Pass load(module, [tensor, ...]) or load(module, {'name': tensor})."
        )
    if isinstance(example_inputs, torch.Tensor):
        example_inputs = [example_inputs]
    by_name = isinstance(example_inputs, Mapping)
    if not by_name and not isinstance(example_inputs, (list, tuple)):
        raise ExportError(
            f"Example inputs are a {type(example_inputs).__name__}; pass a list, a tuple or a dict of tensors."
        )
    _refuse_script(module)
    signature = inspect.signature(module.forward)
    try:
        bound = signature.bind(**example_inputs) if by_name else signature.bind(*example_inputs)
    except TypeError as error:
        raise ExportError(
            f"The example inputs do not fit {type(module).__name__}.forward{signature}: {error}. Pass them in its order, "
            "or by its names."
        ) from error
    named: dict[str, Any] = dict(example_inputs) if by_name else _positional_names(signature, bound.args)
    tensors = {name: value for name, value in named.items() if value is not None}
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):
            raise ExportError(
                f"Example input {name!r} is a {type(value).__name__}, expected a tensor. Fix other arguments inside a "
                "small wrapper module whose forward takes tensors only."
            )
    # Only their values count; torch.export refuses examples that belong to a computation with gradients.
    tensors = {name: value.detach() for name, value in tensors.items()}
    if not tensors:
        raise ExportError("There are no example inputs. Pass at least one tensor.")
    positions = () if by_name else tuple(name if value is not None else None for name, value in named.items())
    return Call(tensors, positions, tuple(tensors) if by_name else ())


def name_outputs(outputs: Any, taken: set[str]) -> dict[str, Tensor]:
    """Return output name -> tensor: `output` for one, `output_0`, ... for several, the keys of a dict.

    Args:
        outputs: what forward returned; nested lists and dicts get joined names, None is left out.
        taken: input names, which an output must not have.

    Raises:
        ExportError: something in the outputs is no tensor.
    """
    named = dict(_flatten("", outputs))
    if set(named) == {"output_0"}:
        named = {"output": named["output_0"]}
    if not named:
        raise ExportError("The module returned no tensor. Return one, a tuple or a dict of them.")
    return {f"output_{name}" if name in taken else name: value for name, value in named.items()}


def dynamic_axes(call: Call, dynamic: bool | Mapping[str, Mapping[int, str]]) -> DynamicAxes:
    """Return input name -> {axis: name of the axis} for the axes that shall be free.

    Args:
        dynamic: True frees axis 0 of every input, False none; or the mapping itself.

    Raises:
        ExportError: it names an input or an axis that is not there.
    """
    if dynamic is False:
        return {}
    if dynamic is True:
        return {name: {0: "batch"} for name, tensor in call.tensors.items() if tensor.ndim}
    for name, axes in dynamic.items():
        if name not in call.tensors:
            raise ExportError(f"dynamic names the input {name!r}, which is not there. {nearest(name, call.tensors)}")
        for axis in axes:
            if not 0 <= axis < call.tensors[name].ndim:
                shape = tuple(call.tensors[name].shape)
                raise ExportError(f"dynamic names axis {axis} of {name!r}, which has shape {shape}. Count axes from 0.")
    return {name: {int(axis): str(label) for axis, label in axes.items()} for name, axes in dynamic.items() if axes}


def widen(call: Call, axes: DynamicAxes) -> list[Tensor]:
    """Return the example tensors with dynamic axes of length 1 doubled.

    torch.export treats a length of 1 as fixed (it is where broadcasting happens), so an example with one sample would
    give a graph for one sample. Axes of one name are doubled only if all of them have length 1.
    """
    lengths: dict[str, set[int]] = {}
    for name, free in axes.items():
        for axis, label in free.items():
            lengths.setdefault(label, set()).add(call.tensors[name].shape[axis])
    widened = []
    for name, tensor in call.tensors.items():
        for axis, label in axes.get(name, {}).items():
            if lengths[label] == {1}:
                tensor = tensor.repeat_interleave(2, dim=axis)
        widened.append(tensor)
    return widened


def _refuse_script(module: nn.Module) -> None:
    import torch

    for path, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            what = f"its part {path!r} is a ScriptModule" if path else "it is a ScriptModule"
            raise ExportError(
                f"{type(module).__name__} cannot be exported: {what} (of torch.jit.trace, torch.jit.script or "
                "torch.jit.load), TorchScript code without the Python source that torch.export reads. Pass the module that "
                "it was scripted from, with the same weights, or export it yourself and load the .onnx file."
            )


def _positional_names(signature: inspect.Signature, arguments: tuple[Any, ...]) -> dict[str, Any]:
    names: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{index}" for index in range(len(arguments) - len(names))]
        elif len(names) < len(arguments):
            names.append(parameter.name)
    return dict(zip(names, arguments, strict=True))


def _flatten(prefix: str, value: Any) -> list[tuple[str, Any]]:
    import torch

    if value is None:
        return []
    if isinstance(value, torch.Tensor):
        return [(prefix or "output", value)]
    if isinstance(value, Mapping):
        parts = {str(key): item for key, item in value.items()}
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        parts = dict(zip(value._fields, value, strict=True))
    elif isinstance(value, (list, tuple)):
        parts = {str(index): item for index, item in enumerate(value)}
        prefix = prefix or "output"
    else:
        raise ExportError(
            f"Output {prefix or 'of the module'} is a {type(value).__name__}, not a tensor. Return tensors only, from a "
            "small wrapper module if need be."
        )
    return [pair for key, item in parts.items() for pair in _flatten(f"{prefix}_{key}" if prefix else key, item)]
