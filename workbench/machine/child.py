"""Run one function in a fresh Python process: a crash there is an error here, not the end of the notebook.

The job, a record, travels as JSON and the arrays as an `.npz` in a folder; the answer comes back the same way, written
whole or not at all. Knows nothing of what the job does.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import traceback
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from workbench import codec, errors
from workbench.errors import ChildKilled, WorkbenchError
from workbench.machine import disk, process
from workbench.machine.arrays import load, save
from workbench.machine.handle import QUIET, Handle

_POLL_SECONDS = 0.02
_LOG_CHARACTERS = 20_000

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
) -> Answer:
    """Run `target(job, arrays)` in a fresh process and wait for its answer.

    Args:
        target: `workbench.module:function`; it takes (job, arrays), its first parameter annotated with the job's type,
            and returns (record, arrays).
        job: a record, as `workbench.codec` writes it.
        arrays: input arrays by name.
        returns: type of the record that comes back; None where it is plain data.
        handle: the caller's; asked about 50 times a second whether to end the child, and told each line that it prints,
            in this thread.

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
        with (folder / "log.txt").open("wb") as log, process.started(__name__, [str(folder)], log) as child:
            _wait(child, folder, target, handle)
        return _answer(child, folder, target, returns)


def _wait(child: subprocess.Popen[bytes], folder: Path, target: str, handle: Handle) -> None:
    with (folder / "log.txt").open(encoding="utf-8", errors="replace") as lines:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_POLL_SECONDS)
            for line in lines:
                handle.on_line(line.rstrip("\n"))
            if child.returncode is not None:
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
    """Be the child: run the job in the folder `place` and leave the answer there."""
    folder = Path(place)
    process.end_with_parent()
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
    (folder / "answer.tmp").write_text(json.dumps(plain), encoding="utf-8")
    (folder / "answer.tmp").replace(folder / "answer.json")
    sys.stdout.flush()
    # Engines' libraries may hang or crash while they are unloaded; the answer is safe on disk, so leave at once.
    os._exit(0)
