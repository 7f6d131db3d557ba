"""Run one function in another Python process: a crash there is an error here, not the end of the notebook.

The job, a record, travels as JSON and the arrays as an `.npz` in a folder; the answer comes back the same way, written
whole or not at all. The process is a fresh one, or one that is kept for jobs of its kind where starting takes seconds.
Knows nothing of what the job does.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workbench import codec, errors
from workbench.errors import ChildKilled, WorkbenchError
from workbench.machine import disk, process, turn
from workbench.machine.arrays import load, save
from workbench.machine.handle import QUIET, Handle

_POLL_SECONDS = 0.02
_LOG_CHARACTERS = 20_000
# A kept process ends by itself after a while; it is not lent again shortly before, so that nobody meets it ending.
_IDLE_SECONDS, _LENT_WITHIN_SECONDS = 60.0, 45.0
_SERVE = "--serve"

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Answer:
    """What the function in the child returned, a record and arrays; and what the child printed."""

    record: Any
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    log: str = ""


def call(
    target: str,
    job: Any,
    arrays: Arrays | None = None,
    *,
    returns: type | None = None,
    handle: Handle = QUIET,
    kept: str | None = None,
) -> Answer:
    """Run `target(job, arrays)` in another process and wait for its answer.

    Args:
        target: `workbench.module:function`; it takes (job, arrays), its first parameter annotated with the job's type,
            and returns (record, arrays).
        job: a record, as `workbench.codec` writes it.
        arrays: input arrays by name.
        returns: type of the record that comes back; None where it is plain data.
        handle: the caller's; asked about 50 times a second whether to end the child, and told each line that it prints,
            in this thread.
        kept: None for a fresh process. With a name, a process that ran jobs of that name before is taken where one idles,
            one job at a time, and it is kept for the next; one in which anything went wrong, or that has grown, is not.

    Raises:
        Cancelled: the caller stopped it.
        ChildKilled: the process ended without an answer; names the signal and holds its last words.
        OutOfMemory: it took more memory than a child may (see `workbench.machine.process`), and was ended.
        WorkbenchError: what the function raised, as the same class.
    """
    with disk.temporary() as folder:
        request = {"target": target, "job": codec.to_plain(job)}
        with disk.writing(folder):
            (folder / "job.json").write_text(json.dumps(request), encoding="utf-8")
            save(folder / "arrays.npz", arrays or {})
        with _process(folder, kept) as running:
            _wait(running, folder, target, handle)
        return _answer(running, folder, target, returns)


@contextlib.contextmanager
def _process(folder: Path, kept: str | None) -> Iterator[subprocess.Popen[bytes]]:
    """Lend a process that works on the folder."""
    (folder / "log.txt").touch()
    if kept is None:
        with (folder / "log.txt").open("wb") as log, process.started(__name__, [str(folder)], log) as fresh:
            yield fresh
        return
    lent = _lend(kept)
    try:
        assert lent.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it was killed while it idled, which is told as any other end
            lent.process.stdin.write(f"{folder}\n".encode())
            lent.process.stdin.flush()
        yield lent.process
    except BaseException:
        lent.end()
        raise
    _give_back(lent)


class _Kept:
    """A process that serves one job after the other."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.idle_since = time.monotonic()
        self._ending = contextlib.ExitStack()
        self.process = self._ending.enter_context(process.started(__name__, [_SERVE], subprocess.DEVNULL))

    def end(self) -> None:
        self._ending.close()


_idle: list[_Kept] = []
_lock = threading.Lock()


def _lend(name: str) -> _Kept:
    with _lock:
        for one in [one for one in _idle if one.name == name]:
            _idle.remove(one)
            if one.process.poll() is None and time.monotonic() - one.idle_since < _LENT_WITHIN_SECONDS:
                return one
            one.end()
    return _Kept(name)


def _give_back(lent: _Kept) -> None:
    """Keep a process for the next job, unless one idles already or this one has grown."""
    lent.idle_since = time.monotonic()
    small = process.used_bytes(lent.process) < process.memory_limit_bytes() // 4
    with _lock:
        if lent.process.poll() is None and small and all(one.name != lent.name for one in _idle):
            _idle.append(lent)
            return
    lent.end()


@atexit.register
def end_idle() -> None:
    """End the processes that are kept and idle, so that they hold no memory of host or device."""
    with _lock:
        idle, _idle[:] = _idle[:], []
    for one in idle:
        one.end()


@contextlib.contextmanager
def measuring(handle: Handle = QUIET, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Have this machine for a measurement: the turn to measure, and none of our own processes idling on the device.

    Arguments and errors as for `workbench.machine.turn.measuring`.
    """
    with turn.measuring(handle, waiting):
        end_idle()
        yield


def _wait(child: subprocess.Popen[bytes], folder: Path, target: str, handle: Handle) -> None:
    with (folder / "log.txt").open(encoding="utf-8", errors="replace") as lines:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_POLL_SECONDS)
            done = child.returncode is not None or (folder / "answer.json").exists()
            for line in lines:
                handle.on_line(line.rstrip("\n"))
            if done:
                return
            handle.check()
            process.check_memory(child, target)


def _answer(child: subprocess.Popen[bytes], folder: Path, target: str, returns: type | None) -> Answer:
    log = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-_LOG_CHARACTERS:]
    answer = folder / "answer.json"
    if not answer.exists():
        raise ChildKilled(f"The process that ran {target} {ending(child.returncode)} before it could answer.", log)
    plain = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in plain:
        raise raised(plain, log)
    record = plain["plain"] if returns is None else codec.from_plain(returns, plain["plain"])
    return Answer(record, load(folder / "answer.npz"), log)


def ending(code: int) -> str:
    """Say how a process ended, from its exit status, in words."""
    if code >= 0:
        return f"ended with exit status {code}"
    name = signal.Signals(-code).name
    likely = {
        "SIGKILL": " (most often the system's out-of-memory killer: use a smaller batch or model, or free memory)",
        "SIGSEGV": " (a crash inside the engine's own library: its log may name the layer; try another backend or version)",
        "SIGABRT": " (the engine's own library gave up: its log may say why)",
    }
    return f"was ended by {name}{likely.get(name, '')}"


def raised(plain: dict[str, Any], log: str) -> WorkbenchError:
    """Return the error that `failure` wrote, as the same class."""
    kind = getattr(errors, plain["error"], WorkbenchError)
    error = kind(plain["message"])
    if hasattr(error, "log"):
        error.log = plain["log"] or log
    return error  # type: ignore[no-any-return]


def failure(error: WorkbenchError) -> dict[str, Any]:
    """Return an error as plain data."""
    return {"error": type(error).__name__, "message": str(error), "log": getattr(error, "log", "")}


def main(place: str) -> None:
    """Be the child: run the job in the folder `place` and leave the answer there, or serve such folders."""
    if place == _SERVE:
        _serve()
    process.end_with_parent()
    _work(Path(place))
    # Engines' libraries may hang or crash while they are unloaded; the answer is safe on disk, so leave at once.
    os._exit(0)


def _serve() -> None:
    """Take folders from the parent, a line each, until it asks for nothing any more or is gone."""
    folders: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin.buffer:
            folders.put(line.decode().rstrip("\n"))
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        try:
            folder = Path(folders.get(timeout=_IDLE_SECONDS))
        except queue.Empty:
            os._exit(0)
        with (folder / "log.txt").open("ab") as log:
            for descriptor in (1, 2):  # libraries write there without asking Python
                os.dup2(log.fileno(), descriptor)
        _work(folder)


def _work(folder: Path) -> None:
    """Run the job that is in a folder; what it returns or raises is written there."""
    request = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    module, _, function = request["target"].partition(":")
    if not module.startswith("workbench."):
        raise SystemExit(f"workbench.machine.child runs only functions of the workbench, not {request['target']!r}")
    arrays: dict[str, np.ndarray] = {}
    plain: dict[str, Any]
    try:
        given = load(folder / "arrays.npz")
        work = getattr(importlib.import_module(module), function)
        kind = typing.get_type_hints(work).get("job", Any)
        result, arrays = work(codec.from_plain(kind, request["job"]), given)
        plain = {"plain": codec.to_plain(result)}
    except WorkbenchError as error:
        plain = failure(error)
    except Exception as error:  # noqa: BLE001 - whatever went wrong must reach the parent with its traceback
        traceback.print_exc()
        if isinstance(error, OSError) and error.errno in disk.FULL:
            plain = failure(disk.explained(error, error.filename or folder))
        else:
            message = f"{request['target']} failed with {type(error).__name__}: {error}. The log holds the traceback."
            plain = {"error": "WorkbenchError", "message": message, "log": traceback.format_exc()}
    try:
        save(folder / "answer.npz", arrays)
    except OSError as error:
        plain = failure(disk.explained(error, folder))
        save(folder / "answer.npz", {})
    sys.stdout.flush()
    sys.stderr.flush()
    (folder / "answer.tmp").write_text(json.dumps(plain), encoding="utf-8")
    (folder / "answer.tmp").replace(folder / "answer.json")
