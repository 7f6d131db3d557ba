"""The studies in the store: what they are, what is said of them, two of them compared, one of them the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from traitlets import HasTraits, Instance, Tuple, Unicode

from workbench.errors import CompareError, StoreError
from workbench.judging.regression import Regression, regression
from workbench.records import StudyRecord
from workbench.reports import difference, formats
from workbench.study import Study, catalog
from workbench.ui.jobs import DRAWING, Job
from workbench.ui.state.results import Results
from workbench.ui.state.session import Session


@dataclass(frozen=True)
class Compared:
    """Two studies: the verdict and the numbers, and what else is not the same."""

    found: Regression
    differences: tuple[tuple[str, str, str], ...]


class Studies(HasTraits):
    """The page of studies.

    Attributes:
        rows: one dict a study, the latest first; see `workbench.studies`.
        chosen: names that are selected.
        tags, note: of the one that is selected, as typed.
        pinned: the reference; empty where none is.
        deleted: names that can be brought back, the latest last.
        compared: of two.
        words: what the last command did, or what there is.
    """

    rows = Tuple()
    chosen = Tuple()
    tags = Unicode()
    note = Unicode()
    pinned = Unicode()
    deleted = Tuple()
    words = Unicode()
    compared = Instance(Compared, allow_none=True)

    def __init__(self, session: Session, results: Results) -> None:
        super().__init__()
        self.session, self.results = session, results

    def refresh(self) -> None:
        """Read the store anew, in the background."""
        store = self.session.store
        job = Job("studies", lambda job: catalog.studies(store).to_dict("records"), key=("studies", id(self)))
        self.session.start(DRAWING, job, self._take_list)

    def choose(self, names: tuple[str, ...]) -> None:
        """Select studies; what is said of a single one can be changed."""
        known = {row["name"] for row in self.rows}
        self.chosen = tuple(name for name in names if name in known)
        said = catalog.remarks(self.chosen[0], self.session.store) if len(self.chosen) == 1 else catalog.Remarks()
        self.tags, self.note = ", ".join(said.tags), said.note

    def open(self) -> None:
        """Show the selected study on the page of results.

        Raises:
            StoreError: not exactly one is selected, or it cannot be read.
        """
        self.results.show(self._record(self._single("open")))
        self.session.page = "Results"

    def remark(self, tags: str, note: str) -> None:
        """Keep tags (with commas between them) and a note for the selected study.

        Raises:
            StoreError: not exactly one is selected.
        """
        name = self._single("describe")
        said = catalog.Remarks(
            tuple(dict.fromkeys(filter(None, (tag.strip() for tag in tags.split(","))))), note.strip()
        )
        catalog.remark(name, said, self.session.store)
        self.tags, self.note = ", ".join(said.tags), said.note
        self.words = f"Kept what you say of {name}."
        self.refresh()

    def pin(self) -> None:
        """Make the selected study the reference, or take the pin away where it is.

        Raises:
            StoreError: not exactly one is selected.
        """
        name = self._single("pin")
        catalog.pin(None if name == self.pinned else name, self.session.store)
        is_pinned = catalog.pinned(self.session.store) == name
        self.words = f"{name} is the reference now." if is_pinned else f"{name} is no reference any more."
        self.refresh()

    def delete(self) -> None:
        """Take the selected studies out of the store.

        Raises:
            StoreError: none is selected.
        """
        if not self.chosen:
            raise StoreError("No study is selected; select those that shall be deleted.")
        names = self.chosen
        for name in names:
            catalog.delete(name, self.session.store)
        self.deleted = (*self.deleted, *names)
        self.chosen, self.compared = (), None
        self.words = f"Deleted {formats.listed(list(names))}. Undo brings {'it' if len(names) == 1 else 'them'} back."
        self.refresh()

    def undo(self) -> None:
        """Bring the study that was deleted last back.

        Raises:
            StoreError: none was deleted here, or its name is taken.
        """
        if not self.deleted:
            raise StoreError("Nothing was deleted here, so nothing can be brought back.")
        *before, name = self.deleted
        catalog.undelete(name, self.session.store)
        self.deleted = tuple(before)
        self.words = f"{name} is back."
        self.refresh()

    def compare(self) -> None:
        """Compare two selected studies, the later one with the earlier; a single one with the reference.

        Raises:
            CompareError: neither two are selected nor one beside a reference, or they share nothing.
        """
        names = self.chosen
        if len(names) == 1 and self.pinned and names[0] != self.pinned:
            before, after = self._record(self.pinned), self._record(names[0])
        elif len(names) == 2:
            first, second = (self._record(name) for name in names)
            before, after = sorted((first, second), key=lambda record: (record.name != self.pinned, record.created_at))
        else:
            raise CompareError(
                f"{len(names)} studies are selected; select two to compare them, or one where another is the reference."
            )

        def work(job: Job[Compared]) -> Compared:
            found = regression(before, after, allow_unlike=True)
            return Compared(found, tuple(difference.differences(before, after)))

        self.words = f"Comparing {after.name} with {before.name} …"
        self.session.start(DRAWING, Job("comparison", work, key=("comparison", id(self))), self._take_comparison)

    def _take_list(self, job: Job[Any]) -> None:
        snapshot = job.snapshot
        if snapshot.state == "failed":
            job.raise_failure()
        elif snapshot.state == "done" and job.outcome is not None:
            self.rows = tuple(job.outcome)
            self.pinned = next((row["name"] for row in self.rows if row["pinned"]), "")
            self.chosen = tuple(name for name in self.chosen if name in {row["name"] for row in self.rows})
            if not self.words:
                self.words = f"Kept in {self.session.store.root}."

    def _take_comparison(self, job: Job[Compared]) -> None:
        snapshot = job.snapshot
        if snapshot.state == "failed":
            self.words, self.compared = "", None
            job.raise_failure()
        elif snapshot.state == "done" and job.outcome is not None:
            self.compared = job.outcome
            self.words = job.outcome.found.words

    def _single(self, verb: str) -> str:
        if len(self.chosen) != 1:
            raise StoreError(f"{len(self.chosen)} studies are selected; select one to {verb} it.")
        return str(self.chosen[0])

    def _record(self, name: str) -> StudyRecord:
        return Study.open(name, self.session.store).record
