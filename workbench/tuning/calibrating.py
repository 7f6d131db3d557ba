"""`calibrate`: everything that a recipe needs to know of a model's activations, found in one place.

Pruned weights where the recipe prunes, channel maxima where it smooths, statistics of the activations where it quantizes
with static ranges, and the choice of calibrators where it leaves that to `auto`. Finished pieces are remembered in a store.
Measures no time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from workbench import codec, datasets
from workbench.calibration.table import CalibrationTable
from workbench.datasets import Dataset, Split
from workbench.datasets.split import Array
from workbench.errors import CalibrationError
from workbench.graph.dialects import of_this_cpu
from workbench.machine import disk
from workbench.machine.handle import QUIET, Handle
from workbench.machine.store import Store
from workbench.models import as_model
from workbench.recipes import Quantize, Recipe, named
from workbench.records import Model
from workbench.transformation.steps import (
    BEFORE_QUANTIZATION,
    Calibrated,
    activation_maxima,
    channel_maxima,
    magnitudes,
    observed,
    pruned_weights,
    with_strength,
)
from workbench.tuning.calibrators import Choice, choose
from workbench.tuning.halves import observed_in_parts
from workbench.tuning.held_out import crossed
from workbench.tuning.smoothing import Strength, choose_strength


@dataclass(frozen=True)
class KeptTable:
    """Where a calibration table lies in the store, and the seconds it took to collect."""

    sha256: str
    path: str
    seconds: float


@dataclass(frozen=True)
class ChannelMaxima:
    """Tensor name -> the largest |x| of each of its channels."""

    of: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Magnitudes:
    """Tensor name -> the largest |x| that was seen."""

    of: dict[str, float]


def calibrate(
    model: Model | str | Path,
    data: Split | Dataset | Array | Mapping[str, Array],
    recipe: str | Recipe = "int8-kl",
    *,
    dialect: str | None = None,
    store: Store | None = None,
    handle: Handle = QUIET,
) -> Calibrated:
    """Find out what a recipe needs to know before it can be applied: pass it to `workbench.transform` as `table`.

    Args:
        model: from `workbench.load`, or a name or path that it takes.
        data: calibration samples under the model's input names, or an array or dict of arrays of them; or a dataset, of
            which the calibration samples are taken.
        recipe: a Recipe, or the name of one. What is found serves every recipe with the same steps before quantization;
            the calibrators that `auto` chooses serve this one alone.
        dialect: what the engine that will run the file reads; None takes ONNX Runtime's for this CPU.
        store: remembers what was collected; None remembers nothing.
        handle: the caller's, which may stop it.

    Raises:
        CalibrationError: no samples, or activations that are not finite.
    """
    recipe, dialect = named(recipe), dialect or of_this_cpu()
    model = as_model(model, "calibrate", store)
    if not isinstance(data, (Split, Dataset)):
        data = datasets.as_dataset(data, "calibrate").bound_to(model).evaluation
    if isinstance(data, Dataset):
        split, data_name = samples_of(data.bound_to(model), recipe), data.name
    else:
        split, data_name = _first(data, recipe), ""
    found = Calibrated(dialect, pruned=pruned_weights(model, split, recipe, dialect, handle=handle))
    found = replace(found, channel_maxima=channel_maxima(model, split, recipe, found, handle=handle))
    found = _smoothed(model, split, recipe, found, store=store, handle=handle)
    recipe = with_strength(recipe, found)
    before = observed_of(model, recipe, dialect, split)
    if recipe.uses_magnitudes:

        def observe() -> Magnitudes:
            return Magnitudes(magnitudes(model, split, recipe, found, handle=handle))

        largest = observe() if store is None else store.remember(Magnitudes, before, observe)
        found = replace(found, magnitudes=largest.of)
    if recipe.uses_samples and not recipe.needs_calibration:
        return found

    halves: list[CalibrationTable] = []

    def collect() -> tuple[CalibrationTable, float]:
        started = time.perf_counter()
        parts = [half for half, _ in crossed(split)] if recipe.needs_choice else []
        both = (
            observed_in_parts(model, split, parts, recipe, found, data_name=data_name, handle=handle) if parts else None
        )
        if both is not None:
            halves.extend(both[1])  # the choice begins with them, so that no sample is run twice for its statistics
            return both[0], time.perf_counter() - started
        table = observed(model, split, recipe, found, data_name=data_name, handle=handle)
        return table, time.perf_counter() - started

    table, seconds = collect() if store is None else _kept(store, before, collect)
    found = replace(found, table=table, seconds=seconds)
    if not recipe.needs_choice:
        return found

    def chosen() -> Choice:
        return choose(model, split, recipe, known=found, tables=halves, handle=handle)

    parts = (model.sha256, codec.to_plain(recipe.steps), dialect, split.sha256)
    choice = chosen() if store is None else store.remember(Choice, parts, chosen)
    return replace(
        found,
        calibrators=choice.calibrators,
        notes=(*found.notes, choice.note),
        details={"auto": codec.to_plain(choice)},
    )


def channels(
    model: Model,
    data: Dataset,
    recipe: Recipe,
    *,
    dialect: str,
    store: Store,
    handle: Handle = QUIET,
) -> ChannelMaxima:
    """Find the largest magnitude of each channel of the activations that layers with constant weights read.

    It takes a pass over the calibration samples of its own: histograms are kept a tensor, not a channel.

    Raises:
        CalibrationError: no samples, or activations that are not finite.
    """
    split = samples_of(data.bound_to(model), recipe)

    def observe() -> ChannelMaxima:
        found = activation_maxima(model, split, recipe, Calibrated(dialect), handle=handle)
        return ChannelMaxima({name: tuple(map(float, maxima)) for name, maxima in found.items()})

    return store.remember(ChannelMaxima, observed_of(model, recipe, dialect, split), observe)


def _smoothed(
    model: Model, split: Split, recipe: Recipe, found: Calibrated, *, store: Store | None, handle: Handle
) -> Calibrated:
    """Choose how strongly to smooth, where the recipe leaves that open."""
    if not recipe.needs_strength:
        return found

    def strength() -> Strength:
        return choose_strength(model, split, recipe, found, handle=handle)

    parts = (model.sha256, codec.to_plain(recipe.steps), found.dialect, split.sha256)
    chosen = strength() if store is None else store.remember(Strength, parts, strength)
    return replace(found, smoothing=chosen.alpha, notes=(chosen.note,))


def samples_of(data: Dataset, recipe: Recipe) -> Split:
    """Return the calibration samples that a recipe takes.

    Raises:
        CalibrationError: the data have none.
    """
    if data.calibration is None or len(data.calibration) == 0:
        raise CalibrationError(
            f"The recipe {recipe.name!r} needs calibration samples, and the data {data.name!r} have none. Split some off: "
            f"data.split_off(calibration=200); or use a recipe without static quantization such as 'int8-dynamic'."
        )
    return _first(data.calibration, recipe)


def _first(split: Split, recipe: Recipe) -> Split:
    step = recipe.step("quantize")
    samples = step.samples if isinstance(step, Quantize) else None
    return split if samples is None else split.take(range(min(samples, len(split))))


def observed_of(model: Model, recipe: Recipe, dialect: str, split: Split) -> tuple[object, ...]:
    """Return what the statistics of activations depend on: they are remembered under it."""
    return (model.sha256, recipe.fusion, _before(recipe), dialect, split.sha256)


def _before(recipe: Recipe) -> list[object]:
    return [codec.to_plain(step) for step in recipe.steps if step.kind in BEFORE_QUANTIZATION]


def _kept(
    store: Store, parts: tuple[object, ...], collect: Callable[[], tuple[CalibrationTable, float]]
) -> tuple[CalibrationTable, float]:
    """Return the table that was collected of the same parts before; else collect it, and keep it as a file."""

    def make() -> KeptTable:
        table, seconds = collect()
        with store.scratch() as scratch:
            path = scratch / "table.npz"
            with disk.writing(path):
                table.save(path)
            sha256, place = store.add(path)
        return KeptTable(sha256, str(place), seconds)

    kept = store.remember(KeptTable, parts, make, lambda kept: store.holds(kept.sha256, kept.path))
    return CalibrationTable.load(kept.path), kept.seconds
