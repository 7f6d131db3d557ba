"""The page of batches: what was typed, what is measured for real on a tiny network, and the heat map."""

from __future__ import annotations

from tiny import attempt

from workbench.study.batches import Matrix, Place
from workbench.ui.state import State
from workbench.ui.views.batches import heat_map


def test_places_are_measured_shown_and_judged_by_a_budget(state: State) -> None:
    batches = state.batches
    assert batches.recipe == "fp32"
    batches.batches_text, batches.workers_text = "1, 4", "1"
    state.session.attempt(batches.measure)
    batches._job.result(120)
    assert state.error == "" and batches.error == "" and not batches.is_running
    assert [(place.batch, place.workers) for place in batches.found.places] == [(1, 1), (4, 1)]
    assert batches.spot in ((1, 1), (4, 1)) and "Most samples a second: batch" in batches.words
    shown = heat_map(batches.found, batches.spot)
    assert shown.count("★") == 2 and "batch 4" in shown and "1 thread<" in shown
    assert attempt(state, batches.set_budget, "0.000001") == ""
    assert batches.spot == () and "fast enough" in batches.words
    assert heat_map(batches.found, (), 1e-9).count("over budget") == 2
    assert "no number" in attempt(state, batches.set_budget, "soon")


def test_what_was_typed_must_be_numbers(state: State) -> None:
    state.batches.batches_text = "1, many"
    assert "write numbers" in attempt(state, state.batches.measure)
    state.plan.remove(("fp32", "fp16", "int8-kl"))
    assert "No recipe is chosen" in attempt(state, state.batches.measure)


def test_a_place_that_failed_says_why_and_no_name_becomes_markup() -> None:
    failed = Matrix("net", "fp32", "cpu", "streams", (Place(1, 2, None, None, failure="<b>no memory"),))
    text = heat_map(failed, ())
    assert "failed" in text and "&lt;b&gt;no memory" in text and "<b>no memory" not in text
    assert heat_map(None, ()) == ""
