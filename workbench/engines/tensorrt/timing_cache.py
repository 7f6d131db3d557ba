"""Tactic timings that outlive a build: one file for each TensorRT version and device.

Two processes may build at once: reading, merging and replacing happen under a lock, and the file is replaced whole.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from workbench.engines.tensorrt.capabilities import Capabilities, Device
from workbench.machine import disk


def place(folder: Path, caps: Capabilities, device: Device) -> Path:
    """Return the cache's file: timings hold for one exact version on one kind of device."""
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{caps.version}-{device.name}-sm{device.capability}")
    return folder / f"timing-{words}.cache"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file; other processes wait."""
    with path.with_name(path.name + ".lock").open("a+b") as handle:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield  # closing the handle gives the lock back, also when the process is killed


def attach(config: Any, path: Path) -> tuple[Any, list[str]]:
    """Give a builder config the timings in the file, or none where it is absent or not usable.

    Returns:
        The cache, to be passed to `save` after the build, and notes.
    """
    with locked(path):
        stored = path.read_bytes() if path.exists() else b""
    cache = config.create_timing_cache(stored)
    if cache is not None and config.set_timing_cache(cache, False):
        return cache, []
    notes = [f"The timing cache {path.name} does not fit this TensorRT and device; it is started anew."]
    cache = config.create_timing_cache(b"")
    config.set_timing_cache(cache, False)
    return cache, notes if stored else []


def save(config: Any, cache: Any, path: Path) -> list[str]:
    """Merge the timings of a build into the file. Returns notes."""
    notes: list[str] = []
    with locked(path):
        stored = path.read_bytes() if path.exists() else b""
        if stored:
            other = config.create_timing_cache(stored)
            if other is None or not cache.combine(other, False):
                notes.append(f"The timing cache {path.name} could not be merged with; it is replaced.")
        with disk.whole_file(path) as unfinished:
            unfinished.write_bytes(memoryview(cache.serialize()))
    return notes
