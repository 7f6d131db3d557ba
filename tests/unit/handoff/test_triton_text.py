"""A language model as a repository that takes text: its files, what it answers, and what cannot be deployed so.

The decoder behind the stand-in is the study's own engine; `test_triton_server.py` has the real server.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from triton_stand_in import Tensor, interface, opened

import workbench as wb
from workbench import llm
from workbench.errors import DataError, EngineError

PROMPT = "class Stack:\n    def __init__(self"


def sent(text: bytes, new_tokens: int) -> dict[str, Tensor]:
    return {
        "text": Tensor("text", np.frombuffer(text, np.uint8)),
        "new_tokens": Tensor("new_tokens", np.array([new_tokens])),
    }


@pytest.fixture(scope="module")
def answer(text_study: wb.Study, language: llm.LanguageModel) -> str:
    with llm.open_decoder(text_study["fp32"].engine) as decoder:
        return llm.generate(language, decoder, [PROMPT], new_tokens=12).texts[0]


@pytest.fixture
def served(text_study: wb.Study, language: llm.LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The model that reads text, and the answers of the decoder that it calls, to be changed by a test."""
    text_study.deploy("fp32", tmp_path / "repository", name="llama", language=language)
    backend, change = interface(Tensor), {"logits": lambda array: array, "error": None}
    with wb.open_runner(text_study["fp32"].engine) as runner:

        def request(model_name: str, requested_output_names: list[str], inputs: list[Tensor]) -> SimpleNamespace:
            assert model_name == "llama-decoder"
            found = runner.infer({one.name: one.array for one in inputs})
            found["logits"] = change["logits"](found["logits"])
            tensors = [Tensor(name, np.ascontiguousarray(found[name])) for name in requested_output_names]
            for tensor in tensors:
                # What a model reads of the server's own tensors is behind calls.
                tensor.name = lambda name=tensor.name: name  # type: ignore[assignment,misc]
            response = SimpleNamespace(
                has_error=lambda: change["error"] is not None,
                error=lambda: SimpleNamespace(message=lambda: change["error"]),
                output_tensors=lambda: tensors,
            )
            return SimpleNamespace(exec=lambda: response)

        backend.InferenceRequest = request  # type: ignore[attr-defined]
        yield opened(tmp_path / "repository" / "llama", backend, monkeypatch), change


def test_the_repository_holds_the_decoder_and_a_model_that_reads_text(
    text_study: wb.Study, language: llm.LanguageModel, tmp_path: Path
) -> None:
    made = text_study.deploy("fp32", tmp_path / "repository", name="llama", instances=2, language=language)
    assert made.name == "llama" and made.backend == "onnxruntime_onnx"
    files = {str(path.relative_to(tmp_path / "repository")) for path in (tmp_path / "repository").rglob("*.*")}
    text = {f"llama/1/{name}" for name in ("model.py", "triton_tensors.py", "served.json", "tokenizer.json")}
    assert files == {
        "llama/config.pbtxt", *text, "llama-decoder/config.pbtxt", "llama-decoder/1/model.onnx",
    }  # fmt: skip
    config = (tmp_path / "repository" / "llama" / "config.pbtxt").read_text()
    assert 'input [ { name: "text" data_type: TYPE_UINT8 dims: [-1] } ]' in config and "count: 2" in config
    assert "model_warmup" not in config
    settings = json.loads((tmp_path / "repository" / "llama" / "1" / "served.json").read_text())
    assert settings["decoder"] == "llama-decoder" and settings["end_ids"] == list(language.end_ids)
    assert any("UTF-8" in note for note in made.notes) and any("tokenizers" in note for note in made.notes)


def test_the_continuation_is_the_runners(served, answer: str) -> None:
    (response,) = served[0].execute([sent(PROMPT.encode(), 12)])
    assert response.error is None and response.outputs["answer"].tobytes().decode() == answer


def test_an_answer_ends_at_the_models_own_end(served, language: llm.LanguageModel) -> None:
    model, change = served

    def ended(logits: np.ndarray) -> np.ndarray:
        logits[..., language.end_ids[0]] = 1e6
        return logits

    change["logits"] = ended
    (response,) = model.execute([sent(PROMPT.encode(), 12)])
    assert response.error is None and response.outputs["answer"].shape == (0,)


@pytest.mark.parametrize(
    ("text", "new_tokens", "words"),
    [
        (b"", 4, "text is empty"),
        (b"\xff", 4, "not UTF-8"),
        (b"import ", 0, "new_tokens is 0"),
        (b"import " * 2000, 4, r"tokens; this model takes \d+ at most"),
    ],
)
def test_a_text_that_cannot_be_continued_gets_its_error_and_the_next_its_answer(
    served, answer: str, text: bytes, new_tokens: int, words: str
) -> None:
    refused, answered = served[0].execute([sent(text, new_tokens), sent(PROMPT.encode(), 12)])
    assert re.search(words, refused.error.message)
    assert answered.outputs["answer"].tobytes().decode() == answer


def test_an_error_of_the_decoder_and_logits_that_are_not_finite_reach_the_client(served) -> None:
    model, change = served
    change["logits"] = lambda array: array * np.nan
    assert "NaN or infinite" in model.execute([sent(PROMPT.encode(), 4)])[0].error.message
    change["error"] = "Request for unknown model: 'llama-decoder' is not found"
    assert "unknown model" in model.execute([sent(PROMPT.encode(), 4)])[0].error.message


def test_what_is_no_language_model_of_this_study_is_refused_before_anything_is_written(
    study: wb.Study, text_study: wb.Study, language: llm.LanguageModel, tmp_path: Path
) -> None:
    place = tmp_path / "repository"
    with pytest.raises(EngineError, match=r"language is a str; pass what workbench\.llm\.load"):
        text_study.deploy("fp32", place, language="stdlib_llama")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="no decoder with a key/value cache"):
        study.deploy("fp32", place, language=language)
    other = replace(language, model=replace(language.model, name="other", sha256="0" * 64))
    with pytest.raises(EngineError, match=r"The study is of stdlib_llama .*, language is other \(000000000000\)"):
        text_study.deploy("fp32", place, language=other)
    for tokenizer in (None, str(tmp_path / "gone.json")):
        with pytest.raises(DataError, match="has no tokenizer"):
            text_study.deploy("fp32", place, language=replace(language, tokenizer=tokenizer))
    assert not list(tmp_path.iterdir())
