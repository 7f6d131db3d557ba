"""Numbers as words: the one place where seconds, bytes and shares become text for a reader; records bring the plain ones."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from workbench.records.formats import ABSENT, count, milliseconds, seconds, significant, size

__all__ = [
    "ABSENT", "between", "count", "listed", "milliseconds", "milliseconds_between", "moment", "plain", "seconds",
    "significant", "size",
]  # fmt: skip


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
