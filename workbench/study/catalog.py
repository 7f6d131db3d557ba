"""All studies of a store in one table, with what their owner says of them. Judges with the one rule of what is best."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import codec
from workbench.errors import StoreError, WorkbenchError, expect
from workbench.machine.store import Store
from workbench.records import StudyRecord
from workbench.study.study import Study

if TYPE_CHECKING:
    import pandas

COLUMNS = (
    "name",
    "date",
    "model",
    "data",
    "backend",
    "device",
    "variants",
    "failed",
    "best",
    "state",
    "tags",
    "note",
    "pinned",
)
_REMARKS, _PINNED, _DELETED = "remarks", "pinned", "deleted-study"
_REFERENCE = "reference"
# Finding the best compares every pair; with more variants than these it would take seconds a study.
_MOST_JUDGED = 60


@dataclass(frozen=True)
class Remarks:
    """What the owner of a study says of it."""

    tags: tuple[str, ...] = ()
    note: str = ""


def remarks(name: str, store: Store) -> Remarks:
    """Return what was said of a study; nothing where nothing was, or where that record is damaged."""
    text = store.get(_REMARKS, name)
    try:
        return Remarks() if text is None else codec.from_json(Remarks, text)
    except StoreError:
        return Remarks()


def remark(name: str, said: Remarks, store: Store) -> None:
    """Keep what is said of a study, in place of what was said before."""
    store.put(_REMARKS, name, codec.to_json(said))


def pin(name: str | None, store: Store) -> None:
    """Make a study the reference that others are judged against; None takes the pin away.

    Raises:
        StoreError: there is no such study.
    """
    if name is None:
        store.delete(_PINNED, _REFERENCE)
        return
    Study.open(name, store)
    store.put(_PINNED, _REFERENCE, name)


def pinned(store: Store) -> str | None:
    """Return the name of the study that is pinned as the reference; None where none is, or where it is gone."""
    name = store.get(_PINNED, _REFERENCE)
    return name if name is not None and store.get("study", name) is not None else None


def delete(name: str, store: Store) -> None:
    """Take a study out of the store; `undelete` brings it back. Engines and rounds stay: other studies may share them.

    Raises:
        StoreError: there is no such study.
    """
    text = store.get("study", name)
    if text is None and name not in store.keys("study"):
        raise StoreError(f"There is no study {name!r} in {store.root}, so there is nothing to delete.")
    if text is not None:  # a damaged one is not worth keeping
        store.put(_DELETED, name, text)
    store.delete("study", name)


def undelete(name: str, store: Store) -> None:
    """Bring a deleted study back.

    Raises:
        StoreError: none of that name was deleted, or there is a new one of that name.
    """
    text = store.get(_DELETED, name)
    if text is None:
        raise StoreError(f"No study {name!r} was deleted from {store.root}.")
    if store.get("study", name) is not None:
        raise StoreError(
            f"There is a new study {name!r}; the deleted one cannot take its place. Delete that one first."
        )
    store.put("study", name, text)
    store.delete(_DELETED, name)


def studies(store: Store | str | Path | None = None) -> pandas.DataFrame:
    """Return one row a study, the latest first.

    Args:
        store: or its folder; None takes the default store.

    Returns:
        name; date (UTC); model; data; backend; device; variants and how many of them failed; best (what to take, see
        `Study.best`; None where nothing is surely better than the baseline); state: `finished`, `unfinished`, or `damaged`
        where the record cannot be read; tags and note: what its owner says of it; pinned: whether it is the reference.

    Raises:
        StoreError: it is no store, or cannot be opened.
    """
    import pandas

    store = Store(store) if store is None or isinstance(store, (str, Path)) else store
    expect(store, Store, "studies", "Pass workbench.Store(folder), its folder, or nothing.", StoreError)
    reference = pinned(store)
    rows = [{**_row(name, store), **_said(name, store), "pinned": name == reference} for name in store.keys("study")]
    return pandas.DataFrame(rows, columns=list(COLUMNS))


def stored(store: Store) -> list[tuple[str, StudyRecord]]:
    """Return name and record of every study in a store that can be read, the latest first."""
    found = []
    for name in store.keys("study"):
        with contextlib.suppress(StoreError):
            found.append((name, Study.open(name, store).record))
    return found


def _said(name: str, store: Store) -> dict[str, str]:
    said = remarks(name, store)
    return {"tags": ", ".join(said.tags), "note": said.note}


def _row(name: str, store: Store) -> dict[str, Any]:
    try:
        study = Study.open(name, store)
    except StoreError:
        return {"name": name, "state": "damaged"}
    record = study.record
    devices = sorted({item.measurement.device for item in record.results if item.measurement is not None})
    return {
        "name": name,
        "date": datetime.fromtimestamp(record.created_at, timezone.utc),
        "model": record.model.name,
        "data": record.data.get("name"),
        "backend": record.backend,
        "device": ", ".join(devices) or None,
        "variants": len(record.results),
        "failed": len(study.failures),
        "best": _best(study),
        "state": "finished" if is_finished(study) else "unfinished",
    }


def is_finished(study: Study) -> bool:
    """Return whether every variant has all its rounds, or failed."""
    wanted = study.record.protocol.rounds
    return all(
        item.failure is not None or (item.measurement is not None and len(item.measurement.rounds) >= wanted)
        for item in study.record.results
    )


def _best(study: Study) -> str | None:
    if len(study.record.results) > _MOST_JUDGED:
        return None
    try:
        return study.best().best
    except WorkbenchError:  # not measured yet, or measured under unlike conditions
        return None
