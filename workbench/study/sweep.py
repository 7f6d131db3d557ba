"""From chosen toggles to recipes: the product of all that was chosen, each recipe once and with a name that says it.

Knows nothing of widgets, models or backends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from workbench.recipes import (
    NAMED,
    Fuse,
    Precision,
    Quantize,
    QuantizeWeights,
    Recipe,
    SmoothQuant,
    Sparsify,
    Step,
)

# What may be done to the weights and activations, as the toggles call it.
QUANTIZATIONS = ("none", "int8", "int8-dynamic", "int8-smooth", "fp8", "int8-weights", "int4-weights")
# Those for which calibrator, sample count and per-channel scales mean something.
STATIC = ("int8", "int8-smooth", "fp8")
_FUSION_SUFFIX = {"all": "", "basic": "basic", "off": "unfused"}


@dataclass(frozen=True)
class Toggles:
    """What was chosen; several values of one toggle make several recipes.

    Attributes:
        samples: calibration samples to use; None is all of them.
        excluded: regular expressions of nodes or modules that keep their precision, in every recipe.
        sparse: whether weights are pruned 2:4.
    """

    fusions: tuple[str, ...] = ("all",)
    precisions: tuple[str, ...] = ("fp32",)
    quantizations: tuple[str, ...] = ("none",)
    calibrators: tuple[str, ...] = ("kl",)
    samples: tuple[int | None, ...] = (None,)
    per_channel: tuple[bool, ...] = (True,)
    sparse: tuple[bool, ...] = (False,)
    excluded: tuple[str, ...] = ()


def recipes(toggles: Toggles) -> tuple[Recipe, ...]:
    """Return the product of the toggles; a combination that makes no difference appears once."""
    found: dict[tuple[Step, ...], Recipe] = {}
    for fusion, precision, sparse, quantization in product(
        toggles.fusions, toggles.precisions, toggles.sparse, toggles.quantizations
    ):
        for steps, words in _quantizations(quantization, toggles):
            recipe = _recipe(fusion, precision, sparse, (steps, words), toggles.excluded)
            found.setdefault(recipe.steps, recipe)
    return tuple(found.values())


def combinations(
    *,
    fusions: Sequence[str] = ("all",),
    precisions: Sequence[str] = ("fp32",),
    quantizations: Sequence[str] = ("none",),
    calibrators: Sequence[str] = ("kl",),
    samples: Sequence[int | None] = (None,),
    per_channel: Sequence[bool] = (True,),
    sparse: Sequence[bool] = (False,),
    excluded: Sequence[str] = (),
) -> tuple[Recipe, ...]:
    """Return every combination of these choices as a recipe, to pass to `workbench.run`; see `Toggles` for each.

    Args:
        quantizations: of `QUANTIZATIONS`.
    """
    return recipes(
        Toggles(
            tuple(fusions),
            tuple(precisions),
            tuple(quantizations),
            tuple(calibrators),
            tuple(samples),
            tuple(per_channel),
            tuple(sparse),
            tuple(excluded),
        )
    )


def describe(recipe: Recipe) -> str:
    """Say in a line what a recipe does."""
    return "; ".join(_words(step) for step in recipe.steps) or "nothing: the model as it is"


def parse_samples(text: str) -> tuple[int | None, ...]:
    """Read sample counts such as `64, 256, all`.

    Raises:
        ValueError: an entry is neither a positive number nor `all`.
    """
    counts: list[int | None] = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        if entry == "all":
            counts.append(None)
        elif entry.isdecimal() and int(entry) > 0:
            counts.append(int(entry))
        else:
            raise ValueError(f"{entry!r} is no number of samples. Write numbers and `all`, such as: 64, 256, all")
    return tuple(dict.fromkeys(counts)) or (None,)


def _quantizations(quantization: str, toggles: Toggles) -> list[tuple[tuple[Step, ...], list[str]]]:
    if quantization == "none":
        return [((), [])]
    if quantization == "int8-dynamic":
        return [((Quantize(activations="dynamic"),), [quantization])]
    if quantization in ("int8-weights", "int4-weights"):
        weights = QuantizeWeights("int8") if quantization == "int8-weights" else QuantizeWeights("int4")
        return [((weights,), [quantization])]
    variants = []
    for calibrator, samples, per_channel in product(toggles.calibrators, toggles.samples, toggles.per_channel):
        to: Literal["int8", "fp8"] = "fp8" if quantization == "fp8" else "int8"
        step = Quantize(to=to, calibrator=calibrator, samples=samples, per_channel=per_channel)
        words = [quantization, calibrator]
        words += [] if samples is None else [f"n{samples}"]
        words += [] if per_channel else ["per-tensor"]
        before: tuple[Step, ...] = (SmoothQuant(),) if quantization == "int8-smooth" else ()
        variants.append(((*before, step), words))
    return variants


def _recipe(
    fusion: str,
    precision: str,
    sparse: bool,
    quantized: tuple[tuple[Step, ...], list[str]],
    excluded: Sequence[str],
) -> Recipe:
    steps, words = quantized
    sparsify: tuple[Step, ...] = (Sparsify(),) if sparse else ()
    cast: tuple[Step, ...] = () if precision == "fp32" else (Precision(precision),)  # type: ignore[arg-type]
    smooth = tuple(step for step in steps if step.kind == "smooth_quant")
    lowered = tuple(step for step in steps if step.kind != "smooth_quant")
    bare = Recipe("recipe", (Fuse(fusion), *sparsify, *smooth, *lowered, *cast))  # type: ignore[arg-type]
    parts = [*words, *([precision] if precision != "fp32" or not words else [])]
    parts += ["sparse"] if sparse else []
    parts += [suffix] if (suffix := _FUSION_SUFFIX[fusion]) else []
    if excluded and len(bare.steps) > 1:
        bare = bare.excluding(*excluded)
        mark = hashlib.sha256("\0".join(sorted(excluded)).encode()).hexdigest()[:4]
        parts.append(f"without{len(excluded)}-{mark}")
    known = next((name for name, recipe in NAMED.items() if recipe.steps == bare.steps), None)
    return Recipe(known or "-".join(parts), bare.steps)


def _words(step: Step) -> str:
    kept = f", {len(step.exclude)} patterns left out" if not isinstance(step, Fuse) and step.exclude else ""
    if isinstance(step, Fuse):
        return {"all": "fused", "basic": "basic fusion", "off": "not fused"}[step.level]
    if isinstance(step, Precision):
        return f"{step.to.upper()}{kept}"
    if isinstance(step, Quantize) and step.activations == "dynamic":
        return f"{step.to.upper()}, scales at run time{kept}"
    if isinstance(step, Quantize):
        scales = "per channel" if step.per_channel else "per tensor"
        samples = "all samples" if step.samples is None else f"{step.samples} samples"
        return f"{step.to.upper()}, {step.calibrator}, {samples}, weights {scales}{kept}"
    if isinstance(step, QuantizeWeights):
        return f"weights in {step.to.upper()}{kept}"
    if isinstance(step, SmoothQuant):
        return f"SmoothQuant{f' {step.alpha:g}' if step.alpha is not None else ''}{kept}"
    return f"pruned {step.pattern}{kept}"
