"""Every write of the store fails once, one after the other: a StoreError, nothing lost, and done once there is room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from failing_writes import Faults

from workbench.errors import StoreError
from workbench.machine.store import Store, write_text


def work(root: Path) -> Store:
    """All that the store does for a study, in the order of a study; done again, it only adds what is missing."""
    store = Store(root)
    store.put("study", "s", "text")
    with store.scratch() as scratch:
        os.mkdir(scratch / "m")  # noqa: PTH102 - not counted: it is not the store that makes it
        with (scratch / "m" / "model.onnx").open("wb") as stream:
            stream.write(b"weights")
        sha256, place = store.add(scratch / "m")
    assert store.holds(sha256, place)
    if not store.keys("round"):
        store.append("round", "r/0", "sample")
    store.cache_folder("timing")
    write_text(root / "report.html", "report")
    return store


def test_the_nth_write_fails_and_the_next_run_finishes(tmp_path: Path) -> None:
    n = 0
    while True:
        n += 1
        root = tmp_path / str(n)
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch)
            faults.failing = n
            try:
                work(root)
            except StoreError as error:
                assert "disk is full" in str(error)
            else:
                assert faults.seen < n, f"write {n} failed and nobody noticed"
                break
        store = work(root)
        assert store.get("study", "s") == "text" and store.get("round", "r/0") == "sample"
        assert (root / "report.html").read_text() == "report"
        assert not list((root / "scratch").iterdir()) and not store.damaged
        assert not list(root.glob(".*.tmp"))
    assert n > 10  # or the test would be about nothing
