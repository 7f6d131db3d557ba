"""The layer lens: one table of all layers of all variants of a study, and a mixed recipe from chosen rows."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import onnx

from workbench.datasets import Dataset, Split
from workbench.errors import RecipeError, WorkbenchError
from workbench.explaining.evidence import Layer, Pass
from workbench.explaining.gathering import profiled
from workbench.explaining.passes import shared_name
from workbench.explaining.reached import under
from workbench.explaining.structure import precision_of
from workbench.machine.handle import QUIET, Handle
from workbench.machine.store import Store
from workbench.recipes import Recipe
from workbench.records import StudyRecord, VariantResult
from workbench.study.subject import JUDGED, built, dataset_of, subject_of
from workbench.tuning.layers import shared_tensors, tensor_errors
from workbench.tuning.machine_ceilings import ceilings
from workbench.tuning.sensitivity import kept

if TYPE_CHECKING:
    import pandas


def layers_table(
    record: StudyRecord, data: Dataset | None = None, *, store: Store | None = None, handle: Handle = QUIET
) -> pandas.DataFrame:
    """Profile all variants of a study and return one row a layer of the baseline, in the order of execution.

    Columns: `module`, `nodes` (a tuple), `operator`, `shape`, `MFLOP`, and for every variant its `type`, `ms`, `% of bound`
    and, where it quantizes and the data are there, `NSR` at the layer's result (noise over signal, accumulated up to there).
    The last row holds what engines added beside the baseline's layers; `table.attrs["notes"]` what could not be looked at.

    Args:
        data: what the study was run with; None as in `workbench.explain`.

    Raises:
        EngineError: the baseline was not built, or the backend has no profiler of layers.
        DataError: `data` are not those of the study.
    """
    import pandas

    store = store or Store()
    dataset = dataset_of(record, data)
    limits = partial(ceilings, record.backend, threads=record.options.threads, store=store, handle=handle)
    baseline = next(item for item in record.results if item.recipe.name == record.baseline)
    parent = onnx.load(built(record, baseline)[1])
    known = limits()
    others = [
        one for one in record.results if one.engine is not None and one.variant is not None and one is not baseline
    ]
    passes: list[Pass] = []
    errors: list[dict[str, float]] = []
    notes: list[str] = []
    for item in others or [baseline]:
        subject = subject_of(record, baseline, item, dataset, store=store, handle=handle)
        file = onnx.load(subject.variant.file)
        passes += profiled(subject, [parent, file], known, handle)
        if item is baseline:
            break  # alone, there is nothing that it could differ from
        try:
            errors.append(_errors(parent, file, item, dataset))
        except WorkbenchError as error:
            errors.append({})
            notes.append(f"{item.recipe.name}: errors were not looked at: {error}")
    _, passes, beyond = under(known, passes, partial(limits, again=True))
    rows = _rows(passes[0])
    if others:
        for found, seen in zip(passes[1::2], errors, strict=True):  # each behind the baseline that took turns with it
            _add(rows, found, seen)
    table = pandas.DataFrame(rows)
    table.attrs["notes"] = [*beyond, *notes]
    return table


def keeping(recipe: Recipe, rows: pandas.DataFrame | Iterable[str], name: str | None = None) -> Recipe:
    """Return a recipe that keeps the layers of chosen rows as they were.

    Args:
        rows: of `layers_table`, or names of nodes.

    Raises:
        RecipeError: no row was chosen.
    """
    import pandas

    if isinstance(rows, pandas.DataFrame):
        rows = [str(node) for each in rows["nodes"] for node in each]
    nodes = list(rows)
    if not nodes:
        raise RecipeError("No row was chosen, so there is nothing to keep. Choose rows such as table[table['ms'] > 1].")
    return kept(recipe, nodes, name)


def _rows(baseline: Pass) -> list[dict[str, Any]]:
    rows = []
    for layer in baseline.layers:
        rows.append(
            {
                "module": ", ".join(layer.modules),
                "nodes": layer.nodes,
                "operator": layer.operator,
                "shape": " ".join(
                    "x".join("?" if size is None else str(size) for size in spec.shape) for spec in layer.writes
                ),
                "MFLOP": layer.flops / 1e6,
                **_cells(baseline.variant, [layer], layer.seconds),
            }
        )
    rows.append({"module": "(added by engines)", "nodes": (), "operator": "", "shape": "", "MFLOP": 0.0})
    return rows


def _add(rows: list[dict[str, Any]], found: Pass, errors: dict[str, float]) -> None:
    """Put a variant's columns into the rows; what stands for no node of any row is in the last."""
    owner = {node: place for place, row in enumerate(rows) for node in row["nodes"]}
    known = set(owner)
    parts: dict[int, list[tuple[Layer, float]]] = {}
    for layer in found.layers:
        places = list(dict.fromkeys(owner[name] for node in layer.nodes if (name := shared_name(node, known)) in owner))
        heavy = [place for place in places if rows[place]["MFLOP"]] if layer.kind == "compute" else []
        for place in heavy or places or [len(rows) - 1]:
            parts.setdefault(place, []).append((layer, layer.seconds / len(heavy or places or [0])))
    for place, row in enumerate(rows):
        held = parts.get(place, [])
        row.update(_cells(found.variant, [layer for layer, _ in held], sum(seconds for _, seconds in held)))
        if errors:
            row[f"{found.variant} NSR"] = next(
                (errors[node] for node in reversed(row["nodes"]) if node in errors), None
            )


def _cells(variant: str, layers: list[Layer], seconds: float) -> dict[str, Any]:
    bounds = [layer.bound_seconds for layer in layers if layer.bound_seconds is not None]
    share = 100 * sum(bounds) / sum(layer.seconds for layer in layers) if bounds and seconds else None
    return {
        f"{variant} type": " ".join(dict.fromkeys(layer.precision for layer in layers)),
        f"{variant} ms": 1e3 * seconds,
        f"{variant} % of bound": share,
    }


def _errors(
    parent: onnx.ModelProto, file: onnx.ModelProto, item: VariantResult, dataset: Dataset | None
) -> dict[str, float]:
    """Return node -> noise over signal at its result; empty where the variant does not quantize or nothing can be run."""
    if dataset is None or precision_of(file) not in ("int8", "fp8"):
        return {}
    shared = shared_tensors(parent, file, [node.name for node in parent.graph.node])
    split: Split = dataset.evaluation.take(range(min(JUDGED, len(dataset.evaluation))))
    found = dict(tensor_errors(parent, file, list(dict.fromkeys(shared.values())), split, samples=JUDGED))
    return {node: _ratio(found[name]) for node, name in shared.items() if name in found}


def _ratio(decibels: float | None) -> float:
    return 0.0 if decibels is None else float(10 ** (-decibels / 10))
