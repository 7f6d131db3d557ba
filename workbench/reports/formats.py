"""Numbers as words: the one place where seconds, bytes and shares become text for a reader."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import Any

ABSENT = "-"


def significant(value: float, digits: int = 3) -> str:
    """Return the value with that many significant digits and no exponent where it can be helped."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 9)}f}"


def milliseconds(seconds: float | None) -> str:
    """Return seconds as milliseconds, without the unit; `-` where there is no value."""
    return ABSENT if seconds is None else significant(seconds * 1e3)


def milliseconds_between(low: float, high: float) -> str:
    """Return an interval in milliseconds, with enough digits to tell its ends apart."""
    return between(low * 1e3, high * 1e3)


def between(low: float, high: float, digits: int = 3) -> str:
    """Return `[low, high]`; digits are added until the ends differ, up to five; more would be noise."""
    for places in range(digits, 6):
        ends = significant(low, places), significant(high, places)
        if ends[0] != ends[1]:
            return f"[{ends[0]}, {ends[1]}]"
    return f"[{significant(low, digits)}, {significant(high, digits)}]"


def seconds(value: float | None) -> str:
    """Return a duration a person waits for, with its unit."""
    if value is None:
        return ABSENT
    if value < 0.1:
        return f"{significant(value * 1e3, 2)} ms"
    return f"{significant(value, 2)} s" if value < 100 else f"{value / 60:.1f} min"


def size(value: int | None) -> str:
    """Return bytes in decimal units (1 MB = 1,000,000 bytes)."""
    if value is None:
        return ABSENT
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit:
            return f"{significant(value / unit)} {name}"
    return f"{value} B"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """Return `1 sample`, `2 samples`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listed(names: list[str], last: str = "and") -> str:
    """Return `a`, `a and b`, `a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {last} {names[-1]}"


def moment(unix_seconds: float) -> str:
    """Return a point in time in UTC, to the minute."""
    return datetime.fromtimestamp(unix_seconds, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def plain(value: Any) -> str:
    """Return any JSON value in one line for an environment table."""
    if value is None:
        return "unknown"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value) or "none"
    return str(value)
