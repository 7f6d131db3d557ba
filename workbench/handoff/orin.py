"""A model under a recipe as files for a Jetson Orin: ONNX for its GPU, ONNX and a calibration cache for its DLA, the commands.

Everything is written and checked on this machine; what the device says comes back through `workbench.read_foreign`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from workbench.calibration import thresholds
from workbench.datasets import Dataset, as_dataset
from workbench.engines.tensorrt import calibration_cache, trtexec
from workbench.errors import DataError, RecipeError
from workbench.graph.tensor_types import tensor_types
from workbench.handoff import dla
from workbench.machine import disk
from workbench.machine.store import Store, write_bytes, write_text
from workbench.models import as_model
from workbench.recipes import Precision, Quantize, QuantizeWeights, Recipe, named
from workbench.records import BuildOptions, Model, ShapeProfile
from workbench.transformation.steps import observed_graph, transform
from workbench.tuning.calibrating import calibrate

# What JetPack 6.0, and 6.1 and 6.2, hold; both read explicit Q/DQ on the GPU, and neither does on the DLA.
RELEASES = {"8.6": "8.6.2", "10.3": "10.3.0"}
_DIALECT = "trt-8.6"


@dataclass(frozen=True)
class OrinFiles:
    """What was written.

    Attributes:
        commands: build and measure, by what runs it: `gpu`, `dla`.
        refused: what the DLA does not run, node by node.
        nodes: how many the graph has.
        notes: what whoever runs it must know, one sentence each.
    """

    folder: str
    commands: dict[str, str]
    refused: tuple[dla.Refusal, ...]
    nodes: int
    notes: tuple[str, ...]


def for_orin(
    model: Model | str | Path,
    data: Dataset | np.ndarray | Mapping[str, np.ndarray],
    recipe: str | Recipe,
    folder: str | Path,
    *,
    batch: int = 1,
    release: str = "10.3",
    store: Store | None = None,
) -> OrinFiles:
    """Write a model under a recipe for a Jetson Orin, whole or not at all.

    `model.onnx` is for the GPU, with Q/DQ where the recipe quantizes. A DLA knows no Q/DQ: `model_dla.onnx` is the same graph
    in floating point, and `calibration.cache` holds the same thresholds in TensorRT's own form. `dla.md` lists what the
    accelerator refuses by its published restrictions; `commands.sh` builds and measures both with trtexec.

    Args:
        data: calibration samples, for recipes that quantize.
        recipe: fp32, tf32, fp16, static INT8, 2:4, or a mix; nothing else runs on the device.
        folder: is made; must not exist.
        batch: samples a call; a DLA has no dynamic shapes, so it is fixed.
        release: of TensorRT on the device: 8.6 (JetPack 6.0) or 10.3 (JetPack 6.1 and 6.2).

    Raises:
        RecipeError: the recipe asks for what the device has not.
        DataError: no such release, or a batch that the model does not take.
        StoreError: the folder exists or cannot be written.
    """
    target, store = Path(folder), store or Store()
    disk.refuse_existing(target)
    if release not in RELEASES:
        raise DataError(f"TensorRT {release} is not known for Orin; take {' or '.join(RELEASES)}.")
    model, recipe = as_model(model, "for_orin", store), named(recipe)
    _check(recipe)
    bound = as_dataset(data, "for_orin").bound_to(model)
    calibrated = calibrate(model, bound, recipe, dialect=_DIALECT, store=store)
    variant = transform(model, recipe, dialect=_DIALECT, table=calibrated, store=store)
    profile = {}
    for name, samples in bound.evaluation.inputs.items():
        shape = (batch, *samples.shape[1:])
        profile[name] = ShapeProfile(shape, shape, shape)
    _check_batch(model, batch)
    on_dla = observed_graph(model, recipe, calibrated)
    refused = dla.refusals(on_dla.graph, _shapes(on_dla, profile))
    options = BuildOptions(profiles=(profile,) if _is_dynamic(model) else ())
    commands = {
        "gpu": _command("model.onnx", recipe, options, RELEASES[release], "gpu"),
        "dla": _command("model_dla.onnx", recipe, options, RELEASES[release], "dla"),
    }
    with disk.whole_folder(target) as made:
        onnx.save(onnx.load(variant.path), made / "model.onnx")
        onnx.save(on_dla, made / "model_dla.onnx")
        if (step := recipe.step("quantize")) is not None and calibrated.table is not None:
            assert isinstance(step, Quantize)
            # The DLA wants scales of tensors that have no pair, too; those with one are as the pair says.
            limits = {name: thresholds.threshold(histogram, calibrated.calibrators.get(name, step.calibrator))
                      for name, histogram in calibrated.table.items()}  # fmt: skip
            report = next(report for report in variant.reports if report.kind == "quantize")
            limits |= {name: entry["threshold"] for name, entry in report.details["thresholds"].items()}
            cache = calibration_cache.from_thresholds(limits, RELEASES[release])
            write_bytes(made / "calibration.cache", calibration_cache.render(cache))
        write_text(made / "dla.md", _listed(refused, len(on_dla.graph.node)))
        write_text(made / "commands.sh", _sheet(commands))
    return OrinFiles(str(target), commands, refused, len(on_dla.graph.node), _notes(recipe, refused))


def _check(recipe: Recipe) -> None:
    for step in recipe.steps:
        to = getattr(step, "to", None)
        if isinstance(step, QuantizeWeights):
            raise RecipeError("Weight-only recipes are not written for Orin: its TensorRT would compute them in FP32.")
        if isinstance(step, Precision) and to == "bf16":
            raise RecipeError("BF16 gains nothing on Orin's TensorRT 8.6 and no DLA has it; take fp16.")
        if isinstance(step, Quantize) and (to != "int8" or step.activations != "static"):
            raise RecipeError("Orin takes static INT8 alone: no FP8, and no scales found while it runs.")


def _is_dynamic(model: Model) -> bool:
    return any(size is None for spec in model.inputs for size in spec.shape)


def _check_batch(model: Model, batch: int) -> None:
    fixed = {spec.shape[0] for spec in model.inputs if spec.shape and spec.shape[0] is not None}
    if batch < 1 or batch > dla.LARGEST_BATCH or (fixed and fixed != {batch}):
        limit = f"{model.name} takes {', '.join(map(str, sorted(fixed)))}" if fixed else f"1 to {dla.LARGEST_BATCH}"
        raise DataError(f"A batch of {batch} cannot be written: {limit}.")


def _shapes(proto: onnx.ModelProto, profile: Mapping[str, ShapeProfile]) -> dict[str, dla.Shape]:
    """Return the static shapes of all tensors at the batch that is written."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    for value in fixed.graph.input:
        if value.name in profile:
            for axis, size in zip(value.type.tensor_type.shape.dim, profile[value.name].typical, strict=True):
                axis.Clear()
                axis.dim_value = size
    for value in [*fixed.graph.output, *fixed.graph.value_info]:
        value.type.tensor_type.ClearField("shape")  # symbols of the batch as it was
    found: dict[str, dla.Shape] = {}
    for name, shape in tensor_types(fixed).shapes.items():
        sizes = tuple(size for size in shape if isinstance(size, int))
        found[name] = sizes if len(sizes) == len(shape) else None
    return found


def _command(file: str, recipe: Recipe, options: BuildOptions, release: str, runs_on: str) -> str:
    words = trtexec.build_command(file, recipe, options, release, plan_path=f"{runs_on}.plan")
    words = words.replace(" --skipInference", "")
    if runs_on == "dla":
        # A DLA computes in FP16 and INT8 alone.
        if "--fp16" not in words.split():
            words += " --fp16"
        if "--int8" in words.split():
            words += " --calib=calibration.cache"
        words += " --useDLACore=0 --allowGPUFallback"
    exports = " ".join(f"--export{what}={runs_on}_{what.lower()}.json" for what in ("Times", "Profile", "LayerInfo"))
    return f"{words} --useSpinWait --iterations=200 --separateProfileRun --dumpProfile {exports}"


def _sheet(commands: Mapping[str, str]) -> str:
    lines = [
        "#!/usr/bin/env bash",
        "# On the device, in this folder; first: sudo nvpmodel -m 0 && sudo jetson_clocks",
        "set -e",
        "",
    ]
    for runs_on, command in commands.items():
        lines += [f"# {runs_on}", f"{command} 2>&1 | tee {runs_on}.log", ""]
    lines += [
        "# Back here: workbench.foreign_rows([workbench.read_foreign(name) for name in ('gpu_times.json', 'dla_times.json')])"
    ]
    return "\n".join(lines) + "\n"


def _listed(refused: tuple[dla.Refusal, ...], nodes: int) -> str:
    lines = [
        f"# What the DLA does not run: {len(refused)} of {nodes} nodes",
        "",
        "By NVIDIA's published restrictions; the log of the build on the device decides. Each change between DLA and GPU "
        f"copies a tensor, and at most {dla.MOST_LOADABLES} parts of a network fit on a core.",
        "",
    ]
    if refused:
        lines += ["| node | operator | why |", "|---|---|---|"]
        lines += [f"| {_cell(item.node)} | {_cell(item.operator)} | {_cell(item.reason)} |" for item in refused]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return re.sub(r"[|\n]", " ", text)


def _notes(recipe: Recipe, refused: tuple[dla.Refusal, ...]) -> tuple[str, ...]:
    notes = ["Written and checked here; nothing of it was run on a device."]
    if recipe.step("quantize") is not None:
        notes.append(
            "On the DLA a layer is INT8 where every tensor of it has a scale and its kernel exists; TensorRT decides, and may "
            "choose otherwise than the Q/DQ pairs say that its GPU reads."
        )
    if recipe.step("sparsify") is not None:
        notes.append("2:4 sparsity speeds up the GPU's tensor cores and, in INT8 convolutions, Orin's DLA.")
    if refused:
        notes.append(f"{len(refused)} nodes run on the GPU beside the DLA: see dla.md.")
    return tuple(notes)
