"""Names that are no plain words: shown as they stand, escaped, or refused by name; never a bare traceback."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from workbench import codec, plots
from workbench.errors import StoreError, WorkbenchError
from workbench.machine.store import write_text
from workbench.plots import theme
from workbench.plots.labels import shorten
from workbench.recipes import Recipe
from workbench.records import StudyRecord, VariantResult
from workbench.reports.plain import csv

SHIPPED = sorted(Path(wb.zoo.data_folder(), "studies").rglob("*.json"))


@pytest.fixture(scope="module")
def record() -> StudyRecord:
    return wb.Study.open(SHIPPED[0]).record


def called(result: VariantResult, name: str) -> VariantResult:
    """The same result under another name, in all its parts."""
    parts = {part: getattr(result, part) for part in ("engine", "measurement", "accuracy", "failure")}
    renamed = {part: None if value is None else replace(value, variant=name) for part, value in parts.items()}
    return replace(result, recipe=replace(result.recipe, name=name), **renamed)


def test_a_result_that_was_put_together_from_two_is_refused(record: StudyRecord, tmp_path: Path) -> None:
    text = codec.to_json(record).replace('"measurement": {"variant": "fp16"', '"measurement": {"variant": "fp32"')
    assert text != codec.to_json(record)
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(StoreError, match="under 'fp16' the Measurement of 'fp32'"):
        wb.Study.open(tmp_path / "s.json")
    (tmp_path / "s.json").write_text(codec.to_json(replace(record, results=record.results[:1] * 2)))
    with pytest.raises(StoreError, match="two variants called 'fp32'"):
        wb.Study.open(tmp_path / "s.json")


@pytest.mark.parametrize("name", ["", "a\0b", "a\udcff", "a\nb", "x" * 5000, None])
def test_a_recipe_and_a_study_are_called_by_printable_words(name) -> None:
    with pytest.raises(ValueError, match=r"Recipe\.name is"):
        Recipe(name)
    if name is not None:
        with pytest.raises(WorkbenchError, match="The name of a study is"):
            wb.run("digits_resnet", name=name)


@pytest.mark.parametrize("name", ["$\\frac{$", "$x$", "100 $", "a_{b", "ünï <b>", "🙂"])
def test_a_name_is_shown_as_it_stands_in_figures_and_reports(record: StudyRecord, name: str, tmp_path: Path) -> None:
    results = (record.results[0], called(record.results[1], name))
    study = wb.Study(replace(record, name=name, model=replace(record.model, name=name), results=results))
    assert theme.svg(study.plot()).startswith("<?xml")
    assert study.report(tmp_path / "report.html").stat().st_size > 1000


@pytest.mark.parametrize("name", ["$\\frac{$", "$x$"])
def test_words_of_a_file_are_no_formulas_on_the_axes_of_a_figure(
    record: StudyRecord, name: str, tmp_path: Path
) -> None:
    odd = [
        replace(item, accuracy=None if item.accuracy is None else replace(item.accuracy, metric=name))
        for item in record.results
    ]
    study = wb.Study(replace(record, results=tuple(odd)))
    assert study.report(tmp_path / "figure.svg").stat().st_size > 1000
    first = called(record.results[0], name)
    figure = plots.sizes(replace(record, baseline=name, results=(first, *record.results[1:])))
    assert theme.svg(figure).startswith("<?xml")
    assert theme.svg(plots.histogram(np.ones(8), np.arange(9.0), {name: 4.0}))


def test_dollar_signs_are_escaped_once() -> None:
    assert shorten("$a$") == "\\$a\\$" == theme.plain(shorten("$a$"))


@pytest.mark.parametrize("name", ["=1+1", " =1+1", "  @x", "+1"])
def test_a_cell_that_a_spreadsheet_would_run_is_disarmed(record: StudyRecord, name: str) -> None:
    first = called(record.results[0], name)
    text = csv(replace(record, baseline=name, results=(first,)))
    assert f"'{name}" in text


def test_half_a_letter_in_a_name_of_a_file_is_written_as_an_escape(record: StudyRecord, tmp_path: Path) -> None:
    odd = replace(record, model=replace(record.model, name="caf\udce9"))
    text = codec.to_json(odd)
    assert text.isascii() and codec.from_json(StudyRecord, text) == odd
    write_text(tmp_path / "report.html", "caf\udce9")
    assert (tmp_path / "report.html").read_text() == "caf\\udce9"


def test_a_sample_with_an_odd_number_is_left_out(record: StudyRecord) -> None:
    from workbench.reports.examples import examples

    sample = {"kind": "text", "value": "x", "label": None}
    shown = examples(replace(record, samples={"007": sample, "7": sample, "x": sample}))
    assert shown is not None and len(shown.cards) == 1
