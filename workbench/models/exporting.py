"""Export a PyTorch module to ONNX: the dynamo exporter first, the TorchScript exporter where that fails.

What did not go as asked (another exporter, another opset, an axis that was fixed) is in the model's origin. Torch is
imported where it is used. Knows nothing of hubs.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx

from workbench.engines.limits import shown
from workbench.errors import ExportError
from workbench.graph.opset_17 import lower_to_17
from workbench.machine.store import digest
from workbench.models import naming, onnx_file, signature
from workbench.models.eager import reason, run, untouched
from workbench.models.guards import is_equality, limits_of
from workbench.models.place import Place
from workbench.models.signature import Call, DynamicAxes
from workbench.models.silence import silenced
from workbench.records import Model, Origin, Program

if TYPE_CHECKING:
    from torch import Tensor, nn

# TensorRT 8.6 reads opset 17 and no newer one; every later engine reads 17 too. Steps that need a newer opset (FP16
# scales on Q/DQ) raise it on their own copy, the direction in which onnx's converter works.
DEFAULT_OPSET = 17
# What the dynamo exporter writes by itself; it reaches others through a conversion.
_DYNAMO_OPSET = 18
_REWRITE = "pkg.onnxscript.rewriter.rule_name"
# Beside the ONNX file the weights are stored once more in the program; above this that is no longer a small price.
LARGEST_PROGRAM_BYTES = 2_000_000_000
_PROGRAM = "program.pt2"


@dataclass(frozen=True)
class ExportOptions:
    """How a module becomes ONNX.

    Attributes:
        opset: None takes 17, the newest that TensorRT 8.6 reads.
        dynamic: True frees axis 0 of every input, False fixes all shapes; or input name -> {axis: name}.
        exporter: `auto` tries dynamo, then TorchScript (below opset 17 the other way round: only TorchScript writes
            those); `dynamo` or `torchscript` force one.
    """

    opset: int | None = None
    dynamic: bool | Mapping[str, Mapping[int, str]] = True
    exporter: Literal["auto", "dynamo", "torchscript"] = "auto"

    def __post_init__(self) -> None:
        if self.exporter not in ("auto", "dynamo", "torchscript"):
            raise ValueError(f"exporter is {self.exporter!r}; allowed: auto, dynamo, torchscript")
        if self.opset is not None and self.opset < 7:
            raise ValueError(f"opset is {self.opset}; exporters write 7 and newer")


@dataclass(frozen=True)
class _Job:
    """One export: what is called, with which tensors, and which names and axes the graph shall have."""

    module: nn.Module
    call: Call
    tensors: list[Tensor]
    outputs: list[str]
    axes: DynamicAxes
    opset: int


def export(
    module: nn.Module, example_inputs: Any, options: ExportOptions, *, origin: Origin, place: Place, name: str
) -> Model:
    """Export a module and read the file back; the program that the dynamo exporter sees is kept beside it.

    The module is exported in eval mode and given back in the modes it was in. Inputs are named after the parameters
    of forward; outputs are `output`, `output_0`, ..., or the keys of a dict.

    Args:
        origin: kind, reference and notes so far; the exporter and its notes are added.
        place: where the file is kept.
        name: of the model and its file.

    Raises:
        ExportError: forward fails on the example inputs, or every exporter fails.
    """
    call = signature.bind(module, example_inputs)
    axes = signature.dynamic_axes(call, options.dynamic)
    with untouched(module), place.scratch() as scratch, _without_trace_cache():
        tensors, outputs = _example(module, call, axes)
        job = _Job(module, call, tensors, outputs, axes, options.opset or DEFAULT_OPSET)
        proto, exporter, notes = _first_success(job, options.exporter, scratch)
        _refuse_constant(proto, module)
        notes += _finish(proto, job)
        file = place.keep(proto, name)
        program = _kept_program(job, scratch, place, file.stem)
    origin = replace(origin, exporter=exporter, notes=(*origin.notes, *notes))
    return replace(onnx_file.read(file, name=name, origin=origin, place=place), program=program)


def _refuse_constant(proto: onnx.ModelProto, module: nn.Module) -> None:
    if not proto.graph.node or not proto.graph.input:
        raise ExportError(
            f"The outputs of {type(module).__name__} do not depend on its inputs as far as the exporter can see. Does it "
            f"compute with numpy or with Python numbers inside? Use torch operations throughout."
        )


def _first_success(job: _Job, exporter: str, scratch: Path) -> tuple[onnx.ModelProto, str, list[str]]:
    attempts: dict[str, Callable[[_Job, Path], list[str]]] = {"dynamo": _dynamo, "torchscript": _torchscript}
    order = ["dynamo", "torchscript"] if job.opset >= DEFAULT_OPSET else ["torchscript", "dynamo"]
    failures: list[str] = []
    cause: Exception | None = None
    for name in order if exporter == "auto" else [exporter]:
        file = scratch / f"{name}.onnx"
        try:
            with silenced() as caught:
                kept = attempts[name](job, file)
            proto = onnx.load(str(file))
        except Exception as error:  # noqa: BLE001 - exporters raise whatever the traced code and its tracers raise
            failures.append(f"the {name} exporter failed ({reason(error)})")
            cause = error
        else:
            notes = [f"Exported by the {name} exporter, because {failure}." for failure in failures]
            return proto, name, notes + kept + _traced_constants(caught)
    raise ExportError(
        f"{type(job.module).__name__} cannot be exported to ONNX: {'; '.join(failures)}. Control flow that depends on "
        "tensor values and operators of your own are the usual reasons; rewrite them with torch.where, pass "
        "dynamic=False if shapes are the trouble, or export the module yourself and load the .onnx file."
    ) from cause


def _traced_constants(caught: list[warnings.WarningMessage]) -> list[str]:
    """Return a note where TorchScript's tracer wrote the example's values into the graph: branches, Python numbers."""
    fixed = [str(item.message).splitlines()[0] for item in caught if item.category.__name__ == "TracerWarning"]
    if not fixed:
        return []
    first = fixed[0].split(". ")[0][:200]
    return [
        f"{len(fixed)} values that may depend on the inputs were fixed to the example's while tracing (first: {first}). "
        "Compare the model with PyTorch on other inputs."
    ]


def _dynamo(job: _Job, file: Path) -> list[str]:
    import torch

    automatic = torch.export.Dim.AUTO
    shapes = tuple(dict.fromkeys(job.axes.get(name, {}), automatic) for name in job.call.tensors)
    # Captured here and not by torch.onnx.export: that one turns "this only works for 4 samples" into a run-time check,
    # drops the check from the ONNX file, and calls the axis dynamic all the same (seen with torch 2.13).
    program = torch.export.export(_wrap(job), tuple(job.tensors), dynamic_shapes=(shapes,), strict=False)
    notes = _save_program(program, file.with_name(_PROGRAM))
    torch.onnx.export(
        program,
        (),
        str(file),
        dynamo=True,
        opset_version=max(job.opset, _DYNAMO_OPSET),
        input_names=list(job.call.tensors),
        output_names=job.outputs,
        verbose=False,
    )
    return notes + _note_limits(program, file, list(job.call.tensors))


def _note_limits(program: Any, file: Path, inputs: list[str]) -> list[str]:
    """Write into the file on which sizes it holds; return notes."""
    limits, lost = limits_of(program, inputs)
    notes = [f"A condition on sizes that tracing made cannot be checked at run time: {text}." for text in lost]
    if limits:
        proto = onnx.load(str(file), load_external_data=False)
        onnx_file.write_limits(proto, limits)
        onnx.save(proto, str(file))
        told = " and ".join(shown(text) for text in limits if not is_equality(text))
        notes += [f"The file holds for sizes with {told} only: beyond, the module takes another way."] if told else []
    return notes


def _save_program(program: Any, file: Path) -> list[str]:
    """Save the module as PyTorch sees it, for the torch backends; return a note where that is not done."""
    import torch

    size = sum(tensor.nbytes for tensor in (*program.state_dict.values(), *program.constants.values()))
    if size > LARGEST_PROGRAM_BYTES:
        why = f"its weights ({size:,} bytes) would be stored a second time"
    else:
        program.example_inputs = None  # the same module gives the same file, whatever it was exported with
        try:
            torch.export.save(program, file)
            return []
        except Exception as error:  # noqa: BLE001 - what a module may hold that cannot be written has no common class
            file.unlink(missing_ok=True)
            why = reason(error)
    return [f"The PyTorch module was not kept beside the ONNX file, so the torch backends cannot run it: {why}."]


def _kept_program(job: _Job, scratch: Path, place: Place, stem: str) -> Program | None:
    file = scratch / _PROGRAM
    if not file.exists():
        return None
    sha256 = digest(file)
    if place.folder is not None:  # beside the ONNX file of the same name
        file = file.replace(file.with_name(f"{stem}.pt2"))
    return Program(str(place.keep_file(file)), sha256, tuple(job.call.tensors), tuple(job.outputs))


def _torchscript(job: _Job, file: Path) -> list[str]:
    import torch

    torch.onnx.export(
        _wrap(job),
        tuple(tensor.clone() for tensor in job.tensors),  # tracing runs the module, which may write into them
        str(file),
        dynamo=False,
        opset_version=job.opset,
        input_names=list(job.call.tensors),
        output_names=job.outputs,
        dynamic_axes=job.axes,
        verbose=False,
    )
    return []


def _wrap(job: _Job) -> nn.Module:
    """Return a module of positional tensors to a tuple of tensors; `naming.unwrap` takes its traces out again."""
    from torch import nn

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, naming.WRAPPER, job.module)

        def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
            return tuple(job.call.run(getattr(self, naming.WRAPPER), tensors).values())

    # eval() would reach into the user's module, whose modes are already set.
    wrapper = Wrapper()
    wrapper.training = False
    return wrapper


def _example(module: nn.Module, call: Call, axes: DynamicAxes) -> tuple[list[Tensor], list[str]]:
    """Return example tensors that leave the dynamic axes free, and the names of the outputs they give."""
    widened = signature.widen(call, axes)
    try:
        return widened, list(run(module, call, widened))
    except ExportError:
        # A module that insists on its example's sizes; the axes it fixes are noted afterwards.
        original = list(call.tensors.values())
        return original, list(run(module, call, original))


def _finish(proto: onnx.ModelProto, job: _Job) -> list[str]:
    """Give the graph its names, axes and opset; return what is not as it was asked."""
    notes = []
    rules = Counter(entry.value for node in proto.graph.node for entry in node.metadata_props if entry.key == _REWRITE)
    if rules:
        merged = ", ".join(f"{rule} ({count} nodes)" for rule, count in sorted(rules.items()))
        notes.append(f"The exporter had already rewritten the graph: {merged}.")
    naming.unwrap(proto)
    notes += _name_axes(proto, job)
    found = onnx_file.opset(proto)
    stuck = lower_to_17(proto) if found == _DYNAMO_OPSET and job.opset == DEFAULT_OPSET else []
    found = onnx_file.opset(proto)
    if found != job.opset:
        why = f" ({', '.join(stuck[:3])} cannot be written in opset 17)" if stuck else ""
        remedy = (
            " TensorRT 8.6 reads up to opset 17; all other engines read this file." if found > DEFAULT_OPSET else ""
        )
        notes.append(f"Asked for opset {job.opset}, the exporter wrote opset {found}{why}.{remedy}")
    return notes


def _name_axes(proto: onnx.ModelProto, job: _Job) -> list[str]:
    """Rename the tracer's symbols (`s77`) to the asked-for names, and note asked-for axes that became fixed."""
    notes, symbols = [], {}
    values = (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
    for dim in (dim for value in values for dim in value.type.tensor_type.shape.dim):
        # torch writes an axis that it had to fix as one with the name "4".
        if dim.dim_param.isdecimal():
            dim.dim_value = int(dim.dim_param)
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        for axis, label in job.axes.get(value.name, {}).items():
            if dims[axis].dim_param:
                symbols[dims[axis].dim_param] = label
            else:
                notes.append(
                    f"Axis {axis} of input {value.name!r} was asked to be dynamic, but the exporter fixed it to "
                    f"{dims[axis].dim_value}."
                )
    for dim in (dim for value in values for dim in value.type.tensor_type.shape.dim):
        if dim.dim_param:
            dim.dim_param = re.sub(r"\w+", lambda match: symbols.get(match[0], match[0]), dim.dim_param)
    return notes


@contextlib.contextmanager
def _without_trace_cache() -> Iterator[None]:
    """Export without torch's cache of traced operators: its keys stay in finalizers for good, some 700 objects an export."""
    import torch._dynamo

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(AttributeError):  # torch's own setting, which may change its name
            stack.enter_context(torch._dynamo.config.patch(fake_tensor_cache_enabled=False))
        yield
