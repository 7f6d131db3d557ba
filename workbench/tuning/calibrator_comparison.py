"""Set calibrators side by side: one calibration pass, and what each of them costs on the tensors, at the outputs, in the task.

A look, not a choice (see `calibrators`). Knows nothing of engines' builders and of latency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.calibration.table import CalibrationTable
from workbench.calibration.thresholds import METHODS, ThresholdRecord, threshold_records
from workbench.datasets import Dataset, as_dataset
from workbench.datasets.split import Array
from workbench.errors import CalibrationError, RecipeError
from workbench.graph.dialects import of_this_cpu
from workbench.models import as_model
from workbench.recipes import Quantize, Recipe, named
from workbench.records import Model
from workbench.transformation.steps import Calibrated, channel_maxima, observed, pruned_weights
from workbench.tuning.calibrators import is_static, with_calibrator
from workbench.tuning.simulation import Simulation
from workbench.tuning.smoothing import choose_strength

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class CalibratorRow:
    """One calibrator, throughout.

    Attributes:
        tensors: threshold, clipped share and expected SQNR of every calibrated tensor.
        sqnr_db, drop: at the outputs, on the evaluation samples.
    """

    calibrator: str
    tensors: tuple[ThresholdRecord, ...]
    sqnr_db: float
    drop: float | None


@dataclass(frozen=True, repr=False)
class CalibratorComparison:
    """Calibrators beside each other, and the table that all thresholds came from.

    Attributes:
        unit: what `drop` counts.
        samples: evaluation samples that were compared.
    """

    rows: tuple[CalibratorRow, ...]
    statistics: CalibrationTable
    unit: str
    samples: int

    def __repr__(self) -> str:
        return f"CalibratorComparison({', '.join(row.calibrator for row in self.rows)}; {self.samples:,} samples)"

    def _repr_html_(self) -> str:
        return str(self.table().round(3).to_html(escape=True, index=False))

    def table(self) -> pandas.DataFrame:
        """Return one row a calibrator, the best at the outputs first.

        How much it clips, and what that costs on the tensors, at the outputs and in the task.
        """
        import pandas

        rows = []
        for one in self.rows:
            decibels = [record.sqnr_db for record in one.tensors]
            rows.append(
                {
                    "calibrator": one.calibrator,
                    "tensors clipped": sum(record.clipped_share > 0 for record in one.tensors),
                    "largest share clipped %": 100 * max(record.clipped_share for record in one.tensors),
                    "median tensor, dB": float(pandas.Series(decibels).median()),
                    "worst tensor, dB": min(decibels),
                    "outputs, dB": one.sqnr_db,
                    f"accuracy drop, {self.unit}": one.drop,
                }
            )
        return pandas.DataFrame(rows).sort_values("outputs, dB", ascending=False, ignore_index=True)


def compare_calibrators(
    model: Model | str | Path,
    data: Dataset | Array | Mapping[str, Array],
    calibrators: Sequence[str] = tuple(METHODS),
    recipe: str | Recipe = "int8-max",
    *,
    dialect: str | None = None,
) -> CalibratorComparison:
    """Compare calibrators on one calibration pass: thresholds, what they clip, and what that costs at the outputs.

    A look, not a choice: the outputs are those of the evaluation samples, so do not pick by them and report the same
    numbers. `auto` picks on calibration samples.

    Args:
        model: from `workbench.load`, or a name or path that it takes.
        data: with calibration samples.
        recipe: with a static Quantize step, whose calibrator is replaced.

    Raises:
        CalibrationError: there are no calibration samples.
        RecipeError: the recipe has no static Quantize step, or a calibrator is unknown.
    """
    model = as_model(model, "compare_calibrators")
    recipe, dialect = named(recipe), dialect or of_this_cpu()
    data = as_dataset(data, "compare_calibrators").bound_to(model)
    if not is_static(recipe):
        raise RecipeError(
            f"The recipe {recipe.name!r} quantizes no activations with static ranges: nothing to compare."
        )
    if data.calibration is None:
        raise CalibrationError(f"The data {data.name!r} have no calibration samples. Split some off with split_off().")
    known = Calibrated(dialect, pruned=pruned_weights(model, data.calibration, recipe, dialect))
    known = replace(known, channel_maxima=channel_maxima(model, data.calibration, recipe, known))
    if recipe.needs_strength:
        known = replace(known, smoothing=choose_strength(model, data.calibration, recipe, known).alpha)
    table = observed(model, data.calibration, recipe, known, data_name=data.name)
    simulation = Simulation(model, recipe, data.evaluation, replace(known, table=table), metric=data.metric)
    rows, unit = [], ""
    step = recipe.step("quantize")
    clipped = isinstance(step, Quantize) and step.clip_inputs
    inputs = set() if clipped else {spec.name for spec in model.inputs}
    for name in calibrators:
        effect = simulation.effect(Recipe(recipe.name, tuple(with_calibrator(step, name) for step in recipe.steps)))
        records = (threshold_records({key: table[key]}, [_word(key, name, inputs)])[0] for key in table)
        rows.append(CalibratorRow(name, tuple(records), effect.sqnr_db, effect.drop))
        unit = effect.unit
    return CalibratorComparison(tuple(rows), table, unit, len(simulation.judged))


def _word(tensor: str, calibrator: str, inputs: set[str]) -> str:
    """Graph inputs keep their full range."""
    return "max" if tensor in inputs else calibrator
