"""Every write of a store counted, and one of them failing as on a full disk, or for want of memory."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest

from workbench.machine import store as store_module


class Faults:
    """Counts calls that write, and lets the n-th fail as a full disk does, or another error."""

    def __init__(self, patch: pytest.MonkeyPatch, error: BaseException | None = None) -> None:
        self.seen, self.failing = 0, 0
        full = error or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        index_full = error or sqlite3.OperationalError("database or disk is full")
        for owner, name in (
            (Path, "write_text"),
            (Path, "write_bytes"),
            (Path, "replace"),
            (Path, "mkdir"),
            (shutil, "move"),
            (tempfile, "mkdtemp"),
        ):
            patch.setattr(owner, name, self.wrapped(getattr(owner, name), full))
        real = sqlite3.connect
        faults = self

        class Connection(sqlite3.Connection):
            def commit(self) -> None:
                faults.count(index_full)
                super().commit()

            def __exit__(self, kind: Any, *rest: Any) -> Any:
                if kind is None and self.in_transaction:
                    try:
                        faults.count(index_full)
                    except BaseException:
                        self.rollback()
                        raise
                return super().__exit__(kind, *rest)

        patch.setattr(store_module.sqlite3, "connect", lambda *a, **k: real(*a, **{**k, "factory": Connection}))

    def count(self, error: BaseException) -> None:
        self.seen += 1
        if self.seen == self.failing:
            raise error

    def wrapped(self, real: Any, error: BaseException) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.count(error)
            return real(*arguments, **options)

        return call
