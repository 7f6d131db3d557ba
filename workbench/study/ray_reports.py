"""What the studies on a Ray cluster are doing just now: told by their workers, collected where the sweep was called.

Best effort: a report that is lost, or a board that is, costs no study anything.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

from workbench.records import Progress

_LEAST_SECONDS = 0.5


class Board:
    """The actor that workers write to: the last that each study told."""

    def __init__(self) -> None:
        self._latest: dict[str, Progress] = {}

    def put(self, study: str, progress: Progress) -> None:
        """Take a report in the place of the study's last one."""
        self._latest[study] = progress

    def taken(self) -> dict[str, Progress]:
        """Return what is new since it was asked last, by study."""
        found, self._latest = self._latest, {}
        return found


def started(ray: Any) -> Any:
    """Start a board on this machine: no other's end ends it."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    return ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote()


class Reports:
    """The caller's side: asks a board without ever waiting."""

    def __init__(self, ray: Any, board: Any) -> None:
        self._ray, self.board = ray, board
        self._asked = board.taken.remote()

    def new(self) -> dict[str, Progress]:
        """Return what has come since the last call, by study; empty where nothing has, or the board was lost."""
        ready, _ = self._ray.wait([self._asked], timeout=0)
        if not ready:
            return {}
        found: dict[str, Progress] = {}
        with contextlib.suppress(self._ray.exceptions.RayError):
            found = self._ray.get(self._asked)
        self._asked = self.board.taken.remote()
        return found


class Teller:
    """The worker's side: called with each Progress of one study, and sends those that say something new."""

    def __init__(self, board: Any, study: str) -> None:
        self._board, self._study = board, study
        self._last: tuple[str, str] = ("", "")
        self._sent = float("-inf")

    def __call__(self, progress: Progress) -> None:
        """Send a report, unless one of the same stage was sent a moment ago."""
        doing, now = (progress.stage, progress.variant), time.monotonic()
        if doing != self._last or now - self._sent >= _LEAST_SECONDS:
            self._last, self._sent = doing, now
            with contextlib.suppress(Exception):
                self._board.put.remote(self._study, progress)
