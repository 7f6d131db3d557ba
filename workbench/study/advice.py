"""Advice made into recipes and measured: next to the variant that it is for, in turns, on the study's own data and protocol.

Only what is distinguishable is called an improvement. Knows nothing of where advice comes from.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from workbench.datasets import Dataset
from workbench.engines import jobs
from workbench.errors import WorkbenchError
from workbench.explaining.explanation import Explanation, Trial
from workbench.explaining.reasons import Advice
from workbench.judging.statistics import Change, Ratio, score_change
from workbench.machine.handle import Handle
from workbench.machine.store import Store
from workbench.recipes import Quantize, QuantizeWeights, Recipe, SmoothQuant, Step
from workbench.records import Engine, StudyRecord, VariantResult
from workbench.study import call_advice
from workbench.study.running import run
from workbench.study.subject import JUDGED
from workbench.tuning.sensitivity import kept

MOST_TRIALS = 4
_MOST_SAMPLES = 256


def recipes(
    found: Explanation, recipe: Recipe, nodes: Sequence[str], modules: Mapping[str, str]
) -> tuple[list[tuple[Advice, Recipe]], list[str]]:
    """Return what the advice makes of a recipe, each recipe once, and sentences on advice that no recipe can follow.

    Args:
        nodes: names that the model's graph has; others cannot be left out by a recipe.
        modules: ONNX node name -> module path, by which a recipe may leave nodes out.
    """
    made: dict[tuple[Step, ...], tuple[Advice, Recipe]] = {}
    left = []
    for advice in found.advice:
        if advice.change in call_advice.CHANGES:
            continue
        changed = _changed(recipe, advice, set(nodes), modules)
        if changed is None:
            left.append(f"Not tried, because no recipe of this variant can follow it: {advice.words}")
        elif changed.steps != recipe.steps:
            made.setdefault(changed.steps, (advice, changed))
    chosen = list(made.values())
    left += [f"Not tried, because {MOST_TRIALS} were before it: {advice.words}" for advice, _ in chosen[MOST_TRIALS:]]
    return chosen[:MOST_TRIALS], left


def tried(
    record: StudyRecord,
    result: VariantResult,
    baseline: VariantResult,
    found: Explanation,
    dataset: Dataset,
    *,
    store: Store,
    handle: Handle,
) -> tuple[tuple[Trial, ...], tuple[str, ...]]:
    """Measure what the advice makes of a variant's recipe, in new turns beside that variant.

    Returns:
        One trial a recipe, and sentences on what was not tried.
    """
    nodes = [node for layer in found.evidence.baseline.layers for node in layer.nodes]
    advised, left = recipes(
        found, result.recipe, [*nodes, *(fact.name for fact in found.evidence.facts)], record.model.modules
    )
    called, not_called = call_advice.tried(record, result, found, dataset, store=store, handle=handle)
    left += not_called
    if not advised:
        return called, tuple(left)
    study = run(
        record.model,
        dataset,
        [result.recipe, *(recipe for _, recipe in advised)],
        backend=record.backend,
        protocol=record.protocol,
        options=record.options,
        baseline=result.recipe.name,
        store=store,
        progress=handle.progress,
    )
    comparison = study.comparison()
    trials = []
    for advice, recipe in advised:
        item = study[recipe.name]
        if item.failure is not None or item.engine is None:
            why = item.failure.message if item.failure is not None else "it was not built"
            left.append(f"Tried, and it failed: {advice.words} {why}")
            continue
        if item.variant is not None and result.variant is not None and item.variant.sha256 == result.variant.sha256:
            left.append(f"Tried, and it changes nothing, the file is the same: {advice.words}")
            continue
        try:
            noise = _noise(item.engine, result.engine, baseline.engine, dataset, handle)
        except WorkbenchError as error:
            left.append(f"The answers of {recipe.name!r} were not compared: {error}")
            noise = None
        trials.append(_trial(advice, recipe, comparison[recipe.name].ratio, comparison[recipe.name].change, noise))
    return (*trials, *called), tuple(left)


def _changed(recipe: Recipe, advice: Advice, nodes: set[str], modules: Mapping[str, str]) -> Recipe | None:
    quantize = recipe.step("quantize")
    if advice.change == "weights" and quantize is not None:
        weights = QuantizeWeights(advice.value)  # type: ignore[arg-type]
        steps = tuple(step for step in recipe.steps if step.kind in ("fuse", "sparsify"))
        return _named(recipe, advice, (*steps, weights))
    if not isinstance(quantize, Quantize):
        return None
    if advice.change == "keep":
        names = [name for name in advice.names if name in nodes]
        return replace(kept(recipe, names), name=_name(recipe, advice)) if names else None
    if advice.change == "include":
        labels = _labels(advice, modules)
        patterns = tuple(item for item in quantize.exclude if not any(re.search(item, label) for label in labels))
        changed = replace(quantize, exclude=patterns)
        return None if changed == quantize else _replaced(recipe, advice, quantize, changed)
    if advice.change == "unsigned":
        return _replaced(recipe, advice, quantize, replace(quantize, symmetric=None))
    if advice.change == "range":
        return _replaced(recipe, advice, quantize, replace(quantize, reduce_range=True))
    if advice.change == "calibrator":
        return _replaced(recipe, advice, quantize, replace(quantize, calibrator=advice.value))
    if advice.change == "per_channel":
        return _replaced(recipe, advice, quantize, replace(quantize, per_channel=True))
    if advice.change == "smooth":
        before = tuple(step for step in recipe.steps if step.kind in ("fuse", "sparsify"))
        after = tuple(step for step in recipe.steps if step.kind in ("quantize", "quantize_weights", "precision"))
        return _named(recipe, advice, (*before, SmoothQuant(), *after))
    return None


def _labels(advice: Advice, modules: Mapping[str, str]) -> list[str]:
    """What a recipe's patterns may match of the layers that are to be lowered: their names and their modules."""
    return [label for name in advice.names for label in (name, modules.get(name, "")) if label]


def _replaced(recipe: Recipe, advice: Advice, old: Step, new: Step) -> Recipe:
    return _named(recipe, advice, tuple(new if step is old else step for step in recipe.steps))


def _named(recipe: Recipe, advice: Advice, steps: tuple[Step, ...]) -> Recipe:
    return Recipe(_name(recipe, advice), steps)


def _name(recipe: Recipe, advice: Advice) -> str:
    mark = hashlib.sha256("\0".join((advice.change, advice.value, *advice.names)).encode()).hexdigest()[:4]
    told = {
        "include": f"all-{mark}",
        "keep": f"keep{len(advice.names)}-{mark}",
        "calibrator": advice.value,
        "weights": f"{advice.value}-weights",
    }
    return f"{recipe.name}+{told.get(advice.change, advice.change)}"


def _noise(
    ours: Engine, before: Engine | None, parent: Engine | None, dataset: Dataset, handle: Handle
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return each sample's squared error against the baseline over the mean squared output: of the variant, and of ours."""
    if before is None or parent is None:
        return None
    # Reasons were found on the first samples: what they suggest is judged on others, where there are enough.
    first = JUDGED if len(dataset.evaluation) >= 2 * JUDGED else 0
    inputs = {
        name: np.asarray(array[first : first + _MOST_SAMPLES]) for name, array in dataset.evaluation.inputs.items()
    }
    clean, theirs, mine = (jobs.infer(engine, inputs, 32, handle=handle) for engine in (parent, before, ours))
    sums = []
    for answers in (theirs, mine):
        each = []
        for name, want in clean.items():
            axis = clean.axes[name]
            if want.dtype.kind != "f" or axis is None:
                continue
            sides = [np.moveaxis(np.asarray(one[name], np.float64), axis, 0) for one in (answers, clean)]
            power = float(np.mean(np.square(sides[1]))) or 1.0
            each.append(np.square(sides[0] - sides[1]).reshape(len(sides[1]), -1).mean(axis=1) / power)
        if not each:
            return None
        sums.append(np.mean(each, axis=0))
    return sums[0], sums[1]


def _trial(
    advice: Advice,
    recipe: Recipe,
    ratio: Ratio | None,
    change: Change | None,
    noise: tuple[np.ndarray, np.ndarray] | None,
) -> Trial:
    told = [f"Tried: {advice.words}"]
    faster = slower = better = worse = False
    if ratio is not None:
        faster, slower = ratio.verdict == "faster", ratio.verdict == "slower"
        told.append(f"Time: {ratio.words}.")
    decibels: tuple[float | None, float | None] = (None, None)
    if noise is not None:
        nearer = score_change(noise[1], noise[0], higher_is_better=False)
        better, worse = nearer.verdict == "better", nearer.verdict == "worse"
        decibels = (_db(noise[0]), _db(noise[1]))
        told.append(
            f"Noise against the baseline: {_words(decibels[1])} after {_words(decibels[0])}, {_interval(nearer, noise[0])} "
            f"({nearer.verdict}, {len(noise[0])} samples)."
        )
    if change is not None:
        worse = worse or change.verdict == "worse"
        told.append(f"Score beside the variant: {change.words}.")
    improves = (faster and not worse) or (better and not slower)
    gains = faster or better
    told.append(
        "An improvement."
        if improves
        else "A gain with a price, so not called an improvement."
        if gains
        else "No improvement that can be told from chance."
    )
    low, high = (None, None) if ratio is None else (ratio.low, ratio.high)
    value = None if ratio is None else ratio.value
    return Trial(recipe.name, advice.words, value, low, high, decibels, improves, " ".join(told))


def _db(noise: np.ndarray) -> float:
    mean = float(np.mean(noise))
    return float(-10 * np.log10(mean)) if mean > 0 else float("inf")


def _interval(change: Change, before: np.ndarray) -> str:
    """Say a change of noise relative to what it was, with its interval."""
    mean = float(np.mean(before))
    if change.difference is None or change.low is None or change.high is None or not mean:
        return "no interval"
    value, low, high = (100 * part / mean for part in (change.difference, change.low, change.high))
    return f"{value:+.0f} % [{low:+.0f}, {high:+.0f}]"


def _words(decibels: float | None) -> str:
    if decibels is None or decibels == float("inf"):
        return "no noise"
    return f"{round(decibels, 1) + 0.0:.1f} dB"
