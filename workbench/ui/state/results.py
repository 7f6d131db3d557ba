"""What a study found: table, plot, budgets, disagreements. Everything slow is computed on the drawing queue."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from traitlets import Bool, Bytes, HasTraits, Instance, Tuple, Unicode

from workbench.errors import RecipeError, nearest
from workbench.judging import best, standing
from workbench.judging.best import Budget
from workbench.plots.theme import ThemeName
from workbench.records import StudyRecord
from workbench.ui import pictures
from workbench.ui.disagreements import Disagreements, disagreements
from workbench.ui.jobs import DRAWING, Job
from workbench.ui.pictures import Summary
from workbench.ui.state.selection import ModelSelection
from workbench.ui.state.session import Session

# From here on finding the front (every pair is compared) takes seconds: it comes after the rest.
MANY_VARIANTS = 30
NO_ORDER = "order of the recipes"
VIEWS = ("Plot", "Table", "Layers", "Disagreements", "Calibration")
THEMES: tuple[ThemeName, ...] = ("light", "dark")


class Results(HasTraits):
    """The record that is shown, and what was derived from it.

    Attributes:
        view: one of `VIEWS`.
        columns, sort_column: headings, and the one that the table is sorted by; `NO_ORDER` keeps the recipes' order.
        latency_text, loss_text: budgets as typed (ms; points or units of the score); empty is none.
        best, budget_words: the best variant within the budgets, and why.
        plot_light, plot_dark: PNG.
        first, second: the two variants whose disagreements are shown.
    """

    record = Instance(StudyRecord, allow_none=True)
    summary = Instance(Summary, allow_none=True)
    view = Unicode(VIEWS[0])
    words = Unicode("No results yet: start a study on the page `Run`, or open one on the page `History`.")
    columns = Tuple((NO_ORDER,))
    sort_column = Unicode(NO_ORDER)
    descending = Bool(False)
    latency_text = Unicode()
    loss_text = Unicode()
    best = Unicode()
    budget_words = Unicode()
    plot_light = Bytes()
    plot_dark = Bytes()
    variants = Tuple()
    first = Unicode()
    second = Unicode()
    disagreements = Instance(Disagreements, args=("",))

    def __init__(self, session: Session, selection: ModelSelection) -> None:
        super().__init__()
        self.session, self.selection = session, selection
        self._front_missing = False

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
            self.first = record.baseline
            self.second = next((name for name in reversed(names) if name != record.baseline), record.baseline)
        many = len(names) > MANY_VARIANTS
        self._start("results", lambda job: pictures.summarise(record, front=not many), self._take_summary)
        self._front_missing = many and final

    def sort(self, column: str, descending: bool) -> None:
        """Sort the table by a column; `NO_ORDER` keeps the order of the recipes.

        Raises:
            RecipeError: the table has no such column.
        """
        if column not in self.columns:
            raise RecipeError(f"The table has no column {column!r}. {nearest(column, self.columns)}")
        self.sort_column, self.descending = column, descending

    def set_budget(self, latency: str, loss: str) -> None:
        """Take budgets as typed and mark the best variant.

        Raises:
            RecipeError: what was typed is no number.
        """
        self.latency_text, self.loss_text = latency, loss
        self._choose()
        self._draw_plot()

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
        latency = _number("latency budget", self.latency_text)
        return Budget(None if latency is None else latency / 1e3, _number("accuracy budget", self.loss_text))

    def _take_summary(self, job: Job[Summary]) -> None:
        summary = _outcome(job)
        if summary is None or summary.record is not self.record:
            return
        self.summary = summary
        self.columns = (NO_ORDER, *(column.heading for column in summary.table.columns))
        if self.sort_column not in self.columns:
            self.sort_column = NO_ORDER
        self.words = summary.finding
        self._choose()
        self._draw_plot()
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

    def _draw_plot(self) -> None:
        summary, limits, best = self.summary, self.budget, self.best
        if summary is None:
            return
        loss = None if limits.loss is None or summary.quality is None else limits.loss / summary.quality.scale

        def work(theme: ThemeName, job: Job[bytes]) -> bytes:
            return pictures.front(summary, (limits.latency_seconds, loss), best, theme)

        for theme in THEMES:
            self._start(f"plot {theme}", partial(work, theme), partial(self._take_plot, theme))

    def _take_plot(self, theme: str, job: Job[bytes]) -> None:
        image = _outcome(job)
        if image is None:
            return
        setattr(self, f"plot_{theme}", image)
        record = self.record
        if theme == THEMES[-1] and self._front_missing and record is not None:
            self._front_missing = False
            self._start("front", lambda job: pictures.summarise(record), self._take_summary)

    def _compare(self) -> None:
        record = self.record
        if record is None:
            return
        found = disagreements(record, self.first, self.second, self._show(record))
        if found != self.disagreements:
            self.disagreements = found

    def _show(self, record: StudyRecord) -> Callable[[int], dict[str, Any]] | None:
        """How samples are shown, where the data at hand are those of the record."""
        data = self.selection.data
        if data is None or data.name != record.data.get("name"):
            return None
        return data.show if len(data.evaluation) == record.data.get("evaluation_samples") else None

    def _start(self, what: str, work: Callable[[Job[Any]], Any], news: Callable[[Job[Any]], None]) -> None:
        self.session.start(DRAWING, Job(what, work, key=(what, id(self))), news)


def _outcome(job: Job[Any]) -> Any:
    """What a job found; None while it goes on or where a newer one took its place."""
    snapshot = job.snapshot
    if snapshot.state == "failed":
        job.raise_failure()
    return job.outcome if snapshot.state == "done" else None


def _number(what: str, text: str) -> float | None:
    if not text.strip():
        return None
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        raise RecipeError(f"The {what} is {text!r}, which is no number. Write one such as 1.5, or nothing.") from None
    if not 0 <= value < float("inf"):
        raise RecipeError(f"The {what} is {text!r}; it must be 0 or more.")
    return value
