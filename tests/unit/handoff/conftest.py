"""A small classifier, its study with two recipes, the study of a small language model, and a store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from workbench import llm
from workbench.machine.store import Store
from workbench.records import Protocol

TEXT = """(float[N,8] x) => (float[N,3] logits, int64[N] best) {
    h = Gemm(x, w1)
    r = Relu(h)
    logits = Gemm(r, w2)
    best = ArgMax <axis = 1, keepdims = 0> (logits)
}"""
QUICK = Protocol(batch=4, rounds=2, min_seconds=0.001, min_runs=5, warmup_seconds=0.0, warmup_runs=1)


@pytest.fixture(scope="session")
def proto():
    import onnx

    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> net {TEXT}')
    for name, shape in (("w1", (8, 16)), ("w2", (16, 3))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    return model


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("handoff")


@pytest.fixture(scope="session")
def store(place: Path) -> Store:
    return Store(place / "store")


@pytest.fixture(scope="session")
def model(proto, store: Store):
    return wb.load(proto, name="net", store=store)


@pytest.fixture(scope="session")
def data():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 8)).astype(np.float32)
    return wb.datasets.arrays(x, rng.integers(0, 3, 60), metric="top-1", output="logits").split_off(calibration=20)


@pytest.fixture(scope="session")
def study(model, data, store: Store) -> wb.Study:
    recipes = ["fp32", "int8-max"]
    return wb.run(
        model, data, recipes, backend="onnxruntime-cpu", protocol=QUICK, name="mine", store=store, progress=None
    )


@pytest.fixture(scope="session")
def language(store: Store) -> llm.LanguageModel:
    pytest.importorskip("transformers")
    # The older exporter is the faster one.
    return llm.load("stdlib_llama", exporter="torchscript", store=store)


@pytest.fixture(scope="session")
def text_study(language: llm.LanguageModel, store: Store) -> wb.Study:
    windows = wb.datasets.stdlib_text()
    data = llm.dataset(language, replace(windows, evaluation=windows.evaluation.take(range(4))))
    options = {"backend": "onnxruntime-cpu", "protocol": QUICK, "store": store, "progress": None}
    return wb.run(language.model, data, ["fp32"], **options)
