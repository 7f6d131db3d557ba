"""What all parts of the state share: the lock, the store, and the one place where errors are caught and shown.

Callbacks arrive on the kernel's main thread or on a subshell's, and news of jobs on a third; whoever changes state
holds the lock. Knows nothing of widgets.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from typing import Any

from traitlets import Any as TraitAny
from traitlets import HasTraits, Unicode

from workbench.errors import WorkbenchError
from workbench.machine.store import Store
from workbench.ui.jobs import Job, Queue

PAGES = ("Model", "Recipes", "Run", "Results", "Tune", "Batches", "Export", "Studies")

logger = logging.getLogger("workbench.ui")


class Session(HasTraits):
    """The shared part of the state.

    Attributes:
        error: what went wrong last, for the user; empty after the next command that goes well.
        place: the button whose command went wrong, which tells it beside itself; None where it stands at the top.
        page: the page that is shown, one of `PAGES`.
    """

    error = Unicode()
    place: Any = TraitAny()
    page = Unicode(PAGES[0])

    def __init__(self, store: Store | None = None) -> None:
        super().__init__()
        self.store = store or Store()
        self.lock = threading.RLock()
        self.is_closed = False
        self._listening: list[tuple[Job[Any], Callable[[], None]]] = []
        self._keys: dict[Queue, set[Hashable]] = {}

    def attempt(self, command: Callable[..., None], *arguments: Any) -> None:
        """Do what a user asked for; what goes wrong is shown, and logged where it is not an expected error."""
        with self.lock:
            if self.is_closed:
                return
            self.error, self.place = "", None
            self._guarded(command, *arguments)

    def deliver(self, news: Callable[..., None], *arguments: Any) -> None:
        """Take news from a job; an error shown before stays."""
        with self.lock:
            if not self.is_closed:
                self._guarded(news, *arguments)

    def start(self, queue: Queue, job: Job[Any], news: Callable[[Job[Any]], None]) -> Job[Any]:
        """Start a job and hear of it until this session is closed."""
        self.follow(queue, job, news)
        return queue.start(job)

    def follow(self, queue: Queue, job: Job[Any], news: Callable[[Job[Any]], None]) -> None:
        """Hear of a job that may be running already; `stop` stops it too."""
        with self.lock:
            self._keys.setdefault(queue, set()).add(job.key)

        def listener() -> None:
            self.deliver(news, job)

        self._listening = [(item, heard) for item, heard in self._listening if not item.is_final]
        self._listening.append((job, listener))
        job.listen(listener)

    def leave(self) -> None:
        """Hear of nothing any more; jobs go on."""
        with self.lock:
            self.is_closed = True
            listening, self._listening = self._listening, []
        for job, listener in listening:
            job.unlisten(listener)

    def stop(self) -> None:
        """Cancel the jobs that this session hears of and wait for their end; the lock must not be held."""
        with self.lock:
            chosen = [(queue, set(keys)) for queue, keys in self._keys.items()]
        for queue, keys in chosen:
            queue.stop(keys)

    def _guarded(self, command: Callable[..., None], *arguments: Any) -> None:
        try:
            command(*arguments)
        except WorkbenchError as error:
            self.error = f"{type(error).__name__}: {error}"
        except Exception as error:
            logger.exception("Unexpected error in %s", getattr(command, "__qualname__", command))
            self.error = (
                f"Unexpected {type(error).__name__}: {error}. This is a fault of the workbench; its traceback is in the log "
                f"of the kernel. What was finished is kept."
            )
