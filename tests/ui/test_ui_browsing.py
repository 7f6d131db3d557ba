"""The list of files and folders from which a path is chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from workbench.errors import LoadError
from workbench.ui.state.browsing import Browsing


@pytest.fixture
def files(tmp_path: Path) -> tuple[Browsing, list[str]]:
    (tmp_path / "models" / "deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "models" / "net.onnx").write_bytes(b"x" * 2048)
    (tmp_path / "models" / "notes.txt").write_text("not a model")
    taken: list[str] = []
    made = Browsing(lambda: (".onnx",), taken.append)
    made.folder = str(tmp_path)
    return made, taken


def test_a_file_is_reached_through_its_folders_and_taken(files: tuple[Browsing, list[str]], tmp_path: Path) -> None:
    browsing, taken = files
    browsing.toggle()
    assert [label for label, _ in browsing.entries] == ["..  (the folder above)", "models/"]
    browsing.choose(str(tmp_path / "models"))
    assert [label for label, _ in browsing.entries][1:] == ["deep/", "net.onnx  (2.05 kB)"]
    assert "not shown: 1 that are no .onnx" in browsing.words
    browsing.choose(str(tmp_path / "models" / "net.onnx"))
    assert taken == [str(tmp_path / "models" / "net.onnx")] and not browsing.is_open


def test_a_folder_itself_can_be_taken_and_what_cannot_be_read_says_why(
    files: tuple[Browsing, list[str]], tmp_path: Path
) -> None:
    browsing, taken = files
    with pytest.raises(LoadError, match="Nothing is selected"):
        browsing.choose(None)
    with pytest.raises(LoadError, match=r"cannot be listed: No such file.*Choose another"):
        browsing.show(str(tmp_path / "gone"))
    browsing.show(str(tmp_path / "models"))
    browsing.use_folder()
    assert taken == [str(tmp_path / "models")]
