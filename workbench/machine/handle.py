"""A caller's hand on long work: it hears how far the work is, and may stop it. Knows nothing of what the work is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from workbench.errors import Cancelled
from workbench.records import Progress

KEPT = "What was finished before is kept; run again to go on from there."


def _never() -> bool:
    return False


def _silent(step: Progress) -> None:
    pass


def _unread(line: str) -> None:
    pass


@dataclass(frozen=True)
class Handle:
    """Passed down to whatever takes long.

    Attributes:
        cancelled: asked now and then from the thread that works; True stops the work with Cancelled.
        progress: called with each step forward.
        on_line: called with each line that a builder prints.
    """

    cancelled: Callable[[], bool] = _never
    progress: Callable[[Progress], None] = _silent
    on_line: Callable[[str], None] = _unread

    def check(self, where: str = "") -> None:
        """Stop here if the caller wants that.

        Args:
            where: what was about to be done, such as ` before round 3 of 'int8-max'`.

        Raises:
            Cancelled: the caller does.
        """
        if self.cancelled():
            raise Cancelled(f"Stopped as asked{where}. {KEPT}")


# For callers who neither listen nor stop anything.
QUIET = Handle()
