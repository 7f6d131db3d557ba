"""All that the store does for a study, step by step; what tests of its faults let fail, and what must be left then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from workbench.machine import disk, leftovers
from workbench.machine.store import Store, write_text

STEPS = ("record", "artefact", "round", "number", "cache", "report")


def work(root: Path, finished: Callable[[str], None] = lambda step: None) -> Store:
    """Do it in the order of a study; done again, it only adds what is missing.

    Args:
        finished: told each step that is done.
    """
    store = Store(root)
    store.put("study", "s", "text")
    finished("record")
    with store.scratch() as scratch:
        disk.folder(scratch / "m")
        with disk.writing(scratch), (scratch / "m" / "model.onnx").open("wb") as stream:
            stream.write(b"weights")
        sha256, place = store.add(scratch / "m")
    assert store.holds(sha256, place)
    finished("artefact")
    if not store.keys("round"):
        store.append("round", "r/0", "sample")
    finished("round")
    store.put("next", "n", str(store.next_number("series")))
    finished("number")
    store.cache_folder("timing")
    finished("cache")
    write_text(root / "report.html", "report")
    finished("report")
    return store


def check(root: Path, steps: tuple[str, ...] | list[str] = STEPS) -> None:
    """Assert that nothing of these steps is lost, and that nothing is there, or left over, that was half made."""
    store = Store(root)
    found = {
        "record": store.get("study", "s") == "text",
        "artefact": [item.read_bytes() for item in (root / "artefacts").glob("*/*/m/model.onnx")] == [b"weights"],
        "round": store.get("round", "r/0") == "sample",
        "number": (store.get("next", "n") or "").isdecimal(),
        "cache": (root / "caches" / "timing").is_dir(),
        "report": (root / "report.html").exists() and (root / "report.html").read_text() == "report",
    }
    assert all(found[step] for step in steps), found
    assert not store.damaged
    assert store.get("study", "s") in (None, "text") and store.get("round", "r/0") in (None, "sample")
    assert not (root / "report.html").exists() or found["report"]
    # Where even the clean-up failed, its folder is of the kind that the next process to write here removes.
    assert all(leftovers._NAME.fullmatch(item.name) for item in root.glob(".*"))
