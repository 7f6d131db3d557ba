"""Measuring several things in turns: who begins changes from turn to turn, so that a drift of the machine meets all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median
from typing import TypeVar

Name = TypeVar("Name")


def rotated(names: Iterable[Name], turn: int) -> list[Name]:
    """Return the names in their order, beginning with another one each turn."""
    listed = list(names)
    first = turn % len(listed)
    return listed[first:] + listed[:first]


def settled_median(once: Callable[[], float], times: int) -> float:
    """Return the median of so many calls without the first quarter, in which clocks and caches settle."""
    return median([once() for _ in range(times)][times // 4 :])
