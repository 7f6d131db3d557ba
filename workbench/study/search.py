"""`optimize`: find the mix of lowered and kept layers that meets a bound, as fast or as accurate as possible.

Layers are ranked by what lowering them costs for the time it saves; the mix is found by halving along that order, judged
on calibration samples. What was found is then built, measured and checked on the evaluation data like any other recipe,
and where these say that the bound is missed, the next safer mix is tried. Every evaluation is remembered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workbench import engines
from workbench.datasets import Dataset
from workbench.errors import CalibrationError, DataError, RecipeError, expect
from workbench.judging.accuracy import lowest_sqnr_db
from workbench.judging.best import keeps_to
from workbench.judging.statistics import summary
from workbench.machine.handle import Handle
from workbench.machine.store import Store, key_of
from workbench.models import as_model
from workbench.recipes import Recipe, named
from workbench.records import BuildOptions, Model, Protocol, cards, formats
from workbench.study import Study, run
from workbench.study.progress import Listener
from workbench.transformation.steps import Calibrated
from workbench.tuning.calibrating import calibrate
from workbench.tuning.sensitivity import LayerCost, LayerCosts, kept, layer_costs
from workbench.tuning.simulation import Simulation, accuracy_drop, drop_unit

DEFAULT_CANDIDATES = ("int8-max", "int8-dynamic")
# How often the next safer mix of a candidate is built and measured, where the one before missed the bound.
_MOST_ROUNDS = 3


@dataclass(frozen=True)
class Bound:
    """What the result must keep to.

    Attributes:
        drop: at most this much accuracy lost, in points for shares, else in the metric's own unit; or None.
        seconds: at most this median latency; or None. One of the two is given.
    """

    drop: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.drop is None) == (self.seconds is None):
            raise ValueError(
                f"Bound has drop={self.drop} and seconds={self.seconds}; give one of them: the other is what is optimized"
            )


@dataclass(frozen=True)
class Tried:
    """One step of the path.

    Attributes:
        recipe: its name.
        kept: layers that it leaves in floating point.
        drop: accuracy lost, on the data that `judged_on` names; None where it could not be told.
        sqnr_db: at the outputs.
        seconds: median latency; None where it was only simulated.
        judged_on: `calibration` (simulated) or `evaluation` (built, checked and measured).
        meets: whether it keeps to the bound on these data.
    """

    recipe: str
    kept: tuple[str, ...]
    drop: float | None
    sqnr_db: float | None
    seconds: float | None
    judged_on: Literal["calibration", "evaluation"]
    meets: bool

    @property
    def measured(self) -> bool:
        """Whether it was built and measured, not only simulated."""
        return self.judged_on == "evaluation"


@dataclass(frozen=True, repr=False)
class Found(cards.Card):
    """What the search found.

    Attributes:
        best: name of the variant in `study` that meets the bound best; the baseline where none else does.
        path: every mix that was tried, in order.
        costs: candidate -> its layers, ranked.
    """

    study: Study
    best: str
    reason: str
    bound: Bound
    unit: str
    path: tuple[Tried, ...]
    costs: dict[str, LayerCosts]

    @property
    def recipe(self) -> Recipe:
        """The best recipe, to run elsewhere."""
        return self.study[self.best].recipe

    def _headline(self) -> str:
        return f"{self.best!r}: {self.reason}"

    def _facts(self) -> cards.Facts:
        for tried in self.path:
            known = (
                "" if tried.drop is None else f"{tried.drop:.3g} {self.unit} lost",
                "" if tried.seconds is None else f"{formats.milliseconds(tried.seconds)} ms",
                f"{len(tried.kept)} layers kept" if tried.kept else "",
                f"{'keeps' if tried.meets else 'breaks'} the bound on {tried.judged_on} data",
            )
            yield tried.recipe, ", ".join(filter(None, known))


def optimize(
    model: Model | str | Path,
    data: Dataset,
    *,
    at_most_lost: float | None = None,
    at_most_seconds: float | None = None,
    candidates: Sequence[str | Recipe] = DEFAULT_CANDIDATES,
    by: Literal["layer", "block"] = "layer",
    backend: str = "auto",
    protocol: Protocol | None = None,
    options: BuildOptions | None = None,
    store: Store | None = None,
    name: str | None = None,
    progress: Listener | Literal["auto"] | None = "auto",
    cancel: Callable[[], bool] = lambda: False,
) -> Found:
    """Find the fastest mix that loses at most so much, or the most accurate one within a latency budget.

    Interrupt it, or kill it: the same call goes on where it stopped.

    Args:
        at_most_lost: accuracy that may be lost: points (0.5 is half a point of top-1) for shares, else the metric's
            unit; points of agreement with the FP32 parent where there are no labels.
        at_most_seconds: median latency that must be kept to, under the protocol.
        candidates: recipes to mix with FP32; each is mixed by itself.
        by: `layer`, or `block` for repeated ones.
        backend: a name from `workbench.backends()`, or `auto` for what `run` takes. Mixes are built and measured on it;
            before that they are judged by running the files that it would get on ONNX Runtime's CPU engine.

    Raises:
        BackendMissing: the backend cannot be used here.
        ValueError: not exactly one bound is given.
        CalibrationError: there are no calibration samples to judge mixes on.
        RecipeError: no candidates.
    """
    model = as_model(model, "optimize", store)
    expect(
        data, Dataset, "optimize", "Wrap arrays with workbench.datasets.arrays(x, labels, calibration=...).", DataError
    )
    chosen = [named(one) for one in candidates]
    if not chosen:
        raise RecipeError("The search got no recipe to mix with FP32. Name one, such as candidates=['int8-max'].")
    backend, _ = engines.choose(backend)
    terms = key_of([model.sha256, data.sha256, backend, protocol, options, chosen, at_most_lost, at_most_seconds, by])
    how = {
        "backend": backend,
        "protocol": protocol,
        "options": options,
        "store": store or Store(),
        "name": name or f"{model.name}-search-{terms[:8]}",
        "progress": progress,
        "cancel": cancel,
    }
    return _Search(model, data, Bound(at_most_lost, at_most_seconds), by, how).go(chosen)


@dataclass
class _Candidate:
    """One candidate and its mixes: kept_count k keeps the first k layers of the order."""

    recipe: Recipe
    order: list[LayerCost]
    kept_count: int = 0
    settled: bool = False

    def mix(self, kept_count: int) -> Recipe:
        return kept(self.recipe, self.names(kept_count), f"{self.recipe.name}-keep{kept_count}" if kept_count else None)

    def names(self, kept_count: int) -> tuple[str, ...]:
        return tuple(row.name for row in self.order[:kept_count])

    @property
    def saved(self) -> list[float]:
        return [row.saved_seconds or 0.0 for row in self.order]


class _Search:
    """One call of `optimize`: what was asked, and the path so far."""

    def __init__(self, model: Model, data: Dataset, bound: Bound, by: Literal["layer", "block"], how: dict[str, Any]):
        self.model = model
        self.data = data.bound_to(model)
        self.bound = bound
        self.by = by
        self.how = how
        self.store: Store = how["store"]
        self.path: list[Tried] = []
        self.costs: dict[str, LayerCosts] = {}
        self.mixes: dict[str, tuple[str, ...]] = {}
        if self.data.calibration is None:
            raise CalibrationError(
                f"Mixes are judged on calibration samples, and the data {data.name!r} have none. Split some off: "
                f"data.split_off(calibration=200)."
            )

    def go(self, candidates: list[Recipe]) -> Found:
        study = self._studied(["fp32", *candidates])
        ladders = [self._ladder(recipe, study) for recipe in candidates if recipe.name not in study.failures]
        recipes: list[str | Recipe] = ["fp32", *candidates]
        for _ in range(_MOST_ROUNDS):
            for candidate in ladders:
                self._step_on(candidate)
            fresh = [candidate.mix(candidate.kept_count) for candidate in ladders if not candidate.settled]
            fresh = [mix for mix in fresh if mix.name not in {tried.recipe for tried in self.path if tried.measured}]
            if not fresh:
                break
            recipes += fresh
            study = self._studied(recipes)
        best, reason = self._best(study)
        return Found(study, best, reason, self.bound, self._unit(study), tuple(self.path), self.costs)

    def _studied(self, recipes: list[str | Recipe]) -> Study:
        """Run the study, and put what it newly shows on the path."""
        study = run(self.model, self.data, recipes, **self.how)
        asked = {named(one).name for one in recipes}  # an earlier search of the same name left more
        for item in study.record.results:
            name, record = item.recipe.name, item.accuracy
            if (
                name not in asked
                or record is None
                or item.measurement is None
                or name in {one.recipe for one in self.path if one.measured}
            ):
                continue
            worse, seconds = accuracy_drop(record), summary(item.measurement).median
            meets = self._meets(worse, seconds)
            self.path.append(
                Tried(name, self.mixes.get(name, ()), worse, lowest_sqnr_db(record), seconds, "evaluation", meets)
            )
        return study

    def _ladder(self, recipe: Recipe, study: Study) -> _Candidate:
        """Rank the candidate's layers, and find the kept_count to begin with."""
        dialect = engines.backend(self.how["backend"]).dialect(self.how["backend"])
        known = Calibrated(dialect)
        if recipe.needs_calibration or recipe.uses_samples:
            known = calibrate(
                self.model,
                self.data,
                recipe,
                dialect=dialect,
                store=self.store,
                handle=Handle(cancelled=self.how["cancel"]),
            )
        costs = layer_costs(
            self.model, self.data, recipe, by=self.by, backend=self.how["backend"], batch=study.record.protocol.batch,
            known=known, store=self.store, options=self.how["options"], handle=Handle(cancelled=self.how["cancel"]),
        )  # fmt: skip
        self.costs[recipe.name] = costs
        candidate = _Candidate(recipe, sorted(costs.rows, key=_worth_keeping))
        if self.bound.seconds is not None:
            candidate.kept_count = self._affordable(candidate, study)
        else:
            split = self.data.calibration
            assert split is not None
            stoppable = Handle(cancelled=self.how["cancel"])
            simulation = Simulation(self.model, recipe, split, known, self.data.metric, self.store, handle=stoppable)
            candidate.kept_count = self._accurate_enough(candidate, simulation)
        self._name(candidate)
        return candidate

    def _accurate_enough(self, candidate: _Candidate, simulation: Simulation) -> int:
        """Return the lowest kept_count that keeps to the bound on calibration samples, found by halving."""
        low, high = 0, len(candidate.order) - 1
        while low < high:
            middle = (low + high) // 2
            effect = simulation.effect(candidate.mix(middle))
            meets = self._meets(effect.drop, None)
            names = candidate.names(middle)
            self.path.append(
                Tried(candidate.mix(middle).name, names, effect.drop, effect.sqnr_db, None, "calibration", meets)
            )
            low, high = (low, middle) if meets else (middle + 1, high)
        free = sum(saved <= 0 for saved in candidate.saved)
        return max(low, min(free, len(candidate.order) - 1))

    def _affordable(self, candidate: _Candidate, study: Study) -> int:
        """Return the highest kept_count that should keep to the latency budget, from profiled layers."""
        fp32, lowered = (self._seconds(name) for name in ("fp32", candidate.recipe.name))
        total = sum(candidate.saved)
        # Profiled layers do not add up to measured latencies, so they are scaled to what was measured.
        scale = max((fp32 - lowered) / total, 0.0) if total > 0 else 0.0
        budget = self.bound.seconds or 0.0
        costs = [lowered + scale * sum(candidate.saved[:kept_count]) for kept_count in range(len(candidate.order))]
        return max((kept_count for kept_count, seconds in enumerate(costs) if seconds <= budget), default=0)

    def _step_on(self, candidate: _Candidate) -> None:
        """Go to a safer kept_count where the measured mix missed the bound, or stay."""
        tried = next(
            (one for one in self.path if one.measured and one.recipe == candidate.mix(candidate.kept_count).name), None
        )
        if candidate.settled or tried is None:
            return
        if tried.meets:
            candidate.settled = True
            return
        step = max(1, len(candidate.order) // 8)
        candidate.kept_count += -step if self.bound.seconds is not None else step
        candidate.settled = not 0 <= candidate.kept_count < len(candidate.order)
        if not candidate.settled:
            self._name(candidate)

    def _name(self, candidate: _Candidate) -> None:
        self.mixes[candidate.mix(candidate.kept_count).name] = candidate.names(candidate.kept_count)

    def _seconds(self, name: str) -> float:
        return next(one.seconds or 0.0 for one in self.path if one.measured and one.recipe == name)

    def _meets(self, worse: float | None, seconds: float | None) -> bool:
        if self.bound.drop is not None:
            return worse is not None and keeps_to(worse, self.bound.drop)
        return seconds is not None and self.bound.seconds is not None and seconds <= self.bound.seconds

    def _best(self, study: Study) -> tuple[str, str]:
        found = study.best(at_most_lost=self.bound.drop, at_most_seconds=self.bound.seconds)
        if found.best is not None:
            return found.best, found.words
        measured = [one for one in self.path if one.measured]
        fastest = min(measured, key=lambda one: one.seconds or math.inf)
        return fastest.recipe, "Nothing that was tried meets the bound; this is the fastest of all."

    def _unit(self, study: Study) -> str:
        record = study["fp32"].accuracy
        return "" if record is None else drop_unit(record)


def _worth_keeping(row: LayerCost) -> tuple[bool, float]:
    """Sort key: layers first that save nothing, then those with most noise for the time they save."""
    saved = row.saved_seconds
    if saved is None:
        return True, -row.alone_nsr
    return saved > 0, -row.alone_nsr / max(saved, 1e-9)
