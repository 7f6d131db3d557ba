"""One recipe under many batches and threads or streams, measured in the background, with the sweet spot under a budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from traitlets import Bool, Float, HasTraits, Instance, Tuple, Unicode

from workbench.errors import DataError, RecipeError
from workbench.study.batches import Matrix, matrix
from workbench.ui.jobs import STUDIES, Job
from workbench.ui.state.plan import Plan
from workbench.ui.state.results import as_number
from workbench.ui.state.selection import ModelSelection
from workbench.ui.state.session import Session

OVER = ("threads", "streams")


class Batches(HasTraits):
    """The page of batches.

    Attributes:
        recipes, recipe: names of the plan's recipes, and the one that is measured.
        batches_text, workers_text: numbers with commas, as typed.
        over: what the second numbers count, one of `OVER`.
        budget_text: latency of a call to keep to (ms), as typed; empty is none.
        found: what was measured so far.
        spot: (batch, workers) of the sweet spot; empty where there is none.
        words: where it stands, then the sweet spot; `error` what went wrong, and is shown beside the button.
    """

    recipes = Tuple()
    recipe = Unicode()
    batches_text = Unicode("1, 2, 4, 8, 16, 32")
    workers_text = Unicode("1, 2")
    over = Unicode(OVER[0])
    budget_text = Unicode()
    found = Instance(Matrix, allow_none=True)
    spot = Tuple()
    words = Unicode("Not measured yet: choose numbers and press Measure. Each place takes as long as a small study.")
    error = Unicode()
    is_running = Bool(False)
    fraction = Float(0.0)

    def __init__(
        self, session: Session, selection: ModelSelection, plan: Plan, measure: Callable[..., Matrix] = matrix
    ) -> None:
        super().__init__()
        self.session, self.selection, self.plan, self._measure = session, selection, plan, measure
        self._job: Job[Matrix] | None = None
        plan.observe(lambda change: self._settle(), "recipes")
        self._settle()

    def measure(self) -> None:
        """Measure every batch under every number of threads or streams.

        Raises:
            DataError: no model is loaded.
            RecipeError: no recipe is chosen, or what was typed are no numbers.
        """
        model, data, plan, store = self.selection.model, self.selection.data, self.plan, self.session.store
        recipe = next((one for one in plan.recipes if one.name == self.recipe), None)
        if model is None:
            raise DataError("No model is loaded. Choose one on the page `Model` first.")
        if recipe is None:
            raise RecipeError("No recipe is chosen. Add one on the page `Recipes`.")
        batches, workers = _numbers("batches", self.batches_text), _numbers(self.over, self.workers_text)
        protocol, options, backend, over = plan.protocol, plan.options, plan.backend, self.over

        def work(job: Job[Matrix]) -> Matrix:
            return self._measure(
                model, data, recipe, batches=batches, backend=backend, protocol=protocol, options=options, store=store,
                progress=job.report, watch=job.publish, cancel=job.cancelled, **{over: workers},
            )  # fmt: skip

        self.found, self.spot, self.error, self.is_running, self.fraction = None, (), "", True, 0.0
        self.words = f"Measuring {recipe.name} in {len(batches) * len(workers)} places …"
        self._job = Job("batches", work, key=("batches", id(self)))
        self.session.start(STUDIES, self._job, self._take)

    def cancel(self) -> None:
        """Stop; what was measured is remembered."""
        if self._job is not None:
            self._job.cancel()

    def set_budget(self, text: str) -> None:
        """Take a latency budget as typed, and say the sweet spot under it.

        Raises:
            RecipeError: it is no number.
        """
        as_number("latency budget", text)
        self.budget_text = text
        self._judge()

    def _take(self, job: Job[Any]) -> None:
        snapshot = job.snapshot
        if job is not self._job:
            return
        if snapshot.state == "waiting":
            self.words = "Waits until the running study has ended."
        if snapshot.progress is not None:
            self.fraction = snapshot.progress.fraction
            self.words = f"Measuring {snapshot.progress.message} …"
        self.found = job.outcome or snapshot.partial or self.found
        if not snapshot.is_final:
            return
        self.is_running = False
        if snapshot.state == "failed":
            self.words, self.error = "", snapshot.error
        else:
            self._judge()
            if snapshot.state == "cancelled":
                self.words = f"Cancelled; what was measured is remembered. {self.words}"

    def _judge(self) -> None:
        if self.found is None:
            return
        budget = as_number("latency budget", self.budget_text)
        seconds = None if budget is None else budget / 1e3
        place = self.found.sweet_spot(seconds)
        self.spot = () if place is None else (place.batch, place.workers)
        self.words = f"{self.found.words(seconds)} {' '.join(self.found.notes)}"

    def _settle(self) -> None:
        self.recipes = tuple(one.name for one in self.plan.recipes)
        if self.recipe not in self.recipes:
            self.recipe = next(iter(self.recipes), "")


def _numbers(what: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and 0 < int(part) < 1_000_000 for part in parts):
        raise RecipeError(
            f"The {what} are {text!r}; write numbers of at least 1 with commas between them, such as: 1, 2, 4"
        )
    return tuple(dict.fromkeys(int(part) for part in parts))
