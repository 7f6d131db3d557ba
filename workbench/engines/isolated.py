"""Run ONNX files on ONNX Runtime's CPU in another process: a file that takes all memory, never ends or crashes is an error here.

For everything that runs a model beside the engines themselves: calibration, simulations, comparisons. One process runs one
file at a time and is lent again when it is done; what is idle for some seconds ends by itself. Knows nothing of why.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from workbench import codec
from workbench.engines.base import Feeds
from workbench.errors import ChildKilled, OutOfMemory, RunError, WorkbenchError
from workbench.machine import child, disk, process
from workbench.machine.arrays import dtype_of
from workbench.machine.handle import QUIET, Handle
from workbench.records import TensorSpec

_POLL_SECONDS = 0.02
_IDLE_SECONDS = 5.0
_MOST_IDLE = 2
_WHAT = "running an ONNX file"


@dataclass(frozen=True)
class _Opened:
    """What the process says of a file that it opened."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class IsolatedRunner:
    """An open file in another process; a context manager. Not for two threads at once.

    Attributes:
        inputs, outputs: of the file, as ONNX Runtime tells them.
    """

    def __init__(self, lent: _Process, opened: _Opened, handle: Handle, seconds: float | None) -> None:
        self._lent: _Process | None = lent
        self._handle, self._seconds = handle, seconds
        self.inputs, self.outputs = opened.inputs, opened.outputs

    def __enter__(self) -> IsolatedRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lent is not None:
            lent, self._lent = self._lent, None
            _give_back(lent)

    def infer(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run once, from host arrays to host arrays.

        Raises:
            RunError: names, types or shapes do not fit, or the runtime reports an error.
            OutOfMemory, ChildKilled: it took too much memory or time, or the process crashed.
            Cancelled: the caller stopped it.
        """
        if self._lent is None:
            raise RunError("This runner was closed. Open the file again.")
        return self._lent.ask({"do": "infer"}, feeds, self._handle, self._seconds)[1]


def open_file(
    model: Path | str | bytes,
    fusion: str = "all",
    threads: int | None = None,
    *,
    handle: Handle = QUIET,
    seconds: float | None = None,
) -> IsolatedRunner:
    """Open a bare ONNX file, or its bytes, on ONNX Runtime's CPU, in another process.

    Args:
        fusion: level of ONNX Runtime's own optimizer, `all`, `basic` or `off`.
        threads: inside an operator; None leaves the choice to it.
        handle: the caller's, asked about 50 times a second whether to stop.
        seconds: that opening, and each call, may take; None sets no limit.

    Raises:
        BuildError: ONNX Runtime refuses the model; UnsupportedOperator where it lacks an operator.
        OutOfMemory, ChildKilled, Cancelled: as `IsolatedRunner.infer`.
    """
    lent = _lend()
    blob = {"model": np.frombuffer(model, np.uint8)} if isinstance(model, bytes) else {}
    request = {
        "do": "open",
        "path": "" if isinstance(model, bytes) else str(model),
        "fusion": fusion,
        "threads": threads,
    }
    try:
        plain, _ = lent.ask(request, blob, handle, seconds)
    except BaseException:
        _give_back(lent)
        raise
    return IsolatedRunner(lent, codec.from_plain(_Opened, plain), handle, seconds)


class _Process:
    """The other process, and the pipe to it."""

    def __init__(self) -> None:
        with disk.writing(tempfile.gettempdir()):
            self._log: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        ours, theirs = Pipe()
        self._pipe: Connection = ours
        self._ending = contextlib.ExitStack()
        try:
            self._process: subprocess.Popen[bytes] = self._ending.enter_context(
                process.started(__name__, [str(theirs.fileno())], self._log, pass_fds=(theirs.fileno(),))
            )
        finally:
            theirs.close()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(
        self, request: dict[str, Any], arrays: Feeds, handle: Handle, seconds: float | None
    ) -> tuple[Any, dict[str, np.ndarray]]:
        """Send a request and wait for its answer; whatever goes wrong on the way ends the process."""
        try:
            _send(self._pipe, request, arrays)
            deadline = None if seconds is None else time.monotonic() + seconds
            while not self._pipe.poll(_POLL_SECONDS):
                handle.check()
                process.check_memory(self._process, _WHAT)
                if deadline is not None and time.monotonic() > deadline:
                    raise ChildKilled(f"The process for {_WHAT} took more than {seconds:g} s and was ended.")
            plain, found = _receive(self._pipe)
        except (EOFError, OSError) as error:
            self.end()
            words = child.ending(self._process.returncode)
            raise ChildKilled(f"The process for {_WHAT} {words} before it could answer.", self._last_words()) from error
        except BaseException:
            self.end()
            raise
        if "error" in plain:
            raise child.raised(plain, "")
        return plain["plain"], found

    def end(self) -> None:
        self._ending.close()

    def close(self) -> None:
        self.end()
        self._pipe.close()
        self._log.close()

    def _last_words(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            self._log.seek(0)
            return self._log.read().decode("utf-8", "replace")[-20_000:]
        return ""


_idle: list[_Process] = []
_lock = threading.Lock()


def _lend() -> _Process:
    with _lock:
        while _idle:
            lent = _idle.pop()
            with contextlib.suppress(WorkbenchError):
                lent.ask({"do": "close"}, {}, QUIET, None)  # it may have ended just now, as it was idle
                return lent
            lent.close()
    return _Process()


def _give_back(lent: _Process) -> None:
    with _lock:
        for other in [one for one in _idle if not one.is_alive]:
            _idle.remove(other)
            other.close()
        if lent.is_alive and len(_idle) < _MOST_IDLE:
            with contextlib.suppress(WorkbenchError):
                lent.ask({"do": "close"}, {}, QUIET, _IDLE_SECONDS)
                _idle.append(lent)
                return
    lent.close()


@atexit.register
def _end_all() -> None:
    while _idle:
        _idle.pop().close()


# What goes through the pipe: a line of JSON, then the bytes of each array. Both ends are this file; nothing is pickled.


def _send(pipe: Connection, plain: Any, arrays: Feeds) -> None:
    sent = {name: np.asarray(array) for name, array in arrays.items()}
    texts = {name: array.tolist() for name, array in sent.items() if array.dtype.kind in "OUS"}
    heads = [[name, array.dtype.name, list(array.shape)] for name, array in sent.items() if name not in texts]
    shapes = {name: list(sent[name].shape) for name in texts}
    head = {"plain": plain, "arrays": heads, "texts": texts, "shapes": shapes}
    pipe.send_bytes(json.dumps(head, default=_as_text).encode())
    for name, _, _ in heads:
        if sent[name].nbytes:
            pipe.send_bytes(np.ascontiguousarray(sent[name]).reshape(-1).view(np.uint8).data)


def _receive(pipe: Connection) -> tuple[Any, dict[str, np.ndarray]]:
    head = json.loads(pipe.recv_bytes())
    arrays: dict[str, np.ndarray] = {}
    for name, dtype, shape in head["arrays"]:
        arrays[name] = np.empty(shape, dtype_of(dtype))
        if arrays[name].nbytes:
            pipe.recv_bytes_into(arrays[name].reshape(-1).view(np.uint8).data)
    for name, values in head["texts"].items():
        arrays[name] = np.array(values, object).reshape(head["shapes"][name])
    return head["plain"], arrays


def _as_text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def main(descriptor: str) -> None:
    """Be the other process: open and run files until nobody asks any more."""
    process.end_with_parent()
    pipe = Connection(int(descriptor))
    served = _Served()
    while served.runner is not None or pipe.poll(_IDLE_SECONDS):
        request, arrays = _receive(pipe)
        try:
            plain, found = served.answer(request, arrays)
            answer = {"plain": codec.to_plain(plain)}
        except WorkbenchError as error:
            answer, found = child.failure(error), {}
        except MemoryError as error:
            answer, found = child.failure(OutOfMemory(f"There is not enough memory: {error}")), {}
        _send(pipe, answer, found)
    os._exit(0)  # libraries may hang or crash while they are unloaded


class _Served:
    """The file that is open now."""

    def __init__(self) -> None:
        self.runner: Any = None

    def answer(self, request: dict[str, Any], arrays: Feeds) -> tuple[Any, dict[str, np.ndarray]]:
        if request["do"] == "infer":
            return None, _bounded(self.runner.infer(arrays))
        if self.runner is not None:
            self.runner.__exit__(None, None, None)
            self.runner = None
        if request["do"] == "close":
            return None, {}
        from workbench.engines import onnxruntime

        model = arrays["model"].tobytes() if "model" in arrays else request["path"]
        self.runner = onnxruntime.open_file(model, request["fusion"], request["threads"])
        return _Opened(self.runner.inputs, self.runner.outputs), {}


def _bounded(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Refuse answers that would fill the other side's memory: it holds a copy of its own, and works on that."""
    size, most = sum(array.nbytes for array in outputs.values()), process.memory_limit_bytes() // 4
    if size > most:
        raise OutOfMemory(
            f"One call returns {size / 2**30:.2f} GiB ({len(outputs)} tensors), and at most {most / 2**30:.2f} GiB are taken "
            f"over. Use a smaller batch or model, or raise {process.LIMIT_VARIABLE}."
        )
    return outputs
