"""Does an engine compute what its file says? A few samples, run twice: by the engine, and in exact arithmetic.

Exact means ONNX Runtime with its optimizer off on a graph whose integer products are written out
(`workbench.graph.exact`). What a recipe does to the answers is in both runs; what only the engine does is in one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from workbench.datasets import Split
from workbench.engines import jobs
from workbench.engines.feeding import fixed_batch
from workbench.engines.isolated import open_file
from workbench.errors import BuildError, ChildKilled, RunError
from workbench.graph.exact import exact_form
from workbench.machine.handle import QUIET, Handle
from workbench.models import onnx_file
from workbench.recipes import Precision, Recipe
from workbench.records import Engine, Model, Variant

SAMPLES = 8
# How far from the exact answers each floating-point type may be by its rounding alone, as signal to noise. Generous:
# deep networks amplify rounding, and what this looks for is wrong by much more.
_FLOOR_DB = {"fp32": 60.0, "tf32": 35.0, "fp16": 30.0, "bf16": 15.0}
# Engines round activations as they go where only weights are quantized, and say so.
_WEIGHT_ONLY_DB = 25.0
# Noise by which a quantized engine must exceed that of its file before it is called different: 1 dB.
_WORSE = 10**0.1

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Arithmetic:
    """What an engine made of a file, beside the file in exact arithmetic; squared errors over the squared signal.

    Attributes:
        output: the output that these numbers are of, the worst.
        engine: error of the engine's answers against the unlowered model's.
        exact: error of the exact answers against the unlowered model's.
        between: error of the engine's answers against the exact ones; infinite where only the engine's are not finite.
    """

    output: str
    engine: float
    exact: float
    between: float


def arithmetic_note(
    engine: Engine,
    variant: Variant,
    model: Model,
    split: Split,
    handle: Handle = QUIET,
) -> str | None:
    """Say that an engine computes a file differently than the file and the recipe explain; None where it does not.

    Args:
        variant: what the engine was built from.
        model: the variant's parent, unlowered.
        split: samples under the model's input names, of which a few are run.

    Raises:
        RunError, ChildKilled: the engine failed.
    """
    fixed = fixed_batch(variant.inputs)
    rows = range(min(fixed or SAMPLES, len(split)))
    if fixed is not None and len(rows) < fixed:
        return None
    feeds = split.take(rows).inputs
    try:
        exact = _exactly(onnx.load(variant.path), feeds, handle)
        parent = _exactly(onnx_file.reread(model), feeds, handle)
    except (BuildError, ChildKilled, RunError) as error:
        return f"The engine's arithmetic was not checked, because ONNX Runtime's CPU cannot run this file: {error}"
    if exact is None or parent is None:
        return (
            "The engine's arithmetic was not checked: the file holds integer operators of an engine's own, whose exact "
            "result is not defined."
        )
    ours = jobs.infer(engine, feeds, len(rows), handle=handle)
    return verdict(ours, exact, parent, variant.recipe, len(rows))


def verdict(ours: Outputs, exact: Outputs, parent: Outputs, recipe: Recipe, samples: int) -> str | None:
    """Compare the engine's, the exact and the parent's answers; return a sentence where the engine stands out."""
    found = [
        compared(name, ours[name], exact[name], parent[name])
        for name in exact
        if name in ours and name in parent and ours[name].shape == exact[name].shape == parent[name].shape
        # Half types are floating-point numbers of no numpy kind.
        if exact[name].dtype.kind == "f" or exact[name].dtype.name == "bfloat16"
    ]
    if not found:
        return None
    quantizes = recipe.step("quantize") is not None
    floor = 10 ** (-_floor_db(recipe) / 10)
    worst = max(found, key=lambda one: one.between / max(one.exact if quantizes else 0.0, floor))
    allowed = max(worst.exact, floor) if quantizes else floor
    if not worst.between > allowed or (quantizes and not worst.engine > _WORSE * max(worst.exact, floor)):
        return None
    if not quantizes:
        return (
            f"This engine computes it differently: output {worst.output!r} is at {_db(worst.between)} from the same file "
            f"in exact arithmetic, on {samples} samples, and the recipe's rounding explains {_db(floor)} at most."
        )
    return (
        f"This engine computes it differently: {_db(worst.engine)} against {_db(worst.exact)} for the same file in exact "
        f"arithmetic (output {worst.output!r}, {samples} samples). The recipe does not explain that; the engine's kernels do."
    )


def compared(name: str, ours: np.ndarray, exact: np.ndarray, parent: np.ndarray) -> Arithmetic:
    """Return the errors of one output; places where the exact answers are not finite are left out."""
    ours, exact, parent = (np.asarray(one, np.float64) for one in (ours, exact, parent))
    usable = np.isfinite(exact) & np.isfinite(parent)
    ours, exact, parent = ours[usable], exact[usable], parent[usable]
    if not np.isfinite(ours).all():
        return Arithmetic(name, np.inf, _error(exact, parent), np.inf)
    return Arithmetic(name, _error(ours, parent), _error(exact, parent), _error(ours, exact))


def _error(have: np.ndarray, want: np.ndarray) -> float:
    signal, error = float(np.square(want).sum()), float(np.square(have - want).sum())
    return error / signal if signal > 0 else (0.0 if error == 0 else np.inf)


def _exactly(model: onnx.ModelProto, feeds: Outputs, handle: Handle) -> Outputs | None:
    exact = exact_form(model)
    if exact is None:
        return None
    with open_file(exact.SerializeToString(), "off", 1, handle=handle) as runner:
        return runner.infer(feeds)


def _floor_db(recipe: Recipe) -> float:
    if recipe.step("quantize_weights") is not None:
        return _WEIGHT_ONLY_DB
    precision = recipe.step("precision")
    return _FLOOR_DB[precision.to if isinstance(precision, Precision) else "fp32"]


def _db(error: float) -> str:
    if error == 0:
        return "no difference"
    return "values that are not finite" if not np.isfinite(error) else f"{-10 * np.log10(error):.1f} dB"
