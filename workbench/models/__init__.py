"""Load a model from whatever it comes as, into a checked ONNX file with its origin."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import onnx

from workbench import zoo
from workbench.errors import LoadError, expect, nearest
from workbench.machine.store import Store
from workbench.models import onnx_file, sources, verification
from workbench.models.eager import ExampleError, eager_outputs, without_bfloat16
from workbench.models.exporting import ExportOptions, export
from workbench.models.place import Place
from workbench.records import Model, Origin

__all__ = ["as_model", "eager_outputs", "load"]

FORMS = (
    "an .onnx file, a PyTorch module with example inputs, a transformers folder, a Hugging Face id `org/name`, "
    "`torchvision:<name>`, `timm:<name>`, or a shipped model"
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
# What each of these holds, for files that are not ONNX but are often at hand.
_OTHER_FILES = {
    **dict.fromkeys(
        (".pt", ".pth", ".bin", ".ckpt", ".pkl"),
        "holds pickled weights, which can run code when opened. Build the module, load the weights yourself and pass "
        "load(module, example_inputs)",
    ),
    ".safetensors": "holds weights without a network. Build the module, load them and pass load(module, example_inputs)",
    **dict.fromkeys(
        (".engine", ".plan", ".trt"),
        "is a TensorRT plan, native code that was built for one device. Pass the ONNX file it was made from",
    ),
}


def load(
    source: Any,
    example_inputs: Any = None,
    *,
    name: str | None = None,
    folder: Path | str | None = None,
    store: Store | None = None,
    opset: int | None = None,
    dynamic: bool | Mapping[str, Mapping[int, str]] = True,
    exporter: Literal["auto", "dynamo", "torchscript"] = "auto",
) -> Model:
    """Load a model and check it; modules are exported to ONNX and compared with PyTorch.

    Args:
        source: an .onnx file, or a ModelProto; a torch.nn.Module with example inputs; a transformers folder or Hugging Face id;
            "torchvision:resnet50"; "timm:resnet18"; or a shipped model such as "digits_resnet".
        example_inputs: for a module: a tensor, a list of tensors in forward's order, or a dict by forward's names.
        name: of the model, in tables and reports; None takes the file's, class's or hub's name.
        folder: where exported (or rewritten) ONNX files go; None puts them into the store.
        store: None takes the default store, and makes it only when it is needed.
        opset: to export to; None takes 17, which every engine from TensorRT 8.6 on reads.
        dynamic: True frees axis 0 (the batch) of every input, False fixes all shapes, or name the free axes:
            {"input_ids": {0: "batch", 1: "sequence"}}. Sources that state their own free axes use those for True.
        exporter: "auto" tries torch's dynamo exporter, then the TorchScript exporter; or force one of them.

    Returns:
        The model; what did not go as asked, and how far the export is from PyTorch, is in `model.origin.notes`.

    Raises:
        LoadError: the source is unknown, missing, damaged, unsafe, or a hub is out of reach.
        ExportError: no exporter can turn the module into ONNX, or the file computes something else.
        ValueError: an option has a value that does not exist.
    """
    options = ExportOptions(opset, dynamic, exporter)
    place = Place(None if folder is None else Path(folder), store)
    if isinstance(source, (str, Path)):
        if example_inputs is not None:
            raise LoadError(f"example_inputs are for modules; {str(source)!r} has inputs of its own. Leave them out.")
        model = _load_reference(str(source), options, place)
    elif _is_module(source):
        kind = type(source).__name__
        model = _exported(source, example_inputs, options, Origin("torch", kind), place, name or kind)
    elif isinstance(source, onnx.ModelProto):
        model = onnx_file.read(place.keep(source, name or source.graph.name or "model"), place=place)
        model = _note_unused(model, options)
    elif isinstance(source, Model):
        model = source
    else:
        raise LoadError(f"Cannot load a {type(source).__name__}. Pass {FORMS}.")
    return model if name is None else replace(model, name=name)


def as_model(model: Any, verb: str, store: Store | None = None) -> Model:
    """Return a model where one is wanted: a loaded one as it is, a name or path loaded.

    Args:
        verb: what wants it.

    Raises:
        LoadError: it is neither, or cannot be loaded; or its file was changed since.
    """
    if isinstance(model, (str, Path)):
        return load(model, store=store)
    expect(model, Model, verb, f"Load it first: workbench.load(...) takes {FORMS}.", LoadError)
    onnx_file.refuse_changed(cast(Model, model))
    return cast(Model, model)


def _load_reference(reference: str, options: ExportOptions, place: Place) -> Model:
    library, colon, name = reference.partition(":")
    if colon and library in ("torchvision", "timm"):
        found = sources.torchvision(name) if library == "torchvision" else sources.timm(name)
        return _export_source(found, options, place, name)
    path = Path(reference).expanduser()
    if path.is_dir():
        return _export_source(sources.transformers_folder(path), options, place, path.resolve().name)
    if path.is_file() or path.suffix.lower() in (".onnx", *_OTHER_FILES):
        if path.suffix.lower() in _OTHER_FILES:
            raise LoadError(f"{path} {_OTHER_FILES[path.suffix.lower()]}.")
        return _note_unused(onnx_file.read(path, place=place), options)
    return _load_name(reference, options, place)


def _load_name(reference: str, options: ExportOptions, place: Place) -> Model:
    try:
        shipped, known = zoo.models(), ""
    except LoadError as error:
        shipped, known = {}, str(error)
    if reference in shipped:
        return _load_shipped(reference, options, place)
    if _HUB_ID.fullmatch(reference):
        return _export_source(sources.hub(reference), options, place, reference.split("/")[1])
    elsewhere = sources.suggestions(reference)
    listed = f"Shipped models: {', '.join(sorted(shipped))}." if elsewhere else nearest(reference, shipped)
    known = f"{elsewhere}{known or listed}"
    raise LoadError(
        f"Cannot load {reference!r}: no such file or folder in {Path.cwd()}, nor a shipped model. {known} Pass {FORMS}."
    )


def _load_shipped(name: str, options: ExportOptions, place: Place) -> Model:
    entry = zoo.path(name)
    if entry.is_dir():
        return _export_source(replace(sources.transformers_folder(entry, name), kind="shipped"), options, place, name)
    model = onnx_file.read(entry, name=name, origin=Origin("shipped", name), place=place)
    return _note_unused(model, options)


def _export_source(found: sources.ModuleSource, options: ExportOptions, place: Place, name: str) -> Model:
    if options.dynamic is True:
        options = replace(options, dynamic=found.dynamic)
    origin = Origin(found.kind, found.reference, notes=found.notes)
    try:
        return _exported(found.module, found.example_inputs, options, origin, place, name)
    except ExampleError as error:
        inputs = found.example_inputs
        made = ", ".join(inputs) if isinstance(inputs, Mapping) else "one image"
        raise LoadError(
            f"{found.reference} ({type(found.module).__name__}) takes other inputs than the ones that could be made for it "
            f"here ({made}): {error.reason}. Load it with its own library and pass the module with example inputs."
        ) from error


def _exported(
    module: Any, example_inputs: Any, options: ExportOptions, origin: Origin, place: Place, name: str
) -> Model:
    if example_inputs is not None:
        module, example_inputs, notes = without_bfloat16(module, example_inputs)
        origin = replace(origin, notes=(*origin.notes, *notes))
    model = export(module, example_inputs, options, origin=origin, place=place, name=name)
    return verification.compared(model, module, example_inputs, place)


def _note_unused(model: Model, options: ExportOptions) -> Model:
    used = ExportOptions()
    unused = [name for name in ("opset", "dynamic", "exporter") if getattr(options, name) != getattr(used, name)]
    if not unused:
        return model
    note = f"The file is ONNX already: {', '.join(unused)} had no effect."
    return replace(model, origin=replace(model.origin, notes=(*model.origin.notes, note)))


def _is_module(source: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.nn.Module)
