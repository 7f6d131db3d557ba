"""Locks between real processes: held, waited for, told of, and taken over from the dead."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from workbench.errors import Cancelled, StoreError
from workbench.machine import turn
from workbench.machine.handle import Handle
from workbench.records import Progress

HOLD = """
    import sys, time
    from pathlib import Path
    from workbench.machine import turn
    with {block}:
        Path(sys.argv[1]).write_text("held")
        time.sleep(60)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("WORKBENCH_TURN_FILE", str(tmp_path / "turn"))
    return tmp_path


@pytest.fixture
def held(place: Path):
    """Starts a process that holds what it is told to."""
    owners = []

    def hold(block: str) -> subprocess.Popen[bytes]:
        mark = place / f"held{len(owners)}"
        owners.append(subprocess.Popen([sys.executable, "-c", textwrap.dedent(HOLD).format(block=block), str(mark)]))
        while not mark.exists():
            assert owners[-1].poll() is None
            time.sleep(0.02)
        return owners[-1]

    yield hold
    for owner in owners:
        owner.kill()
        owner.wait()


def test_a_study_is_run_by_one_at_a_time_and_the_other_is_told_by_whom(place: Path, held) -> None:
    owner = held(f"turn.alone(Path({str(place / 'locks')!r}), 'mine')")
    with (
        pytest.raises(StoreError, match=rf"'mine' is being run already \(process {owner.pid}, since 20\d\d-"),
        turn.alone(place / "locks", "mine"),
    ):
        pytest.fail("two at once")
    with turn.alone(place / "locks", "another"):
        pass
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    with turn.alone(place / "locks", "mine"):
        pass


def test_two_threads_of_one_process_exclude_each_other_too(place: Path) -> None:
    with turn.alone(place, "mine"), pytest.raises(StoreError, match=str(os.getpid())), turn.alone(place, "mine"):
        pass


def test_a_measurement_waits_for_the_other_and_says_so(place: Path, held) -> None:
    owner = held("turn.measuring()")
    told: list[str] = []
    threading.Timer(0.5, owner.kill).start()
    with turn.measuring(waiting=told.append):
        assert json.loads((place / "turn").read_text())["pid"] == os.getpid()
    assert len(told) == 1 and f"waiting for another measurement (process {owner.pid}" in told[0]


def test_who_waits_is_told_in_lines_and_in_the_progress(place: Path) -> None:
    lines: list[str] = []
    steps: list[Progress] = []
    with (
        turn.measuring(),
        pytest.raises(Cancelled),
        turn.measuring(Handle(lambda: bool(steps), steps.append, lines.append)),
    ):
        pass
    assert lines == [steps[0].message] and steps[0].stage == "measure"
    assert lines[0].startswith(f"waiting for another measurement (process {os.getpid()}")


def test_waiting_can_be_stopped(place: Path, held) -> None:
    held("turn.measuring()")
    with (
        pytest.raises(Cancelled, match="waiting for another measurement"),
        turn.measuring(Handle(cancelled=lambda: True)),
    ):
        pass


def test_a_lock_that_names_nobody_is_still_a_lock(place: Path) -> None:
    told: list[str] = []
    with turn.measuring():
        (place / "turn").write_text("no JSON")
        with pytest.raises(Cancelled), turn.measuring(Handle(cancelled=lambda: bool(told)), told.append):
            pass
    assert told == ["waiting for another measurement (another process)"]


def test_a_place_that_cannot_be_written_is_named(place: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_TURN_FILE", str(place / "absent" / "turn"))
    with pytest.raises(StoreError, match="absent"), turn.measuring():
        pass


def test_without_locks_of_the_system_nobody_waits(place: Path, monkeypatch) -> None:
    monkeypatch.setattr(turn, "fcntl", None)
    with turn.measuring(), turn.measuring():
        pass
