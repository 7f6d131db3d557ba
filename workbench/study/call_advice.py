"""Advice about how a variant is called, measured: larger batches, or a CUDA graph, beside the calls of its study.

Both sides take turns, each round of each in a fresh process, as variants do. What is compared is the time a sample.
"""

from __future__ import annotations

import contextlib
import math
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from workbench.datasets import Dataset
from workbench.engines import feeding
from workbench.errors import Cancelled, DataError, EngineError, WorkbenchError
from workbench.explaining.explanation import Explanation, Trial
from workbench.explaining.reasons import Advice
from workbench.judging.statistics import Ratio, logs_by_round, ratio_of_logs, summary
from workbench.machine.handle import Handle
from workbench.machine.store import Store
from workbench.measuring import latency
from workbench.records import Engine, Measurement, Protocol, Round, StudyRecord, VariantResult, formats
from workbench.study.request import with_profiles
from workbench.study.stages import Stages

CHANGES = ("batch", "cuda_graph")
_FEWEST_RUNS, _FEWEST_WARMUP_RUNS = 5, 2
_REFUSED = "cuda_graph_refused"


@dataclass(frozen=True)
class _Side:
    engine: Engine
    feeds: dict[str, np.ndarray]
    protocol: Protocol


def tried(
    record: StudyRecord, result: VariantResult, found: Explanation, dataset: Dataset, *, store: Store, handle: Handle
) -> tuple[tuple[Trial, ...], tuple[str, ...]]:
    """Measure each way of calling a variant that the evidence points to, in new turns beside the study's own way.

    Returns:
        One trial a way, and sentences on what was not tried.

    Raises:
        Cancelled: the caller stopped it.
    """
    trials, left = [], []
    asked: dict[str, Advice] = {}
    for advice in found.advice:  # the main reason's comes first
        if advice.change in CHANGES:
            asked.setdefault(advice.change, advice)
    for advice in asked.values():
        try:
            trials.append(_trial(record, result, advice, dataset, store, handle))
        except Cancelled:
            raise
        except WorkbenchError as error:
            left.append(f"Not tried: {advice.words} {error}")
    return tuple(trials), tuple(left)


def _trial(
    record: StudyRecord, result: VariantResult, advice: Advice, dataset: Dataset, store: Store, handle: Handle
) -> Trial:
    if result.engine is None:
        raise EngineError(f"{result.recipe.name!r} was not built.")
    before = _Side(result.engine, dataset.evaluation.cycled(record.protocol.batch), record.protocol)
    after = _changed(record, result, before, advice, dataset, store, handle)
    ours, theirs = _measured(before, after, handle)
    refused = {why for taken in theirs.rounds if (why := taken.conditions.get(_REFUSED))}
    if after.protocol.cuda_graph and refused:
        raise EngineError(f"The engine refused the graph: {'; '.join(sorted(refused))}.")
    ratio = _by_sample(ours, theirs)
    batch, name = after.protocol.batch, result.recipe.name
    if advice.change == "batch":
        title = f"{name} at batch {batch}"
        words = (
            f"Time a sample, at batch {batch} instead of {before.protocol.batch}: {ratio.words}; a call takes "
            f"{formats.milliseconds(summary(theirs).median)} ms instead of {formats.milliseconds(summary(ours).median)}."
        )
    else:
        title, words = f"{name} in a CUDA graph", f"Time: {ratio.words}."
    improves = ratio.verdict == "faster"
    told = "An improvement." if improves else "No improvement that can be told from chance."
    return Trial(
        title, advice.words, ratio.value, ratio.low, ratio.high, (None, None), improves,
        f"Tried: {advice.words} {words} {told}",
    )  # fmt: skip


def _changed(
    record: StudyRecord,
    result: VariantResult,
    before: _Side,
    advice: Advice,
    dataset: Dataset,
    store: Store,
    handle: Handle,
) -> _Side:
    """Return the other way of calling; an engine that is compiled for sizes is built for the larger ones."""
    if advice.change == "cuda_graph":
        return replace(before, protocol=replace(before.protocol, cuda_graph=True))
    times = int(advice.value)
    protocol = replace(
        before.protocol,
        batch=before.protocol.batch * times,
        # As many samples a round as before.
        min_runs=max(math.ceil(before.protocol.min_runs / times), _FEWEST_RUNS),
        warmup_runs=max(math.ceil(before.protocol.warmup_runs / times), _FEWEST_WARMUP_RUNS),
    )
    fixed = [spec.name for spec in record.model.inputs if spec.shape and spec.shape[0] is not None]
    if fixed:
        raise DataError(f"The model takes batches of {before.protocol.batch} only (input {fixed[0]!r}).")
    feeds = dataset.evaluation.cycled(protocol.batch)
    feeding.check_limits(record.model.inputs, {name: array.shape for name, array in feeds.items()})
    free = replace(record.options, profiles=())
    ours = with_profiles(free, record.backend, dataset, record.protocol) == record.options
    options = with_profiles(free, record.backend, dataset, protocol) if ours else record.options
    stages = Stages(store, record.model, dataset, record.backend, options, protocol.batch, handle)
    return _Side(stages.engine(stages.variant(result.recipe)), feeds, protocol)


def _measured(before: _Side, after: _Side, handle: Handle) -> tuple[Measurement, Measurement]:
    """Measure both in turns; nothing of it is kept, as an explanation keeps what it says."""
    sides = {"before": before, "after": after}
    rounds: dict[str, list[Round]] = defaultdict(list)

    def lacking() -> list[str]:
        return [name for name in sides if len(rounds[name]) < before.protocol.rounds]

    order = latency.turns(
        lacking, lambda: len(rounds["before"]), seed=before.protocol.seed, beside="before", handle=handle
    )
    with contextlib.closing(order):  # whatever ends this loop, the turn goes to whoever waits for it
        for index, name in order:
            side = sides[name]
            rounds[name].append(latency.take_round(side.engine, side.feeds, side.protocol, index, handle=handle))
    return tuple(  # type: ignore[return-value]
        latency.measurement(side.engine, side.feeds, side.protocol, rounds[name], {}) for name, side in sides.items()
    )


def _by_sample(ours: Measurement, theirs: Measurement) -> Ratio:
    """Return how many times less a sample takes, with its interval over turns."""
    logs = [
        {index: value - math.log(one.protocol.batch) for index, value in logs_by_round(one).items()}
        for one in (ours, theirs)
    ]
    return ratio_of_logs(logs[0], logs[1], True)
