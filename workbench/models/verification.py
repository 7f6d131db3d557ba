"""After an export: run the file on ONNX Runtime's CPU engine and compare it with the PyTorch module."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from workbench import engines
from workbench.engines import onnxruntime
from workbench.errors import ExportError, RunError
from workbench.models.exporting import eager_outputs
from workbench.records import Model

# Two FP32 engines sum in different orders; a graph that computes something else is off by orders of magnitude more.
LARGEST_RELATIVE_ERROR = 1e-3


def compared(model: Model, module: Any, example_inputs: Any) -> Model:
    """Compare an exported file with its module, and note in the model's origin how far they are apart.

    Where the batch is free, it is run at another one than the exported one: exporters can bake sizes in.

    Raises:
        ExportError: the file does not run at that size, or computes something else.
    """
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
    ours, theirs = value.astype(np.float64), expected.astype(np.float64)
    # Infinities of one sign are no difference: a module may forbid an answer with -inf. NaN and others are infinitely far.
    infinite = np.isinf(ours) & (ours == theirs)
    ours, theirs = ours[~infinite], theirs[~infinite]
    if not np.isfinite(ours).all() or not np.isfinite(theirs).all():
        return float("inf")
    return float(np.abs(ours - theirs).max(initial=0.0) / max(np.abs(theirs).max(initial=0.0), 1e-12))


def _noted(model: Model, note: str) -> Model:
    return replace(model, origin=replace(model.origin, notes=(*model.origin.notes, note)))
