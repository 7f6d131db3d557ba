"""The gallery shows pictures that are there, and stays small."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_every_picture_of_the_gallery_is_there_is_described_and_all_are_small() -> None:
    pictures = re.findall(r"!\[(.+?)\]\((gallery/\w+\.png)\)", (DOCS / "gallery.md").read_text(encoding="utf-8"))
    assert len(pictures) > 10
    files = [DOCS / path for _, path in pictures]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in files)
    assert set(files) == set((DOCS / "gallery").glob("*")), "none is left over"
    assert sum(path.stat().st_size for path in files) < 1_500_000
