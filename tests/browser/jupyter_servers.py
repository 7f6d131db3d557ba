"""A real JupyterLab on 127.0.0.1 and a headless Chromium in front of it, with settings of their own."""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCREENSHOTS = Path(os.environ.get("WORKBENCH_SCREENSHOTS", "")) if os.environ.get("WORKBENCH_SCREENSHOTS") else None


@dataclass(frozen=True)
class Lab:
    """A running server: its address and the folder it serves."""

    url: str
    folder: Path
    environment: dict[str, str]

    def notebook(self, name: str, *cells: str) -> str:
        """Write a notebook of code cells and return the address that opens it."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
        nbformat.write(notebook, self.folder / name)
        return f"{self.url}/lab/tree/{name}?reset"


def serve(
    command: list[str], url: str, environment: dict[str, str], folder: Path, log: Path, ready: str
) -> Iterator[Lab]:
    """Run a server while the tests use it."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            wait_for(url + ready, process, log)
            yield Lab(url, folder, environment)
        finally:
            process.terminate()
            process.wait(20)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except urllib.error.HTTPError:
            return  # it answers, if only to ask who we are
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"{url} did not answer in {seconds} s. The server's log ends:\n{log.read_text()[-3000:]}")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def picture(page: Page, name: str) -> None:
    """Keep a screenshot, of few colours and so of few bytes, where somebody asked for them with WORKBENCH_SCREENSHOTS."""
    if SCREENSHOTS is None:
        return
    from PIL import Image

    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(page.screenshot())) as taken:
        taken.convert("RGB").quantize(64).save(SCREENSHOTS / f"{name}.png", optimize=True)


def watched(page: Page, theirs: str) -> list[str]:
    """Return a list that grows with every error that a page's console shows, and every exception that nothing caught.

    Args:
        theirs: address of what is not ours; errors told from there are left out, and nothing else.
    """
    found: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        url = str(message.location.get("url", ""))
        if message.type == "error" and not url.startswith(theirs):
            found.append(f"{url}: {message.text}")

    page.on("console", hear)
    page.on("pageerror", lambda error: found.append(f"not caught: {error}"))
    return found
