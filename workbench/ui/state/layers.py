"""The layers of two variants side by side, with the reasons for the difference; profiled in the background."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from traitlets import Bool, HasTraits, Tuple, Unicode

from workbench.errors import BackendMissing, DataError, EngineError, RecipeError
from workbench.explaining.explanation import Explanation
from workbench.records import StudyRecord
from workbench.study import Study
from workbench.study.why import explain
from workbench.ui.jobs import STUDIES, Job
from workbench.ui.layer_rows import LayerRow, layer_rows, matching
from workbench.ui.state.plan import Plan
from workbench.ui.state.results import Results
from workbench.ui.state.selection import ModelSelection
from workbench.ui.state.session import Session

NOT_PROFILED = "Not profiled yet: choose two variants and press Profile. It takes some seconds a variant."


@dataclass(frozen=True)
class Found:
    """Two variants' layers, and what is said of the second.

    Attributes:
        recorded: the device of an explanation that the study keeps, where nothing could be profiled here; else empty.
    """

    rows: tuple[LayerRow, ...]
    sentences: tuple[str, ...]
    recorded: str = ""


class Layers(HasTraits):
    """The view of layers.

    Attributes:
        variants: of the study that is shown.
        first, second: the variants that stand side by side.
        rows, shown: all rows, and those that the query leaves.
        names: of the two variants that `rows` are of.
        sentences: why the second takes the time that it takes, the main reason first.
        selected: places of chosen rows in `rows`.
        words: where it stands; `error` what went wrong, and is shown beside the button.
    """

    variants = Tuple()
    first = Unicode()
    second = Unicode()
    rows = Tuple()
    shown = Tuple()
    names = Tuple(("", ""))
    sentences = Tuple()
    query = Unicode()
    selected = Tuple()
    words = Unicode(NOT_PROFILED)
    error = Unicode()
    is_running = Bool(False)

    def __init__(
        self,
        session: Session,
        selection: ModelSelection,
        plan: Plan,
        results: Results,
        look: Callable[..., Explanation] = explain,
    ) -> None:
        super().__init__()
        self.session, self.selection, self.plan, self.results, self._look = session, selection, plan, results, look
        self._job: Job[Found] | None = None
        self._of = ""
        results.observe(lambda change: self._settle(), "variants")
        results.observe(lambda change: self._forget_others(), "record")
        results.observe(lambda change: self._follow(change["new"]), "selected")

    def profile(self) -> None:
        """Profile both variants, layer by layer, and say why the second differs from the baseline.

        Raises:
            DataError: there is no study to look at.
            RecipeError: a variant is not one of the study's, or the two are the same.
        """
        record, first, second = self.results.record, self.first, self.second
        if record is None:
            raise DataError("There is no study to look at. Start one on page `Run`, or open one on page `Studies`.")
        for name in (first, second):
            if name not in self.results.variants:
                raise RecipeError(f"There is no variant {name!r} in the study that is shown. Choose one of its.")
        if first == second:
            raise RecipeError("Choose two different variants: the same one twice shows no difference.")

        def work(job: Job[Found]) -> Found:
            return self._found(record, first, second, job)

        self.rows, self.shown, self.sentences, self.selected, self.error = (), (), (), (), ""
        self.words, self.is_running, self._of = f"Profiling {first} and {second} …", True, record.name
        self._job = Job("layers", work, key=("layer times", id(self)))
        self.session.start(STUDIES, self._job, lambda job: self._take(job, (first, second)))

    def cancel(self) -> None:
        """Stop profiling."""
        if self._job is not None:
            self._job.cancel()

    def search(self, query: str) -> None:
        """Show the rows that hold the words of a query: a name, a module, a node, a type."""
        self.query = query
        self.shown = matching(self.rows, query)

    def keep(self) -> None:
        """Add a recipe to the study that leaves the chosen layers of the second variant as they were.

        Raises:
            RecipeError: nothing was chosen, no node of the file is behind it, or the recipe is there already.
            DataError: there is no study to look at.
        """
        if self.results.record is None:
            raise DataError("There is no study to look at. Start one on page `Run`, or open one on page `Studies`.")
        chosen = [self.rows[place] for place in self.selected if place < len(self.rows)]
        nodes = list(dict.fromkeys(node for row in chosen for node in row.nodes))
        if not nodes:
            raise RecipeError(
                "No layer with nodes of the file is chosen, so there is nothing to keep. Click layers in the list first."
            )
        name = self.names[1]
        recipe = self.plan.add_recipe(Study(self.results.record).keeping(name, nodes))
        self.words = (
            f"Added {recipe.name}: {name} with {len(chosen)} of its layers as they were. Start it on page `Run`."
        )

    def _found(self, record: StudyRecord, first: str, second: str, job: Job[Found]) -> Found:
        data = self.selection.data
        known = data if data is not None and data.sha256 == record.data.get("sha256") else None

        recorded = ""

        def look(variant: str) -> Explanation:
            nonlocal recorded
            try:
                return self._look(
                    Study(record), variant, known, layers=False, store=self.session.store, progress=job.report,
                    cancel=job.cancelled,
                )  # fmt: skip
            except (BackendMissing, EngineError):
                # A study of another machine: what it was told there is shown.
                kept = Study(record).explanations.get(variant)
                if kept is None:
                    raise
                recorded = next(
                    (item.engine.device for item in record.results if item.engine is not None), record.backend
                )
                return kept

        # The baseline comes with every explanation; what is explained is better not the baseline itself.
        if record.baseline in (first, second):
            other = first if second == record.baseline else second
            explained = look(other)
            passes = (explained.evidence.baseline, explained.evidence.variant)
            ours, theirs = passes if second == other else passes[::-1]
        else:
            ours, explained = look(first).evidence.variant, look(second)
            theirs = explained.evidence.variant
        return Found(layer_rows(ours, theirs), explained.sentences, recorded)

    def _take(self, job: Job[Found], names: tuple[str, str]) -> None:
        snapshot = job.snapshot
        if snapshot.state == "waiting":
            self.words = "Waits until the running study has ended."
        elif snapshot.state == "running" and snapshot.progress is not None:
            step = snapshot.progress
            self.words = f"Profiling: {step.stage} {step.variant}, {step.fraction:.0%} …"
        if not snapshot.is_final:
            return
        self.is_running = False
        if snapshot.state == "done" and job.outcome is not None:
            found = job.outcome
            self.names, self.rows, self.sentences = names, found.rows, found.sentences
            self.search(self.query)
            times = [1e3 * sum(getattr(row, side).seconds for row in found.rows) for side in ("first", "second")]
            self.words = (
                f"{names[0]}: {times[0]:.3g} ms in layers; {names[1]}: {times[1]:.3g} ms. Profiling slows a call down: these "
                f"show where time goes, not how long a call takes."
            )
            if found.recorded:
                self.words = f"Recorded on {found.recorded}. {self.words}"
        elif snapshot.state == "cancelled":
            self.words = "Cancelled. Nothing of it was kept."
        else:
            self.words, self.error = "Not profiled.", snapshot.error

    def _follow(self, selected: str) -> None:
        """What is selected elsewhere stands on the second side here."""
        if selected and selected != self.first:
            self.second = selected

    def _settle(self) -> None:
        names = self.variants = self.results.variants
        record = self.results.record
        baseline = "" if record is None else record.baseline
        if self.first not in names:
            self.first = baseline if baseline in names else next(iter(names), "")
        if self.second not in names or self.second == self.first:
            self.second = next((name for name in reversed(names) if name != self.first), self.first)

    def _forget_others(self) -> None:
        """Layers of another study are not shown under this one's name."""
        record: Any = self.results.record
        if self._of and (record is None or record.name != self._of):
            self.rows, self.shown, self.sentences, self.selected = (), (), (), ()
            self.words, self.error, self._of = NOT_PROFILED, "", ""
