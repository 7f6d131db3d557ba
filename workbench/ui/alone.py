"""The app as a page of its own, without code: Voila on this machine, behind a token, with nothing fetched from a network."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from workbench.errors import BackendMissing
from workbench.machine.store import Store

_JUPYTER = Path(__file__).resolve().parent / "jupyter"
_CELLS = ("import workbench as wb", "app = wb.Workbench()\napp")


def serve(store: Store, *, port: int | None = None, browser: bool = True, dark: bool = False) -> int:
    """Serve the app until interrupted; return the server's exit status.

    Args:
        port: None takes one that is free.
        browser: open it there.
        dark: show it on a dark ground.

    Raises:
        BackendMissing: Voila is not installed.
    """
    if importlib.util.find_spec("voila") is None:
        raise BackendMissing(
            "The app alone is served by Voila, which is not installed here. "
            'Run: pip install "trt-workbench[lab]", or open JupyterLab and write workbench.Workbench() into a cell.'
        )
    with tempfile.TemporaryDirectory() as folder:
        notebook = Path(folder) / "workbench.ipynb"
        notebook.write_text(json.dumps(_notebook()), encoding="utf-8")
        command = [
            sys.executable, "-m", "voila", str(notebook), "--template=workbench", "--Voila.ip=127.0.0.1",
            "--Voila.auto_token=True", f"--theme={'dark' if dark else 'light'}",
        ]  # fmt: skip
        command += [] if port is None else [f"--port={port}"]
        command += [] if browser else ["--no-browser"]
        places = os.pathsep.join(filter(None, [str(_JUPYTER), os.environ.get("JUPYTER_PATH", "")]))
        # The kernel works in the notebook's folder; its studies go where this process's would.
        environment = {**os.environ, "JUPYTER_PATH": places, "WORKBENCH_HOME": str(store.root)}
        server = subprocess.Popen(command, env=environment)
        try:
            return server.wait()
        except KeyboardInterrupt:
            server.terminate()
            server.wait(20)
            raise


def _notebook() -> dict[str, object]:
    cells: list[dict[str, object]] = [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": f"cell{place}",
            "metadata": {},
            "outputs": [],
            "source": text,
        }
        for place, text in enumerate(_CELLS)
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
