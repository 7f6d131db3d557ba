"""Records as the last expression of a cell: a line, or a small card; never the megabytes that they hold."""

from __future__ import annotations

import dataclasses
import html
from pathlib import Path
from typing import Any

import pytest
import synthetic_study

import workbench as wb
from workbench import codec, records
from workbench.judging.comparison import Comparison
from workbench.records import Accuracy, LayerProfile, LayerTime, TensorSpec, cards
from workbench.study.search import Bound, Found, Tried
from workbench.transformation.steps import Calibrated
from workbench.tuning.calibrator_comparison import CalibratorComparison, CalibratorRow
from workbench.tuning.sensitivity import LayerCosts

HOSTILE = "<script>alert('x')</script> & \"q\""
LONGEST_LINE, LONGEST_CARD = 200, 8_000
RECORD = synthetic_study.study()
BASE, FAST = RECORD.results[0], synthetic_study.study(("fp32", "int8-kl")).results[1]
LAYER = LayerTime("conv+relu", "Conv", 1e-4, ("/conv",), ("net.conv",), "f32", (TensorSpec("x", "float32", (None, 3)),))
TRIED = Tried("int8-but-one", ("net.head",), 0.2, 30.0, 1e-3, "evaluation", True)
COSTS = LayerCosts(BASE.recipe, (), 31.2, 0.4, "points of top-1", 64, 12)


def shown() -> dict[str, Any]:
    study = wb.Study(synthetic_study.study(("fp32", "int8-kl", "int8-max")))
    found = (
        RECORD, RECORD.model, FAST, FAST.variant, FAST.variant and FAST.variant.reports[0], FAST.engine, FAST.measurement,
        FAST.measurement and FAST.measurement.rounds[0], FAST.accuracy, synthetic_study.failed("int8-smooth"),
        synthetic_study.failed("int8-smooth").failure, LAYER, LayerProfile((LAYER,) * 30), study.comparison(), study,
        Calibrated(), Found(study, "int8-kl", "the fastest", Bound(drop=1.0), "points", (TRIED,), {}),
    )  # fmt: skip
    return {f"{place}-{type(one).__name__}": one for place, one in enumerate(found)}


@pytest.mark.parametrize("name", shown())
def test_every_record_is_a_line_and_a_small_card(name: str) -> None:
    record = shown()[name]
    line, card = repr(record), record._repr_html_()
    assert line.startswith(f"{type(record).__name__}(") and line.count("\n") == 0 and len(line) <= LONGEST_LINE
    assert 0 < len(card) <= LONGEST_CARD and "<" in card


def test_every_large_public_record_is_a_card() -> None:
    small = {"TensorSpec", "Origin", "Program", "Skipped", "ShapeProfile", "BuildOptions", "Protocol", "Progress"}
    names = {name for name in records.__all__ if isinstance(getattr(records, name), type)} - small
    assert {name for name in names if not issubclass(getattr(records, name), cards.Card)} == set()


def test_a_log_of_megabytes_and_ten_thousand_samples_stay_where_they_are() -> None:
    assert FAST.engine is not None and FAST.accuracy is not None
    engine = dataclasses.replace(FAST.engine, log="line\n" * 100_000, notes=("long " * 10_000,))
    assert "100000 lines, in .log" in engine._repr_html_() and len(engine._repr_html_()) < LONGEST_CARD
    many = dataclasses.replace(FAST.accuracy, scores=(1.0,) * 100_000, sqnr_db={f"y{i}": None for i in range(1000)})
    assert len(repr(many)) <= LONGEST_LINE and len(many._repr_html_()) < LONGEST_CARD


def test_what_files_are_called_is_no_markup() -> None:
    model = dataclasses.replace(RECORD.model, name=HOSTILE, path=HOSTILE)
    assert "<script" not in model._repr_html_() and html.escape("<script>") in model._repr_html_()
    study = wb.Study(dataclasses.replace(RECORD, model=model, backend_reason=HOSTILE))
    assert "<script" not in study._repr_html_() + study.record._repr_html_()


def test_a_study_shows_its_verdict_above_its_table() -> None:
    card = wb.Study(synthetic_study.study(("fp32", "int8-kl", "int8-max")))._repr_html_()
    assert card.startswith("<p><b>Take int8-max") and "<table" in card


def test_scores_are_shown_as_the_metric_is_read() -> None:
    check = Accuracy("a", "", "onnxruntime-cpu", 2, "text", "user", "", "perplexity", False, (1.0, 3.0), (1.0, 1.0))
    assert "perplexity 7.389," in repr(dataclasses.replace(check, display="exp_mean"))
    assert "perplexity inf," in repr(dataclasses.replace(check, scores=(1e4, 1e4), display="exp_mean"))
    assert "200.00 %" in repr(dataclasses.replace(check, unit="share"))
    assert "no metric, 2 samples" in repr(dataclasses.replace(check, metric=None, scores=(), parent_scores=()))


def test_a_card_that_does_not_say_what_it_is_cannot_be_shown() -> None:
    with pytest.raises(NotImplementedError):
        repr(cards.Card())


def test_a_record_that_was_shown_is_stored_as_before() -> None:
    again = codec.from_json(records.StudyRecord, codec.to_json(RECORD))
    assert again == RECORD and again.results == RECORD.results


def test_calibrations_and_searches_show_themselves(tmp_path: Path) -> None:
    model, data = wb.load("digits_resnet", store=wb.Store(tmp_path)), wb.datasets.digits()
    found = wb.calibrate(model, data, "int8-max", store=wb.Store(tmp_path))
    assert "tensors," in repr(found) and "samples" in found._repr_html_()
    assert repr(COSTS).endswith("all lowered 31.2 dB, 0.4 points of top-1 lost)")
    assert found.table is not None
    compared = CalibratorComparison((CalibratorRow("kl", (), 30.0, 0.1),), found.table, "points", 64)
    assert repr(compared) == "CalibratorComparison(kl; 64 samples)"


def test_a_comparison_of_nothing_but_the_baseline_says_so() -> None:
    (only,) = [row for row in wb.Study(RECORD).comparison().rows if row.ratio is None and row.change is None][:1]
    assert "the baseline" in Comparison("fp32", (only,))._repr_html_()
