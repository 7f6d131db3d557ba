"""The page of tuning: layers ranked for real on a tiny network, a mix by hand, and a search within a bound."""

from __future__ import annotations

import threading
from typing import Any

import tiny
from tiny import attempt, settle

from workbench.errors import Cancelled
from workbench.ui.state import State
from workbench.ui.state.tuning import FIRST_WORDS, Tuning
from workbench.ui.views.tuning import path_table, rows


def test_layers_are_ranked_chosen_and_kept_in_a_new_recipe(state: State) -> None:
    tuning = state.tuning
    assert tuning.recipes == ("fp16", "int8-kl") and tuning.recipe == "int8-kl"
    state.plan.remove(("int8-kl",))
    assert tuning.recipe == "fp16"
    attempt(state, state.plan.add_named, "int8-kl")
    assert tuning.recipe == "int8-kl", "nobody chose FP16"
    assert "No layer is chosen" in attempt(state, tuning.add)
    state.session.attempt(tuning.rank)
    tuning._job.result(120)
    assert state.error == "" and tuning.error == ""
    names = [row.name for row in tuning.costs.rows]
    assert len(names) == 2 and "the noisiest first" in tuning.words and not tuning.is_running
    shown = rows(tuning.costs)
    assert [row["key"] for row in shown] == names and all(len(row["cells"]) == 8 for row in shown)
    tuning.chosen = (names[0],)
    assert attempt(state, tuning.add) == ""
    added = state.plan.recipes[-1]
    assert added.name in tuning.words and added.step("quantize").exclude
    assert "in the study already" in attempt(state, tuning.add)


def test_a_search_keeps_to_its_bound_and_its_study_can_be_shown(state: State) -> None:
    tuning = state.tuning
    assert "Nothing was searched" in attempt(state, tuning.show)
    tuning.latency_text = "5"
    assert "Type one bound" in attempt(state, tuning.search)
    tuning.latency_text, tuning.loss_text = "", "100"
    state.session.attempt(tuning.search)
    tuning._job.result(120)  # builds and measures for real
    assert state.error == "" and tuning.error == ""
    assert tuning.found.best in {one.recipe for one in tuning.found.path}
    assert "keeps to it" in path_table(tuning.found)
    assert attempt(state, tuning.show) == ""
    assert state.results.selected == tuning.found.best and state.session.page == "Results"


def test_what_is_needed_is_said_and_what_fails_stands_beside_the_buttons(state: State) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise ValueError("no such layer")

    tuning = Tuning(state.session, state.selection, state.plan, state.results, rank=broken)
    attempt(state, tuning.rank)
    assert tuning.error == "no such layer" and not tuning.is_running and state.error == ""
    state.plan.remove(("int8-kl", "fp16"))
    assert tuning.recipe == "" and "No recipe is chosen" in attempt(state, tuning.rank)
    state.selection.data = None
    assert "judged on calibration samples" in attempt(state, tuning.rank)
    assert tuning.words == FIRST_WORDS


def test_a_search_can_be_stopped(state: State) -> None:
    reached = threading.Event()

    def held(*arguments: Any, cancel: Any, **options: Any) -> None:
        reached.set()
        while not cancel():
            threading.Event().wait(0.005)
        raise Cancelled("Stopped as asked.")

    tuning = Tuning(state.session, state.selection, state.plan, state.results, search=held)
    state.session.attempt(tuning.search)
    assert reached.wait(tiny.SOON) and tuning.is_running
    tuning.cancel()
    settle()
    assert tuning.words.startswith("Cancelled") and not tuning.is_running
