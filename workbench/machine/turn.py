"""Who may go on: one run a study, and one measurement at a time on this machine.

Locks are the operating system's (`flock`): it frees them when their owner ends, however it ends, so that a stale one is
taken over by itself. Each holds the owner's process id and since when. Knows nothing of studies and of measuring.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from workbench.errors import StoreError
from workbench.machine import disk
from workbench.machine.handle import QUIET, Handle
from workbench.records import Progress

try:
    import fcntl
except ImportError:  # Windows: no locks there
    fcntl = None  # type: ignore[assignment]

_POLL_SECONDS = 0.1
# Where the machine-wide turn lies; a test, or a user of containers on one machine, can name another place.
TURN_VARIABLE = "WORKBENCH_TURN_FILE"


@dataclass(frozen=True)
class Owner:
    """Who holds a lock."""

    pid: int
    since: float

    def __str__(self) -> str:
        return f"process {self.pid}, since {datetime.fromtimestamp(self.since).astimezone():%Y-%m-%d %H:%M:%S}"


@contextlib.contextmanager
def alone(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock of a name while this block runs.

    Args:
        folder: where locks lie; made if absent.
        name: any text.

    Raises:
        StoreError: somebody else holds it.
    """
    with disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.lock"
    with _opened(file) as descriptor:
        if not _take(descriptor):
            raise StoreError(
                f"{name!r} is being run already ({_owner(descriptor) or 'by another process'}). Wait until it has finished, "
                f"end it, or give this one another name."
            )
        yield


@contextlib.contextmanager
def measuring(handle: Handle = QUIET, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Be the only one who measures on this machine while this block runs; wait for whoever does now.

    Args:
        handle: the caller's, which may stop the waiting.
        waiting: told in words, once for each owner that is waited for; None tells the handle, as a line and as progress.

    Raises:
        Cancelled: the caller stopped it.
    """
    with _opened(_turn_file()) as descriptor:
        told = None
        while not _take(descriptor):
            owner = _owner(descriptor)
            if owner != told or told is None:
                (waiting or functools.partial(_say, handle))(
                    f"waiting for another measurement ({owner or 'another process'})"
                )
                told = owner or Owner(0, 0.0)
            handle.check(" while waiting for another measurement to finish")
            time.sleep(_POLL_SECONDS)
        yield


def _say(handle: Handle, words: str) -> None:
    handle.on_line(words)
    handle.progress(Progress("measure", "", 0.0, words))


def _turn_file() -> Path:
    asked = os.environ.get(TURN_VARIABLE)
    return Path(asked) if asked else Path(tempfile.gettempdir()) / f"workbench-measuring-{getpass.getuser()}.lock"


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[int]:
    with disk.writing(file):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        yield descriptor
    finally:
        if fcntl is not None:  # a forked process may hold a copy of the descriptor
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    with contextlib.suppress(OSError):  # who holds it is told to people only: a full disk is no reason to stop
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "since": time.time()}).encode(), 0)
    return True


def _owner(descriptor: int) -> Owner | None:
    try:
        plain: Any = json.loads(os.pread(descriptor, 4096, 0))
        return Owner(int(plain["pid"]), float(plain["since"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
