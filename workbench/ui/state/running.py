"""The study that runs, or ran last: start, cancel, resume, and how far each variant is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from traitlets import Bool, Float, HasTraits, Instance, Tuple, Unicode

from workbench import codec
from workbench.errors import DataError, RecipeError
from workbench.machine.store import Store
from workbench.records import Progress, StudyRecord, VariantResult
from workbench.study import Study, estimate, run
from workbench.ui.jobs import DRAWING, STUDIES, Job, Snapshot
from workbench.ui.state.plan import Plan
from workbench.ui.state.selection import ModelSelection
from workbench.ui.state.session import Session

# Drawing takes at most one part in so many of a study's time.
_DRAWING_SHARE = 8
_LONGEST_DRAWING_SECONDS = 5.0
_STAGES = {
    "transform": "transforming",
    "calibrate": "calibrating",
    "build": "building",
    "check": "checking answers",
    "measure": "measuring",
}
_ENDED = {"done": "finished", "failed": "stopped with an error", "cancelled": "cancelled; what was finished is kept"}


@dataclass(frozen=True)
class VariantProgress:
    """How far one variant is.

    Attributes:
        state: `waiting`, `running`, `done` or `failed`.
        stage: what is being done, or was done last, in words.
        fraction: 0..1 of its stages and rounds.
        message, log: of its failure; empty where it has none.
    """

    name: str
    state: str
    stage: str
    fraction: float
    message: str = ""
    log: str = ""


@dataclass(frozen=True)
class Partial:
    """What a running study hands on: the record, and the one that pictures show, which changes less often."""

    record: StudyRecord | None = None
    drawn: StudyRecord | None = None


class Running(HasTraits):
    """The study that runs or ran.

    Attributes:
        job: its job, or None where none ran here yet.
        record: what is known so far.
        drawn: the record that pictures and tables show: they cost time that the study waits for, so they follow it
            from time to time only.
        variants: one VariantProgress a recipe.
        words: where it stands, in a sentence.
        start_words: what the start button says: `Start`, or `Resume` where a study was cut off.
    """

    job = Instance(Job, allow_none=True)
    record = Instance(StudyRecord, allow_none=True)
    drawn = Instance(StudyRecord, allow_none=True)
    study_name = Unicode()
    variants = Tuple()
    fraction = Float(0.0)
    words = Unicode("Nothing was started yet.")
    log = Unicode()
    can_start = Bool(False)
    can_cancel = Bool(False)
    start_words = Unicode("Start")

    def __init__(
        self,
        session: Session,
        selection: ModelSelection,
        plan: Plan,
        run_study: Callable[..., Study] = run,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.session, self.selection, self.plan = session, selection, plan
        self._run_study, self._name = run_study, name
        self._planned: tuple[str, ...] = ()
        selection.observe(lambda change: self._settle(), ["model", "data"])
        plan.observe(lambda change: self._settle(), ["recipes"])
        self._settle()

    @property
    def key(self) -> tuple[str, str, str] | None:
        """What this cell's study is found by when the cell is run again."""
        model, data = self.selection.model, self.selection.data
        if model is None:
            return None
        return (str(self.session.store.root), model.sha256, "" if data is None else data.sha256)

    @property
    def is_settled(self) -> bool:
        """Whether the record will not grow any more."""
        return self.job is None or self.job.snapshot.is_final

    def start(self) -> None:
        """Start the study in the background, or go on with one that was cut off.

        Raises:
            RecipeError: there is no recipe, or a study runs already.
            DataError: no model is loaded.
        """
        model, data, plan = self.selection.model, self.selection.data, self.plan
        if model is None:
            raise DataError("No model is loaded. Choose one on the page `Model` first.")
        if not plan.recipes:
            raise RecipeError("No recipe is chosen. Add at least one on the page `Recipes`.")
        if self.job is not None and not self.job.is_final:
            raise RecipeError("A study runs already. Cancel it, or wait for its end.")
        protocol, options, backend = plan.protocol, plan.options, plan.backend
        recipes, store, name = plan.recipes, self.session.store, self._name
        self._planned = tuple(dict.fromkeys(("fp32", *(recipe.name for recipe in recipes))))

        def work(job: Job[Study]) -> Study:
            ticks: list[tuple[float, Progress]] = []

            def progress(step: Progress) -> None:
                ticks.append((time.monotonic(), step))
                job.report(step)

            newest: list[StudyRecord] = []
            due = 0.0

            def watch(record: StudyRecord) -> None:
                nonlocal due
                newest[:] = [record]
                began = time.monotonic()
                if began < due:
                    job.publish(Partial(record, _drawn(job)))
                    return
                # Pictures are drawn while nothing is measured: this thread waits for them.
                job.publish(Partial(record, record))
                job.flush()
                DRAWING.settle(_LONGEST_DRAWING_SECONDS)
                due = time.monotonic() + _DRAWING_SHARE * (time.monotonic() - began)

            try:
                return self._run_study(
                    model,
                    data,
                    recipes,
                    backend=backend,
                    protocol=protocol,
                    options=options,
                    name=name,
                    store=store,
                    progress=progress,
                    watch=watch,
                    on_line=job.say,
                    cancel=job.cancelled,
                )
            finally:
                if newest:
                    job.publish(Partial(newest[0], newest[0]))
                _remember_pace(store, backend, estimate.pace(ticks, protocol))

        job = Job(f"study of {model.name}", work, key=self.key)
        self.record, self.study_name = None, ""
        self.job = job
        self.session.start(STUDIES, job, self._take)
        self._take(job)

    def cancel(self) -> None:
        """Ask the running study to stop; everything finished is kept."""
        if self.job is not None:
            self.job.cancel()
            self.words = "Stopping …"
            self.can_cancel = False

    def find(self) -> None:
        """Find the study of this model and these data again: a running or ended job, or else one in the store."""
        job = None if self.key is None else STUDIES.find(self.key)
        if job is not None:
            self.job = job
            self.session.follow(STUDIES, job, self._take)
            self._take(job)
        elif self.selection.model is not None:
            self._find_stored()

    def result(self, timeout: float | None = None) -> Study:
        """Wait for the study that runs and return it.

        Raises:
            RecipeError: none was started.
        """
        if self.job is None:
            raise RecipeError("No study was started from here. Press Start, or call start() first.")
        study: Study = self.job.result(timeout)
        return study

    def _take(self, job: Job[Any]) -> None:
        """Show what a job has to say; another job's late news is not for us."""
        if job is not self.job:
            return
        snapshot = job.snapshot
        partial = snapshot.partial or Partial()
        if snapshot.state == "done" and job.outcome is not None:
            partial = Partial(job.outcome.record, job.outcome.record)
        with self.hold_trait_notifications():
            self.log = snapshot.log
            self.fraction = (
                1.0 if snapshot.state == "done" else 0.0 if snapshot.progress is None else snapshot.progress.fraction
            )
            if partial.record is not None:
                self.record, self.study_name = partial.record, partial.record.name
            if partial.drawn is not None:
                self.drawn = partial.drawn
            self.variants = self._progress(snapshot)
            self.words = self._sentence(snapshot)
            self._settle()
        if snapshot.state == "failed":
            self.plan.restart_estimate()
            job.raise_failure()
        elif snapshot.is_final:
            self.plan.restart_estimate()

    def _settle(self) -> None:
        busy = self.job is not None and not self.job.snapshot.is_final
        self.can_start = self.selection.model is not None and bool(self.plan.recipes) and not busy
        self.can_cancel = busy and self.job is not None and not self.job.cancelled()
        self.start_words = "Resume" if not busy and self._is_cut_off() else "Start"

    def _is_cut_off(self) -> bool:
        if self.record is None:
            return False
        rounds = self.record.protocol.rounds
        return any(result.failure is None and _rounds(result) < rounds for result in self.record.results)

    def _find_stored(self) -> None:
        key, model = self.key, self.selection.model
        if key is None or model is None:
            return
        for name in self.session.store.keys("study"):
            if self._name is not None and name != self._name:
                continue
            if self._name is None and not name.startswith(f"{model.name}-"):
                continue
            record = Study.open(name, self.session.store).record
            if record.model.sha256 == model.sha256:
                self._show_stored(record)
                return

    def _show_stored(self, record: StudyRecord) -> None:
        with self.hold_trait_notifications():
            self.record, self.drawn, self.study_name = record, record, record.name
            self._planned = tuple(result.recipe.name for result in record.results)
            self.variants = tuple(variant_progress(result, record.protocol.rounds) for result in record.results)
            self.fraction = sum(item.fraction for item in self.variants) / max(len(self.variants), 1)
            state = "was cut off; Resume goes on from there" if self._is_cut_off() else "is finished"
            self.words = f"An earlier study of this model {state}: {record.name}."
            self._settle()

    def _progress(self, snapshot: Snapshot) -> tuple[VariantProgress, ...]:
        if self.record is None:
            return tuple(VariantProgress(name, "waiting", "waiting", 0.0) for name in self._planned)
        current = None if snapshot.is_final or snapshot.progress is None else snapshot.progress
        rounds = self.record.protocol.rounds
        return tuple(variant_progress(result, rounds, current) for result in self.record.results)

    def _sentence(self, snapshot: Snapshot) -> str:
        if snapshot.state == "waiting":
            return "Waiting until the work before it has ended: two at once would disturb the measurement."
        took = estimate.words(snapshot.elapsed_seconds)
        if snapshot.is_final:
            return f"Study {self.study_name} {_ENDED[snapshot.state]} after {took}.".replace("  ", " ")
        if snapshot.progress is None:
            return f"Starting, {took}."
        stage = _STAGES.get(snapshot.progress.stage, snapshot.progress.stage)
        message = f", {snapshot.progress.message}" if snapshot.progress.message else ""
        left = snapshot.remaining_seconds
        rest = "" if left is None else f", about {estimate.words(left)} left"
        share = f"{snapshot.progress.fraction:.0%}"
        return f"{share}: {stage} {snapshot.progress.variant}{message}. {took} elapsed{rest}."


def _remember_pace(store: Store, backend: str, seen: estimate.Pace) -> None:
    if seen.answer_seconds is not None and seen.round_overhead_seconds is not None:
        store.put("pace", backend, codec.to_json(seen))


def variant_progress(result: VariantResult, rounds: int, current: Progress | None = None) -> VariantProgress:
    """Return how far a variant is, from what is known of it and what is being done now."""
    name = result.recipe.name
    done = [result.variant is not None, result.engine is not None, result.accuracy is not None]
    fraction = (sum(done) + min(_rounds(result), rounds)) / (len(done) + rounds)
    if result.failure is not None:
        failure = result.failure
        return VariantProgress(
            name, "failed", f"failed at {failure.stage}", fraction, f"{failure.error}: {failure.message}", failure.log
        )
    if current is not None and current.variant == name:
        stage = _STAGES.get(current.stage, current.stage)
        return VariantProgress(name, "running", f"{stage} {current.message}".strip(), fraction)
    if fraction >= 1.0:
        return VariantProgress(name, "done", "done", 1.0)
    stage = "waiting" if not any(done) else f"{min(_rounds(result), rounds)} of {rounds} rounds measured"
    return VariantProgress(name, "waiting", stage, fraction)


def _drawn(job: Job[Any]) -> StudyRecord | None:
    partial = job.snapshot.partial
    return None if partial is None else partial.drawn


def _rounds(result: VariantResult) -> int:
    return 0 if result.measurement is None else len(result.measurement.rounds)
