"""Text windows: nothing crosses a document's end, nothing comes twice."""

import json
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from workbench import datasets
from workbench.errors import DataError

WORDS = {word: index for index, word in enumerate(["?", "a", "b", "c", "d", "e"])}


@pytest.fixture
def tokenizer():
    made = Tokenizer(models.WordLevel(WORDS, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def test_a_text_is_cut_into_windows_that_are_inputs_and_labels(tmp_path, tokenizer):
    (tmp_path / "t.txt").write_text("a b c d e a b")
    data = datasets.text(tmp_path / "t.txt", tokenizer, 3)
    assert data.evaluation.inputs["input_ids"].tolist() == [[1, 2, 3], [4, 5, 1]]
    assert np.array_equal(data.evaluation.labels, data.evaluation.inputs["input_ids"])
    assert data.metric.name == "perplexity"
    assert data.notes == ("2 different windows of 3 tokens; 1 tokens at the ends were dropped.",)
    assert data.show(0) == {"kind": "text", "value": "a b c", "label": None}


def test_windows_of_jsonl_stay_within_a_document_and_come_once(tmp_path, tokenizer):
    lines = ["a b c", "", "d e a b", "d e"]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": line}) if line else "" for line in lines))
    data = datasets.text(tmp_path / "t.jsonl", tokenizer, 2)
    assert data.evaluation.labels.tolist() == [[1, 2], [4, 5]]
    assert len(datasets.text(tmp_path / "t.jsonl", tokenizer, 2, samples=1).evaluation) == 1


def test_the_tokenizer_may_be_a_folder_or_a_transformers_tokenizer(tmp_path, tokenizer):
    from transformers import PreTrainedTokenizerFast

    (tmp_path / "t.txt").write_text("a b c d")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    expected = [[1, 2], [3, 4]]
    for given in (tmp_path, str(tmp_path / "tokenizer.json"), PreTrainedTokenizerFast(tokenizer_object=tokenizer)):
        assert datasets.text(tmp_path / "t.txt", given, 2).evaluation.labels.tolist() == expected


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.txt", b"a b", "no document of 3 tokens"),
        ("t.txt", b"\xff\xfe\xfa", "as UTF-8 text"),
        ("t.jsonl", b'{"text": "a"}\n{"test": 1}', "Line 2"),
        ("t.jsonl", b"not json", "Line 1"),
        ("t.jsonl", b'{"text": 3}', '"text" is a int'),
    ],
)
def test_texts_that_cannot_be_used_are_refused(tmp_path, tokenizer, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        datasets.text(tmp_path / name, tokenizer, 3)


def test_missing_files_and_tokenizers_are_named(tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"Cannot read .*missing\.txt"):
        datasets.text(tmp_path / "missing.txt", tokenizer)
    with pytest.raises(DataError, match="There is no tokenizer at"):
        datasets.text(tmp_path / "t.txt", tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(DataError, match="Cannot read the tokenizer"):
        datasets.text(tmp_path / "t.txt", tmp_path)
    with pytest.raises(DataError, match="A int is no tokenizer"):
        datasets.text(tmp_path / "t.txt", 3)


def test_windows_of_one_token_are_refused(tmp_path, tokenizer):
    with pytest.raises(DataError, match="length is 1"):
        datasets.text(tmp_path / "t.txt", tokenizer, 1)


def test_without_tokenizers_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(DataError, match="pip install tokenizers"):
        datasets.text(tmp_path / "t.txt", tmp_path)
