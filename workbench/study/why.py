"""`explain`: why a variant of a study takes the time it takes and loses what it loses, and whether advice helps.

Gathers evidence for a variant of a study, has it judged, and measures advice in the study's own turns. Judges nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal

from workbench import codec, engines
from workbench.datasets import Dataset
from workbench.errors import DataError, StoreError, WorkbenchError, expect
from workbench.explaining.explanation import Explanation, explanation
from workbench.explaining.gathering import gather
from workbench.explaining.reached import within
from workbench.judging import roofline
from workbench.machine.handle import Handle
from workbench.machine.store import Store
from workbench.models import as_model
from workbench.recipes import Quantize
from workbench.records import StudyRecord, VariantResult
from workbench.study import advice, explained
from workbench.study.progress import Listener, listener
from workbench.study.study import Study
from workbench.study.subject import built, dataset_of, subject_of
from workbench.tuning.machine_ceilings import ceilings
from workbench.tuning.sensitivity import LayerCosts, layer_costs


def explain(
    study: Study | str,
    variant: str,
    data: Dataset | None = None,
    *,
    try_advice: bool = False,
    layers: bool = True,
    store: Store | None = None,
    progress: Listener | Literal["auto"] | None = None,
    cancel: Callable[[], bool] = lambda: False,
) -> Explanation:
    """Explain where a variant's time and accuracy go, beside the baseline of its study.

    Both are profiled anew, in turns, by the backend's own profiler; where noise comes in is looked at on the first evaluation
    samples, what layers cost alone on calibration samples. Advice is judged on other evaluation samples, where there are some.
    The study keeps what was found: `study.explanations`, here and wherever its file is opened.

    Args:
        study: a Study, or its name in the store.
        variant: the name of one of its recipes; the baseline's own explains what bounds it.
        data: what the study was run with; None takes the shipped data or random inputs of the study, and where it was run
            with others, looks at times only.
        try_advice: build and measure each recipe that the evidence suggests, next to the variant in new turns, and each other
            way of calling it (a larger batch, a CUDA graph) by the time a sample takes.
        layers: measure what lowering each layer alone costs, where the recipe quantizes and there are calibration samples.
        store: where the study's files are; None takes the default store.
        progress: a function called with each Progress, or None.
        cancel: asked now and then from this thread; True stops with Cancelled.

    Raises:
        StoreError: there is no such study.
        KeyError: it has no such variant.
        DataError: `data` are not those of the study.
        EngineError: the variant was not built, its files are gone, or the backend has no profiler of layers.
        BackendMissing: the study's backend cannot be used here.
        Cancelled: `cancel` said so.
    """
    store = store or Store()
    study = Study.open(study, store) if isinstance(study, str) else study
    expect(study, Study, "explain", "Pass what workbench.run returned, or the name of a study.", StoreError)
    handle = Handle(cancel, listener(progress))
    record, result, baseline = study.record, study[variant], study[study.record.baseline]
    for one in (baseline, result):
        built(record, one)
    engines.choose(record.backend)
    dataset = dataset_of(record, data)
    limits = partial(ceilings, record.backend, threads=record.options.threads, store=store, handle=handle)
    measured = limits()
    _keep_ceilings(study, measured, store)
    notes = [] if dataset is not None else [
        "The study's data were not given, so times were taken with random inputs and no noise was looked at. Pass data=..."
    ]  # fmt: skip
    costs = _costs(record, result, dataset, store, handle) if layers and variant != record.baseline else None
    if isinstance(costs, str):
        notes.append(costs)
        costs = None
    subject = subject_of(record, baseline, result, dataset, store=store, handle=handle)
    evidence = within(gather(subject, measured, costs, handle), partial(limits, again=True))
    _keep_ceilings(study, evidence.ceilings, store)
    found = explanation(record.name, evidence, tuple(notes))
    _keep(study, lambda known: explained.keep(known, found), store)
    if not try_advice:
        return found
    if dataset is None:
        raise DataError("Advice is measured on the study's own data. Pass data=..., what the study was run with.")
    trials, left = advice.tried(record, result, baseline, found, dataset, store=store, handle=handle)
    whole = replace(found, trials=trials, notes=(*found.notes, *left))
    _keep(study, lambda known: explained.keep(known, whole), store)
    return whole


def explain_best(
    study: Study,
    data: Dataset | None = None,
    *,
    store: Store | None = None,
    progress: Listener | Literal["auto"] | None = None,
    cancel: Callable[[], bool] = lambda: False,
) -> Explanation | None:
    """Explain the variant that a report says to take, or else the fastest one; None where the baseline alone was measured.

    Layers are profiled; what lowering each alone costs is not looked at. Arguments and errors are those of `explain`.
    """
    best = study.best().best
    rows = [row for row in study.comparison().rows if row.ratio is not None]
    if best is None and rows:
        best = max(rows, key=lambda row: 0.0 if row.ratio is None else row.ratio.value).variant
    if best is None:
        return None
    return explain(study, best, data, layers=False, store=store, progress=progress, cancel=cancel)


def _keep_ceilings(study: Study, limits: roofline.Ceilings | None, store: Store) -> None:
    """Write the ceilings into the study that lacks them or holds those of fewer tries, here and in its store."""
    held = study.record.environment.get(roofline.KIND)
    if limits is None or (held is not None and held.get("tries", 1) >= limits.tries):
        return
    told = {roofline.KIND: codec.to_plain(limits)}
    _keep(study, lambda known: replace(known, environment={**known.environment, **told}), store)


def _keep(study: Study, knowing: Callable[[StudyRecord], StudyRecord], store: Store) -> None:
    """Let a study know more, here and in its store; another one of that name there, with engines of its own, stays as it is.

    Args:
        knowing: record -> the same with what was found.
    """
    study.record = knowing(study.record)
    text = store.get("study", study.name)
    stored = None if text is None else codec.from_json(StudyRecord, text)
    if stored is not None and _built(stored) >= _built(study.record):
        store.put("study", study.name, codec.to_json(knowing(stored)))


def _built(record: StudyRecord) -> set[tuple[str, str, str | None]]:
    """Each variant's name, with what tells its engine from others."""
    engines_built = [(item.recipe.name, item.engine) for item in record.results]
    return {(name, engine.variant_sha256, engine.sha256) for name, engine in engines_built if engine is not None}


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
