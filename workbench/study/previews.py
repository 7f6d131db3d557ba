"""`preview`: what TensorRT would do with a model, seen without a GPU.

The engine is really built, by NVIDIA's parser and builder (TensorRT for RTX), for a GPU that need not be here. What its
kernels compute in, and what was fused, is read from the builder's verbose log and compared with what the recipe's steps
report. Nothing is run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from workbench import datasets, engines
from workbench.datasets import Dataset
from workbench.datasets.split import Array
from workbench.engines import jobs
from workbench.engines.tensorrt import kernels
from workbench.engines.tensorrt.layers import LayerInfo, with_modules
from workbench.errors import BuildError, expect
from workbench.graph.attention import Attention, attentions
from workbench.graph.cost import node_flops
from workbench.graph.smooth import STRENGTH
from workbench.machine.handle import QUIET, Handle
from workbench.machine.store import Store
from workbench.models import as_model
from workbench.recipes import Quantize, Recipe, SmoothQuant, Step, named
from workbench.records import BuildOptions, Model, ShapeProfile, Skipped, Variant
from workbench.reports.formats import size
from workbench.transformation.notes import settled, troubles
from workbench.transformation.steps import transform
from workbench.tuning.calibrating import calibrate

if TYPE_CHECKING:
    import pandas

BACKEND, DIALECT = "tensorrt-rtx", "strong"
CANNOT_KNOW = (
    "Built without a GPU and not run: it tells neither speed, nor which tactic a GPU takes when it loads the engine, nor "
    "whether 2:4 zeros are used. Read from the builder's verbose log, a text without promised form; other TensorRT releases "
    "may fuse otherwise."
)
_QUANTIZING = ("quantize", "quantize_weights")


@dataclass(frozen=True)
class Preview:
    """What became of a model under a recipe.

    Attributes:
        model, target, version: its name; what the engine was built for; the builder's version.
        layers: the engine's kernels in the order of execution, with the nodes and modules that they stand for.
        attentions: every attention of the graph, and whether one kernel computes it.
        weight_bytes: of the engine's weights, as the builder counts them; None where it does not tell.
        lowered: nodes that the steps report as quantized.
        unreported: nodes in 8-bit or 4-bit kernels that no step reports as quantized.
        missed: nodes that a step reports as quantized and no 8-bit or 4-bit kernel computes.
        skipped: what the quantizing steps left alone, and why.
        notes: of the steps and of the build.
        operations: node that multiplies -> floating-point operations for one sample, where its shapes tell.
    """

    model: str
    recipe: Recipe
    target: str
    version: str
    layers: tuple[LayerInfo, ...]
    attentions: tuple[tuple[Attention, bool], ...]
    weight_bytes: int | None
    build_seconds: float
    lowered: tuple[str, ...] = ()
    unreported: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    operations: Mapping[str, int] = field(default_factory=dict)

    @property
    def coverage(self) -> dict[str, float]:
        """Operand types, such as `int8 x int8` -> share of the model's operations; `unknown` for nodes of no known kernel."""
        inside = {node: kernels.operands(layer) for layer in self.layers if layer.kind in kernels.COMPUTING
                  for node in layer.nodes}  # fmt: skip
        found: Counter[str] = Counter()
        for node, count in self.operations.items():
            found[inside.get(node, "unknown")] += count
        whole = sum(found.values())
        return {types: count / whole for types, count in found.most_common() if count}

    @property
    def computed(self) -> dict[str, int]:
        """Types of convolutions and matrix products, such as `int8 x int8` (activations x weights) -> how many."""
        found = Counter(kernels.operands(layer) for layer in self.layers if layer.kind in ("convolution", "matmul"))
        return dict(found.most_common())

    @property
    def fused_attentions(self) -> int:
        """How many attentions are one kernel each."""
        return sum(fused for _, fused in self.attentions)

    @property
    def reformats(self) -> int:
        """How many kernels only move or convert data."""
        return sum(layer.is_reformat for layer in self.layers)

    @property
    def summary(self) -> str:
        """What there is to know, in a sentence or two."""
        counted = ", ".join(f"{count} in {types}" for types, count in self.computed.items()) or "none"
        other = sum(layer.kind not in kernels.COMPUTING for layer in self.layers)
        if len(coverage := self.coverage) > 1:
            shares = ", ".join(f"{share:.0%} in {types}" for types, share in coverage.items())
            counted += f" ({shares} by operations)"
        attention = f"; {self.fused_attentions} of {len(self.attentions)} attentions fused" if self.attentions else ""
        doubts = "".join(
            f" {_counted(len(names), 'node')} {'is' if len(names) == 1 else 'are'} {words}: {', '.join(names[:3])}."
            for names, words in (
                (self.missed, "reported as quantized and computed in floating point"),
                (self.unreported, "computed in 8 or 4 bits and not reported as quantized"),
            )
            if names
        )
        return (
            f"{self.recipe.name} of {self.model} for {self.target}: convolutions and matrix products {counted}{attention}; "
            f"{other} other kernels, {self.reformats} of them only move data; weights {size(self.weight_bytes)}.{doubts}"
        )

    def against(self, other: Preview) -> str:
        """Say what this recipe changes against another, in a sentence."""
        parts = [*self._attention_change(other), *self._type_change(other)]
        for words, ours, theirs in (
            ("kernels", len(self.layers), len(other.layers)),
            ("kernels that only move data", self.reformats, other.reformats),
        ):
            if ours != theirs:
                parts.append(f"{ours} {words} instead of {theirs}")
        now, before = size(self.weight_bytes), size(other.weight_bytes)
        if now != before:
            parts.append(f"weights {now} instead of {before}")
        said = "; ".join(parts) or "the same kernels in the same types"
        return f"{self.recipe.name} against {other.recipe.name}: {said}."

    def _attention_change(self, other: Preview) -> list[str]:
        change = self.fused_attentions - other.fused_attentions
        if change >= 0:
            return [_counted(change, "more fused attention")] if change else []
        reasons = Counter(found.obstacle for found, fused in self.attentions if not fused and found.obstacle)
        why = f"because {reasons.most_common(1)[0][0]}" if reasons else "for which the graph shows no reason"
        return [f"{_counted(-change, 'fused attention')} lost, {why}"]

    def _type_change(self, other: Preview) -> list[str]:
        ours, theirs = self.computed, other.computed
        if ours == theirs:
            return []
        now = ", ".join(f"{count} in {types}" for types, count in ours.items())
        before = ", ".join(f"{count} in {types}" for types, count in theirs.items())
        return [f"convolutions and matrix products {now} instead of {before}"]

    def table(self) -> pandas.DataFrame:
        """Return one row a kernel, in the order of execution; bytes stay numbers."""
        import pandas

        return pandas.DataFrame(
            [
                {
                    "kernel": layer.name,
                    "kind": layer.kind,
                    "inputs": " ".join(tensor.precision or "?" for tensor in layer.inputs),
                    "weights": "" if (weight := kernels.weight(layer)) is None else weight.precision or "?",
                    "outputs": " ".join(tensor.precision or "?" for tensor in layer.outputs),
                    "weight bytes": sum(tensor.size_bytes or 0 for tensor in layer.constants),
                    "nodes": " ".join(layer.nodes),
                    "modules": " ".join(layer.modules),
                }
                for layer in self.layers
            ]
        )

    def __repr__(self) -> str:
        return f"Preview({self.summary})"

    def _repr_html_(self) -> str:
        table = self.table()
        table["made from"] = table["modules"].where(table["modules"] != "", table["nodes"])  # paths are the shorter
        shown = table.drop(columns=["kernel", "nodes", "modules"]).to_html(escape=True, index=False)
        scrolled = f'<div style="overflow-x: auto">{shown}</div>'
        return f"<p>{escape(self.summary)}</p>{scrolled}<p><small>{escape(CANNOT_KNOW)}</small></p>"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def preview(
    model: Model | str | Path,
    recipe: str | Recipe = "int8-max",
    *,
    target: str = "sm89",
    data: Dataset | Array | Mapping[str, Array] | None = None,
    options: BuildOptions | None = None,
    store: Store | None = None,
    handle: Handle = QUIET,
) -> Preview:
    """Show what TensorRT makes of a model under a recipe; needs neither GPU nor driver.

    Args:
        model: from `workbench.load`, or a name or path that it takes.
        recipe: a Recipe, or the name of one.
        target: the GPU that is built for: `sm75`, `sm80`, `sm86`, `sm89`, `sm120`, `sm121`, several as `sm86,sm89`.
        data: calibration samples, as `workbench.calibrate` takes them. Without, random ones serve: scales change no
            kernel's type; nothing is chosen on them, neither a strength of smoothing nor calibrators. What FP16 keeps in
            FP32 is then decided without magnitudes.
        options: of the build; its `target` gives way to the one above.
        store: None takes the default store.
        handle: the caller's, which may stop it.

    Raises:
        BackendMissing: TensorRT for RTX is not installed; the message has the line that installs it.
        BuildError: the builder refuses the model, or the target lacks a type of the recipe.
        RecipeError, CalibrationError, TransformError: as `workbench.calibrate` and `workbench.transform`.
    """
    if options is not None:
        remedy = "Pass workbench.BuildOptions(profiles=...), or nothing for the defaults."
        expect(options, BuildOptions, "preview(options=...)", remedy, BuildError)
    engines.choose(BACKEND, to_build=True)
    store = store or Store()
    model, recipe = as_model(model, "preview", store), named(recipe)
    samples = datasets.random(model) if data is None else _dataset(data, model)
    table, notes = None, []
    if data is None and (decided := _without_choices(recipe)) != recipe:
        recipe = decided
        notes.append(
            f"Nothing is chosen on random inputs: SmoothQuant has strength {STRENGTH:g} here, and the calibrator `auto` is max."
        )
    if recipe.needs_calibration or (recipe.uses_samples and data is not None):
        calibration = samples if samples.calibration is not None else samples.evaluation
        table = calibrate(model, calibration, recipe, dialect=DIALECT, store=store, handle=handle)
        if data is None:
            notes.append("Calibrated with random inputs: the scales mean nothing, and no type depends on them.")
    handle.check(f" before {recipe.name!r} was built")
    variant = transform(model, recipe, dialect=DIALECT, table=table, store=store)
    said = variant.notes
    if data is None and table is not None and table.table is not None:
        doubts = (*troubles(table.table), settled(table.table))
        said = tuple(note for note in said if note not in doubts)  # of random samples, which nobody wants better
    chosen, more = _shaped(replace(options or BuildOptions(), target=target), model, samples)
    engine = jobs.build(variant, BACKEND, chosen, store=store, handle=handle)
    found, memory = kernels.of_engine(engine)
    layers = with_modules(found, model.modules)
    missed, unreported = disagreements(variant, layers)
    proto = onnx.load(variant.path, load_external_data=False)
    fused = {node for layer in layers if layer.kind == "attention" for node in layer.nodes}
    return Preview(
        model=model.name,
        recipe=recipe,
        target=engine.device,
        version=engine.backend_version,
        layers=layers,
        attentions=tuple(
            (_explained(one, layers), bool({one.softmax, one.product} & fused)) for one in attentions(proto)
        ),
        weight_bytes=memory.get("weights"),
        build_seconds=engine.build_seconds,
        lowered=reported(variant),
        unreported=unreported,
        missed=missed,
        skipped=tuple(item for report in variant.reports if report.kind in _QUANTIZING for item in report.skipped),
        notes=(*notes, *more, *said, *engine.notes),
        operations=node_flops(proto),
    )


def _explained(attention: Attention, layers: tuple[LayerInfo, ...]) -> Attention:
    """Name FP32 as what stands in the way where an attention is computed in it: none of those tried was fused."""
    types = {layer.precision for layer in layers if attention.product in layer.nodes and layer.kind == "matmul"}
    if attention.obstacle or types != {"fp32"}:
        return attention
    return replace(attention, obstacle="it is computed in FP32, in which the builder fused none that was tried")


def reported(variant: Variant) -> tuple[str, ...]:
    """Return the nodes that the quantizing steps of a variant report as quantized."""
    return tuple(name for report in variant.reports if report.kind in _QUANTIZING for name in report.changed)


def disagreements(variant: Variant, layers: tuple[LayerInfo, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Compare what the steps report with what the kernels compute.

    Returns:
        Nodes reported as quantized that no 8-bit or 4-bit kernel computes, and nodes of such kernels that the file names
        as products or convolutions and no step reports.
    """
    names = reported(variant)
    lowered = [set(layer.nodes) for layer in layers if kernels.quantized(layer)]
    inside = set().union(*lowered)
    products = {
        node.name
        for node in onnx.load(variant.path, load_external_data=False).graph.node
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
    }
    unreported = {name for nodes in lowered if not nodes & set(names) for name in nodes & products}
    return tuple(name for name in names if name not in inside), tuple(sorted(unreported))


def _without_choices(recipe: Recipe) -> Recipe:
    """Return the recipe with what it leaves to samples decided, because a choice on random ones would be chance."""

    def decided(step: Step) -> Step:
        if isinstance(step, SmoothQuant) and step.alpha is None:
            return replace(step, alpha=STRENGTH)
        return replace(step, calibrator="max") if isinstance(step, Quantize) and step.calibrator == "auto" else step

    return Recipe(recipe.name, tuple(decided(step) for step in recipe.steps))


def _dataset(data: Dataset | Array | Mapping[str, Array], model: Model) -> Dataset:
    found = data if isinstance(data, Dataset) else datasets.as_dataset(data, "preview")
    return found.bound_to(model)


def _shaped(options: BuildOptions, model: Model, samples: Dataset) -> tuple[BuildOptions, list[str]]:
    """Give dynamic axes other than the batch the length that the samples have, unless the caller named shapes."""
    inner = [spec.name for spec in model.inputs if None in spec.shape[1:]]
    if options.profiles or not inner:
        return options, []
    profile = {
        name: ShapeProfile(*((batch, *array.shape[1:]) for batch in (1, 8, 32)))
        for name, array in samples.evaluation.inputs.items()
    }
    lengths = ", ".join(f"{name} {profile[name].typical}" for name in inner)
    return replace(options, profiles=(profile,)), [
        f"Dynamic axes were given the lengths of the samples ({lengths}); BuildOptions(profiles=...) names others."
    ]
