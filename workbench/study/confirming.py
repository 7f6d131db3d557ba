"""`confirm`: run the study of a capsule on this machine, and put the two side by side."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from workbench import engines
from workbench.datasets import Dataset
from workbench.errors import CompareError, DataError, StoreError, expect
from workbench.handoff import capsule, capsule_data
from workbench.machine.store import Store
from workbench.recipes import LONGEST_NAME
from workbench.records import StudyRecord
from workbench.reports import confirmation
from workbench.study import progress as bars
from workbench.study.running import run
from workbench.study.study import Study

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Confirmation:
    """What a rehearsal predicted, and what was measured here.

    Attributes:
        notes: what did not travel or was not taken over, one sentence each.
    """

    rehearsal: Study
    study: Study
    notes: tuple[str, ...] = ()

    @property
    def changed(self) -> tuple[str, ...]:
        """Which decisions changed, one sentence each; one sentence where none did."""
        return tuple(confirmation.changed(self._sides()))

    def table(self) -> pandas.DataFrame:
        """Return one row a variant: predicted and measured side by side."""
        import pandas

        return pandas.DataFrame(confirmation.rows(self._sides()), columns=list(confirmation.COLUMNS))

    def report(self, path: str | Path) -> Path:
        """Write both side by side, as `.html` or `.md`."""
        return confirmation.write(self._sides(), Path(path))

    def _sides(self) -> confirmation.Sides:
        best = (_recommended(self.rehearsal), _recommended(self.study))
        return confirmation.Sides(self.rehearsal.record, self.study.record, best, self.notes)


def confirm(
    path: str | Path,
    *,
    backend: str = "auto",
    data: Dataset | None = None,
    name: str | None = None,
    store: Store | None = None,
    progress: bars.Listener | Literal["auto"] | None = "auto",
) -> Confirmation:
    """Run the study of a capsule here: the same model, data, recipes and protocol, on this machine's backend.

    Resumable like `run`: the same call goes on where it was interrupted.

    Args:
        path: what `Study.capsule` wrote.
        backend: as for `run`.
        data: needed where the capsule holds the hash of the data alone; must be the same.
        name: of the study; None derives one from the rehearsal's and the backend.
        store: None takes the default store.

    Raises:
        StoreError: no capsule, truncated, damaged, of a newer version, or with a path that escapes.
        BackendMissing: the backend cannot be used here.
        DataError: the samples are not in the capsule, and were not given or are others.
        WorkbenchError: as `run`.
    """
    if not isinstance(path, (str, Path)):
        raise StoreError(
            f"confirm takes the path of a capsule, got a {type(path).__name__}. Pass the .zip that study.capsule wrote."
        )
    store = store or Store()
    if data is not None:
        expect(data, Dataset, "confirm(data=...)", "Wrap arrays with workbench.datasets.arrays(x, labels).", DataError)
    chosen, _ = engines.choose(backend)
    found = capsule.read(Path(path), store)
    record = found.record
    samples = found.data or capsule_data.wanted(record, found.model, data)
    notes = [*found.notes, *capsule.take_over_tables(Path(path), record, samples, store)]
    options = record.options
    if chosen != record.backend:
        if options.extra:
            notes.append(f"The build options {sorted(options.extra)} are for {record.backend}, and were left out.")
        options = replace(options, extra={}, profiles=())
    if "plugins" in options.extra:  # whoever wrote the capsule must not choose what code is opened here
        notes.append(
            f"The plugins {options.extra['plugins']} are code, which a capsule opens none of; they were left out."
        )
        options = replace(options, extra={name: value for name, value in options.extra.items() if name != "plugins"})
    study = run(
        found.model, samples, [item.recipe for item in record.results], backend=chosen, protocol=record.protocol,
        options=options, baseline=record.baseline, name=name or _name(record, chosen), store=store, progress=progress,
    )  # fmt: skip
    return Confirmation(Study(record), study, tuple(notes))


def _name(record: StudyRecord, backend: str) -> str:
    """The same capsule on the same backend is the same study; another rehearsal of that name is another."""
    terms = f"{record.created_at} {record.model.sha256} {record.data.get('sha256')} {record.protocol}"
    ending = f" confirmed on {backend} {hashlib.sha256(terms.encode()).hexdigest()[:8]}"
    return record.name[: LONGEST_NAME - len(ending)] + ending


def _recommended(study: Study) -> str | None:
    try:
        return study.best().best
    except CompareError:
        return None
