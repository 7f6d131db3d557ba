"""Disagreements, greyed toggles and the cell that does the same: the pure parts of the app."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import synthetic_study
import tiny

from workbench.study import offers
from workbench.ui.disagreements import disagreements
from workbench.ui.views import markup


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Choose one on page `Model`.", "Choose one on page <code>Model</code>."),
        ("`<script>` & `a`", "<code>&lt;script&gt;</code> &amp; <code>a</code>"),
        ("one ` alone", "one ` alone"),
        ("`` holds nothing", "`` holds nothing"),
        ("`two\nlines`", "`two\nlines`"),
    ],
)
def test_a_message_is_escaped_and_shows_code_as_code(text: str, shown: str) -> None:
    assert markup.message(text) == shown


def test_a_word_in_a_label_is_no_formula_and_leaves_room_for_its_control() -> None:
    assert [markup.label(unit) for unit in ("points", "dB")] == ["points", "dB"]
    made = markup.label("$\\href{javascript:x}{y}$ " + "long" * 100)
    assert not {"$", "\\"} & set(made) and len(made) == 16


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


def test_what_moved_by_class_and_the_least_certain_samples_stand_below_the_disagreements() -> None:
    record = synthetic_study.study(("fp32", "int8-kl"))
    margins = tuple(float(index - 3) for index in range(540))
    results = tuple(
        dataclasses.replace(
            item, accuracy=dataclasses.replace(item.accuracy, margins=margins, parent_margins=(5.0,) * 540)
        )
        for item in record.results
    )
    record = dataclasses.replace(record, results=results)
    found = disagreements(record, "fp32", "int8-kl", lambda index: {"kind": "text", "value": f"text {index}"})
    assert [sample.index for sample in found.unsure] == list(range(12))
    assert found.unsure[0].margin == "margin -3, 5 in the parent" and found.samples[0].margin == ""
    lost = sum(round(row.samples * (row.after - row.before)) for row in found.by_class)
    ours, theirs = (sum(item.accuracy.scores) for item in record.results)
    assert lost == theirs - ours and found.moved
    page = markup.disagreements(found, "fp32", "int8-kl")
    for words in ("Classes that lost or gained", "Wrong answers that became", "Least certain under int8-kl"):
        assert words in page
    told = disagreements(record, "fp32", "int8-kl", labels=np.zeros(540, dtype=np.int64))
    assert {row.label for row in told.by_class} <= {0} and told.unlabelled == 0


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
    found = offers.refusals("onnxruntime-cpu", tiny.classifier(tmp_path), tiny.samples())
    assert "NVIDIA" in found["precision", "tf32"]
    assert ("profile", "shapes") in found
    assert ("quantization", "int8") not in found


def test_without_calibration_samples_static_quantization_is_greyed(tmp_path: Path) -> None:
    data = dataclasses.replace(tiny.samples(), calibration=None)
    found = offers.refusals("onnxruntime-cpu", tiny.classifier(tmp_path), data)
    assert "calibration" in found["quantization", "int8"]
    assert "calibration" in found["calibrator", "kl"]
    assert ("quantization", "int8-dynamic") not in found


def test_a_quantized_model_takes_no_more_precision_steps(tmp_path: Path) -> None:
    model = dataclasses.replace(tiny.classifier(tmp_path), quantized_by="modelopt")
    found = offers.refusals("onnxruntime-cpu", model, tiny.samples())
    assert "modelopt" in found["quantization", "int8"] and "modelopt" in found["precision", "fp16"]
    assert ("precision", "fp32") not in found and ("quantization", "none") not in found
