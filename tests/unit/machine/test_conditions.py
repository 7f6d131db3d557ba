from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from workbench.machine import conditions
from workbench.machine.conditions import Snapshot


def counters(seconds: float, steal: int = 0, idle: int = 0, interrupted: int = 0) -> Snapshot:
    return Snapshot(seconds, (0, 0, 0, idle, 0, 0, 0, steal), interrupted, 0, 0)


def test_steal_and_interruptions_are_named_where_they_are_high() -> None:
    found = conditions.between(counters(0.0), counters(2.0, steal=10, idle=90, interrupted=400))
    assert found["steal_share"] == pytest.approx(0.1)
    assert found["involuntary_switches"] == 400 and found["timed_seconds"] == 2.0
    steal, interrupted = found["notes"]
    assert steal.startswith("10 % of the CPU time was taken by other virtual machines")
    assert "interrupted 200 times a second" in interrupted


def test_a_calm_round_has_no_notes() -> None:
    found = conditions.between(counters(0.0), counters(1.0, steal=0, idle=200, interrupted=3))
    assert "notes" not in found and found["steal_share"] == 0.0


def test_what_the_system_does_not_tell_is_left_out() -> None:
    silent = Snapshot(0.0, None, None, None, None)
    found = conditions.between(silent, Snapshot(1.0, None, None, None, None))
    assert not {"steal_share", "involuntary_switches", "major_faults", "notes"} & set(found)


def test_no_tick_between_two_snapshots_is_no_steal() -> None:
    assert conditions.between(counters(0.0), counters(1e-4))["steal_share"] == 0.0


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux's /proc")
def test_a_real_snapshot_counts_real_work() -> None:
    before = conditions.snapshot()
    sum(range(10**6))
    found = conditions.between(before, conditions.snapshot())
    assert found["timed_seconds"] > 0 and 0 <= found["steal_share"] <= 1
    assert conditions.peak_memory_bytes() > 1 << 20  # type: ignore[operator]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_peak_memory_is_that_of_the_process_and_not_of_its_parent() -> None:
    held = bytearray(200 << 20)
    held[::4096] = b"x" * len(held[::4096])
    code = "from workbench.machine import conditions; print(conditions.peak_memory_bytes())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    del held
    assert int(printed) < 150 << 20


def test_damaged_counters_are_not_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "stat"
    broken.write_text("cpu 1 2 three\n", encoding="ascii")
    monkeypatch.setattr(conditions, "_PROC_STAT", broken)
    monkeypatch.setattr(conditions, "_SCALING", broken)
    monkeypatch.setattr(conditions, "_PROC_STATUS", tmp_path / "absent")
    assert conditions.snapshot().cpu_ticks is None
    assert conditions.cpu_megahertz() is None
    assert conditions.peak_memory_bytes()  # falls back to getrusage
