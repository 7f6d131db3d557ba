"""What the GPU's driver told over the rounds of a study, as rows for a reader: clocks, throttling, heat, power, memory."""

from __future__ import annotations

from typing import Any

from workbench.plots.device import Track
from workbench.records import StudyRecord
from workbench.reports import formats

_SCALES: tuple[tuple[str, str, str], ...] = (
    ("sm_clock_megahertz", "GPU clock", "MHz"),
    ("memory_clock_megahertz", "GPU memory clock", "MHz"),
    ("temperature_celsius", "GPU temperature", "°C"),
    ("power_watts", "GPU power", "W"),
)
# Bits of NVML's clocks-throttle reasons (nvml.h) that slow a run down; idle and the user's own settings are none.
_THROTTLED = {
    0x4: "power cap", 0x8: "hardware slowdown", 0x20: "thermal limit (software)", 0x40: "thermal limit (hardware)",
    0x80: "power brake",
}  # fmt: skip


def rows(record: StudyRecord) -> list[tuple[str, str]]:
    """Return names and ranges over all rounds; empty for a study without a GPU, or where its driver told nothing."""
    states = _states(record)
    found = []
    for key, name, unit in _SCALES:
        values = _numbers(states, key)
        if values:
            low, high = min(values), max(values)
            span = f"{low:.0f}" if round(low) == round(high) else f"{low:.0f} to {high:.0f}"
            found.append((name, f"{span} {unit}, after each round"))
    bits = _numbers(states, "throttle_bits")
    if bits:
        found.append(("GPU throttled", _throttling([int(value) for value in bits])))
    peaks = _numbers(states, "device_memory_peak_seen_bytes")
    if peaks:
        found.append(("GPU memory of an engine (largest seen)", formats.size(int(max(peaks)))))
    return found


def notes(record: StudyRecord) -> list[str]:
    """Return a sentence where the GPU was slowed down in some round; empty where it was not, or nothing is known."""
    bits = [int(value) for value in _numbers(_states(record), "throttle_bits")]
    slowed = [value for value in bits if _reasons(value)]
    if not slowed:
        return []
    return [f"The GPU was slowed down in {_throttling(bits)}: latencies of those rounds are longer than it can do."]


def tracks(record: StudyRecord) -> list[Track]:
    """Return what changed over the rounds, to be drawn; empty where fewer than two rounds told of it."""
    rounds = sorted(_rounds(record), key=lambda item: item[0])
    found = []
    for key, name, unit in _SCALES:
        told = [(began, value, state) for began, state in rounds for value in _numbers([state], key)]
        if len(told) > 1:
            slowed = tuple(
                any(_reasons(int(bits)) for bits in _numbers([state], "throttle_bits")) for *_, state in told
            )
            seconds = tuple(began - rounds[0][0] for began, *_ in told)
            found.append(Track(name, unit, seconds, tuple(value for _, value, _ in told), slowed))
    return found


def has_gpu(record: StudyRecord) -> bool:
    """Whether a GPU told its state in some round."""
    return bool(_numbers(_states(record), "device_memory_peak_seen_bytes", "sm_clock_megahertz"))


def _states(record: StudyRecord) -> list[dict[str, Any]]:
    return [state for _, state in _rounds(record)]


def _rounds(record: StudyRecord) -> list[tuple[float, dict[str, Any]]]:
    """Return when each round began, and what the device told after it."""
    rounds = [item for result in record.results if result.measurement is not None for item in result.measurement.rounds]
    states = [(item.started_at, item.conditions.get("device")) for item in rounds]
    return [(began, state) for began, state in states if isinstance(state, dict)]


def _numbers(states: list[dict[str, Any]], *keys: str) -> list[float]:
    values = [state.get(key) for state in states for key in keys]
    return [float(value) for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]


def _reasons(bits: int) -> list[str]:
    return [name for bit, name in _THROTTLED.items() if bits & bit]


def _throttling(bits: list[int]) -> str:
    slowed = [value for value in bits if _reasons(value)]
    if not slowed:
        return f"in none of {formats.count(len(bits), 'round')}"
    names = list(dict.fromkeys(name for value in slowed for name in _reasons(value)))
    return f"{len(slowed)} of {formats.count(len(bits), 'round')} ({formats.listed(names)})"
