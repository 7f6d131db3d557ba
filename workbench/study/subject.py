"""What of a study is explained: its data, found again, and two of its variants as evidence is gathered from. Judges nothing."""

from __future__ import annotations

import numpy as np
import onnx

from workbench import datasets, engines
from workbench.datasets import Dataset
from workbench.errors import DataError, EngineError, expect
from workbench.explaining.gathering import Side, Subject, refuse_gone
from workbench.judging import accuracy
from workbench.judging.statistics import accuracy_change, ratio, summary
from workbench.machine.handle import Handle
from workbench.machine.store import Store
from workbench.records import Accuracy, Engine, StudyRecord, VariantResult
from workbench.transformation.steps import BEFORE_QUANTIZATION, observed_graph
from workbench.tuning.calibrating import calibrate

# Evaluation samples, from the front, that reasons are found on; advice is judged on the others where there are enough.
JUDGED = 64
_SHIPPED = {"digits": datasets.digits, "stdlib_text": datasets.stdlib_text}


def dataset_of(record: StudyRecord, data: Dataset | None) -> Dataset | None:
    """Return the study's own data, bound to its model; None where they cannot be had again.

    Raises:
        DataError: these are other data.
    """
    if data is None:
        name, kind = record.data.get("name"), record.data.get("kind")
        if kind == "random":
            data = datasets.random(record.model)
        elif name in _SHIPPED:
            data = _SHIPPED[str(name)]()
        else:
            return None
        found = data.bound_to(record.model)
        return found if found.sha256 == record.data.get("sha256") else None
    expect(data, Dataset, "explain", "Wrap arrays with workbench.datasets.arrays(x, labels).", DataError)
    found = data.bound_to(record.model)
    if found.sha256 != record.data.get("sha256"):
        raise DataError(
            f"These data ({data.name!r}) are not those that the study {record.name!r} was run with "
            f"({record.data.get('name')!r}): their content differs. Pass the same, or none to look at times only."
        )
    return found


def built(record: StudyRecord, result: VariantResult) -> tuple[Engine, str]:
    """Return a variant's engine, and the ONNX file that it was built from.

    Raises:
        EngineError: it was not built, or is not here, as with a study of another machine.
    """
    if result.engine is None or result.variant is None:
        why = f": {result.failure.message}" if result.failure is not None else ""
        raise EngineError(
            f"{result.recipe.name!r} of the study {record.name!r} was not built{why}. There is nothing to explain."
        )
    refuse_gone(result.engine, result.variant.path)
    return result.engine, result.variant.path


def subject_of(
    record: StudyRecord,
    baseline: VariantResult,
    result: VariantResult,
    dataset: Dataset | None,
    *,
    store: Store,
    handle: Handle,
) -> Subject:
    """Return two variants as the explaining room wants them.

    Args:
        dataset: the study's own, bound to the model; None takes random inputs for times, and looks at no noise.
    """
    used = datasets.random(record.model).bound_to(record.model) if dataset is None else dataset
    evaluation, feeds = used.evaluation, used.evaluation.cycled(record.protocol.batch)
    flipped = _flipped(result.accuracy)
    changed = any(result.recipe.step(kind) is not None for kind in BEFORE_QUANTIZATION)
    return Subject(
        record.backend,
        _side(record, baseline),
        _side(record, result),
        feeds,
        record.model.modules,
        samples=None
        if dataset is None
        else {name: np.asarray(array[:JUDGED]) for name, array in evaluation.inputs.items()},
        parent=_parent(record, result, dataset, store, handle) if changed else None,
        accuracy=result.accuracy,
        worse=None if result.accuracy is None else accuracy_change(result.accuracy).verdict == "worse",
        speed=None
        if baseline.measurement is None or result.measurement is None
        else ratio(baseline.measurement, result.measurement),
        flipped=flipped,
        flipped_inputs={
            name: np.asarray(array[[index for index, _, _ in flipped]]) for name, array in evaluation.inputs.items()
        }
        if flipped and dataset is not None
        else None,
    )


def _side(record: StudyRecord, result: VariantResult) -> Side:
    engine, file = built(record, result)
    if result.measurement is None:
        return Side(engine, file)
    peaks = [taken.peak_memory_bytes for taken in result.measurement.rounds if taken.peak_memory_bytes]
    graphs = [taken.conditions.get("cuda_graph_refused", "never asked") is None for taken in result.measurement.rounds]
    replayed = record.protocol.cuda_graph and all(graphs)
    return Side(engine, file, summary(result.measurement).median, max(peaks, default=None), replayed)


def _flipped(found: Accuracy | None) -> tuple[tuple[int, int, int], ...]:
    """Return (sample, class before, class after) of samples with one prediction each whose answer changed."""
    if found is None or len(found.predictions) != found.samples:
        return ()
    return tuple(
        (int(index), found.parent_predictions[index], found.predictions[index]) for index in accuracy.flips(found)
    )


def _parent(
    record: StudyRecord, result: VariantResult, dataset: Dataset | None, store: Store, handle: Handle
) -> onnx.ModelProto | None:
    """Return the graph that was quantized, where steps before that changed the model's tensors."""
    if dataset is None or dataset.calibration is None:
        return None
    dialect = engines.backend(record.backend).dialect(record.backend)
    known = calibrate(record.model, dataset, result.recipe, dialect=dialect, store=store, handle=handle)
    return observed_graph(record.model, result.recipe, known)
