"""What each layer costs alone, mixes chosen by hand, and the search for a mix that keeps to a bound; in the background."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from traitlets import Bool, Float, HasTraits, Instance, Tuple, Unicode

from workbench.datasets import Dataset
from workbench.errors import DataError, RecipeError
from workbench.machine.handle import Handle
from workbench.recipes import Recipe
from workbench.records import Model
from workbench.study import estimate
from workbench.study.search import Found, optimize
from workbench.tuning.sensitivity import LayerCosts, layer_costs
from workbench.ui.jobs import STUDIES, Job
from workbench.ui.state.plan import Plan
from workbench.ui.state.results import Results, as_number
from workbench.ui.state.selection import ModelSelection
from workbench.ui.state.session import Session

BY: tuple[Literal["layer", "block"], ...] = ("layer", "block")
_LOWERS = ("quantize", "quantize_weights", "precision")
FIRST_WORDS = "Not ranked yet: choose a recipe that lowers layers, and press Rank layers. It takes a minute or so."


class Tuning(HasTraits):
    """The page of tuning.

    Attributes:
        recipes, recipe: names of the plan's recipes that lower layers, and the one that is ranked.
        by: `layer`, or `block` for repeated ones.
        costs: its layers, the noisiest first; None before they were ranked.
        chosen: names of layers that shall stay in floating point.
        loss_text, latency_text: the bound of a search, as typed; one of the two.
        found: of the last search.
        words: where it stands; `error` what went wrong, and is shown beside the buttons.
        fraction: of what runs.
    """

    recipes = Tuple()
    recipe = Unicode()
    by = Unicode(BY[0])
    costs = Instance(LayerCosts, allow_none=True)
    chosen = Tuple()
    loss_text = Unicode("0.5")
    latency_text = Unicode()
    found = Instance(Found, allow_none=True)
    words = Unicode(FIRST_WORDS)
    error = Unicode()
    is_running = Bool(False)
    fraction = Float(0.0)

    def __init__(
        self,
        session: Session,
        selection: ModelSelection,
        plan: Plan,
        results: Results,
        rank: Callable[..., LayerCosts] = layer_costs,
        search: Callable[..., Found] = optimize,
    ) -> None:
        super().__init__()
        self.session, self.selection, self.plan, self.results = session, selection, plan, results
        self._rank, self._search = rank, search
        self._job: Job[Any] | None = None
        self._is_chosen = False
        plan.observe(lambda change: self._settle(), "recipes")
        selection.observe(lambda change: self._forget(), ["model", "data"])
        self._settle()

    def choose(self, recipe: str) -> None:
        """Take a recipe; until somebody does, the first one that quantizes is taken."""
        self.recipe, self._is_chosen = recipe, True

    def rank(self) -> None:
        """Measure what lowering each layer of the chosen recipe costs alone, and what it saves.

        Raises:
            DataError: no model, or data without calibration samples.
            RecipeError: no recipe is chosen.
        """
        model, data, recipe = self._asked()
        backend, options, store, by = self.plan.backend, self.plan.options, self.session.store, self.by
        batch = self.plan.protocol.batch

        def work(job: Job[LayerCosts]) -> LayerCosts:
            handle = Handle(job.cancelled, job.report, job.say)
            return self._rank(
                model, data, recipe, by=by, backend=backend, options=options, batch=batch, store=store, handle=handle
            )

        self.costs, self.chosen = None, ()
        self._start(Job(f"Ranking the layers of {recipe.name}", work, key=("tuning", id(self))), self._take_costs)

    def add(self) -> None:
        """Add the recipe with the chosen layers kept in floating point to the study.

        Raises:
            RecipeError: no layer is chosen, or the recipe is there already.
        """
        if self.costs is None or not self.chosen:
            raise RecipeError(
                "No layer is chosen. Rank the layers first, and select those that shall stay as they are."
            )
        recipe = self.plan.add_recipe(self.costs.keeping(self.chosen))
        self.words = (
            f"Added {recipe.name}: {self.costs.recipe.name} without {len(self.chosen)} layers. Start it on page `Run`."
        )

    def search(self) -> None:
        """Search the mix of lowered and kept layers that keeps to the bound, and build, check and measure what it finds.

        Raises:
            DataError: no model, or data without calibration samples.
            RecipeError: no recipe is chosen, or not exactly one bound was typed.
        """
        model, data, recipe = self._asked()
        loss, latency = as_number("accuracy bound", self.loss_text), as_number("latency bound", self.latency_text)
        if (loss is None) == (latency is None):
            raise RecipeError(
                "Type one bound: the accuracy that may be lost, for the fastest mix, or the latency to keep to, for the most "
                "accurate one. Leave the other empty."
            )
        plan, store, by = self.plan, self.session.store, self.by
        bound = {"at_most_lost": loss, "at_most_seconds": None if latency is None else latency / 1e3}
        how = {"backend": plan.backend, "protocol": plan.protocol, "options": plan.options, "store": store}

        def work(job: Job[Found]) -> Found:
            return self._search(
                model, data, candidates=[recipe], by=by, **bound, **how, progress=job.report, cancel=job.cancelled
            )

        self.found = None
        self._start(Job(f"Searching from {recipe.name}", work, key=("tuning", id(self))), self._take_found)

    def cancel(self) -> None:
        """Stop what runs; what was measured is kept."""
        if self._job is not None:
            self._job.cancel()

    def show(self) -> None:
        """Show the search's study on the page of results, with the best variant selected.

        Raises:
            RecipeError: nothing was found yet.
        """
        if self.found is None:
            raise RecipeError("Nothing was searched yet. Type a bound and press Search.")
        self.results.show(self.found.study.record)
        bound = self.found.bound
        latency = "" if bound.seconds is None else f"{bound.seconds * 1e3:g}"
        self.results.set_budget(latency, "" if bound.drop is None else f"{bound.drop:g}")
        self.results.select(self.found.best)
        self.session.page = "Results"

    def _asked(self) -> tuple[Model, Dataset, Recipe]:
        model, data = self.selection.model, self.selection.data
        if model is None or data is None or data.calibration is None:
            raise DataError(
                "Layers are judged on calibration samples: load a model, and data that have some, on page `Model`."
            )
        recipe = next((one for one in self.plan.recipes if one.name == self.recipe), None)
        if recipe is None:
            raise RecipeError("No recipe is chosen that lowers layers. Add one on page `Recipes`, such as int8-max.")
        return model, data, recipe

    def _start(self, job: Job[Any], done: Callable[[Any], None]) -> None:
        self.error, self.is_running, self.fraction = "", True, 0.0
        self.words, self._job = f"{job.name} …", job
        self.session.start(STUDIES, job, lambda job: self._take(job, done))

    def _take(self, job: Job[Any], done: Callable[[Any], None]) -> None:
        if job is not self._job:
            return
        snapshot = job.snapshot
        if snapshot.state == "waiting":
            self.words = "Waits until the running study has ended."
        elif snapshot.state == "running" and snapshot.progress is not None:
            step = snapshot.progress
            self.fraction = step.fraction
            self.words = " ".join(filter(None, (f"{job.name}:", step.stage, step.variant, step.message))) + " …"
        elif snapshot.state == "running":
            self.words = f"{job.name}: {estimate.words(snapshot.elapsed_seconds)} so far …"
        if not snapshot.is_final:
            return
        self.is_running = False
        if snapshot.state == "done" and job.outcome is not None:
            done(job.outcome)
        elif snapshot.state == "cancelled":
            self.words = "Cancelled. What was measured is remembered, and the same press goes on from there."
        else:
            self.words, self.error = "", snapshot.error

    def _take_costs(self, costs: LayerCosts) -> None:
        self.costs = costs
        lost = "" if costs.whole_drop is None else f" and {costs.whole_drop:.3g} {costs.unit}"
        self.words = (
            f"{len(costs.rows)} layers of {costs.recipe.name}, the noisiest first; all lowered together leave "
            f"{costs.whole_db:.1f} dB{lost} lost on {costs.samples} calibration samples."
        )

    def _take_found(self, found: Found) -> None:
        self.found = found
        self.words = found.reason
        known = {recipe.name for recipe in self.plan.recipes}
        if found.best not in known and not self.plan.refusal(found.recipe):
            self.plan.add_recipe(found.recipe)
            self.words += f" {found.best} is among the study's recipes now."

    def _settle(self) -> None:
        lowering = [one.name for one in self.plan.recipes if any(step.kind in _LOWERS for step in one.steps)]
        self.recipes = tuple(lowering)
        quantizing = [one.name for one in self.plan.recipes if one.step("quantize") is not None]
        if self.recipe not in lowering or not self._is_chosen:
            self.recipe = next(iter(quantizing), next(iter(lowering), ""))

    def _forget(self) -> None:
        self.costs, self.found, self.chosen, self.words, self.error = None, None, (), FIRST_WORDS, ""
