"""What a study found: table, front, budgets, disagreements. Everything slow is computed on the drawing queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from traitlets import Bool, Dict, HasTraits, Instance, Tuple, Unicode

from workbench.datasets import Dataset
from workbench.errors import RecipeError, nearest
from workbench.judging import best, standing
from workbench.judging.best import Budget
from workbench.judging.comparison import Row, unlike
from workbench.judging.standing import Quality
from workbench.plots.distributions import batch_words
from workbench.plots.theme import ThemeName
from workbench.records import StudyRecord
from workbench.study import Study
from workbench.study.catalog import stored
from workbench.ui import live_front, pictures
from workbench.ui.disagreements import Disagreements, disagreements
from workbench.ui.jobs import DRAWING, Job
from workbench.ui.live_front import Look, Series, series_of
from workbench.ui.pictures import Summary
from workbench.ui.state.selection import ModelSelection
from workbench.ui.state.session import Session

# From here on finding the front takes so long that a study that still grows is shown without it.
MANY_VARIANTS = 30
VIEWS = ("Plot", "Table", "Layers", "Graph", "Disagreements", "Calibration")
THEMES: tuple[ThemeName, ...] = ("light", "dark")


class Results(HasTraits):
    """The record that is shown, and what was derived from it.

    Attributes:
        view: one of `VIEWS`.
        selected: the variant that was clicked, wherever: in the front, in the table, in a menu.
        latency_text, loss_text: budgets as typed (ms; points or units of the score); empty is none.
        best, budget_words: the best variant within the budgets, and why.
        figure: the front, see `workbench.ui.live_front`.
        is_log, is_whole: its latency axis is logarithmic; its axes hold points far from all others too.
        others, beside: studies of the same model in the store, and those whose points are drawn too.
        first, second: the two variants whose disagreements are shown.
    """

    record = Instance(StudyRecord, allow_none=True)
    summary = Instance(Summary, allow_none=True)
    view = Unicode(VIEWS[0])
    words = Unicode("No results yet: start a study on the page `Run`, or open one on the page `Studies`.")
    selected = Unicode()
    latency_text = Unicode()
    loss_text = Unicode()
    best = Unicode()
    budget_words = Unicode()
    figure: Any = Dict()
    is_log = Bool(False)
    is_whole = Bool(False)
    others = Tuple()
    beside = Tuple()
    variants = Tuple()
    first = Unicode()
    second = Unicode()
    disagreements = Instance(Disagreements, args=("",))

    def __init__(self, session: Session, selection: ModelSelection) -> None:
        super().__init__()
        self.session, self.selection = session, selection
        self._beside: tuple[Series, ...] = ()
        self.observe(lambda change: self._draw(), ["is_log", "is_whole", "selected"])

    def show(self, record: StudyRecord | None, final: bool = True) -> None:
        """Show a record.

        Args:
            final: False for one that still grows: with many variants the front waits for the last one.
        """
        if record is None or (record is self.record and not final):
            return
        self.record = record
        names = tuple(result.recipe.name for result in record.results)
        if names != self.variants:
            self.variants = names
            self.selected = self.selected if self.selected in names else ""
            self.first = record.baseline
            self.second = next((name for name in reversed(names) if name != record.baseline), record.baseline)
        front = final or len(names) <= MANY_VARIANTS
        self._start("results", lambda job: pictures.summarise(record, front=front), self._take_summary)

    def select(self, name: str) -> None:
        """Select a variant everywhere: it is what others are compared with.

        Raises:
            RecipeError: the study that is shown has no such variant.
        """
        record = self.record
        if record is None or name not in self.variants:
            raise RecipeError(
                f"There is no variant {name!r} in the study that is shown. {nearest(name, self.variants)}"
            )
        self.selected = name
        if name != self.first:
            self.compare_answers(self.first, name)

    def look_for_others(self) -> None:
        """List the studies of the same model in the store."""
        record = self.record
        if record is None:
            self.others = ()
            return
        sha256, ours = record.model.sha256, record.name
        every = stored(self.session.store)
        found = [name for name, other in every if other.model.sha256 == sha256 and name != ours]
        self.others = tuple(found)

    def draw_beside(self, names: tuple[str, ...]) -> None:
        """Draw the points of other studies of the same model too, marked as unlike.

        Raises:
            StoreError: one cannot be read.
        """
        records = [Study.open(name, self.session.store).record for name in names]
        self.beside = tuple(names)
        shown, summary = self.record, self.summary

        def work(job: Job[tuple[Series, ...]]) -> tuple[Series, ...]:
            if shown is None or summary is None or summary.quality is None:
                return ()
            return tuple(filter(None, (_beside(shown, summary.quality, other) for other in records)))

        self._start("beside", work, self._take_beside)

    def set_budget(self, latency: str, loss: str) -> None:
        """Take budgets as typed and mark the best variant.

        Raises:
            RecipeError: what was typed is no number.
        """
        self.latency_text, self.loss_text = latency, loss
        self._choose()
        self._draw()

    def compare_answers(self, first: str, second: str) -> None:
        """Show the samples on which two variants differ."""
        self.first, self.second = first, second
        self._compare()

    @property
    def budget(self) -> Budget:
        """The budgets as numbers.

        Raises:
            RecipeError: what was typed is no number.
        """
        latency = as_number("latency budget", self.latency_text)
        return Budget(None if latency is None else latency / 1e3, as_number("accuracy budget", self.loss_text))

    def _take_summary(self, job: Job[Summary]) -> None:
        summary = _outcome(job)
        if summary is None or summary.record is not self.record:
            return
        self.summary = summary
        self.words = summary.finding
        self._choose()
        self._draw()
        self._compare()

    def _choose(self) -> None:
        summary, limits = self.summary, self.budget
        if summary is None or summary.quality is None:
            self.best, self.budget_words = "", ""
            return
        alike = standing.alike_in_speed(summary.record)
        apart = standing.apart_in_speed(summary.record)
        choice = best.choose(summary.points, summary.quality, summary.record.baseline, limits, alike, apart=apart)
        self.best, self.budget_words = choice.best or "", choice.words

    def _draw(self) -> None:
        summary, limits = self.summary, self.budget
        if summary is None or summary.quality is None or summary.comparison is None:
            self.figure = {}
            return
        shown, base = summary.quality, next((p for p in summary.points if p.name == summary.record.baseline), None)
        least = None
        if limits.loss is not None and base is not None:
            least = base.quality.value + (-limits.loss if shown.higher_is_better else limits.loss)
        look = Look(self.is_log, self.is_whole, limits.latency_seconds, least, self.best, self.selected)
        verdicts = {row.variant: _verdict(row) for row in summary.comparison.rows}
        ours = series_of(summary.record, summary.points, verdicts)
        self.figure = live_front.figure((ours, *self._beside), shown, batch_words(summary.record), look)

    def _take_beside(self, job: Job[tuple[Series, ...]]) -> None:
        found = _outcome(job)
        if found is not None:
            self._beside = found
            self._draw()

    def _compare(self) -> None:
        record = self.record
        if record is None:
            return
        data = self._data(record)
        show, labels = (None, None) if data is None else (data.show, data.evaluation.labels)
        found = disagreements(record, self.first, self.second, show, labels)
        if found != self.disagreements:
            self.disagreements = found

    def _data(self, record: StudyRecord) -> Dataset | None:
        """The data at hand, where they are those of the record."""
        data = self.selection.data
        if data is None or data.name != record.data.get("name"):
            return None
        return data if len(data.evaluation) == record.data.get("evaluation_samples") else None

    def _start(self, what: str, work: Callable[[Job[Any]], Any], news: Callable[[Job[Any]], None]) -> None:
        self.session.start(DRAWING, Job(what, work, key=(what, id(self))), news)


def _verdict(row: Row) -> str:
    speed = [] if row.ratio is None else [row.ratio.words]
    return "; ".join((*speed, *([] if row.change is None else [f"score: {row.change.words}"])))


def _beside(shown: StudyRecord, quality: Quality, other: StudyRecord) -> Series | None:
    """Return another study's points with what is unlike; None where it has none of the same quality."""
    summary = pictures.summarise(other)
    if summary.quality is None or (summary.quality.name, summary.quality.unit) != (quality.name, quality.unit):
        return None
    measured = [next((one.measurement for one in record.results if one.measurement), None) for record in (shown, other)]
    told = ["measured in other turns"]
    if measured[0] is not None and measured[1] is not None:
        told += [f"{name} {ours} against {theirs}" for name, (theirs, ours) in unlike(measured[0], measured[1]).items()]
    rows = () if summary.comparison is None else summary.comparison.rows
    verdicts = {row.variant: f"{_verdict(row)} (against its own baseline)" for row in rows if _verdict(row)}
    return series_of(other, summary.points, verdicts, "; ".join(told))


def _outcome(job: Job[Any]) -> Any:
    """What a job found; None while it goes on or where a newer one took its place."""
    snapshot = job.snapshot
    if snapshot.state == "failed":
        job.raise_failure()
    return job.outcome if snapshot.state == "done" else None


def as_number(what: str, text: str) -> float | None:
    """Return what was typed as a number of 0 or more; None where nothing was.

    Raises:
        RecipeError: it is none.
    """
    if not text.strip():
        return None
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        raise RecipeError(f"The {what} is {text!r}, which is no number. Write one such as 1.5, or nothing.") from None
    if not 0 <= value < float("inf"):
        raise RecipeError(f"The {what} is {text!r}; it must be 0 or more.")
    return value
