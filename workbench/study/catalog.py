"""All studies of a store in one table. Reads records; judges with the one rule of what is best."""

from __future__ import annotations

import contextlib
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import StoreError, WorkbenchError, expect
from workbench.machine.store import Store
from workbench.records import StudyRecord
from workbench.study.study import Study

if TYPE_CHECKING:
    import pandas

COLUMNS = ("name", "date", "model", "data", "backend", "device", "variants", "failed", "best", "state")
# Finding the best compares every pair; with more variants than these it would take seconds a study.
_MOST_JUDGED = 60


def studies(store: Store | str | Path | None = None) -> pandas.DataFrame:
    """Return one row a study, the latest first.

    Args:
        store: or its folder; None takes the default store.

    Returns:
        name; date (UTC); model; data; backend; device; variants and how many of them failed; best (what to take, see
        `Study.best`; None where nothing is surely better than the baseline); state: `finished`, `unfinished`, or `damaged`
        where the record cannot be read.

    Raises:
        StoreError: it is no store, or cannot be opened.
    """
    import pandas

    store = Store(store) if store is None or isinstance(store, (str, Path)) else store
    expect(store, Store, "studies", "Pass workbench.Store(folder), its folder, or nothing.", StoreError)
    return pandas.DataFrame([_row(name, store) for name in store.keys("study")], columns=list(COLUMNS))


def stored(store: Store) -> list[tuple[str, StudyRecord]]:
    """Return name and record of every study in a store that can be read, the latest first."""
    found = []
    for name in store.keys("study"):
        with contextlib.suppress(StoreError):
            found.append((name, Study.open(name, store).record))
    return found


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
        "state": "finished" if _is_finished(study) else "unfinished",
    }


def _is_finished(study: Study) -> bool:
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
