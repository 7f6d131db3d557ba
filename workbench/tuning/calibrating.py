"""`calibrate`: everything that a recipe needs to know of a model's activations, found in one place.

Channel maxima where the recipe smooths, statistics of the activations where it quantizes with static ranges, and the
choice of calibrators where it leaves that to `auto`. Finished pieces are remembered in a store. Measures no time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from workbench import codec
from workbench.calibration.table import CalibrationTable
from workbench.datasets import Dataset, Split
from workbench.errors import CalibrationError
from workbench.machine.store import Store
from workbench.recipes import Quantize, Recipe, named
from workbench.records import Model
from workbench.transformation.steps import BEFORE_QUANTIZATION, Calibrated, channel_maxima, observed
from workbench.tuning.calibrators import Choice, choose


@dataclass(frozen=True)
class KeptTable:
    """Where a calibration table lies in the store, and the seconds it took to collect."""

    sha256: str
    path: str
    seconds: float


def calibrate(
    model: Model,
    data: Split | Dataset,
    recipe: str | Recipe = "int8-kl",
    *,
    dialect: str = "ort-cpu",
    store: Store | None = None,
    cancel: Callable[[], bool] = lambda: False,
) -> Calibrated:
    """Find out what a recipe needs to know before it can be applied: pass it to `workbench.transform` as `table`.

    Args:
        data: calibration samples under the model's input names, or a dataset, of which the calibration samples are taken.
        recipe: a Recipe, or the name of one. What is found serves every recipe with the same steps before quantization;
            the calibrators that `auto` chooses serve this one alone.
        dialect: what the engine that will run the file reads.
        store: remembers what was collected; None remembers nothing.
        cancel: asked now and then; True stops with Cancelled.

    Raises:
        CalibrationError: no samples, or activations that are not finite.
    """
    recipe = named(recipe)
    if isinstance(data, Dataset):
        split, data_name = samples_of(data.bound_to(model), recipe), data.name
    else:
        split, data_name = _first(data, recipe), ""
    maxima = channel_maxima(model, split, recipe, dialect, cancel=cancel)
    found = Calibrated(dialect, channel_maxima=maxima)
    table, seconds = _table(model, split, recipe, found, store, data_name, cancel)
    found = replace(found, table=table, seconds=seconds)
    if not recipe.needs_choice:
        return found

    def chosen() -> Choice:
        return choose(model, split, recipe, known=found, cancel=cancel)

    parts = (model.sha256, codec.to_plain(recipe.steps), dialect, split.sha256)
    choice = chosen() if store is None else store.remember(Choice, parts, chosen)
    return replace(
        found, calibrators=choice.calibrators, notes=(choice.note,), details={"auto": codec.to_plain(choice)}
    )


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


def _table(
    model: Model,
    split: Split,
    recipe: Recipe,
    found: Calibrated,
    store: Store | None,
    data_name: str,
    cancel: Callable[[], bool],
) -> tuple[CalibrationTable, float]:
    def collected() -> tuple[CalibrationTable, float]:
        started = time.perf_counter()
        table = observed(model, split, recipe, found, data_name=data_name, cancel=cancel)
        return table, time.perf_counter() - started

    if store is None:
        return collected()

    def make() -> KeptTable:
        table, seconds = collected()
        with store.scratch() as scratch:
            path = scratch / "table.npz"
            table.save(path)
            sha256, place = store.add(path)
        return KeptTable(sha256, str(place), seconds)

    before = [codec.to_plain(step) for step in recipe.steps if step.kind in BEFORE_QUANTIZATION]
    parts = (model.sha256, recipe.fusion, before, found.dialect, split.sha256)
    kept = store.remember(KeptTable, parts, make, lambda kept: store.holds(kept.sha256, kept.path))
    return CalibrationTable.load(kept.path), kept.seconds
