"""Numbers as words, for cards of records and for reports: seconds, bytes and counts. Knows no record."""

from __future__ import annotations

import math

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
