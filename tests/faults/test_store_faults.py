"""Every write of the store fails once, one after the other: a StoreError, nothing lost, and done once there is room."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from workbench.errors import StoreError
from workbench.machine import store as store_module
from workbench.machine.store import Store, write_text


class Faults:
    """Counts calls that write, and lets the n-th fail as a full disk does."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen, self.failing = 0, 0
        for owner, name in (
            (Path, "write_text"),
            (Path, "replace"),
            (Path, "mkdir"),
            (shutil, "move"),
            (store_module.tempfile, "mkdtemp"),
        ):
            patch.setattr(
                owner, name, self.wrapped(getattr(owner, name), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            )
        real = sqlite3.connect
        faults = self

        class Connection(sqlite3.Connection):
            def commit(self) -> None:
                faults.count(sqlite3.OperationalError("database or disk is full"))
                super().commit()

            def __exit__(self, kind: Any, *rest: Any) -> Any:
                if kind is None and self.in_transaction:
                    try:
                        faults.count(sqlite3.OperationalError("database or disk is full"))
                    except sqlite3.OperationalError:
                        self.rollback()
                        raise
                return super().__exit__(kind, *rest)

        patch.setattr(store_module.sqlite3, "connect", lambda *a, **k: real(*a, **{**k, "factory": Connection}))

    def count(self, error: Exception) -> None:
        self.seen += 1
        if self.seen == self.failing:
            raise error

    def wrapped(self, real: Any, error: OSError) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.count(error)
            return real(*arguments, **options)

        return call


def work(root: Path) -> Store:
    """All that the store does for a study, in the order of a study; done again, it only adds what is missing."""
    store = Store(root)
    store.put("study", "s", "text")
    with store.scratch() as scratch:
        os.mkdir(scratch / "m")  # noqa: PTH102 - not counted: it is not the store that makes it
        with (scratch / "m" / "model.onnx").open("wb") as stream:
            stream.write(b"weights")
        sha256, place = store.add(scratch / "m")
    assert store.holds(sha256, place)
    if not store.keys("round"):
        store.append("round", "r/0", "sample")
    store.cache_folder("timing")
    write_text(root / "report.html", "report")
    return store


def test_the_nth_write_fails_and_the_next_run_finishes(tmp_path: Path) -> None:
    n = 0
    while True:
        n += 1
        root = tmp_path / str(n)
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch)
            faults.failing = n
            try:
                work(root)
            except StoreError as error:
                assert "disk is full" in str(error)
            else:
                assert faults.seen < n, f"write {n} failed and nobody noticed"
                break
        store = work(root)
        assert store.get("study", "s") == "text" and store.get("round", "r/0") == "sample"
        assert (root / "report.html").read_text() == "report"
        assert not list((root / "scratch").iterdir()) and not store.damaged
        assert not list(root.glob(".*.tmp"))
    assert n > 10  # or the test would be about nothing
