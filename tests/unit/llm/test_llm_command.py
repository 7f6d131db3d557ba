"""`python -m workbench serve`: a study's variants behind an address, or a sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import pytest

import workbench as wb
from workbench import codec, llm
from workbench.__main__ import main
from workbench.machine.store import Store
from workbench.records import Failure


@pytest.fixture
def study(language, engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> wb.Study:
    """A study of the tiny LLaMA in the default store, of which one variant failed."""
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    data = wb.datasets.random(language.model, samples=4)
    protocol = wb.Protocol(batch=1, rounds=1, min_seconds=0.001, min_runs=2, warmup_seconds=0.0, warmup_runs=1)
    made = wb.run(language.model, data, ["fp32", "int8-dynamic"], protocol=protocol, name="tiny")
    failure = Failure("int8-dynamic", "build", "BuildError", "it ran out of memory")
    results = tuple(
        replace(item, engine=None, measurement=None, failure=failure) if item.recipe.name == "int8-dynamic" else item
        for item in made.record.results
    )
    Store().put("study", "tiny", codec.to_json(replace(made.record, results=results)))
    return wb.Study.open("tiny")


@pytest.fixture
def loads(language, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Language models that are asked for; the tiny one comes, without a second export."""
    asked: list[str] = []
    monkeypatch.setattr(llm, "load", lambda source: asked.append(source) or language)
    return asked


def test_a_variant_answers_until_it_is_interrupted(study, loads, monkeypatch, capsys) -> None:
    answers = []

    def wait(endpoint: llm.Endpoint) -> None:
        body = {"model": "fp32", "prompt": "w5", "max_tokens": 2}
        headers = {"Authorization": f"Bearer {endpoint.token}"}
        answers.append(httpx.post(f"{endpoint.url}/completions", json=body, headers=headers).status_code)
        raise KeyboardInterrupt

    monkeypatch.setattr(llm.Endpoint, "wait", wait)
    assert main(["serve", "tiny", "fp32", "--token", "mine"]) == 130
    assert answers == [200]
    assert "API key  mine" in capsys.readouterr().out
    assert loads == [study.record.model.origin.reference]


@pytest.mark.parametrize(("variant", "words"), [("int8-dynamic", "it ran out of memory"), ("fp23", "fp32")])
def test_a_variant_that_is_not_there_is_named(study, loads, variant: str, words: str, capsys) -> None:
    assert main(["serve", "tiny", variant]) == 1
    assert words in capsys.readouterr().err


def test_another_model_than_the_studys_is_refused(study, monkeypatch, language, capsys) -> None:
    other = replace(language, model=replace(language.model, sha256="0" * 64))
    monkeypatch.setattr(llm, "load", lambda source: other)
    assert main(["serve", "tiny", "fp32", "--model", "elsewhere"]) == 1
    assert "is not the model of the study 'tiny'" in capsys.readouterr().err
