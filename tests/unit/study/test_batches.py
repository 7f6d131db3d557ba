"""One recipe under many batches and threads: remembered place by place, with the sweet spot under a budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_studies import QUICK

import workbench as wb
from workbench.errors import Cancelled, RecipeError
from workbench.judging.statistics import Summary
from workbench.records import Progress
from workbench.study.batches import Matrix, Place


def test_every_place_is_measured_once_and_a_larger_matrix_measures_what_is_new(
    model, data, store, made_up_rounds
) -> None:
    seen: list[Progress] = []
    asked = {"batches": (1, 4), "protocol": QUICK, "store": store}
    found = wb.matrix(model, data, "fp32", threads=(1, 2), progress=seen.append, **asked)
    assert [(place.batch, place.workers) for place in found.places] == [(1, 1), (4, 1), (1, 2), (4, 2)]
    assert len(made_up_rounds) == 4 * QUICK.rounds
    for place in found.places:
        assert place.samples_per_second == pytest.approx(place.batch / place.summary.median)
        assert wb.Study.open(place.study, store).record.protocol.batch == place.batch
    assert [step.fraction for step in seen] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert found.frame().shape == (4, 7) and "one after the other" in found.notes[0]
    wb.matrix(model, data, "fp32", threads=(1, 2, 3), progress=None, **asked)
    assert len(made_up_rounds) == 6 * QUICK.rounds


def place(batch: int, seconds: float, high: float | None = None) -> Place:
    summary = Summary(
        seconds, seconds, 0.0, 0.0, None, None, None, None if high is None else seconds, high, None, 10, 5, 0.99
    )
    return Place(batch, 1, summary, batch / seconds)


def test_the_sweet_spot_keeps_surely_to_the_budget() -> None:
    places = (
        place(1, 0.001, 0.0011),
        place(8, 0.004, 0.006),
        place(16, 0.010, 0.011),
        Place(32, 1, None, None, failure="no"),
    )
    found = Matrix("net", "fp32", "onnxruntime-cpu", "threads", places)
    assert found.sweet_spot().batch == 8, "2000 samples a second"
    assert found.sweet_spot(0.005).batch == 1, "the interval of batch 8 reaches beyond the budget"
    assert found.sweet_spot(0.0001) is None and "fast enough within 0.1" in found.words(0.0001)
    assert "batch 8 with 1 thread, 2,000 samples/s" in found.words() and "no" in repr(found) + found._repr_html_()


def test_what_makes_no_matrix_is_refused_and_a_place_that_fails_is_told(model, data, store, made_up_rounds) -> None:
    with pytest.raises(RecipeError, match="one of them"):
        wb.matrix(model, data, threads=(1,), streams=(1,), store=store)
    with pytest.raises(RecipeError, match="at least 1"):
        wb.matrix(model, data, batches=(0, 1), store=store)
    bare = replace(data, calibration=None)
    found = wb.matrix(model, bare, "int8-max", batches=(1,), protocol=QUICK, store=store, progress=None)
    assert found.places[0].summary is None and "calibration" in found.places[0].failure.lower()
    with pytest.raises(Cancelled):
        wb.matrix(model, data, batches=(2,), protocol=QUICK, store=store, progress=None, cancel=lambda: True)
