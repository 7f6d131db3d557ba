"""A whole study in which one write after another fails, for a full disk or for want of memory: nothing lost, finished next."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from failing_writes import Faults
from small_studies import QUICK

import workbench as wb
from workbench.errors import StoreError
from workbench.machine.store import Store

RECIPES = ["fp32", "int8-max", "int8-smooth"]
# Of some eighty writes each eleventh is tried here; all of them were tried, on a full disk, when this was written.
STEP = 11


def study(model, data, root: Path) -> wb.Study:
    return wb.run(model, data, RECIPES, protocol=replace(QUICK, rounds=2), store=Store(root))


def test_a_study_outlives_an_error_at_any_write(model, data, made_up_rounds, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        whole = Faults(patch)
        study(model, data, tmp_path / "whole")
    assert whole.seen > 40
    told = 0
    for n in range(1, whole.seen + 1, STEP):
        root, shown = tmp_path / str(n), {}
        error = None if n % 2 else MemoryError("no memory")
        with pytest.MonkeyPatch.context() as patch:
            Faults(patch, error).failing = n
            try:
                study(model, data, root)
            except (StoreError, MemoryError) as raised:
                assert ("no memory" if error else "disk is full") in str(raised), n
                told += 1
        before = Store(root)
        for key in before.keys("round"):
            shown[key] = before.get("round", key)
        finished = study(model, data, root)
        assert not finished.failures, n
        counts = {name: len(finished[name].measurement.rounds) for name in RECIPES}
        assert min(counts.values()) >= 2, (n, counts)  # a turn that was cut off is taken again, beside the baseline
        assert all(Store(root).get("round", key) == text for key, text in shown.items()), n
        assert not list((root / "scratch").iterdir()), n
    assert told > 0.7 * len(range(1, whole.seen + 1, STEP)), "most of these writes are not done without"
