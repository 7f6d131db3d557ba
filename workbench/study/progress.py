"""Show long work as a bar, where somebody is looking. Knows nothing of what the work is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Literal

from workbench.records import Progress

Listener = Callable[[Progress], None]


def listener(progress: Listener | Literal["auto"] | None) -> Listener:
    """Return what to call with each Progress.

    Args:
        progress: a function of yours; None for silence; `auto` for a bar in a notebook or a terminal, and
            silence where nobody looks (a pipe, a log file, a test).
    """
    if progress is None:
        return _silent
    if progress != "auto":
        return progress
    return Bar() if _somebody_looks() else _silent


class Bar:
    """A tqdm bar over the whole of the work, with stage and variant in front."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, progress: Progress) -> None:
        """Move the bar to where the work is."""
        from tqdm.std import tqdm  # the text bar: it can be seen in a notebook, a terminal and a headless run alike

        if self._bar is None:
            shape = "{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}"
            # Notebooks paint stderr red.
            stream = sys.stdout if "ipykernel" in sys.modules else sys.stderr
            self._bar = tqdm(total=1.0, bar_format=shape, leave=False, file=stream, mininterval=0.2)
        self._bar.set_description_str(
            f"{progress.stage:<9} {progress.variant:<14} {progress.message:<8}", refresh=False
        )
        self._bar.n = min(progress.fraction, 1.0)
        self._bar.refresh()
        if progress.fraction >= 1.0:
            self._bar.close()
            self._bar = None


def _silent(progress: Progress) -> None:
    pass


def _somebody_looks() -> bool:
    return sys.stderr.isatty() or "ipykernel" in sys.modules
