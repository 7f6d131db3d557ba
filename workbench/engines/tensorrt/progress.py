"""Progress of a build, from TensorRT 10 on. Called from TensorRT's own threads: nothing may be raised there."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_SECONDS_BETWEEN_LINES = 0.2


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Tracker:
    """Nested phases to one share of the whole, 0 to 1; knows nothing of TensorRT."""

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self._lock = threading.Lock()
        self._reached = 0.0

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Open a phase of so many steps inside another one."""
        with self._lock:
            self._phases[phase] = _Phase(parent or None, max(steps, 1))

    def step(self, phase: str, done: int) -> None:
        """Note that step number `done` (from 0) of a phase is complete."""
        with self._lock:
            if phase in self._phases:
                self._phases[phase].done = done + 1

    def finish(self, phase: str) -> None:
        """Close a phase, complete or not."""
        with self._lock:
            self._phases.pop(phase, None)

    def fraction(self) -> float:
        """Return the share that is done; it never falls."""
        with self._lock:
            outer = next((name for name, phase in self._phases.items() if phase.parent is None), None)
            if outer is not None:
                self._reached = max(self._reached, min(self._share(outer), 1.0))
            return self._reached

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        inner = next((child for child, item in self._phases.items() if item.parent == name), None)
        within = self._share(inner) if inner is not None else 0.0
        return (min(phase.done, phase.steps) + within * (phase.done < phase.steps)) / phase.steps


def monitor(trt: Any, tell: Callable[[str], None], cancelled: Callable[[], bool]) -> Any:
    """Return an IProgressMonitor that tells `progress 0.42 <phase>` a few times a second.

    Args:
        tell: called from TensorRT's threads.
        cancelled: asked after each step; True makes TensorRT give the build up.
    """
    tracker = Tracker()
    last = [0.0]

    class BuildMonitor(trt.IProgressMonitor):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            _quietly(lambda: tracker.start(phase_name, parent_phase, int(num_steps)))

        def step_complete(self, phase_name: str, step: int) -> bool:
            _quietly(lambda: self._told(phase_name, int(step)))
            return not _quietly(cancelled, False)

        def phase_finish(self, phase_name: str) -> None:
            _quietly(lambda: tracker.finish(phase_name))

        def _told(self, phase: str, step: int) -> None:
            tracker.step(phase, step)
            now = time.monotonic()
            if now - last[0] >= _SECONDS_BETWEEN_LINES:
                last[0] = now
                tell(f"progress {tracker.fraction():.2f} {phase}")

    return BuildMonitor()


def _quietly(action: Callable[[], Any], fallback: Any = None) -> Any:
    try:
        return action()
    except Exception:  # noqa: BLE001 - an exception in TensorRT's thread would end the process
        return fallback
