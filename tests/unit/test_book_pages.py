"""The book holds every public name, every notebook and every document; it is made and looked at by `make book`."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

import workbench

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_book", ROOT / "docs" / "book" / "make.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_is_on_one_page_of_the_reference(make: ModuleType) -> None:
    named = [name for _, names in make.REFERENCE.values() for name in names.split()]
    assert sorted(named) == sorted(workbench.__all__)


def test_every_document_and_notebook_is_in_the_book(make: ModuleType) -> None:
    listed = {"docs/gallery", *make.TUTORIALS, *make.HOW_TO, *make.BACKGROUND}
    written = {
        str(path.relative_to(ROOT).with_suffix(""))
        for pattern in ("notebooks/[0-9]*.ipynb", "docs/*.md", "docs/how_to/*.md", "[AC]*.md", "data/*.md")
        for path in ROOT.glob(pattern)
    }
    assert written <= listed
    assert all((ROOT / f"{page}.md").is_file() for page in (*make.HOW_TO, *make.BACKGROUND))


def test_every_file_that_a_notebook_opens_is_beside_it_in_the_book(make: ModuleType, tmp_path: Path) -> None:
    make.gather(tmp_path / "source")
    opened = {
        name
        for path in ROOT.glob("notebooks/[0-9]*.ipynb")
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
        for name in re.findall(r"""["'](\.\./[^"']+)["']""", "".join(cell["source"]))
    }
    assert "../data/studies" in opened
    assert [name for name in sorted(opened) if not (tmp_path / "source" / "notebooks" / name).exists()] == []


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "how_to").glob("*.md")), ids=lambda path: path.stem)
def test_code_of_the_how_to_pages_compiles_and_names_what_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for block in text.split("```python\n")[1:]:
        compile(block.split("```")[0], str(path), "exec")
    for said in set(re.findall(r"\bwb((?:\.\w+)+)", text)):
        found = workbench
        for name in said.strip(".").split("."):
            found = getattr(found, name)


def test_progress_that_was_written_over_is_not_in_the_book(make: ModuleType) -> None:
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": ["first\n", "\r  0%|"]},
        {"output_type": "stream", "name": "stdout", "text": ["\r 50%|##", "\r          \r", "then\n"]},
        {"output_type": "execute_result", "data": {"text/plain": "7"}},
        {"output_type": "stream", "name": "stdout", "text": "\r 10%|\r      \r"},
    ]
    assert make._printed(outputs) == [
        {"output_type": "stream", "name": "stdout", "text": "first\nthen\n"},
        {"output_type": "execute_result", "data": {"text/plain": "7"}},
    ]
