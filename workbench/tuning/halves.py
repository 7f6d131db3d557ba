"""Statistics of all calibration samples and of the parts that a choice is judged on crosswise, in one pass over them.

Knows nothing of calibrators.
"""

from __future__ import annotations

from collections.abc import Sequence

from workbench.calibration.table import CalibrationTable, Provenance
from workbench.datasets import Split
from workbench.graph import files
from workbench.machine.handle import QUIET, Handle
from workbench.recipes import Recipe
from workbench.records import Model
from workbench.transformation import observing
from workbench.transformation.intermediate_outputs import Observation
from workbench.transformation.steps import Calibrated, observed_graph


def observed_in_parts(
    model: Model,
    split: Split,
    parts: Sequence[Split],
    recipe: Recipe,
    calibrated: Calibrated,
    *,
    data_name: str = "",
    handle: Handle = QUIET,
) -> tuple[CalibrationTable, list[CalibrationTable]] | None:
    """Collect the same as `transformation.steps.observed`, and a table of each part of the samples beside it, in one pass.

    Args:
        parts: of the samples, which together are all of them.

    Returns:
        The table of all and those of the parts; None where one pass cannot give both: with a graph of a fixed batch, which
        leaves out the samples that do not fill a run, and with activations that have to be taken in several passes.
    """
    proto = observed_graph(model, recipe, calibrated)
    if files.fixed_batch(proto) is not None:
        return None
    return observing.calibrate_parts(
        proto,
        [part.inputs for part in parts],
        [Provenance(model.sha256, part.sha256, "") for part in parts],
        Provenance(model.sha256, split.sha256, data_name),
        Observation(handle=handle),
    )
