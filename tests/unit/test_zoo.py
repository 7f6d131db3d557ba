"""Shipped models are found, and damaged or unlisted files are refused."""

import hashlib
import json

import pytest

from workbench import zoo
from workbench.errors import LoadError


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder with a model of each of the three forms, and WORKBENCH_DATA set to it."""
    models = tmp_path / "models"
    (models / "chat").mkdir(parents=True)
    (models / "pair").mkdir()
    for relative in ("net.onnx", "chat/config.json", "pair/left.onnx", "pair/right.onnx"):
        (models / relative).write_bytes(relative.encode())
    for name in ("net", "chat", "pair"):
        card = {"name": name, "parameters": 7, "metrics": {"accuracy": 0.5}, "files": {}, "script": "train.py"}
        (models / f"{name}.card.json").write_text(json.dumps(card))
    files = [file for file in models.rglob("*") if file.is_file()]
    sums = {file.relative_to(tmp_path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    (tmp_path / "checksums.json").write_text(json.dumps(sums))
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path))
    return tmp_path


def test_every_form_of_model_has_a_card_and_an_entry(data):
    cards = zoo.models()
    assert {name: card.entry for name, card in cards.items()} == {
        "net": "models/net.onnx",
        "chat": "models/chat",
        "pair/left": "models/pair/left.onnx",
        "pair/right": "models/pair/right.onnx",
    }
    assert (cards["net"].parameters, cards["net"].metrics) == (7, {"accuracy": 0.5})
    assert cards["net"].details == {"script": "train.py"}
    assert zoo.path("chat") == data / "models" / "chat"


def test_an_unknown_model_gets_a_suggestion(data):
    with pytest.raises(LoadError, match="Did you mean 'pair/left'"):
        zoo.path("pair/lift")


def test_a_changed_file_is_refused(data):
    (data / "models" / "chat" / "config.json").write_text("{}")
    with pytest.raises(LoadError, match="damaged or was changed: sha256 44136fa355b3"):
        zoo.path("chat")


def test_a_file_that_is_not_listed_is_refused(data):
    (data / "models" / "chat" / "extra.json").write_text("{}")
    with pytest.raises(LoadError, match=r"models/chat/extra\.json is not listed"):
        zoo.path("chat")


def test_a_listed_file_that_is_missing_is_named(data):
    (data / "models" / "net.onnx").unlink()
    with pytest.raises(LoadError, match="is missing although it is listed"):
        zoo.data_file("models/net.onnx")


@pytest.mark.parametrize(("content", "words"), [("{", "Cannot read"), ("[]", "holds a list")])
def test_damaged_cards_and_checksums_are_refused(data, content, words):
    (data / "models" / "net.card.json").write_text(content)
    with pytest.raises(LoadError, match=words):
        zoo.models()


def test_a_missing_data_folder_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(LoadError, match="set WORKBENCH_DATA"):
        zoo.models()


def test_the_checkout_s_own_models_are_whole(monkeypatch):
    monkeypatch.delenv("WORKBENCH_DATA", raising=False)
    cards = zoo.models()
    assert {"digits_resnet", "digits_vit", "stdlib_llama"} <= cards.keys()
    for name, card in cards.items():
        assert zoo.path(name).exists()
        assert card.parameters > 0
