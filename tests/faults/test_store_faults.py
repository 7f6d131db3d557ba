"""Each write, sync, rename, commit and allocation of the store fails once: nothing lost, and done once there is room."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from failing_writes import Faults
from store_work import check, work

import workbench
from workbench.errors import StoreError
from workbench.machine import disk, leftovers
from workbench.machine import store as store_module

HERE = Path(__file__).parent


def test_the_nth_write_fails_and_the_next_run_finishes(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        whole = Faults(patch)
        work(tmp_path / "whole")
    assert whole.seen > 10  # or the test would be about nothing
    for n in range(1, whole.seen + 1):
        root, done = tmp_path / str(n), []
        with pytest.MonkeyPatch.context() as patch:
            Faults(patch).failing = n
            with pytest.raises(StoreError, match="disk is full"):
                work(root, done.append)
        check(root, done)
        work(root)
        check(root)
        assert not list((root / "scratch").iterdir())


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    made = tmp_path_factory.mktemp("shim") / "failing_calls.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(made), str(HERE / "failing_calls.c"), "-ldl"]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"this C library has no such calls: {found.stderr}")
    return made


# Allocations are thousands, of which an even choice is tried; all others fail one by one. Some errors are not told and
# need not be: SQLite syncs folders without asking whether that worked, and what cannot be renamed is copied.
@pytest.mark.parametrize(
    ("kind", "told_share"), [("write", 1), ("fsync", 0.7), ("rename", 0.6), ("create", 0.9), ("remove", 0.9), ("malloc", 0)]
)  # fmt: skip
def test_the_nth_call_of_the_system_fails_and_the_next_run_finishes(
    shim: Path, tmp_path: Path, kind: str, told_share: float
) -> None:
    places = [str(HERE), str(Path(workbench.__file__).parents[1])]
    environment = {**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": os.pathsep.join(places)}
    most = 40 if kind == "malloc" else 100
    command = [sys.executable, str(HERE / "failing_calls.py"), kind, str(tmp_path), str(most)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    made, tried, told = map(int, found.stdout.split())
    assert made and tried >= min(made, most)
    assert told >= told_share * tried, found.stdout


@pytest.fixture
def no_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test cuts the power: syncing for real would only take time."""
    real = sqlite3.connect

    def connect(*arguments, **options) -> sqlite3.Connection:
        connection = real(*arguments, **options)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    monkeypatch.setattr(sqlite3, "connect", connect)


def test_memory_runs_out_at_any_line_of_the_store_and_the_next_run_finishes(no_syncs, tmp_path: Path) -> None:
    files = {module.__file__ for module in (store_module, disk, leftovers)}

    def ran(root: Path, failing: int, done: list[str]) -> list[tuple[str, int]]:
        """Work, and raise MemoryError where the n-th line runs; returns the lines that ran."""
        lines: list[tuple[str, int]] = []

        def trace(frame, event, argument):
            if frame.f_code.co_filename not in files:
                return None
            if event == "line":
                lines.append((frame.f_code.co_filename, frame.f_lineno))
                if len(lines) == failing:
                    raise MemoryError
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            work(root, done.append)
        finally:
            sys.settrace(before)
        return lines

    lines = ran(tmp_path / "whole", 0, [])
    # Each line where it runs the last time; what a line does does not change much from time to time.
    chosen = sorted({line: n for n, line in enumerate(lines, 1)}.values())
    assert len(chosen) > 80
    for n in chosen:
        root, done = tmp_path / str(n), []
        with contextlib.suppress(MemoryError):  # a line of clean-up may do without
            ran(root, n, done)
        check(root, done)
        work(root)
        check(root)
