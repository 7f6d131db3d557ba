"""What every notebook keeps to, read from its cells; they are executed elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


def code(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebooks_are_found() -> None:
    assert len(NOTEBOOKS) >= 9


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_with_the_parameters_that_it_shows(path: Path) -> None:
    """With others, put in by whoever executes it, the book's pages would show results that their code does not give."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert [cell["metadata"]["nbmake"] for cell in cells if "nbmake" in cell["metadata"]] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_tour_ends_with_its_app_alive(path: Path) -> None:
    assert not [cell for cell in code(path) if ".close()" in cell and "app" in cell], (
        "Run All would leave an empty cell"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_figures_are_shown_where_they_are_made(path: Path) -> None:
    cells = code(path)
    assert not any("matplotlib.figure" in cell for cell in cells), "a bare Figure is printed as text by a kernel"
    for cell in cells:
        if "plt." in cell and "import" not in cell:
            assert cell.rstrip().endswith("plt.show()")


def test_the_same_thing_twice_is_measured_in_a_store_of_its_own() -> None:
    (cells,) = [code(path) for path in NOTEBOOKS if path.stem == "01_measure_honestly"]
    assert any("wb.Store(STORE)" in cell for cell in cells) and any("store=store,\n)" in cell for cell in cells)
