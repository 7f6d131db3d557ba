"""Explanations that a study keeps: one that a card made travels in its file, and is of its own engines only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import workbench as wb
from workbench.study import explained

RECORDED = Path(__file__).parents[3] / "data" / "studies" / "digits_resnet-h200-why.json.gz"
VARIANT = "int8-kl-fp16"


@pytest.fixture(scope="module")
def study() -> wb.Study:
    return wb.Study.open(RECORDED)


def test_what_a_card_found_is_read_where_there_is_none(study: wb.Study, tmp_path: Path) -> None:
    found = study.explanations[VARIANT]
    assert found.evidence.variant.replayed and len(found.layers()) == len(found.evidence.variant.layers) > 20
    again = wb.Study.open(study.save(tmp_path / "again.json"))
    assert again.explanations == study.explanations


def test_a_report_of_it_has_its_layers_and_reasons(study: wb.Study, tmp_path: Path) -> None:
    words = study.report(tmp_path / "r.html").read_text(encoding="utf-8")
    assert 'id="layers"' in words and "the study replays a CUDA graph" in words
    bare = study.report(tmp_path / "bare.html", ()).read_text(encoding="utf-8")
    assert 'id="layers"' not in bare


def test_it_is_of_its_own_engines_only(study: wb.Study) -> None:
    results = [
        replace(item, engine=replace(item.engine, sha256="0" * 64)) if item.recipe.name == VARIANT else item
        for item in study.record.results
    ]
    assert wb.Study(replace(study.record, results=tuple(results))).explanations == {}


@pytest.mark.parametrize("damaged", [None, 3, {}, {"engines": []}, "explanation"])
def test_a_damaged_one_counts_as_absent(study: wb.Study, damaged: object) -> None:
    entry = study.record.explanations[VARIANT]
    put = {**entry, "explanation": {"study": 3}} if damaged == "explanation" else damaged
    assert explained.kept(replace(study.record, explanations={VARIANT: put})) == {}
