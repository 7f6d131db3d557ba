"""`explain`: why a variant of a study takes the time it takes and loses what it loses, and whether advice helps.

Gathers evidence for a variant of a study, has it judged, and measures advice in the study's own turns. Judges nothing itself.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from workbench import codec, datasets, engines
from workbench.datasets import Dataset
from workbench.errors import DataError, EngineError, StoreError, WorkbenchError, expect
from workbench.explaining.explanation import Explanation, explanation
from workbench.explaining.gathering import Side, Subject, gather
from workbench.judging import accuracy, roofline
from workbench.judging.statistics import accuracy_change, summary
from workbench.machine.handle import Handle
from workbench.machine.store import Store
from workbench.models import as_model
from workbench.recipes import Quantize
from workbench.records import Accuracy, StudyRecord, VariantResult
from workbench.study import advice
from workbench.study.progress import Listener, listener
from workbench.study.study import Study
from workbench.transformation.steps import BEFORE_QUANTIZATION, observed_graph
from workbench.tuning.calibrating import calibrate
from workbench.tuning.machine_ceilings import ceilings
from workbench.tuning.sensitivity import LayerCosts, layer_costs

_SHIPPED = {"digits": datasets.digits, "stdlib_text": datasets.stdlib_text}


def explain(
    study: Study | str,
    variant: str,
    data: Dataset | None = None,
    *,
    try_advice: bool = False,
    layers: bool = True,
    store: Store | None = None,
    progress: Listener | None = None,
) -> Explanation:
    """Explain where a variant's time and accuracy go, beside the baseline of its study.

    Both are profiled anew, in turns, by the backend's own profiler; where noise comes in is looked at on calibration
    samples (evaluation samples where there are none), and flipped answers on evaluation samples.

    Args:
        study: a Study, or its name in the store.
        variant: the name of one of its recipes; the baseline's own explains what bounds it.
        data: what the study was run with; None takes the shipped data or random inputs of the study, and where it was run
            with others, looks at times only.
        try_advice: build and measure each recipe that the evidence suggests, next to the variant in new turns.
        layers: measure what lowering each layer alone costs, where the recipe quantizes and there are calibration samples.
        store: where the study's files are; None takes the default store.
        progress: a function called with each Progress, or None.

    Raises:
        StoreError: there is no such study.
        KeyError: it has no such variant.
        DataError: `data` are not those of the study.
        EngineError: the variant was not built, its files are gone, or the backend has no profiler of layers.
        BackendMissing: the study's backend cannot be used here.
    """
    store = store or Store()
    study = Study.open(study, store) if isinstance(study, str) else study
    expect(study, Study, "explain", "Pass what workbench.run returned, or the name of a study.", StoreError)
    handle = Handle(progress=listener(progress))
    record, result, baseline = study.record, study[variant], study[study.record.baseline]
    for one in (baseline, result):
        if one.engine is None or one.variant is None:
            why = f": {one.failure.message}" if one.failure is not None else ""
            raise EngineError(
                f"{one.recipe.name!r} of the study {record.name!r} was not built{why}. There is nothing to explain."
            )
    engines.choose(record.backend)
    dataset = _dataset(record, data)
    limits = ceilings(record.backend, threads=record.options.threads, store=store, handle=handle)
    _keep_ceilings(study, limits, store)
    notes = [] if dataset is not None else [
        "The study's data were not given, so times were taken with random inputs and no noise was looked at. Pass data=..."
    ]  # fmt: skip
    costs = _costs(record, result, dataset, store, handle) if layers and variant != record.baseline else None
    if isinstance(costs, str):
        notes.append(costs)
        costs = None
    subject = _subject(record, baseline, result, dataset, store, handle)
    found = explanation(record.name, gather(subject, limits, costs, handle), tuple(notes))
    if not try_advice:
        return found
    if dataset is None:
        raise DataError("Advice is measured on the study's own data. Pass data=..., what the study was run with.")
    trials, left = advice.tried(record, result, baseline, found, dataset, store=store, handle=handle)
    return replace(found, trials=trials, notes=(*found.notes, *left))


def _dataset(record: StudyRecord, data: Dataset | None) -> Dataset | None:
    """Return the study's own data; None where they cannot be had again."""
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


def _keep_ceilings(study: Study, limits: roofline.Ceilings, store: Store) -> None:
    """Write the ceilings into the study that lacks them, here and in its store."""
    if roofline.KIND in study.record.environment:
        return
    environment = {**study.record.environment, roofline.KIND: codec.to_plain(limits)}
    study.record = replace(study.record, environment=environment)
    if store.get("study", study.record.name) is not None:
        store.put("study", study.record.name, codec.to_json(study.record))


def _costs(
    record: StudyRecord, result: VariantResult, dataset: Dataset | None, store: Store, handle: Handle
) -> LayerCosts | str | None:
    """What each layer costs alone; a sentence where that could not be measured, None where it makes no sense."""
    if dataset is None or dataset.calibration is None or not isinstance(result.recipe.step("quantize"), Quantize):
        return None
    try:
        model = as_model(record.model, "explain", store)
        return layer_costs(
            model, dataset, result.recipe, backend=record.backend, times=False, store=store, handle=handle
        )
    except WorkbenchError as error:
        return f"What each layer costs alone was not measured: {error}"


def _subject(
    record: StudyRecord,
    baseline: VariantResult,
    result: VariantResult,
    dataset: Dataset | None,
    store: Store,
    handle: Handle,
) -> Subject:
    used = datasets.random(record.model).bound_to(record.model) if dataset is None else dataset
    evaluation = used.evaluation
    rows = np.arange(record.protocol.batch) % len(evaluation)
    feeds = {name: np.ascontiguousarray(array[rows]) for name, array in evaluation.inputs.items()}
    split = None if dataset is None else dataset.calibration or dataset.evaluation
    flipped = _flipped(result.accuracy)
    changed = any(result.recipe.step(kind) is not None for kind in BEFORE_QUANTIZATION)
    assert baseline.engine is not None and result.engine is not None
    return Subject(
        record.backend,
        _side(baseline),
        _side(result),
        feeds,
        record.model.modules,
        samples=None if split is None else {name: np.asarray(array[:64]) for name, array in split.inputs.items()},
        parent=_parent(record, result, dataset, store, handle) if changed else None,
        same_weights=True,
        accuracy=result.accuracy,
        worse=None if result.accuracy is None else accuracy_change(result.accuracy).verdict == "worse",
        flipped=flipped,
        flipped_inputs={
            name: np.asarray(array[[index for index, _, _ in flipped]]) for name, array in evaluation.inputs.items()
        }
        if flipped and dataset is not None
        else None,
    )


def _side(result: VariantResult) -> Side:
    assert result.engine is not None
    if result.measurement is None:
        return Side(result.engine)
    peaks = [taken.peak_memory_bytes for taken in result.measurement.rounds if taken.peak_memory_bytes]
    return Side(result.engine, summary(result.measurement).median, max(peaks, default=None))


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
