"""A tiny model with data, a store, and rounds without processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_studies import classifier

import workbench as wb
from workbench import datasets
from workbench.machine.store import Store
from workbench.measuring import latency
from workbench.records import Engine, Protocol, Round


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return wb.load(classifier(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 8)).astype(np.float32)
    return datasets.arrays(x, rng.integers(0, 3, 60)).split_off(calibration=20)


@pytest.fixture
def made_up_rounds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Rounds without processes, each with other numbers: for tests of what a study remembers. Names, as they are taken."""
    taken: list[str] = []

    def take_round(engine: Engine, feeds, protocol: Protocol, index: int, **options) -> Round:
        taken.append(engine.variant)
        seconds = 1e-3 + 1e-6 * len(taken)
        return Round(index, (seconds, 1.1 * seconds), 0.01, 1000.0 + len(taken))

    monkeypatch.setattr(latency, "take_round", take_round)
    return taken
