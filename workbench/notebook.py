"""Execute a notebook headless and let its progress be seen. Needs nbclient; knows nothing of what the notebook does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.errors import RunError


def execute(path: Path, show: Callable[[str], None], timeout_seconds: int = 600) -> None:
    """Run all cells of a notebook in a fresh kernel, in the notebook's folder.

    Args:
        show: called with the title of each step (the heading above a cell) and with what cells print, as it comes.
        timeout_seconds: for one cell.

    Raises:
        RunError: a cell raised; the message holds the cell's error.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    class Client(NotebookClient):  # type: ignore[misc]
        def process_message(self, message: dict[str, Any], cell: Any, cell_index: int) -> Any:
            if message["msg_type"] == "stream":
                show(message["content"]["text"])
            return super().process_message(message, cell, cell_index)

    notebook = nbformat.read(str(path), as_version=4)
    titles = _titles(notebook)

    def announce(cell: Any, cell_index: int) -> None:
        if cell_index in titles:
            show(f"· {titles[cell_index]}\n")

    client = Client(
        notebook,
        timeout=timeout_seconds,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_start=announce,
        extra_arguments=["--log-level=ERROR"],  # the kernel's own remarks are of no use to the reader
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise RunError(f"The notebook {path.name} stopped with an error:\n{error}") from error


def _titles(notebook: Any) -> dict[int, str]:
    """Index of the first code cell below each heading -> the heading."""
    titles: dict[int, str] = {}
    waiting = ""
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            headings = [line for line in cell.source.splitlines() if line.startswith("#")]
            waiting = headings[0].lstrip("# ") if headings else waiting
        elif waiting:
            titles[index], waiting = waiting, ""
    return titles
