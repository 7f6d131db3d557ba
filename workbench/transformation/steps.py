"""Apply a recipe to a model: ONNX in, ONNX out, one report a step.

The step's type selects its function in one dict. Knows nothing of engines' builders, of measuring or of studies;
calibration statistics come in as a table.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from workbench.calibration.table import CalibrationTable, Provenance
from workbench.datasets import Split
from workbench.errors import TransformError
from workbench.graph import dynamic, files, fusion, opset, precision, quantization, smooth, sparsity, weights
from workbench.graph.cpu_fit import write_origin
from workbench.graph.dialects import dialect as dialect_named
from workbench.graph.dialects import of_this_cpu
from workbench.graph.editing import Context, every_node
from workbench.graph.linear_layers import activation_channels
from workbench.graph.pruned import Pruned
from workbench.machine import disk
from workbench.machine.handle import QUIET, Handle
from workbench.machine.store import Store
from workbench.models import as_model, onnx_file
from workbench.recipes import Fuse, Quantize, Recipe, SmoothQuant, Sparsify, Step, named
from workbench.records import Model, StepReport, Variant, cards, formats
from workbench.transformation import observing, pruning, same_function
from workbench.transformation.accounting import accounted
from workbench.transformation.intermediate_outputs import Observation
from workbench.transformation.notes import settled, troubles

# Steps that change what calibration observes.
BEFORE_QUANTIZATION = ("sparsify", "smooth_quant")


@dataclass(frozen=True, repr=False)
class Calibrated(cards.Card):
    """What was found out about a model before a recipe can be applied to it; `workbench.calibrate` makes it.

    Attributes:
        dialect: what the engine that will run the file reads, one of `workbench.graph.dialects.DIALECTS`.
        table: statistics of the activations, or None where the recipe needs none.
        calibrators: tensor name -> calibrator, overriding the recipe's own (what `auto` chose).
        channel_maxima: tensor name -> (channels,) largest |x|, which SmoothQuant needs.
        magnitudes: tensor name -> largest |x|, by which FP16 leaves nodes in FP32; None where nothing was observed.
        smoothing: the strength of SmoothQuant that was chosen, 0 to leave it off; None where nothing was to choose.
        pruned: node name -> its weight, pruned for the samples (see `Sparsify`).
        notes: what a reader of the report must know of the choices above.
        details: the same as plain data, for the report of the quantizing step.
        seconds: it took to observe the activations, or None where none were observed.
    """

    dialect: str = field(default_factory=of_this_cpu)
    table: CalibrationTable | None = None
    calibrators: Mapping[str, str] = field(default_factory=dict)
    channel_maxima: Mapping[str, np.ndarray] = field(default_factory=dict)
    magnitudes: Mapping[str, float] | None = None
    smoothing: float | None = None
    pruned: Mapping[str, Pruned] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None

    def _headline(self) -> str:
        seen = "no activations observed" if self.table is None else repr(self.table)
        return f"dialect {self.dialect}: {seen}"

    def _facts(self) -> cards.Facts:
        yield "calibrators chosen", f"{len(self.calibrators)} tensors" if self.calibrators else ""
        yield "channel maxima", f"{len(self.channel_maxima)} tensors" if self.channel_maxima else ""
        yield "smoothing", "" if self.smoothing is None else f"{self.smoothing:g}"
        yield "pruned", f"{len(self.pruned)} nodes" if self.pruned else ""
        yield "observed in", "" if self.seconds is None else formats.seconds(self.seconds)
        yield "notes", " ".join(self.notes)

    @property
    def sha256(self) -> str:
        """Hash of everything here that decides what a recipe makes of a model; not of notes, details and seconds."""
        arrays = {f"maxima {name}": values for name, values in self.channel_maxima.items()}
        arrays |= {f"pruned {name}": pruned.weight for name, pruned in self.pruned.items()}
        digest = hashlib.sha256()
        table = None if self.table is None else self.table.sha256
        magnitudes = None if self.magnitudes is None else dict(self.magnitudes)
        digest.update(
            json.dumps(
                [self.dialect, table, dict(self.calibrators), magnitudes, self.smoothing], sort_keys=True
            ).encode()
        )
        for name, values in sorted(arrays.items()):
            digest.update(json.dumps([name, str(values.dtype), values.shape]).encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()

    def context(self, model: Model) -> Context:
        """Return what graph steps get."""
        return Context(
            dialect=self.dialect,
            modules=model.modules,
            table=self.table,
            calibrators=self.calibrators,
            channel_maxima=self.channel_maxima,
            magnitudes=self.magnitudes,
            pruned=self.pruned,
        )


def _quantize(proto: onnx.ModelProto, step: Quantize, context: Context) -> StepReport:
    module = dynamic if step.activations == "dynamic" else quantization
    return module.apply(proto, step, context)


STEPS: dict[str, Callable[[onnx.ModelProto, Any, Context], StepReport]] = {
    "fuse": fusion.apply,
    "sparsify": sparsity.apply,
    "smooth_quant": smooth.apply,
    "quantize": _quantize,
    "quantize_weights": weights.apply,
    "precision": precision.apply,
}


def transform(
    model: Model | str | Path,
    recipe: str | Recipe,
    *,
    dialect: str | None = None,
    table: Calibrated | CalibrationTable | None = None,
    store: Store | None = None,
) -> Variant:
    """Apply a recipe to a model and keep the new ONNX file in the store.

    Args:
        model: from `workbench.load`, or a name or path that it takes.
        recipe: a Recipe, or the name of one.
        dialect: what the engine that will run it reads, from `workbench.graph.dialects.DIALECTS`; None takes the one that
            was calibrated for, else ONNX Runtime's for this CPU.
        table: what `workbench.calibrate` gave; needed by recipes with static quantization.
        store: None takes the default store.

    Raises:
        RecipeError: there is no such recipe, or its steps need something that was not given.
        TransformError: a step cannot be applied to this model, or the model is quantized already.
    """
    model = as_model(model, "transform", store)
    recipe = named(recipe)
    if model.quantized_by is not None and len(recipe.steps) > 1:
        raise TransformError(
            f"{model.name} is quantized already (by {model.quantized_by}); the recipe {recipe.name!r} would lower it "
            f"twice. Run it as it is with the recipe 'fp32', or load the unquantized model."
        )
    calibrated = table if isinstance(table, Calibrated) else Calibrated(dialect or of_this_cpu(), table)
    if dialect is not None and dialect != calibrated.dialect:
        calibrated = replace(calibrated, dialect=dialect)
    context = calibrated.context(model)
    asked, recipe = recipe, with_strength(recipe, calibrated)
    proto, reports = _prepared(model, recipe, context)
    if reports:
        reports[0] = _compared(model, proto, reports[0])
    before = onnx.ModelProto()
    before.CopyFrom(proto)
    for step in recipe.steps:
        if step.kind != "fuse":
            report = _applied(proto, step, context)
            reports.append(_told(report, calibrated) if step.kind == "quantize" else report)
    told, _ = accounted(before, reports, recipe)
    del before
    if isinstance(quantize := recipe.step("quantize"), Quantize) and quantize.to == "int8":
        write_origin(proto, dialect_named(calibrated.dialect).ranged(quantize.reduce_range))
    store = store or Store()
    with store.scratch() as scratch:
        disk.folder(scratch / "model")
        path = files.save(proto, scratch / "model" / "model.onnx")
        sha256, place = store.add(path.parent)
    used = calibrated.table if recipe.needs_calibration else None
    return Variant(
        recipe=asked,
        model_sha256=model.sha256,
        path=str(place / path.name),
        sha256=sha256,
        size_bytes=sum(item.stat().st_size for item in place.iterdir()),
        opset=next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0),
        inputs=model.inputs,
        outputs=model.outputs,
        dialect=calibrated.dialect,
        reports=told,
        calibration_sha256=None if used is None else used.sha256,
        calibration_seconds=None if used is None else calibrated.seconds,
        program=model.program,
    )


def observed_graph(model: Model, recipe: str | Recipe, calibrated: Calibrated | None = None) -> onnx.ModelProto:
    """Return the graph whose activations calibration observes: after every step that comes before quantization.

    Folding, pruning and smoothing change which tensors exist and what their ranges are.

    Args:
        calibrated: the dialect, and the channel maxima where the recipe smooths (see `channel_maxima`).
    """
    recipe = with_strength(named(recipe), calibrated or Calibrated())
    context = replace(calibrated or Calibrated(), table=None, calibrators={}).context(model)
    proto, _ = _prepared(model, recipe, context)
    for step in recipe.steps:
        if step.kind in BEFORE_QUANTIZATION:
            _applied(proto, step, context)
    return proto


def with_strength(recipe: Recipe, calibrated: Calibrated) -> Recipe:
    """Return the recipe with the strength of smoothing that was chosen for it; without the step where it is left off."""
    step = recipe.step("smooth_quant")
    if not isinstance(step, SmoothQuant) or step.alpha is not None or calibrated.smoothing is None:
        return recipe
    fixed = (replace(step, alpha=calibrated.smoothing),) if calibrated.smoothing else ()
    steps = (item for one in recipe.steps for item in (fixed if one is step else (one,)))
    return replace(recipe, steps=tuple(steps))


def observed(
    model: Model,
    split: Split,
    recipe: Recipe,
    calibrated: Calibrated,
    *,
    data_name: str = "",
    handle: Handle = QUIET,
) -> CalibrationTable:
    """Collect the activation statistics of a model in one streaming pass, on ONNX Runtime's CPU engine.

    Args:
        split: calibration samples, under the model's input names (see `Dataset.bound_to`).
        recipe: only what it does before quantization matters.
        calibrated: the dialect, and the channel maxima where the recipe smooths.
        data_name: kept in the table for people.
        handle: the caller's, which may stop it.

    Raises:
        CalibrationError: no samples, or activations that are not finite.
    """
    return observing.calibrate_proto(
        observed_graph(model, recipe, calibrated),
        split.inputs,
        Provenance(model.sha256, split.sha256, data_name),
        Observation(handle=handle),
    )


def pruned_weights(
    model: Model,
    split: Split,
    recipe: Recipe,
    dialect: str,
    *,
    handle: Handle = QUIET,
) -> dict[str, Pruned]:
    """Prune the weights that a recipe prunes, for the inputs that their layers get from these samples.

    Args:
        split: calibration samples, under the model's input names.

    Returns:
        Node name -> weight; empty where the recipe prunes nothing, or by magnitude.

    Raises:
        CalibrationError: no samples, or they do not fit the graph.
    """
    step = recipe.step("sparsify")
    if not isinstance(step, Sparsify) or not recipe.prunes_for_samples:
        return {}
    before = tuple(item for item in recipe.steps if item.kind == "fuse")
    known = Calibrated(dialect)
    proto = observed_graph(model, Recipe(recipe.name, before), known)
    layers = sparsity.reconstructible(proto, step, known.context(model))
    return pruning.reconstruct(proto, layers, split.inputs, Observation(handle=handle))


def channel_maxima(
    model: Model,
    split: Split,
    recipe: Recipe,
    known: Calibrated,
    *,
    handle: Handle = QUIET,
) -> dict[str, np.ndarray]:
    """Observe the largest |x| of each channel of the activations that a recipe's SmoothQuant step needs.

    Args:
        split: calibration samples, under the model's input names.
        known: the dialect, and the pruned weights where the recipe prunes.

    Returns:
        Tensor name -> (channels,) float32; empty where the recipe does not smooth.

    Raises:
        CalibrationError: no samples, or activations that are not finite.
    """
    step = recipe.step("smooth_quant")
    if not isinstance(step, SmoothQuant):
        return {}
    before = tuple(item for item in recipe.steps if item.kind in ("fuse", "sparsify"))
    proto = observed_graph(model, Recipe(recipe.name, before), known)
    tensors = smooth.smoothed_tensors(proto, step, known.context(model))
    return observing.channel_maxima(proto, tensors, split.inputs, Observation(handle=handle))


def activation_maxima(
    model: Model,
    split: Split,
    recipe: Recipe,
    calibrated: Calibrated,
    *,
    handle: Handle = QUIET,
) -> dict[str, np.ndarray]:
    """Observe the largest |x| of each channel of every activation that a layer with a constant weight reads.

    Args:
        split: calibration samples, under the model's input names.
        recipe: only what it does before quantization matters.
        calibrated: the dialect, and the channel maxima where the recipe smooths.

    Returns:
        Tensor name -> (channels,) float32.

    Raises:
        CalibrationError: no samples, or activations that are not finite.
    """
    proto = observed_graph(model, recipe, calibrated)
    return observing.channel_maxima(proto, activation_channels(proto), split.inputs, Observation(handle=handle))


def magnitudes(
    model: Model,
    split: Split,
    recipe: Recipe,
    calibrated: Calibrated,
    *,
    handle: Handle = QUIET,
) -> dict[str, float]:
    """Observe the largest |x| of every activation in FP32, by which FP16 decides what stays in FP32.

    Args:
        split: calibration samples, under the model's input names.
        recipe: only what it does before quantization matters.
        calibrated: the dialect, and the channel maxima where the recipe smooths.

    Returns:
        Tensor name -> largest magnitude; infinite where a value is NaN or infinite.

    Raises:
        CalibrationError: no samples, or they do not fit the graph.
    """
    return observing.magnitudes(observed_graph(model, recipe, calibrated), split.inputs, Observation(handle=handle))


def _prepared(model: Model, recipe: Recipe, context: Context) -> tuple[onnx.ModelProto, list[StepReport]]:
    proto = onnx_file.reread(model)
    proto.ir_version = max(proto.ir_version, 4)  # before 4 every weight had to be an input too, and steps add weights
    if model.quantized_by is not None:
        return proto, []
    report = _applied(proto, recipe.step("fuse") or Fuse("all"), context)
    note = opset.fit(proto, context.dialect, recipe)
    return proto, [replace(report, notes=(*report.notes, *note))]


def _told(report: StepReport, calibrated: Calibrated) -> StepReport:
    """Put what calibration found into the report of the step that used it."""
    if calibrated.table is None:
        return report
    settling = settled(calibrated.table)
    notes = (*calibrated.notes, *troubles(calibrated.table), *(() if settling is None else (settling,)))
    return replace(report, notes=(*report.notes, *notes), details={**report.details, **calibrated.details})


def _compared(model: Model, proto: onnx.ModelProto, report: StepReport) -> StepReport:
    """Refuse a graph that computes something else than the file after folding and changing its opset; keep the comparison."""
    what = "Fusion" if report.changed else "Preparing the graph"
    found = same_function.compared(model, proto, what)
    notes = (*report.notes, found.words) if found.relative_error is None else report.notes
    return replace(report, notes=notes, details={**report.details, "compared": found.words})


def _applied(proto: onnx.ModelProto, step: Step, context: Context) -> StepReport:
    started = time.perf_counter()
    unmatched = _unmatched(proto, step, context)
    report = STEPS[step.kind](proto, step, context)
    return replace(report, seconds=time.perf_counter() - started, notes=(*report.notes, *unmatched))


def _unmatched(proto: onnx.ModelProto, step: Step, context: Context) -> tuple[str, ...]:
    """Say which patterns of `exclude` name nothing: a misspelt one would otherwise go unseen."""
    labels = {node.name for node in every_node(proto.graph)} | {*context.modules, *context.modules.values()}
    unmatched = [item for item in getattr(step, "exclude", ()) if not any(re.search(item, label) for label in labels)]
    notes = []
    for pattern in unmatched:
        close = ", ".join(difflib.get_close_matches(pattern, sorted(labels), n=3, cutoff=0.4)) or "none is similar"
        notes.append(
            f"The pattern {pattern!r} in exclude matches no node name and no module path, so it left nothing out. "
            f"Similar names: {close}."
        )
    return tuple(notes)
