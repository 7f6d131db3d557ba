"""What TensorRT would make of the chosen recipes, on a machine without a GPU; see `workbench.preview`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from traitlets import HasTraits, Tuple, Unicode

from workbench import engines
from workbench.engines.tensorrt.targets import RUNS_ON
from workbench.errors import BackendMissing, Cancelled, DataError, WorkbenchError
from workbench.machine.handle import Handle
from workbench.study.previews import BACKEND, Preview, preview
from workbench.ui.jobs import STUDIES, Job
from workbench.ui.state.plan import Plan
from workbench.ui.state.selection import ModelSelection
from workbench.ui.state.session import Session

TARGETS = tuple(f"sm{major}{minor}" for major, minor in RUNS_ON)


@dataclass(frozen=True)
class Line:
    """What is known of one recipe: a preview, or why there is none."""

    recipe: str
    found: Preview | None
    refusal: str = ""


class Previewing(HasTraits):
    """The preview on the page of recipes.

    Attributes:
        absent: why there is none here, with the line that mends it; empty where there is one.
        targets, target: what can be built for, and what is.
        lines: one for each recipe, in the order of the study.
        words: what is being done, or for what the lines hold.
    """

    absent = Unicode()
    targets = Tuple(TARGETS)
    target = Unicode("sm89")
    lines = Tuple()
    words = Unicode()

    def __init__(
        self,
        session: Session,
        selection: ModelSelection,
        plan: Plan,
        make: Callable[..., Preview] = preview,
    ) -> None:
        super().__init__()
        self.session, self.selection, self.plan, self._make = session, selection, plan, make
        missing = engines.missing_to_build(BACKEND)
        self.absent = "" if missing is None else str(missing)
        selection.observe(lambda change: self._forget(), ["model", "data"])

    def show(self) -> None:
        """Preview every recipe of the study for the chosen target, in the background.

        Raises:
            BackendMissing: TensorRT for RTX is not installed.
            DataError: no model is loaded yet, or no recipe was chosen.
        """
        if self.absent:
            raise BackendMissing(self.absent)
        model, data, recipes, target = self.selection.model, self.selection.data, self.plan.recipes, self.target
        if model is None or not recipes:
            raise DataError(
                "A preview needs a model and a recipe. Load a model on page `Model`, and add a recipe here."
            )
        # Without calibration samples of their own, data are no better than random ones for this.
        known = data if data is not None and data.calibration is not None else None

        def work(job: Job[tuple[Line, ...]]) -> tuple[Line, ...]:
            lines: list[Line] = []
            for recipe in recipes:
                handle = Handle(cancelled=job.cancelled)
                try:
                    found = self._make(
                        model, recipe, target=target, data=known, store=self.session.store, handle=handle
                    )
                    lines.append(Line(recipe.name, found))
                except Cancelled:
                    raise
                except WorkbenchError as error:
                    lines.append(Line(recipe.name, None, str(error)))
                job.publish(tuple(lines))
            return tuple(lines)

        self.lines, self.words = (), f"Building for {target} …"
        job = Job(f"preview for {target}", work, key=("preview", id(self)))
        self.session.start(STUDIES, job, lambda job: self._take(job, target))

    def _take(self, job: Job[tuple[Line, ...]], target: str) -> None:
        snapshot = job.snapshot
        if snapshot.state == "waiting":
            self.words = "Waits until the running study has ended."
        elif snapshot.state in ("failed", "cancelled"):
            self.words = "Cancelled." if snapshot.state == "cancelled" else ""
            if snapshot.state == "failed":
                job.raise_failure()
        elif snapshot.state == "done" and job.outcome is not None:
            self.lines, self.words = job.outcome, f"Built for {target}, not run."
        elif snapshot.state == "running" and snapshot.partial:
            self.lines = snapshot.partial

    def _forget(self) -> None:
        self.lines, self.words = (), ""
