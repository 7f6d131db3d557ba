"""A fresh Python process that serves this one: how it is started, what it inherits, and how much memory it may take.

It imports nothing from the current folder, gets the part of the environment that engines need and no network, and ends
with its parent. Its memory is watched from outside: engines reserve far more address space than they use, so that a
limit on that (RLIMIT_AS) would refuse sound work; resident memory is what the machine runs out of. Knows nothing of the
work.
"""

from __future__ import annotations

import contextlib
import os
import site
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from workbench.errors import OutOfMemory

_GRACE_SECONDS = 2.0
# What a process may take of the machine's memory; the rest is the notebook's, and of whoever else is there.
_SHARE_OF_MEMORY = 0.75
LIMIT_VARIABLE = "WORKBENCH_CHILD_MEMORY_BYTES"
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
# `python -m` and `python -c` put the current folder first on the path, where a file called numpy.py may lie. Python 3.10
# has no switch (-P) against that. `sys` is built in: no file can take its place.
_BOOT = (
    "import sys; sys.path[:] = [place for place in sys.path if place]; "
    "from workbench.machine import network; network.close(); "
    "from {module} import main; main(*sys.argv[1:])"
)
# What a child inherits: where things lie, language, temporary folder, and the switches of the libraries that it uses.
_INHERITED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_", "TZ", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT",
    "VIRTUAL_ENV", "CONDA", "PYTHON", "COVERAGE", "LD_", "DYLD_", "XDG_", "CUDA", "NVIDIA", "CUDNN", "CUBLAS", "TRT", "TENSORRT",
    "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "ORT_", "OPENVINO", "OV_", "TORCH", "PYTORCH", "TRITON", "ATEN_",
    "DNNL_", "ONEDNN_", "MALLOC_", "CC", "CXX", "WORKBENCH_",
)  # fmt: skip
_SECRET = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL")


def memory_limit_bytes() -> int:
    """Return how much resident memory a child may take: $WORKBENCH_CHILD_MEMORY_BYTES, or 3/4 of what this machine has.

    A container's limit counts as what the machine has.
    """
    asked = os.environ.get(LIMIT_VARIABLE, "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    whole = psutil.virtual_memory().total
    for place in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            whole = min(whole, int(place.read_text(encoding="ascii")))
    return int(_SHARE_OF_MEMORY * whole)


def environment() -> dict[str, str]:
    """Return the environment of a child: ours, without what no engine needs, and with this package on its path."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.upper().startswith(_INHERITED) and not any(word in name.upper() for word in _SECRET)
    }
    # A relative entry would be the current folder again.
    places = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if Path(place).is_absolute()]
    home = str(Path(__file__).resolve().parents[2])
    if home not in site.getsitepackages():  # there it is found anyway, and behind the standard library
        places.append(home)
    return {**kept, "PYTHONPATH": os.pathsep.join(places)}


@contextlib.contextmanager
def started(module: str, arguments: Sequence[str], log: Any, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run `main(*arguments)` of a module in a fresh process; however this block ends, the process does not outlive it.

    Args:
        log: open file for all that it prints.
        options: of Popen.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _BOOT.format(module=module), *arguments],
        stdin=subprocess.PIPE,  # its end tells the child that we died
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment(),
        # Ctrl-C in a terminal goes to the whole group; we want to end the child ourselves, after storing what is done.
        start_new_session=True,
        **options,
    )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, by force where it does not listen."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdin is not None:
        process.stdin.close()


def check_memory(process: subprocess.Popen[bytes], what: str) -> None:
    """Refuse a process that takes more memory than it may.

    Args:
        what: it does, for the message.

    Raises:
        OutOfMemory: it does; the caller ends it.
    """
    used, limit = used_bytes(process), memory_limit_bytes()
    if used > limit:
        raise OutOfMemory(
            f"The process for {what} took {used / 2**30:.2f} GiB of memory and was ended; it may take "
            f"{limit / 2**30:.2f} GiB. Use a smaller model, batch or number of samples, or raise the limit with the "
            f"environment variable {LIMIT_VARIABLE}."
        )


def used_bytes(process: subprocess.Popen[bytes]) -> int:
    """Return the resident memory of a process; 0 where it has ended."""
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(process.pid).memory_info().rss)
    return 0


def end_with_parent() -> None:
    """Be called in the child: from now on it ends when its parent does."""

    def wait() -> None:
        sys.stdin.buffer.read()
        time.sleep(0.02)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
