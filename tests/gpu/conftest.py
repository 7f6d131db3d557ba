"""What the tests of engines on a card share: the shipped digits network, its data, and a store a session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from workbench import datasets
from workbench.machine.store import Store
from workbench.records import Model

MODEL = Path(__file__).parents[2] / "data" / "models" / "digits_resnet.onnx"
BATCH = 16


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def model() -> Model:
    return wb.load(MODEL)


@pytest.fixture(scope="session")
def data(model: Model) -> datasets.Dataset:
    return datasets.digits().bound_to(model)


@pytest.fixture(scope="session")
def feeds(data: datasets.Dataset) -> dict[str, np.ndarray]:
    return {name: array[:BATCH] for name, array in data.evaluation.inputs.items()}
