"""`load`, with what the layer of models cannot do: after an export, run the file and compare it with PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from workbench import engines, models
from workbench.engines import onnxruntime
from workbench.errors import ExportError, RunError
from workbench.models import eager_outputs
from workbench.records import Model
from workbench.store import Store

# Two FP32 engines sum in different orders; a graph that computes something else is off by orders of magnitude more.
LARGEST_RELATIVE_ERROR = 1e-3


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
        source: an .onnx file; a torch.nn.Module with example inputs; a transformers folder or Hugging Face id;
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
    return models.load(
        source,
        example_inputs,
        name=name,
        folder=folder,
        store=store,
        opset=opset,
        dynamic=dynamic,
        exporter=exporter,
        verify=_verified,
    )


def _verified(model: Model, module: Any, example_inputs: Any) -> Model:
    """Run the file at another batch than the exported one, where its batch is free: exporters can bake sizes in."""
    absent = engines.backend("onnxruntime-cpu").missing("onnxruntime-cpu")
    if absent is not None:
        return _noted(model, f"The export was not compared with PyTorch. {absent}")
    free = all(not spec.shape or spec.shape[0] is None for spec in model.inputs)
    feeds, expected = eager_outputs(module, example_inputs, copies=2 if free else 1)
    feeds = {spec.name: feeds[spec.name] for spec in model.inputs}
    shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
    try:
        with onnxruntime.open_file(model.path) as runner:
            outputs = runner.infer(feeds)
    except RunError as error:
        raise ExportError(
            f"The exported {model.name} does not run on {shapes}: {error} A size of the example inputs was probably "
            f"baked in. Rewrite the part that depends on it, or pass dynamic=False for fixed shapes."
        ) from error
    largest = max((_relative_error(outputs[key], value) for key, value in expected.items()), default=0.0)
    if not largest <= LARGEST_RELATIVE_ERROR:  # also true for NaN
        raise ExportError(
            f"The exported {model.name} differs from the module by {largest:.1e} of the largest output on {shapes}; "
            f"at most {LARGEST_RELATIVE_ERROR:.0e} is rounding. Something was baked in or depends on randomness: check "
            f"the notes {model.origin.notes}, try the other exporter, or pass dynamic=False."
        )
    return _noted(model, f"Compared with PyTorch on {shapes}: largest relative difference {largest:.1e}.")


def _relative_error(value: np.ndarray, expected: np.ndarray) -> float:
    if value.shape != expected.shape:
        return float("inf")
    difference = np.abs(value.astype(np.float64) - expected.astype(np.float64))
    return float(difference.max(initial=0.0) / max(np.abs(expected.astype(np.float64)).max(initial=0.0), 1e-12))


def _noted(model: Model, note: str) -> Model:
    return replace(model, origin=replace(model.origin, notes=(*model.origin.notes, note)))
