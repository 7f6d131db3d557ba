"""What the app knows and does, without a widget and without a kernel."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import synthetic_study
import tiny
from tiny import SOON, FakeRun, attempt, settle

import workbench as wb
from workbench import codec, datasets
from workbench.errors import Cancelled, RecipeError
from workbench.machine.store import Store
from workbench.recipes import NAMED, named
from workbench.records import Progress, StudyRecord
from workbench.study import Study, catalog
from workbench.ui.state import State
from workbench.ui.state.results import MANY_VARIANTS
from workbench.ui.state.running import variant_progress
from workbench.ui.views import markup


@pytest.fixture
def fake() -> FakeRun:
    return FakeRun()


@pytest.fixture
def state(tmp_path: Path, own_store: Path, fake: FakeRun) -> Iterator[State]:
    made = State(tiny.classifier(tmp_path), tiny.samples(), run_study=fake, protocol=tiny.QUICK)
    settle()
    yield made
    fake.go_on.set()
    made.session.stop()
    made.session.leave()


def finished(state: State) -> StudyRecord:
    attempt(state, state.running.start)
    record = state.running.result(SOON).record
    settle()
    return record


def test_a_given_model_is_looked_at_before_anything_is_built(state: State) -> None:
    selection = state.selection
    assert selection.cost.flops == 2 * (8 * 16 + 16 * 3)
    assert list(selection.layers) == ["/first/Gemm", "/relu/Relu", "/head/Gemm"]
    assert selection.lacks["onnxruntime-cpu"] == {}
    assert (selection.source, selection.data_source, selection.busy) == ("from the notebook", "from the notebook", "")


def test_a_shipped_model_is_loaded_with_data_that_fit_it(own_store: Path) -> None:
    state = State()
    selection = state.selection
    assert "digits_resnet" in selection.shipped_names and selection.model is None
    selection.shipped = "digits_resnet"
    assert attempt(state, selection.load) == ""
    assert selection.model.name == "digits_resnet"
    assert (selection.data_source, len(selection.data.evaluation)) == ("digits", 539)


def test_an_onnx_file_without_fitting_data_gets_random_numbers(state: State, tmp_path: Path) -> None:
    selection = State().selection
    selection.source, selection.path = "ONNX file", str(tmp_path / "classifier.onnx")
    selection.session.attempt(selection.load)
    settle()
    assert (selection.model.name, selection.data.kind) == ("classifier", "random")


@pytest.mark.parametrize(("path", "words"), [("", "No path was given"), ("nowhere.onnx", "nowhere.onnx")])
def test_a_model_that_cannot_be_loaded_is_an_error_that_is_shown(state: State, path: str, words: str) -> None:
    state.selection.source, state.selection.path = "ONNX file", path
    assert words in attempt(state, state.selection.load)
    assert state.selection.busy == ""


def test_data_from_a_file_are_fitted_to_the_model(state: State, tmp_path: Path) -> None:
    np.savez(tmp_path / "good.npz", x=np.ones((5, 8), np.float32) * np.arange(5)[:, None], labels=np.arange(5) % 3)
    np.savez(tmp_path / "bad.npz", x=np.ones((5, 9), np.float32) * np.arange(5)[:, None], labels=np.arange(5))
    selection = state.selection
    selection.data_source = ".npz file"
    assert "No path was given" in attempt(state, selection.use_data)
    selection.data_path = str(tmp_path / "bad.npz")
    assert "shape (5, 9)" in attempt(state, selection.use_data)
    assert selection.data.name == "points", "what was there stays"
    selection.data_path = str(tmp_path / "good.npz")
    assert attempt(state, selection.use_data) == ""
    assert len(selection.data.evaluation) == 5
    assert "quantization" in {toggle for toggle, _ in state.plan.reasons}, "there is nothing to calibrate with"
    assert attempt(state, selection.split_off, 2) == ""
    assert len(selection.data.calibration) == 2
    assert ("quantization", "int8") not in state.plan.reasons


def test_toggles_make_a_sweep_whose_size_and_time_are_known_before_it_starts(state: State) -> None:
    plan = state.plan
    attempt(state, plan.set_toggle, "quantization", ("none", "int8"))
    attempt(state, plan.set_toggle, "calibrator", ("max", "kl"))
    attempt(state, plan.set_samples, "10, all")
    assert plan.sweep_size == 1 + 2 * 2
    assert "With the sweep: 6 variants" in plan.estimate  # three recipes are there, of which two are in the sweep
    assert attempt(state, plan.add_sweep) == ""
    assert len(plan.recipes) == 6
    assert "Nothing to add" in attempt(state, plan.add_sweep)


def test_what_cannot_be_chosen_is_refused_with_its_reason(state: State) -> None:
    assert "NVIDIA" in attempt(state, state.plan.set_toggle, "precision", ("fp32", "tf32"))
    assert state.plan.toggles.precisions == ("fp32",)
    assert "NVIDIA" in attempt(state, state.plan.add_named, "tf32")
    assert "no recipe 'int9'" in attempt(state, state.plan.add_named, "int9")
    assert "such as: 64, 256, all" in attempt(state, state.plan.set_samples, "many")


def test_layers_are_found_by_words_and_left_out_of_the_sweep(state: State) -> None:
    plan = state.plan
    attempt(state, plan.search, "gemm HEAD")
    assert plan.matches == ("/head/Gemm",)
    attempt(state, plan.exclude, plan.matches)
    attempt(state, plan.set_toggle, "quantization", ("int8",))
    attempt(state, plan.add_sweep)
    assert plan.recipes[-1].step("quantize").exclude == ("^/head/Gemm$",)
    attempt(state, plan.include, ("/head/Gemm",))
    assert plan.excluded == () and plan.toggles.excluded == ()


def test_a_protocol_that_is_not_possible_is_said_and_nothing_starts(state: State, fake: FakeRun) -> None:
    state.plan.min_seconds_text = "soon"
    assert "protocol is not possible" in attempt(state, state.running.start)
    assert fake.calls == []


def test_a_study_runs_and_its_results_are_shown(state: State, fake: FakeRun) -> None:
    assert state.running.can_start
    record = finished(state)
    assert [result.recipe.name for result in record.results] == ["fp32", "fp16", "int8-kl"]
    assert fake.calls[0]["protocol"] == tiny.QUICK
    running, results = state.running, state.results
    assert {item.state for item in running.variants} == {"done"} and running.fraction == 1.0
    assert "finished" in running.words and "built int8-kl" in running.log
    assert results.record == record and "too few to tell" in results.words
    assert results.figure["data"] and results.figure["layout"]["height"]
    assert state.error == ""


def test_progress_says_stage_share_and_time_while_the_study_runs(state: State, fake: FakeRun) -> None:
    fake.hold()
    state.session.attempt(state.running.start)
    assert fake.reached.wait(SOON)
    state.running.job.flush()
    running = state.running
    assert running.words.startswith("0%: measuring fp32, round 1")
    assert "elapsed" in running.words
    assert (running.can_start, running.can_cancel) == (False, True)
    assert [item.state for item in running.variants] == ["waiting"] * 3, "no record has come yet"
    assert "runs already" in attempt_only(state, running.start)


def attempt_only(state: State, command: object) -> str:
    state.session.attempt(command)  # type: ignore[arg-type]
    return state.error


def test_cancel_stops_and_resume_does_only_what_is_left(state: State, fake: FakeRun) -> None:
    fake.hold()
    state.session.attempt(state.running.start)
    assert fake.reached.wait(SOON)
    state.session.attempt(state.running.cancel)
    with pytest.raises(Cancelled):
        state.running.result(SOON)
    assert "cancelled" in state.running.words and state.running.can_start
    fake.go_on.set()
    record = finished(state)
    assert all(result.measurement for result in record.results)
    assert state.error == ""


def test_a_failed_variant_shows_its_message_and_log_and_the_others_go_on(state: State, fake: FakeRun) -> None:
    fake.failing = ("fp16",)
    finished(state)
    by_name = {item.name: item for item in state.running.variants}
    assert by_name["fp16"].state == "failed"
    assert "OutOfMemory" in by_name["fp16"].message and "skipped tactic" in by_name["fp16"].log
    assert by_name["int8-kl"].state == "done"


def test_running_the_cell_again_finds_the_study_that_runs(state: State, fake: FakeRun) -> None:
    fake.hold()
    state.session.attempt(state.running.start)
    assert fake.reached.wait(SOON)
    again = State(state.selection.model, state.selection.data, run_study=fake, protocol=tiny.QUICK)
    again.session.attempt(again.running.find)
    assert again.running.job is state.running.job and again.running.can_cancel
    fake.go_on.set()
    assert again.running.result(SOON).record.name == "fake study"
    settle()
    assert again.results.record is not None and len(fake.calls) == 1
    again.session.leave()


def test_after_a_restart_the_study_in_the_store_is_found_and_can_be_resumed(state: State, own_store: Path) -> None:
    model = state.selection.model
    whole = dataclasses.replace(
        synthetic_study.study(("fp32", "int8-kl"), protocol=tiny.QUICK), name="classifier-1234", model=model
    )
    cut = dataclasses.replace(whole.results[1], measurement=None)
    Store().put("study", whole.name, codec.to_json(dataclasses.replace(whole, results=(whole.results[0], cut))))
    again = State(model, state.selection.data)
    again.session.attempt(again.running.find)
    settle()
    assert again.running.start_words == "Resume"
    assert "was cut off" in again.running.words
    assert again.results.record.name == "classifier-1234"


def test_starting_without_a_model_or_recipes_says_what_to_do(state: State) -> None:
    empty = State()
    assert "page `Model`" in attempt(empty, empty.running.start)
    attempt(state, state.plan.remove, tuple(recipe.name for recipe in state.plan.recipes))
    assert not state.running.can_start
    assert "No recipe is chosen" in attempt(state, state.running.start)


def test_a_budget_marks_the_best_and_nonsense_is_refused(state: State) -> None:
    finished(state)
    assert attempt(state, state.results.set_budget, "", "100") == ""
    # So few rounds tell no speed apart: the most accurate of the equals is best, and the others are named.
    assert state.results.best == "fp32" and "cannot be told apart from" in state.results.budget_words
    before = state.results.figure
    attempt(state, state.results.set_budget, "2,0", "")
    assert state.results.budget.latency_seconds == pytest.approx(0.002)
    assert state.results.figure != before
    assert "no number" in attempt(state, state.results.set_budget, "fast", "")
    assert "0 or more" in attempt(state, state.results.set_budget, "", "-1")


def test_a_variant_that_is_selected_is_selected_everywhere(state: State, fake: FakeRun) -> None:
    assert "no variant 'fp16'" in attempt(state, state.results.select, "fp16"), "nothing is shown yet"
    finished(state)
    before = state.results.figure
    assert attempt(state, state.results.select, "fp16") == ""
    assert state.results.second == "fp16" and state.layers.second == "fp16"
    assert state.results.figure != before and state.results.figure["data"][-1]["name"] == "selected"
    assert "no variant 'Beauty'" in attempt(state, state.results.select, "Beauty")


def test_another_study_of_the_model_is_drawn_beside_and_marked_as_unlike(state: State) -> None:
    first = synthetic_study.study()
    measured = tuple(
        item
        if item.measurement is None
        else dataclasses.replace(item, measurement=dataclasses.replace(item.measurement, device="another CPU"))
        for item in first.results
    )
    other = dataclasses.replace(first, name="elsewhere", results=measured)
    state.session.store.put("study", other.name, codec.to_json(other))
    attempt(state, state.results.show, first)
    attempt(state, state.results.look_for_others)
    assert state.results.others == ("elsewhere",)
    assert attempt(state, state.results.draw_beside, ("elsewhere",)) == ""
    names = [trace["name"] for trace in state.results.figure["data"]]
    assert any("elsewhere" in name and "unlike conditions" in name for name in names)
    hover = next(trace for trace in state.results.figure["data"] if "elsewhere" in trace["name"])["hovertext"][0]
    assert "another CPU" in hover and state.results.figure["layout"]["showlegend"]


def test_with_many_variants_the_front_comes_with_the_last_one(state: State) -> None:
    base = synthetic_study.study(("fp32", "int8-kl"), protocol=tiny.QUICK)
    copies = tuple(
        dataclasses.replace(base.results[1], recipe=dataclasses.replace(base.results[1].recipe, name=f"int8-{number}"))
        for number in range(MANY_VARIANTS)
    )
    seen: list[bool] = []
    state.results.observe(
        lambda change: seen.append(any(row.on_front for row in change["new"].comparison.rows)), "summary"
    )
    record = dataclasses.replace(base, results=(base.results[0], *copies))
    attempt(state, state.results.show, dataclasses.replace(record), False)
    attempt(state, state.results.show, record)
    assert seen == [False, True]
    assert state.error == ""


def test_the_report_is_written_and_the_link_opens_it(state: State, tmp_path: Path) -> None:
    export = state.export
    assert "no study to report" in attempt(state, export.export)
    finished(state)
    export.report_path = str(tmp_path / "out")
    assert attempt(state, export.export) == ""
    assert Path(export.written) == tmp_path / "out.html"
    assert export.report_page == (tmp_path / "out.html").read_text()
    export.report_format = "CSV"
    attempt(state, export.export)
    assert export.written.endswith("out.csv") and export.report_page == ""
    export.report_path = " "
    assert "No file was named" in attempt(state, export.export)
    export.report_path = str(tmp_path / "missing" / "deep" / "out")
    assert attempt(state, export.export) != "" or Path(export.written).exists()


def test_a_report_holds_layers_where_they_are_asked_for_and_what_is_unlike_the_pinned_study(
    state: State, tmp_path: Path
) -> None:
    finished(state)
    export, store, record = state.export, state.session.store, state.results.record
    assert record is not None
    before = dataclasses.replace(record, name="before", environment={"python": "3.1"})
    store.put("study", "before", codec.to_json(before))
    catalog.pin("before", store)
    asked = []

    def look(study: Study, data: object, **options: object) -> None:
        asked.append((study.name, data))

    export._look = look
    export.report_path = str(tmp_path / "out")
    assert attempt(state, export.export) == "" and asked == []
    assert "The reference is before" in export.report_page
    export.with_layers = True
    assert attempt(state, export.export) == "" and asked == [(record.name, None)]
    catalog.pin(None, store)
    assert attempt(state, export.export) == "" and "The reference is" not in export.report_page


def test_earlier_studies_are_found_opened_and_compared(state: State) -> None:
    store, first = state.session.store, synthetic_study.study(("fp32", "int8-kl"), name="alpha", created_at=1.0)
    second = dataclasses.replace(first, name="beta", created_at=2.0)
    for record in (first, second):
        store.put("study", record.name, codec.to_json(record))
    studies = state.studies
    attempt(state, studies.refresh)
    assert [row["name"] for row in studies.rows] == ["beta", "alpha"]
    assert "select one" in attempt(state, studies.open)
    attempt(state, studies.choose, ("alpha",))
    attempt(state, studies.open)
    assert state.results.record.name == "alpha" and state.session.page == "Results"
    assert "select two" in attempt(state, studies.compare)
    attempt(state, studies.choose, ("beta", "alpha"))
    assert attempt(state, studies.compare) == ""
    found = studies.compared.found
    assert (found.before, found.after) == ("alpha", "beta"), "the later is compared with the earlier"
    assert {row.ratio.verdict for row in found.comparison.rows} == {"not distinguishable"} and not found.findings
    assert "has not regressed" in studies.words


def test_a_pinned_study_is_what_a_single_one_is_compared_with(state: State) -> None:
    for name in ("alpha", "beta"):
        record = dataclasses.replace(synthetic_study.study(("fp32", "int8-kl")), name=name)
        state.session.store.put("study", name, codec.to_json(record))
    studies = state.studies
    attempt(state, studies.refresh)
    attempt(state, studies.choose, ("beta",))
    attempt(state, studies.pin)
    assert studies.pinned == "beta"
    attempt(state, studies.choose, ("alpha",))
    assert attempt(state, studies.compare) == "" and studies.compared.found.before == "beta"
    attempt(state, studies.choose, ("beta",))
    attempt(state, studies.pin)
    assert studies.pinned == ""


def test_tags_and_a_note_are_kept_and_a_deleted_study_comes_back(state: State) -> None:
    record = dataclasses.replace(synthetic_study.study(("fp32", "int8-kl")), name="alpha")
    state.session.store.put("study", "alpha", codec.to_json(record))
    studies = state.studies
    attempt(state, studies.refresh)
    assert "select one" in attempt(state, studies.remark, "a", "b")
    attempt(state, studies.choose, ("alpha",))
    attempt(state, studies.remark, "paper, a100 , paper", "before the change")
    assert (studies.rows[0]["tags"], studies.rows[0]["note"]) == ("paper, a100", "before the change")
    attempt(state, studies.delete)
    assert studies.rows == () and studies.deleted == ("alpha",) and "Undo brings it back" in studies.words
    assert attempt(state, studies.undo) == ""
    assert studies.rows[0]["name"] == "alpha" and studies.rows[0]["tags"] == "paper, a100"
    assert wb.Study.open("alpha", state.session.store).record == record
    assert "nothing can be brought back" in attempt(state, studies.undo)
    assert "No study is selected" in attempt(state, studies.delete)


def test_a_damaged_study_is_listed_and_an_error_that_is_shown(state: State) -> None:
    state.session.store.put("study", "broken", "{not json")
    attempt(state, state.studies.refresh)
    assert state.studies.rows[0]["state"] == "damaged"
    attempt(state, state.studies.choose, ("broken",))
    assert "StoreError" in attempt(state, state.studies.open)
    attempt(state, state.studies.delete)
    assert state.studies.rows == ()


def test_weights_are_drawn_with_their_output_channels(state: State) -> None:
    inspection = state.inspection
    assert "Read the weights" in attempt(state, inspection.show_weight, "/first/Gemm")
    assert attempt(state, inspection.read_weights) == ""
    assert inspection.weights == ("/first/Gemm", "/head/Gemm") and inspection.weight == "/first/Gemm"
    assert inspection.weight_light.startswith(b"\x89PNG") and inspection.weight_dark.startswith(b"\x89PNG")
    drawn = inspection.weight_light
    assert attempt(state, inspection.show_weight, "/head/Gemm") == "" and inspection.weight_light != drawn
    state.selection.model = None
    assert inspection.weights == () and inspection.weight_light == b""
    assert "no file of a model" in attempt(state, inspection.read_weights)


def test_channels_of_activations_are_drawn_and_those_that_stand_out_are_listed(state: State) -> None:
    inspection, channels = state.inspection, state.channels
    assert attempt(state, channels.observe_channels) == "" and channels.light == b"", "no tensor is shown yet"
    assert channels.words == "0 of 2 activations have a channel 8 times the median or more."
    assert attempt(state, inspection.collect) == ""
    assert attempt(state, inspection.show_tensor, "r") == ""
    assert channels.light.startswith(b"\x89PNG") and channels.dark.startswith(b"\x89PNG")
    assert channels.words.startswith("r, largest magnitude by channel. ")
    inspection.tensor = "h"  # which nothing but the Relu reads
    assert channels.light == b"" and channels.words.startswith("h has no channels: no layer with constant weights")
    x = np.random.default_rng(2).uniform(1.0, 1.5, (60, 8)).astype(np.float32)
    x[:, 3] *= 100.0
    state.selection.data = datasets.arrays(x, name="lopsided").split_off(calibration=20)
    assert channels.words == "Not observed yet."
    assert attempt(state, channels.observe_channels) == ""
    assert channels.outlying[0][0] == "x" and channels.outlying[0][1] == pytest.approx(100.0, rel=0.1)
    assert "<td" in markup.outlying(channels.outlying) and markup.outlying(()) == ""
    assert "3 with smaller outliers" in markup.outlying([("x", 9.0)] * 23)
    x[:, 3] = 3e38  # finite, but not what the first layer makes of it
    state.selection.data = datasets.arrays(x, name="overflowing").split_off(calibration=20)
    assert "CalibrationError" in attempt(state, channels.observe_channels) and channels.words == "Not observed."
    state.selection.data = None
    assert "Channels need a model and data" in attempt(state, channels.observe_channels)


def test_calibration_shows_what_each_calibrator_would_clip(state: State) -> None:
    inspection = state.inspection
    assert attempt(state, inspection.collect) == ""
    assert "x" in inspection.tensors and inspection.tensor == inspection.tensors[0]
    assert {clip.calibrator for clip in inspection.clips} >= {"max", "kl", "mse"}
    assert [clip.sqnr_db for clip in inspection.clips] == sorted(
        (clip.sqnr_db for clip in inspection.clips), reverse=True
    )
    assert inspection.histogram_light.startswith(b"\x89PNG") and inspection.curve_dark.startswith(b"\x89PNG")
    assert "no tensor 'y'" in attempt(state, inspection.show_tensor, "y")
    state.selection.data = dataclasses.replace(state.selection.data, calibration=None)
    assert inspection.tensors == (), "another data set, another table"
    assert "calibration samples" in attempt(state, inspection.collect)


def test_layers_of_an_engine_that_is_not_here_are_not_claimed(state: State) -> None:
    finished(state)
    attempt(state, state.inspection.show_layers, state.results.record, "int8-kl")
    assert "left no graph" in state.inspection.fusion_words
    assert "no variant 'int4'" in attempt(state, state.inspection.show_layers, state.results.record, "int4")


def test_the_code_is_that_of_the_chosen_settings(state: State) -> None:
    attempt(state, state.export.show_code)
    assert 'recipes=["fp32", "fp16", "int8-kl"]' in state.export.code
    state.selection.source, state.selection.shipped = "shipped model", "digits_vit"
    state.selection.data_source = "digits"
    attempt(state, state.export.show_code)
    assert "wb.load('digits_vit')" in state.export.code and "wb.datasets.digits()" in state.export.code


def test_an_error_stays_until_a_command_goes_well(state: State) -> None:
    assert attempt(state, state.plan.add_named, "nothing") != ""
    state.session.deliver(lambda: None)
    assert state.error != ""
    assert attempt(state, state.plan.search, "") == ""


@pytest.mark.expects_callback_error
def test_a_fault_in_a_command_is_shown_and_logged(state: State, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise KeyError("no such thing")

    assert "Unexpected KeyError" in attempt(state, broken)
    assert "Unexpected error in" in caplog.text


def test_a_study_that_fails_altogether_shows_why(tmp_path: Path, own_store: Path) -> None:
    def failing(*arguments: object, **options: object) -> wb.Study:
        raise wb.errors.BuildError("no kernel for Foo")

    state = State(tiny.classifier(tmp_path), tiny.samples(), run_study=failing)
    settle()
    assert "no kernel for Foo" in attempt(state, state.running.start)
    assert "stopped with an error" in state.running.words and state.running.can_start


def test_a_variant_between_stages_is_neither_running_nor_done() -> None:
    (fp32, kl) = synthetic_study.study(("fp32", "int8-kl"), protocol=tiny.QUICK).results
    assert variant_progress(fp32, 2).state == "done"
    half = dataclasses.replace(kl, measurement=dataclasses.replace(kl.measurement, rounds=kl.measurement.rounds[:1]))
    shown = variant_progress(half, 2, Progress("measure", "fp32", 0.5))
    assert (shown.state, shown.stage, shown.fraction) == ("waiting", "1 of 2 rounds measured", pytest.approx(4 / 5))
    assert variant_progress(half, 2, Progress("measure", "int8-kl", 0.5, "round 2")).stage == "measuring round 2"


def test_every_known_recipe_is_judged_by_its_steps(state: State) -> None:
    refused = {name for name in NAMED if state.plan.refusal(NAMED[name])}
    assert refused == {"tf32"}


def test_shape_profiles_are_made_only_where_a_backend_compiles_for_shapes(state: State) -> None:
    state.plan.smallest_batch, state.plan.largest_batch = 1, 16
    assert state.plan.options.profiles == ()
    state.plan.reasons = {}
    (profile,) = state.plan.options.profiles
    assert (profile["x"].smallest, profile["x"].typical, profile["x"].largest) == ((1, 8), (4, 8), (16, 8))
    state.plan.largest_batch = 2
    assert "must hold the measured batch" in attempt(state, state.running.start)


def test_a_pasted_trtexec_command_becomes_a_recipe_and_a_protocol(state: State) -> None:
    plan = state.plan
    line = "trtexec --onnx=m.onnx --fp16 --noTF32 --shapes=x:16x8 --iterations=30 --useSpinWait"
    assert not attempt(state, plan.add_trtexec, line)
    assert plan.recipes[-1].step("precision").to == "fp16" and plan.batch == 16
    assert "useSpinWait" in plan.trtexec_words or plan.trtexec_words
    assert "in the study already" in attempt(state, plan.add_trtexec, line)
    assert "whole trtexec command" in attempt(state, plan.add_trtexec, "--fp16")
    assert "TF32 exists on NVIDIA GPUs only" in attempt(state, plan.add_trtexec, "trtexec --onnx=m.onnx")


def test_the_preview_tells_what_tensorrt_makes_of_each_recipe_and_why_not(state: State) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    previewing, plan = state.previewing, state.plan
    assert previewing.absent == "" and previewing.target == "sm89"
    plan.recipes = (NAMED["fp16"], NAMED["fp8"])
    previewing.target = "sm86"
    assert attempt(state, previewing.show) == ""
    half, eight = previewing.lines
    assert half.found.target == "sm86" and half.found.recipe.name == "fp16"
    assert eight.found is None and "FP8 needs compute capability 8.9; sm86 has 8.6" in eight.refusal
    assert previewing.words == "Built for sm86, not run."
    state.selection.data = dataclasses.replace(tiny.samples(), calibration=None)
    assert previewing.lines == () and previewing.words == ""


def test_the_preview_wants_a_model_a_recipe_and_the_library(
    state: State, monkeypatch: pytest.MonkeyPatch, own_store: Path
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    state.plan.recipes = ()
    assert "needs a model and a recipe" in attempt(state, state.previewing.show)
    for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    bare = State()
    assert 'pip install "trt-workbench[rtx]"' in bare.previewing.absent
    assert 'pip install "trt-workbench[rtx]"' in attempt(bare, bare.previewing.show)
    bare.session.leave()


@pytest.mark.expects_callback_error
def test_a_preview_that_fails_otherwise_is_an_error_and_a_cancelled_one_is_none(state: State) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")

    def stopped(*given: object, **options: object) -> None:
        raise Cancelled("as asked")

    def broken(*given: object, **options: object) -> None:
        raise ZeroDivisionError("a fault")

    state.previewing._make = stopped
    assert attempt(state, state.previewing.show) == ""
    assert (state.previewing.lines, state.previewing.words) == ((), "Cancelled.")
    state.previewing._make = broken
    assert "Unexpected ZeroDivisionError: a fault" in attempt(state, state.previewing.show)
    assert state.previewing.words == ""


def test_a_plan_refuses_what_the_backend_does_not_do_and_says_why(state: State) -> None:
    pytest.importorskip("torch")
    state.plan.set_backend("torch")
    assert "torch cannot run" in state.plan.refusal(named("fp32")), "a plain ONNX file has no module to run"
    state.plan.reasons = {key: why for key, why in state.plan.reasons.items() if key != ("backend", "model")}
    assert state.plan.refusal(named("fp16")) == ""
    for name in ("int8-kl", "int8-dynamic", "int8-weights", "sparse-2:4", "fp32-unfused"):
        assert "PyTorch" in state.plan.refusal(named(name)), name
    assert "before the recipe" in state.plan.refusal(named("fp16").excluding("head"))
    with pytest.raises(RecipeError, match="No layer can be left out"):
        state.plan.exclude(("/head/Gemm",))


def test_what_was_made_of_one_study_is_gone_when_another_one_is_shown(own_store: Path, tmp_path: Path) -> None:
    state = State(store=Store(own_store))
    export = state.export
    first = dataclasses.replace(synthetic_study.study(), name="first study")
    attempt(state, state.results.show, first)
    assert export.study == "first study" and export.report_path == "report-first-study"
    export.report_path, export.report_format = str(tmp_path / "mine"), "CSV"
    attempt(state, export.show_study_code)
    attempt(state, export.export)
    assert export.written and "wb.run(" in export.code
    attempt(state, state.results.show, dataclasses.replace(first, name="second"))
    assert (export.code, export.written, export.report_page) == ("", "", "")
    assert export.report_path == str(tmp_path / "mine"), "a path that was typed stays"
