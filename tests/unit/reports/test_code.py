"""The code of a study: it is executed here, and asks for the very same study."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import synthetic_study

import workbench as wb
from workbench.recipes import NAMED, Fuse, Quantize, Recipe
from workbench.records import BuildOptions, Origin, Protocol, ShapeProfile, StudyRecord
from workbench.reports.code import Asked, cell, reproduce

MINE = Recipe("int8-mine", (Fuse("basic"), Quantize(calibrator="mse", samples=64, exclude=("^/head$",))))
PROFILE = {"x": ShapeProfile((1, 8), (4, 8), (16, 8))}
OPTIONS = BuildOptions(threads=2, profiles=(PROFILE,), extra={"verbosity": "none"})


class FakeStudy:
    def table(self) -> None: ...

    def report(self, path: str) -> None: ...


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the executed code asks `run` for."""
    seen: dict[str, Any] = {}

    def run(model: Any, data: Any, **options: Any) -> FakeStudy:
        seen.update(options, model=model, data=data)
        seen["recipes"] = [NAMED[one] if isinstance(one, str) else one for one in options["recipes"]]
        return FakeStudy()

    monkeypatch.setattr(wb, "run", run)
    monkeypatch.setattr(wb, "load", lambda source: f"loaded {source}")
    return seen


@pytest.fixture
def record() -> StudyRecord:
    return synthetic_study.study(("fp32", "int8-kl"))


def test_the_cell_runs_the_very_same_study(asked: dict[str, Any]) -> None:
    protocol = Protocol(rounds=2, batch=4)
    exec(cell(Asked("'m'", "'d'", (NAMED["fp32"], MINE), "onnxruntime-cpu", protocol, OPTIONS, "fp16", "mine")), {})
    assert asked == {
        "model": "m", "data": "d", "recipes": [NAMED["fp32"], MINE], "backend": "onnxruntime-cpu",
        "protocol": protocol, "options": OPTIONS, "baseline": "fp16", "name": "mine",
    }  # fmt: skip


def test_the_snippet_of_a_report_runs_a_study_with_shape_profiles_again(
    asked: dict[str, Any], record: StudyRecord
) -> None:
    first, second, *_ = record.results
    assert first.engine is not None
    first = replace(first, engine=replace(first.engine, options=OPTIONS))
    again = replace(record, results=(first, replace(second, recipe=MINE)), data={"name": "digits", "kind": "shipped"})
    exec(reproduce(again), {})
    assert asked["options"] == OPTIONS and asked["recipes"] == [first.recipe, MINE]
    assert asked["model"].startswith("loaded") and len(asked["data"].evaluation) > 0


def test_a_cell_names_only_what_differs_from_the_defaults() -> None:
    text = cell(Asked("model", "data", (NAMED["fp32"],), "onnxruntime-cpu"))
    assert not any(word in text for word in ("protocol", "options", "baseline", "model = ", "report"))


def test_the_snippet_repeats_own_recipes_protocol_and_options(record: StudyRecord) -> None:
    own = Recipe("mine", (Fuse("basic"), Quantize(calibrator="mse", samples=64)))
    first, second, *_ = record.results
    assert first.engine is not None
    first = replace(first, engine=replace(first.engine, options=BuildOptions(threads=2)))
    changed = replace(record, results=(first, replace(second, recipe=own)), protocol=Protocol(batch=4))
    code = reproduce(changed)
    assert 'wb.Recipe("mine", (wb.Fuse(level="basic"), wb.Quantize(calibrator="mse", samples=64)))' in code
    assert "protocol=wb.Protocol(batch=4)" in code
    assert "options=wb.BuildOptions(threads=2)" in code
    # The names in it are public, and the recipe that it writes is the recipe that was run.
    assert eval(code[code.index("wb.Recipe(") : code.index("],\n")], {"wb": wb}) == own


@pytest.mark.parametrize(
    ("kind", "reference", "line"),
    [
        ("torchvision", "resnet50", 'wb.load("torchvision:resnet50")'),
        ("timm", "timm:vit_tiny", 'wb.load("timm:vit_tiny")'),
        ("onnx", "ignored", 'wb.load("digits_resnet.onnx")'),
        ("torch", "MyNet\nimport os", "# MyNet import os: your torch.nn.Module"),
    ],
)
def test_the_snippet_loads_the_model_as_its_origin_was(
    record: StudyRecord, kind: str, reference: str, line: str
) -> None:
    model = replace(record.model, origin=Origin(kind, reference), path="C:\\me\\digits_resnet.onnx")
    assert line in reproduce(replace(record, model=model))


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({}, "data = None"),
        ({"name": "noise", "kind": "random"}, "data = wb.datasets.random(model)"),
        ({"name": "cats", "kind": "user"}, "data = ...  # your own data, here 'cats'"),
        ({"name": "digits(); x", "kind": "shipped"}, "data = ...  # your own data"),
    ],
)
def test_the_snippet_names_the_data(record: StudyRecord, data: dict[str, str], line: str) -> None:
    assert line in reproduce(replace(record, data=data))
