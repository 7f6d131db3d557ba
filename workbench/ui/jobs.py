"""Long work on one thread: progress, cancel, final states; and queues by which a re-run cell finds its job again.

A job's work stores what it has to say; a pulse thread tells the listeners that there is news, at most five times a
second, and they read an immutable `Snapshot`. So a front end is never flooded, and nobody who was slow to listen sees
old news after newer. Knows nothing of models, studies or widgets.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from workbench.errors import Cancelled
from workbench.records import Progress

Result = TypeVar("Result")
JobState = Literal["waiting", "running", "done", "failed", "cancelled"]
FINAL: tuple[JobState, ...] = ("done", "failed", "cancelled")

PULSE_SECONDS = 0.2
# Without news, clocks still move once a second.
_CLOCK_SECONDS = 1.0
_LOG_LINES = 200

logger = logging.getLogger("workbench.ui")


@dataclass(frozen=True)
class Snapshot:
    """What is known of a job at one moment.

    Attributes:
        partial: what the work published last (such as a record that grows), or None.
        elapsed_seconds: since the work began.
        remaining_seconds: as the work said last, less the time since then; None where it did not say.
        log: the last lines, joined.
        error: message of the exception that ended it; empty where none did.
    """

    state: JobState = "waiting"
    progress: Progress | None = None
    partial: Any = None
    elapsed_seconds: float = 0.0
    remaining_seconds: float | None = None
    log: str = ""
    error: str = ""

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in FINAL


Listener = Callable[[], None]


class Job(Generic[Result]):
    """One piece of long work.

    Args:
        name: in words, for messages.
        work: takes the job, and calls `report`, `publish` and `say` on it, and asks `cancelled`.
        key: a later job of the same key replaces this one while it waits.
    """

    def __init__(self, name: str, work: Callable[[Job[Result]], Result], key: Hashable = None) -> None:
        self.name = name
        self.key = key
        self._work = work
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._ended = threading.Event()
        self._cancel = threading.Event()
        self._listeners: list[Listener] = []
        self._snapshot = Snapshot()
        self._lines: deque[str] = deque(maxlen=_LOG_LINES)
        self._started = 0.0
        self._reported = 0.0
        self._fresh = False
        self._stop_pulse = False
        self._outcome: Result | None = None
        self._failure: BaseException | None = None

    def report(self, progress: Progress) -> None:
        """Say how far the work is (called by the work)."""
        with self._news:
            self._reported = time.monotonic()
            self._change(progress=progress)

    def publish(self, partial: Any) -> None:
        """Hand on what there is so far (called by the work)."""
        with self._news:
            self._change(partial=partial)

    def flush(self) -> None:
        """Tell the listeners now, on this thread (called by the work, where it wants them to be done)."""
        self._tell_all()

    def say(self, line: str) -> None:
        """Add a line to the log (called by the work)."""
        with self._news:
            self._lines.append(line)
            self._change()

    def cancelled(self) -> bool:
        """Whether somebody asked to stop (asked by the work)."""
        return self._cancel.is_set()

    def cancel(self) -> None:
        """Ask the work to stop; a job that still waits ends at once, one that has ended stays as it is."""
        self._cancel.set()
        with self._news:
            waiting = self._snapshot.state == "waiting"
        if waiting:
            self._finish("cancelled", failure=Cancelled(f"{self.name} was cancelled before it began."))

    def listen(self, listener: Listener) -> None:
        """Call `listener` after every change (at most five times a second) and at the end, until `unlisten`.

        It is called on another thread, without arguments: it reads `snapshot`, which is never older than the news.
        """
        with self._lock:
            self._listeners.append(listener)

    def unlisten(self, listener: Listener) -> None:
        """Stop calling a listener; nothing happens where it did not listen."""
        with self._lock:
            self._listeners = [item for item in self._listeners if item != listener]

    @property
    def snapshot(self) -> Snapshot:
        """What is known now."""
        with self._lock:
            return self._timed()

    @property
    def is_final(self) -> bool:
        """Whether the job has ended and all listeners know."""
        return self._ended.is_set()

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end and return what the work returned.

        Args:
            timeout: seconds to wait at most; None waits for ever.

        Raises:
            TimeoutError: it has not ended in time; it goes on.
            Cancelled: it was cancelled.
            Exception: what the work raised.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"{self.name} has not ended after {timeout} s; it goes on. Wait longer, or cancel() it.")
        self.raise_failure()
        return self._outcome  # type: ignore[return-value]

    @property
    def outcome(self) -> Result | None:
        """What the work returned; None before its end and where it did not get there."""
        return self._outcome

    def raise_failure(self) -> None:
        """Raise what the work raised, where it raised something."""
        if self._failure is not None:
            raise self._failure

    def run(self) -> None:
        """Do the work on this thread, with a second one that tells the listeners."""
        with self._news:
            if self._snapshot.state != "waiting":
                return
            self._started = time.monotonic()
            self._change(state="running")
        pulse = threading.Thread(target=self._pulse, name=f"workbench-pulse-{self.name}", daemon=True)
        pulse.start()
        state: JobState = "done"
        outcome: Result | None = None
        failure: BaseException | None = None
        try:
            outcome = self._work(self)
        except Cancelled as error:
            state, failure = "cancelled", error
        except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
            state, failure = "failed", error
        with self._news:
            self._started, elapsed = 0.0, time.monotonic() - self._started
            self._change(elapsed_seconds=elapsed, remaining_seconds=None)
            self._stop_pulse = True
        pulse.join()
        self._finish(state, outcome, failure)

    def _finish(self, state: JobState, outcome: Result | None = None, failure: BaseException | None = None) -> None:
        with self._news:
            if self._snapshot.state in FINAL:
                return
            self._outcome, self._failure = outcome, failure
            self._change(state=state, error="" if failure is None else str(failure) or type(failure).__name__)
        self._tell_all()
        self._ended.set()

    def _pulse(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._fresh or self._stop_pulse, timeout=_CLOCK_SECONDS)
                self._fresh = False
                if self._stop_pulse:
                    return
            self._tell_all()
            with self._news:
                self._news.wait_for(lambda: self._stop_pulse, timeout=PULSE_SECONDS)

    def _change(self, **fields: Any) -> None:
        """Replace fields of the snapshot; the lock is held."""
        self._snapshot = replace(self._snapshot, **fields)
        self._fresh = True
        self._news.notify_all()

    def _timed(self) -> Snapshot:
        shown = replace(self._snapshot, log="\n".join(self._lines))
        if not self._started:
            return shown
        elapsed = time.monotonic() - self._started
        remaining = None if shown.progress is None else shown.progress.remaining_seconds
        if remaining is not None:
            remaining = max(0.0, remaining - (time.monotonic() - self._reported))
        return replace(shown, elapsed_seconds=elapsed, remaining_seconds=remaining)

    def _tell_all(self) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            self._tell(listener)

    def _tell(self, listener: Listener) -> None:
        try:
            listener()
        except Exception:
            logger.exception("A listener of the job %s failed", self.name)


class Queue:
    """Runs jobs one after the other, on a thread that lives only while there is work."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._waiting: deque[Job[Any]] = deque()
        self._running: Job[Any] | None = None
        self._latest: dict[Hashable, Job[Any]] = {}
        self._thread: threading.Thread | None = None
        self._idle = True

    def start(self, job: Job[Result]) -> Job[Result]:
        """Take a job; it begins when those before it have ended. One of the same key that still waits is dropped."""
        with self._lock:
            replaced = [item for item in self._waiting if job.key is not None and item.key == job.key]
            self._waiting = deque(item for item in self._waiting if item not in replaced)
            self._waiting.append(job)
            if job.key is not None:
                self._latest[job.key] = job
            if self._idle:
                self._idle = False
                self._thread = threading.Thread(target=self._work, name=f"workbench-{self.name}", daemon=True)
                self._thread.start()
        for item in replaced:
            item.cancel()
        return job

    def find(self, key: Hashable) -> Job[Any] | None:
        """Return the latest job of that key, running or ended; None where there was none."""
        with self._lock:
            return self._latest.get(key)

    @property
    def running(self) -> Job[Any] | None:
        """The job that is being worked on, or None."""
        with self._lock:
            return self._running

    def stop(self, keys: set[Hashable] | None = None, timeout: float = 30.0) -> None:
        """Cancel the jobs of those keys (None: all) and wait until they have ended."""
        with self._lock:
            chosen = [*self._waiting, *([self._running] if self._running else [])]
        chosen = [job for job in chosen if keys is None or job.key in keys]
        for job in chosen:
            job.cancel()
        for job in chosen:
            job._ended.wait(timeout)
        self.settle(timeout)

    def settle(self, timeout: float = 30.0) -> None:
        """Wait until all work is done and the thread has ended."""
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def forget(self, key: Hashable) -> None:
        """Drop an ended job, so that a new cell does not find it."""
        with self._lock:
            job = self._latest.get(key)
            if job is not None and job.is_final:
                del self._latest[key]

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._idle = True
                    return
                self._running = job = self._waiting.popleft()
            job.run()
            with self._lock:
                self._running = None


# Heavy work: one at a time, because two studies side by side would measure each other.
STUDIES = Queue("studies")
# Light work that would still hold up a click: pictures and comparisons.
DRAWING = Queue("drawing")
