"""Disagreements, greyed toggles and the cell that does the same: the pure parts of the app."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import synthetic_study
import tiny

import workbench as wb
from workbench.recipes import NAMED, Fuse, Quantize, Recipe
from workbench.records import BuildOptions, Protocol, ShapeProfile
from workbench.ui import code, offers
from workbench.ui.disagreements import disagreements


def test_two_variants_are_compared_sample_by_sample_and_shown_where_the_record_can() -> None:
    record = synthetic_study.study(("fp32", "int8-kl"))
    found = disagreements(record, "fp32", "int8-kl")
    ours, theirs = (result.accuracy.predictions for result in record.results)
    differing = [index for index, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    assert f"differ on {len(differing)} of 540 samples" in found.words
    assert {sample.index for sample in found.samples} <= set(differing)
    first = found.samples[0]
    assert first.image.startswith("data:image/png") and first.first != first.second
    assert (first.first, first.second) == (str(ours[first.index]), str(theirs[first.index]))


def test_data_at_hand_show_samples_that_the_record_did_not_keep() -> None:
    record = dataclasses.replace(synthetic_study.study(("fp32", "int8-kl")), samples={})
    assert disagreements(record, "fp32", "int8-kl").samples == ()
    found = disagreements(record, "fp32", "int8-kl", lambda index: {"kind": "text", "value": f"text {index}"})
    assert found.samples[0].text == f"text {found.samples[0].index}"


@pytest.mark.parametrize(
    ("second", "words"),
    [("fp32", "Choose two different"), ("fp16", "same answer on all"), ("int8-smooth", "no answers to compare")],
)
def test_where_nothing_can_be_shown_it_says_why(second: str, words: str) -> None:
    record = synthetic_study.study(("fp32", "fp16", "int8-smooth"))
    assert words in disagreements(record, "fp32", second).words


def test_answers_from_other_data_are_not_compared() -> None:
    record = synthetic_study.study(("fp32", "int8-kl"))
    other = dataclasses.replace(
        record.results[1], accuracy=dataclasses.replace(record.results[1].accuracy, data_sha256="x")
    )
    record = dataclasses.replace(record, results=(record.results[0], other))
    assert "different data" in disagreements(record, "fp32", "int8-kl").words


def test_what_a_cpu_cannot_do_has_a_reason(tmp_path: Path) -> None:
    found = offers.reasons("onnxruntime-cpu", tiny.classifier(tmp_path), tiny.samples())
    assert "NVIDIA" in found["precision", "tf32"]
    assert ("profile", "shapes") in found
    assert ("quantization", "int8") not in found


def test_without_calibration_samples_static_quantization_is_greyed(tmp_path: Path) -> None:
    data = dataclasses.replace(tiny.samples(), calibration=None)
    found = offers.reasons("onnxruntime-cpu", tiny.classifier(tmp_path), data)
    assert "calibration" in found["quantization", "int8"]
    assert "calibration" in found["calibrator", "kl"]
    assert ("quantization", "int8-dynamic") not in found


def test_a_quantized_model_takes_no_more_precision_steps(tmp_path: Path) -> None:
    model = dataclasses.replace(tiny.classifier(tmp_path), quantized_by="modelopt")
    found = offers.reasons("onnxruntime-cpu", model, tiny.samples())
    assert "modelopt" in found["quantization", "int8"] and "modelopt" in found["precision", "fp16"]
    assert ("precision", "fp32") not in found and ("quantization", "none") not in found


def test_the_cell_runs_the_very_same_study(monkeypatch: pytest.MonkeyPatch) -> None:
    custom = Recipe("int8-mine", (Fuse("basic"), Quantize(calibrator="mse", samples=64, exclude=("^/head$",))))
    profile = {"x": ShapeProfile((1, 8), (4, 8), (16, 8))}
    protocol, options = Protocol(rounds=2, batch=4), BuildOptions(threads=2, profiles=(profile,))
    text = code.cell(
        "'the model'",
        "'the data'",
        (NAMED["fp32"], custom),
        backend="onnxruntime-cpu",
        protocol=protocol,
        options=options,
        name="mine",
    )
    seen: dict[str, Any] = {}

    class FakeStudy:
        def table(self) -> None: ...

    def fake_run(model: Any, data: Any, **options: Any) -> FakeStudy:
        seen.update(options, model=model, data=data)
        return FakeStudy()

    monkeypatch.setattr(wb, "run", fake_run)
    exec(text, {})
    recipes = [NAMED.get(recipe, recipe) if isinstance(recipe, str) else recipe for recipe in seen.pop("recipes")]
    assert recipes == [NAMED["fp32"], custom]
    assert seen == {
        "model": "the model", "data": "the data", "backend": "onnxruntime-cpu", "protocol": protocol,
        "options": options, "name": "mine",
    }  # fmt: skip


def test_a_cell_names_only_what_differs_from_the_defaults() -> None:
    text = code.cell(
        "model", "data", (NAMED["fp32"],), backend="onnxruntime-cpu", protocol=Protocol(), options=BuildOptions()
    )
    assert "protocol" not in text and "options" not in text and "model = " not in text
