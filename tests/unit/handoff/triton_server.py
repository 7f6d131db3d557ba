"""The Triton Inference Server that the package nvidia-pytriton carries, with its python backend, on loopback."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

_NEEDED = ("pytriton", "tritonclient", "geventhttpclient")
MISSING = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
WHY = f"{', '.join(MISSING)} not installed: pip install --no-deps nvidia-pytriton; pip install tritonclient[http]"
_READY_SECONDS = 60.0


def _home() -> Path:
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "tritonserver"


@contextlib.contextmanager
def serving(repository: Path, scratch: Path) -> Iterator[str]:
    """Start a server on a free port; yield `host:port`. A model that does not load fails with the server's own words."""
    backends = scratch / "backends"
    if not backends.exists():
        shutil.copytree(_home() / "backends", backends)
        stub = f"{sys.version_info[0]}.{sys.version_info[1]}"
        shutil.copy(
            _home() / "python_backend_stubs" / stub / "triton_python_backend_stub",
            backends / "python" / "triton_python_backend_stub",
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The stub finds its packages through the first python on the PATH.
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(_home().parents[1] / "nvidia_pytriton.libs"),
        "PATH": f"{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}",
    }
    command = [
        str(_home() / "bin" / "tritonserver"), "--model-repository", str(repository), "--backend-directory", str(backends),
        "--http-address", "127.0.0.1", "--http-port", str(port), "--allow-grpc", "false", "--allow-metrics", "false",
    ]  # fmt: skip
    log = scratch / "server.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment)
    try:
        _wait_until_ready(process, port, log)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    last = time.monotonic() + _READY_SECONDS
    while time.monotonic() < last:
        if process.poll() is not None:
            raise AssertionError(f"the server ended:\n{log.read_text(errors='replace')[-6000:]}")
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as reply,
        ):
            if reply.status == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"the server was not ready in {_READY_SECONDS} s:\n{log.read_text(errors='replace')[-6000:]}")
