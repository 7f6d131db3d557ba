"""Recipes: ordered lists of inert step configs, and the named ones.

A step says what should be done to a graph; `workbench.transform` does it. Nothing here reads a file, asks
for hardware or imports a library.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from workbench.errors import RecipeError, nearest

FUSION_LEVELS = ("off", "basic", "all")
FLOAT_FORMATS = ("fp32", "tf32", "fp16", "bf16")
QUANTIZED_FORMATS = ("int8", "fp8")
WEIGHT_FORMATS = ("int8", "int4")
CALIBRATORS = ("max", "percentile-99.9", "percentile-99.99", "percentile-99.999", "kl", "mse", "auto")
ACTIVATIONS = ("static", "dynamic", "none")


def _one_of(step: str, name: str, value: object, allowed: Iterable[str]) -> None:
    if value not in tuple(allowed):
        raise ValueError(f"{step}.{name} is {value!r}; allowed: {', '.join(allowed)}")


def _several(step: str, name: str, value: object) -> None:
    # A string is a sequence too, of letters: as patterns they would match nearly every node.
    if isinstance(value, str):
        raise ValueError(f"{step}.{name} is the string {value!r}; pass several in a tuple, or one as ({value!r},)")


def _patterns(step: str, patterns: tuple[str, ...]) -> None:
    _several(step, "exclude", patterns)
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{step}.exclude holds {pattern!r}, which is no regular expression: {error}") from error


@dataclass(frozen=True)
class Fuse:
    """How much operator fusion: `off`, `basic` (BatchNorm folding, constants, identities) or `all`.

    `basic` folds in the graph and asks the engine for its portable fusions; `all` adds what the engine knows
    for this device (layouts, fused activations). `off` leaves the graph as exported, the engine's optimizer off.

    Attributes:
        products: also merge products with weights that read one activation (query, key and value; gate and up).
        keep: operator types that stay whole although the file defines them by others (see `workbench.define`), for an
            engine that has a plugin for them.
    """

    level: Literal["off", "basic", "all"] = "all"
    products: bool = False
    keep: tuple[str, ...] = ()
    kind: Literal["fuse"] = "fuse"

    def __post_init__(self) -> None:
        _one_of("Fuse", "level", self.level, FUSION_LEVELS)
        if self.products and self.level == "off":
            raise ValueError("Fuse.products is True with the level 'off'; take 'basic' or 'all', or leave products out")


@dataclass(frozen=True)
class Precision:
    """The floating-point type of weights and activations.

    Attributes:
        to: `fp32` (TF32 off), `tf32` (NVIDIA only), `fp16` or `bf16`.
        exclude: regular expressions; nodes whose ONNX name or module path matches stay FP32.
        auto_exclude: keep FP32 where magnitudes ask for it (activations > 512, initialisers > 65504, norms, Softmax).
    """

    to: Literal["fp32", "tf32", "fp16", "bf16"] = "fp16"
    exclude: tuple[str, ...] = ()
    auto_exclude: bool = True
    kind: Literal["precision"] = "precision"

    def __post_init__(self) -> None:
        _one_of("Precision", "to", self.to, FLOAT_FORMATS)
        _patterns("Precision", self.exclude)


@dataclass(frozen=True)
class Quantize:
    """8-bit quantization of activations and weights with Q/DQ nodes.

    Attributes:
        to: `int8` or `fp8` (e4m3).
        calibrator: how a clip threshold is found from the histogram, one of `CALIBRATORS`.
        activations: `static` (calibrated), `dynamic` (scales at run time; needs no calibration data).
        per_channel: one weight scale per output channel instead of one per tensor.
        symmetric: None lets the dialect choose; True/False forces signed-symmetric or asymmetric activations.
        reduce_range: None lets the dialect choose INT8 weights of 7 bits where this CPU's kernels would saturate;
            True/False forces 7 or 8 bits.
        samples: how many calibration samples to use; None takes all.
        clip_inputs: clip graph inputs too instead of keeping their full range.
        op_types: operators whose inputs are quantized; empty takes the default (Conv, ConvTranspose, Gemm, MatMul).
        exclude: regular expressions; nodes whose ONNX name or module path matches stay in floating point.
    """

    to: Literal["int8", "fp8"] = "int8"
    calibrator: str = "kl"
    activations: Literal["static", "dynamic"] = "static"
    per_channel: bool = True
    symmetric: bool | None = None
    reduce_range: bool | None = None
    samples: int | None = None
    clip_inputs: bool = False
    op_types: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    kind: Literal["quantize"] = "quantize"

    def __post_init__(self) -> None:
        _one_of("Quantize", "to", self.to, QUANTIZED_FORMATS)
        _one_of("Quantize", "calibrator", self.calibrator, CALIBRATORS)
        _one_of("Quantize", "activations", self.activations, ACTIVATIONS[:2])
        _several("Quantize", "op_types", self.op_types)
        if self.to == "fp8" and self.reduce_range:
            raise ValueError("Quantize.reduce_range is for INT8 weights, which have 7 bits then; fp8 has no such form")
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"Quantize.samples is {self.samples}; it must be at least 1, or None for all samples")
        _patterns("Quantize", self.exclude)


@dataclass(frozen=True)
class QuantizeWeights:
    """Weight-only quantization: weights stored in INT8 or INT4 blocks, arithmetic in floating point.

    Attributes:
        to: `int8` or `int4`.
        block_size: elements along the input-feature axis that share a scale (INT8 for TensorRT: not used).
        head: quantize the projection that gives a graph output too; it loses most and is left out by default.
        exclude: regular expressions; nodes whose ONNX name or module path matches stay as they are.
    """

    to: Literal["int8", "int4"] = "int4"
    block_size: int = 32
    head: bool = False
    exclude: tuple[str, ...] = ()
    kind: Literal["quantize_weights"] = "quantize_weights"

    def __post_init__(self) -> None:
        _one_of("QuantizeWeights", "to", self.to, WEIGHT_FORMATS)
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise ValueError(f"QuantizeWeights.block_size is {self.block_size}; it must be a power of two >= 16")
        _patterns("QuantizeWeights", self.exclude)


@dataclass(frozen=True)
class SmoothQuant:
    """Move activation outliers into the weights before quantizing (Xiao et al. 2022, arXiv:2211.10438).

    Attributes:
        alpha: 0 leaves all difficulty in the activations, 1 moves all of it into the weights; None chooses by what it
            costs at the outputs on calibration samples, and leaves smoothing off where nothing is surely better.
    """

    alpha: float | None = None
    exclude: tuple[str, ...] = ()
    kind: Literal["smooth_quant"] = "smooth_quant"

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"SmoothQuant.alpha is {self.alpha}; it must lie in [0, 1]")
        _patterns("SmoothQuant", self.exclude)


@dataclass(frozen=True)
class Sparsify:
    """2:4 pruning: in each group of four weights along the input axis two become zero.

    Attributes:
        pattern: `2:4`, which NVIDIA's sparse tensor cores skip (in FP16, BF16, TF32 and INT8; there are none in FP32).
        method: `reconstruct` corrects the other weights for what goes, in one shot on calibration samples (Frantar &
            Alistarh 2023, arXiv:2301.00774), and prunes by magnitude where there are none; `magnitude` takes the two
            smallest.
        exclude: regular expressions; nodes whose ONNX name or module path matches stay dense.
    """

    pattern: Literal["2:4"] = "2:4"
    method: Literal["reconstruct", "magnitude"] = "reconstruct"
    exclude: tuple[str, ...] = ()
    kind: Literal["sparsify"] = "sparsify"

    def __post_init__(self) -> None:
        _one_of("Sparsify", "pattern", self.pattern, ("2:4",))
        _one_of("Sparsify", "method", self.method, ("reconstruct", "magnitude"))
        _patterns("Sparsify", self.exclude)


Step = Fuse | Precision | Quantize | QuantizeWeights | SmoothQuant | Sparsify
STEP_TYPES: dict[str, type] = {
    "fuse": Fuse,
    "precision": Precision,
    "quantize": Quantize,
    "quantize_weights": QuantizeWeights,
    "smooth_quant": SmoothQuant,
    "sparsify": Sparsify,
}
# The order in which steps are applied and must be written: later ones assume what earlier ones did.
STEP_ORDER = ("fuse", "sparsify", "smooth_quant", "quantize", "quantize_weights", "precision")


# Of recipes and studies.
LONGEST_NAME = 200


@dataclass(frozen=True)
class Recipe:
    """A named, ordered list of steps.

    Raises:
        ValueError: no name, something that is no step, a step twice, or steps out of order (see `STEP_ORDER`).
    """

    name: str
    steps: tuple[Step, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("Recipe.name is empty; give it a name that will be its label in tables and plots")
        if not isinstance(self.name, str) or len(self.name) > LONGEST_NAME or not self.name.isprintable():
            raise ValueError(
                f"Recipe.name is {repr(self.name)[:80]} ({len(str(self.name))} characters); it must be text of at most "
                f"{LONGEST_NAME} printable characters, as it is a label in tables and plots"
            )
        if not isinstance(self.steps, (tuple, list)) or not all(isinstance(step, Step) for step in self.steps):
            raise ValueError(
                f"Recipe {self.name!r} has the steps {self.steps!r}; pass a tuple of "
                f"{', '.join(kind.__name__ for kind in STEP_TYPES.values())}, such as (Fuse(), Precision('fp16'))"
            )
        places = [STEP_ORDER.index(step.kind) for step in self.steps]
        if places != sorted(set(places)):
            given = ", ".join(step.kind for step in self.steps)
            raise ValueError(
                f"Recipe {self.name!r} has steps {given}; each at most once, in the order {', '.join(STEP_ORDER)}"
            )

    def step(self, kind: str) -> Step | None:
        """Return the step of this kind, or None where the recipe has none."""
        return next((step for step in self.steps if step.kind == kind), None)

    @property
    def fusion(self) -> str:
        """The fusion level asked of graph and engine; `all` where the recipe says nothing."""
        fuse = self.step("fuse")
        return fuse.level if isinstance(fuse, Fuse) else "all"

    @property
    def needs_calibration(self) -> bool:
        """Whether a step needs statistics of activations."""
        quantize = self.step("quantize")
        static = isinstance(quantize, Quantize) and quantize.activations == "static"
        return static or self.step("smooth_quant") is not None

    @property
    def needs_strength(self) -> bool:
        """Whether the strength of smoothing is left to a choice by what quantizing then costs."""
        step = self.step("smooth_quant")
        quantizes = self.step("quantize") is not None or self.step("quantize_weights") is not None
        return isinstance(step, SmoothQuant) and step.alpha is None and quantizes

    @property
    def uses_magnitudes(self) -> bool:
        """Whether a step decides by the magnitudes of activations, and assumes them small where there are no data."""
        precision = self.step("precision")
        return isinstance(precision, Precision) and precision.to == "fp16" and precision.auto_exclude

    @property
    def prunes_for_samples(self) -> bool:
        """Whether pruned weights are corrected on calibration samples, where there are some."""
        step = self.step("sparsify")
        return isinstance(step, Sparsify) and step.method == "reconstruct"

    @property
    def uses_samples(self) -> bool:
        """Whether a step takes calibration samples where there are some, and can do without."""
        return self.uses_magnitudes or self.prunes_for_samples

    @property
    def needs_choice(self) -> bool:
        """Whether calibrators are to be chosen tensor by tensor (`auto`), which takes trials of the lowered model."""
        quantize = self.step("quantize")
        return isinstance(quantize, Quantize) and quantize.activations == "static" and quantize.calibrator == "auto"

    def excluding(self, *patterns: str, name: str | None = None) -> Recipe:
        """Return a copy in which every step also leaves out nodes that match the patterns."""
        steps = tuple(
            step if isinstance(step, Fuse) else replace(step, exclude=(*step.exclude, *patterns)) for step in self.steps
        )
        return Recipe(name or self.name, steps)


def _named() -> dict[str, Recipe]:
    recipes = [
        Recipe("fp32", (Fuse("all"),)),
        Recipe("fp32-unfused", (Fuse("off"),)),
        Recipe("fp32-basic", (Fuse("basic"),)),
        Recipe("tf32", (Fuse("all"), Precision("tf32"))),
        Recipe("fp16", (Fuse("all"), Precision("fp16"))),
        Recipe("bf16", (Fuse("all"), Precision("bf16"))),
        *(Recipe(f"int8-{name}", (Fuse("all"), Quantize(calibrator=name))) for name in CALIBRATORS),
        Recipe("int8-dynamic", (Fuse("all"), Quantize(activations="dynamic"))),
        Recipe("int8-smooth", (Fuse("all"), SmoothQuant(), Quantize(calibrator="max"))),
        Recipe("int8-kl-fp16", (Fuse("all"), Quantize(calibrator="kl"), Precision("fp16"))),
        Recipe("fp8", (Fuse("all"), Quantize(to="fp8", calibrator="max"))),
        Recipe("fp8-fp16", (Fuse("all"), Quantize(to="fp8", calibrator="max"), Precision("fp16"))),
        Recipe("int8-weights", (Fuse("all"), QuantizeWeights("int8"))),
        Recipe("int4-weights", (Fuse("all"), QuantizeWeights("int4"))),
        # Weights alone leave the arithmetic as it was: FP32 on a GPU, unless this is said too.
        Recipe("int8-weights-fp16", (Fuse("all"), QuantizeWeights("int8"), Precision("fp16"))),
        Recipe("int4-weights-fp16", (Fuse("all"), QuantizeWeights("int4"), Precision("fp16"))),
        Recipe("sparse-2:4", (Fuse("all"), Sparsify())),
        Recipe("sparse-2:4-fp16", (Fuse("all"), Sparsify(), Precision("fp16"))),
        Recipe("sparse-2:4-int8", (Fuse("all"), Sparsify(), Quantize(calibrator="kl"))),
    ]
    return {recipe.name: recipe for recipe in recipes}


NAMED: dict[str, Recipe] = _named()


def named(recipe: str | Recipe) -> Recipe:
    """Return the recipe of that name; a Recipe passes through.

    Raises:
        RecipeError: no recipe has that name (the message suggests the nearest), or it is neither name nor Recipe.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str):
        raise RecipeError(
            f"A recipe is a name or a workbench.Recipe, got a {type(recipe).__name__}: {recipe!r}. A single step becomes "
            f"a recipe with workbench.Recipe('mine', (step,))."
        )
    if recipe not in NAMED:
        raise RecipeError(
            f"There is no recipe {recipe!r}. {nearest(recipe, NAMED)} Or pass a workbench.Recipe with steps."
        )
    return NAMED[recipe]
