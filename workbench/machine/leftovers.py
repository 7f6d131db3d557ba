"""Folders that a process works in and removes; those of processes that were killed are removed by the next one that comes.

A folder's name holds its owner: host, process and when that process began, because process numbers are given again. Only
folders of this host are judged: another host that shares a store may well be at work in its own.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

_NAME = re.compile(r"(?P<prefix>.*)workbench-(?P<host>[\w.]+)-(?P<pid>\d+)-(?P<began>\d+)-[^-]+")


@contextlib.contextmanager
def working(folder: Path | None = None, prefix: str = "") -> Iterator[Path]:
    """Give an empty folder, removed at the end; and remove what dead processes left beside it.

    Args:
        folder: where it is made; None takes the system's temporary folder.
        prefix: of its name, such as a dot that hides it.

    Raises:
        OSError: it cannot be made.
    """
    place = Path(tempfile.gettempdir()) if folder is None else folder
    _swept_once(place, prefix)
    made = tempfile.mkdtemp(prefix=f"{prefix}workbench-{_host()}-{os.getpid()}-{_began(os.getpid())}-", dir=place)
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


@functools.lru_cache
def _swept_once(folder: Path, prefix: str) -> None:
    """Sweep a folder at the first use by this process: every child gets a folder, and the system's may hold thousands."""
    sweep(folder, prefix)


def sweep(folder: Path, prefix: str = "") -> list[str]:
    """Remove the folders that dead processes of this host left in a folder; return their names."""
    removed = []
    with contextlib.suppress(OSError):  # a folder that cannot be listed will say so when it is written to
        for item in os.scandir(folder):
            match = _NAME.fullmatch(item.name)
            if match is None or match["prefix"] != prefix or match["host"] != _host() or item.is_symlink():
                continue
            if item.is_dir() and not _is_alive(int(match["pid"]), int(match["began"])):
                shutil.rmtree(item.path, ignore_errors=True)
                removed.append(item.name)
    return removed


def _is_alive(pid: int, began: int) -> bool:
    try:
        # Two seconds: the clock that this is counted from may be corrected.
        return abs(_began(pid) - began) <= 2
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True  # it is there, and somebody else's


def _began(pid: int) -> int:
    return int(psutil.Process(pid).create_time())


def _host() -> str:
    return re.sub(r"[^\w.]", "_", socket.gethostname()) or "host"
