"""What the machine did while something was timed: load, clock, time stolen by neighbours, interruptions, memory.

Reads what the operating system offers; what it does not offer is left out. Knows nothing of engines.
"""

from __future__ import annotations

import importlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Above these a reader should not trust small differences. On a shared 2-core virtual machine, rounds of half a second
# with the usual latency had up to 2 % steal and 60 interruptions a second; most of those 1.5 times slower had more.
STEAL_SHARE_LIMIT = 0.05
INTERRUPTED_PER_SECOND_LIMIT = 100.0

_PROC_STAT = Path("/proc/stat")
_PROC_STATUS = Path("/proc/self/status")
_CPU_INFO = Path("/proc/cpuinfo")
_SCALING = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")


@dataclass(frozen=True)
class Snapshot:
    """Counters at one moment; None where the system does not tell."""

    seconds: float
    cpu_ticks: tuple[int, ...] | None
    involuntary_switches: int | None
    voluntary_switches: int | None
    major_faults: int | None


def snapshot() -> Snapshot:
    """Return the counters now."""
    usage = _usage()
    return Snapshot(
        seconds=time.perf_counter(),
        cpu_ticks=_cpu_ticks(),
        involuntary_switches=None if usage is None else usage.ru_nivcsw,
        voluntary_switches=None if usage is None else usage.ru_nvcsw,
        major_faults=None if usage is None else usage.ru_majflt,
    )


def between(before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """Return what happened between two snapshots, with the state now; `notes` holds what a reader must mind."""
    seconds = max(after.seconds - before.seconds, 1e-9)
    found: dict[str, Any] = {"timed_seconds": seconds}
    if hasattr(os, "getloadavg"):
        found["load_average"] = os.getloadavg()[0]
    megahertz = cpu_megahertz()
    if megahertz is not None:
        found["cpu_megahertz"] = megahertz
    steal = _steal_share(before.cpu_ticks, after.cpu_ticks)
    if steal is not None:
        found["steal_share"] = steal
    for name in ("involuntary_switches", "voluntary_switches", "major_faults"):
        first, last = getattr(before, name), getattr(after, name)
        if first is not None and last is not None:
            found[name] = last - first
    notes = _warnings(steal, found.get("involuntary_switches", 0) / seconds)
    if notes:
        found["notes"] = notes
    return found


def cpu_megahertz() -> float | None:
    """Return the present clock of the first core, or None where the system does not tell."""
    try:
        if _SCALING.exists():
            return float(_SCALING.read_text(encoding="ascii")) / 1000
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("cpu MHz"):
                return float(line.split(":", 1)[1])
    except (OSError, ValueError):
        return None
    return None


def peak_memory_bytes() -> int | None:
    """Return the high-water mark of this process's resident memory, or None where the system does not tell.

    From VmHWM where there is one: on Linux `ru_maxrss` of a fresh process starts at its parent's size.
    """
    try:
        for line in _PROC_STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    usage = _usage()
    return None if usage is None else int(usage.ru_maxrss)  # bytes on macOS, the only other system that has it


def _warnings(steal: float | None, interrupted_per_second: float) -> list[str]:
    notes = []
    if steal is not None and steal > STEAL_SHARE_LIMIT:
        notes.append(
            f"{100 * steal:.0f} % of the CPU time was taken by other virtual machines while this round was timed; "
            f"small differences are not to be trusted."
        )
    if interrupted_per_second > INTERRUPTED_PER_SECOND_LIMIT:
        notes.append(
            f"The process was interrupted {interrupted_per_second:.0f} times a second while this round was timed: other "
            f"programs want the same cores. Close them, or use fewer threads."
        )
    return notes


def _steal_share(before: tuple[int, ...] | None, after: tuple[int, ...] | None) -> float | None:
    if before is None or after is None:
        return None
    spent = [last - first for first, last in zip(before, after, strict=True)]
    return spent[7] / sum(spent) if sum(spent) > 0 else 0.0


def _cpu_ticks() -> tuple[int, ...] | None:
    """Return user, nice, system, idle, iowait, irq, softirq, steal (proc(5)), summed over cores."""
    try:
        fields = _PROC_STAT.read_text(encoding="ascii").split("\n", 1)[0].split()
        ticks = tuple(int(field) for field in fields[1:9])
    except (OSError, ValueError):
        return None
    return ticks if len(ticks) == 8 else None


def _usage() -> Any:
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF)
