"""Does a graph that must compute the same still do so? Run beside the file it was made from, in exact arithmetic.

Converting an opset, folding and smoothing must not change what a model computes. Both graphs run on the same random
inputs on ONNX Runtime's CPU engine with its optimizer off, in another process and for a bounded time. Judges nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from workbench import datasets, engines
from workbench.engines.isolated import open_file
from workbench.errors import DataError, TransformError, WorkbenchError
from workbench.graph.files import is_large
from workbench.records import Model

# Folding rounds weights once more; what changes a function is off by orders of magnitude more.
LARGEST_RELATIVE_ERROR = 1e-3
# That opening, or a call with two samples, may take: a file from outside may never end.
MOST_SECONDS = 120.0
_SAMPLES = 2
# Kinds of values that are equal or not.
_COUNTED = "biuSUO"

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Comparison:
    """How far a graph is from the file it was made from.

    Attributes:
        relative_error: largest difference over the largest magnitude of that output, of the worst output (of one that holds no
            real numbers the share of values that differ); None where they could not be run, and `words` says why.
    """

    relative_error: float | None
    words: str


def compared(model: Model, proto: onnx.ModelProto, what: str) -> Comparison:
    """Compare a graph with the model it was made from.

    Args:
        what: was done to it, in a word or two, such as `Fusion`.

    Raises:
        TransformError: it computes something else.
    """
    absent = engines.backend("onnxruntime-cpu").missing("onnxruntime-cpu")
    if absent is not None:
        return Comparison(None, f"{what} was not compared with the file: {absent.reason}")
    if is_large(proto):
        return Comparison(None, f"{what} was not compared with the file: it is too large to be run beside it.")
    try:
        feeds = datasets.random(model, samples=_feeding(model)).evaluation.inputs
        with open_file(Path(model.path), "off", 1, seconds=MOST_SECONDS) as runner:
            wanted = runner.infer(feeds)
    except (WorkbenchError, DataError) as error:
        return Comparison(None, f"{what} was not compared with the file, which does not run on random inputs: {error}")
    try:
        with open_file(proto.SerializeToString(), "off", 1, seconds=MOST_SECONDS) as runner:
            found = runner.infer(feeds)
    except WorkbenchError as error:
        raise TransformError(
            f"{what} made a graph of {model.name} that does not run, though the file does: {error} Use the recipe "
            f"'fp32-unfused', or export the model with the opset that is needed."
        ) from error
    worst = {name: _relative_error(found[name], values) for name, values in wanted.items() if name in found}
    name = max(worst, key=lambda key: worst[key], default=None)
    if name is None or worst[name] <= LARGEST_RELATIVE_ERROR:
        largest = 0.0 if name is None else worst[name]
        whole = name is not None and largest > 0 and wanted[name].dtype.kind in _COUNTED
        measure = "an output's values differ" if whole else "the largest output"
        words = f"{what} keeps the function: at most {largest:.1e} of {measure} on random inputs."
        return Comparison(largest, words)
    off = (
        "differs in {:.1e} of its values"
        if wanted[name].dtype.kind in _COUNTED
        else "is off by {:.1e} of its largest value"
    )
    raise TransformError(
        f"{what} changes what {model.name} computes: output {name!r} {off.format(worst[name])} on "
        f"random inputs, and at most {LARGEST_RELATIVE_ERROR:.0e} is rounding. Use the recipe 'fp32-unfused', or export "
        f"the model with the opset that is needed."
    )


def _feeding(model: Model) -> int:
    fixed = {spec.shape[0] for spec in model.inputs if spec.shape and spec.shape[0] is not None}
    return max(fixed, default=_SAMPLES)


def _relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """NaN and infinities must be in the same places; the rest is compared. Of integers it is the share that differ."""
    if found.shape != wanted.shape:
        return float("inf")
    if wanted.dtype.kind in _COUNTED:
        # Where two scores are as good as equal, rounding decides which is the highest: a pixel here and there.
        return float(np.mean(found != wanted)) if wanted.size else 0.0
    have, want = found.astype(np.float64), wanted.astype(np.float64)
    finite = np.isfinite(want)
    if not np.array_equal(np.isfinite(have), finite) or not np.array_equal(
        np.nan_to_num(have[~finite]), np.nan_to_num(want[~finite])
    ):
        return float("inf")
    largest = max(float(np.abs(want[finite]).max(initial=0.0)), 1e-12)
    return float(np.abs(have[finite] - want[finite]).max(initial=0.0)) / largest
