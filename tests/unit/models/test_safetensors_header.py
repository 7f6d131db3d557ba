"""Configurations that ask for more than the weights beside them are refused before anything is allocated."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest

from workbench import zoo
from workbench.errors import LoadError
from workbench.models import sources
from workbench.models.safetensors_header import shapes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(zoo.path("stdlib_llama"), tmp_path / "llama")
    return tmp_path / "llama"


@pytest.mark.parametrize("asked", [{"hidden_size": 10**7}, {"num_hidden_layers": 20_000}, {"vocab_size": 2**40},
                                   {"text_config": {"hidden_size": 10**7}}])  # fmt: skip
def test_a_network_that_the_weights_do_not_hold_is_refused(folder: Path, asked: dict) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **asked}))
    with pytest.raises(LoadError, match=r"asks for \w+ = \d+, but the weights beside it allow for"):
        sources.transformers_folder(folder)


def test_the_shipped_model_is_what_its_weights_hold(folder: Path) -> None:
    assert sources.transformers_folder(folder).kind == "transformers"
    assert len(shapes(folder / "model.safetensors")) > 10


@pytest.mark.parametrize("content", [b"", b"1234", struct.pack("<Q", 2**60), struct.pack("<Q", 4) + b"{}  x",
                                     struct.pack("<Q", 2) + b"[]", struct.pack("<Q", 8) + b'{"a": 1}'])  # fmt: skip
def test_a_damaged_header_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    if content.endswith(b"{}  x"):
        assert shapes(tmp_path / "m.safetensors") == {}
        return
    with pytest.raises(LoadError, match="Cannot read"):
        shapes(tmp_path / "m.safetensors")
