"""One tiny decoder, exported and built once for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_llama import build, save_tiny_llama

from workbench import engines, llm
from workbench.engines.decoding import Decoder, open_decoder
from workbench.llm.loading import LanguageModel
from workbench.machine.store import Store
from workbench.records import Engine
from workbench.transformation.steps import transform


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def language(folder: Path, store: Store) -> LanguageModel:
    # The older exporter takes a second where the newer one takes twenty; both have a test of their own.
    return llm.load(folder, store=store, exporter="torchscript")


@pytest.fixture(scope="session")
def engine(language: LanguageModel, store: Store) -> Engine:
    return build(language, store)


@pytest.fixture
def decoder(engine: Engine) -> Iterator[Decoder]:
    with open_decoder(engine, 1) as opened:
        yield opened


@pytest.fixture(scope="session")
def slot_model(folder: Path, store: Store) -> llm.SlotModel:
    return llm.load_slots(folder, store=store)


@pytest.fixture(scope="session")
def slot_engines(slot_model: llm.SlotModel, store: Store) -> list[Engine]:
    """A prefill and a step of any size."""
    variants = [transform(model, "fp32", store=store) for model in (*slot_model.prefills, *slot_model.steps)]
    return [engines.build(variant, "onnxruntime-cpu", store=store) for variant in variants]
