"""Whole studies of a tiny real network, through real child processes; a round takes milliseconds."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from small_studies import QUICK, classifier

import workbench as wb
from workbench import codec, datasets, engines, zoo
from workbench.datasets.metrics import Metric
from workbench.errors import (
    BackendMissing,
    CalibrationError,
    Cancelled,
    ChildKilled,
    DataError,
    LoadError,
    RecipeError,
    StoreError,
    WorkbenchError,
)  # fmt: skip
from workbench.machine import child, turn
from workbench.machine.store import Store
from workbench.measuring import latency
from workbench.recipes import Quantize, Recipe, SmoothQuant, Sparsify
from workbench.records import BuildOptions, Progress, ShapeProfile
from workbench.study import request


@pytest.fixture(scope="module")
def finished_once(model, data, tmp_path_factory: pytest.TempPathFactory):
    """A store with one finished study, and a copy of it as it was."""
    store = Store(tmp_path_factory.mktemp("finished") / "store")
    study = wb.run(model, data, ["fp32", "int8-max"], protocol=QUICK, store=store, name="mine")
    copy = store.root.with_name("copy")
    shutil.copytree(store.root, copy)
    return store, study, copy


@pytest.fixture
def finished(finished_once):
    """The finished study, its store put back to how it was: tests may damage it."""
    store, study, copy = finished_once
    shutil.rmtree(store.root)
    shutil.copytree(copy, store.root)
    return store, study


def rounds(study: wb.Study, name: str) -> list[tuple[int, float]]:
    return [(item.index, item.started_at) for item in study[name].measurement.rounds]


def test_a_study_has_everything_about_every_recipe(finished) -> None:
    _, study = finished
    assert [item.recipe.name for item in study.record.results] == ["fp32", "int8-max"]
    assert not study.failures
    for item in study.record.results:
        assert len(item.measurement.rounds) == QUICK.rounds
        assert item.measurement.shapes == {"x": (4, 8)}
        assert item.accuracy.samples == 40 and item.accuracy.metric == "top-1"
    assert study["int8-max"].variant.calibration_seconds > 0
    assert study.record.backend_reason
    assert study["fp32"].accuracy.scores == study["int8-max"].accuracy.parent_scores


def test_running_an_unchanged_study_again_only_reads(model, data, finished, monkeypatch) -> None:
    store, study = finished

    def forbidden(*arguments, **options):
        raise AssertionError("nothing may be done again")

    monkeypatch.setattr(child, "call", forbidden)
    monkeypatch.setattr(latency, "take_round", forbidden)
    again = wb.run(model, data, ["fp32", "int8-max"], protocol=QUICK, store=store, name="mine")
    assert again.record.results == study.record.results


def test_a_recipe_added_later_is_measured_beside_the_baseline_in_new_rounds(model, data, finished) -> None:
    store, _ = finished
    study = wb.run(model, data, ["fp32", "int8-max", "int8-kl"], protocol=QUICK, store=store, name="mine")
    assert [index for index, _ in rounds(study, "int8-kl")] == [2, 3]
    assert [index for index, _ in rounds(study, "fp32")] == [0, 1, 2, 3]
    assert [index for index, _ in rounds(study, "int8-max")] == [0, 1]
    assert len(study.comparison().rows) == 3


def test_an_interrupted_study_goes_on_where_it_stopped(model, data, store, made_up_rounds) -> None:
    asked = 0

    def impatient(step: Progress) -> None:
        nonlocal asked
        asked += step.stage == "measure"
        if asked == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wb.run(model, data, ["fp32", "int8-max"], protocol=QUICK, store=store, progress=impatient)
    before = wb.Study.open(store.keys("study")[0], store)
    kept = set(rounds(before, "fp32")) | set(rounds(before, "int8-max"))
    assert kept
    after = wb.run(model, data, ["fp32", "int8-max"], protocol=QUICK, store=store)
    assert kept <= set(rounds(after, "fp32")) | set(rounds(after, "int8-max"))
    shared = {index for index, _ in rounds(after, "fp32")} & {index for index, _ in rounds(after, "int8-max")}
    assert len(shared) >= QUICK.rounds - 1


def test_cancelling_stops_and_keeps_what_is_there(model, data, store, made_up_rounds) -> None:
    steps: list[Progress] = []
    with pytest.raises(Cancelled, match="run again"):
        wb.run(
            model, data, ["fp32", "int8-max"], protocol=QUICK, store=store,
            progress=steps.append, cancel=lambda: any(step.stage == "check" for step in steps),
        )  # fmt: skip
    assert wb.Study.open(store.keys("study")[0], store)["fp32"].engine is not None


def test_progress_moves_forward_to_the_end(model, data, store, made_up_rounds) -> None:
    steps: list[Progress] = []
    wb.run(model, data, ["fp32", "int8-max"], protocol=QUICK, store=store, progress=steps.append)
    fractions = [step.fraction for step in steps]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert {"transform", "build", "check", "measure", "finished"} <= {step.stage for step in steps}


def test_a_variant_that_fails_is_recorded_and_the_others_go_on(model, data, store, monkeypatch, made_up_rounds) -> None:
    real = latency.take_round

    def crash(engine, *arguments, **options):
        if engine.variant == "int8-max":
            raise ChildKilled("The process was ended by SIGSEGV.", log="last words")
        return real(engine, *arguments, **options)

    monkeypatch.setattr(latency, "take_round", crash)
    study = wb.run(model, data, ["fp32", "int8-max", "int8-kl"], protocol=QUICK, store=store)
    assert list(study.failures) == ["int8-max"]
    assert study["int8-max"].failure.stage == "measure" and study["int8-max"].failure.log == "last words"
    assert len(study["int8-kl"].measurement.rounds) == QUICK.rounds
    monkeypatch.undo()
    assert not wb.run(model, data, ["fp32", "int8-max"], protocol=QUICK, store=store).failures


def test_a_damaged_artefact_is_made_again(model, data, finished) -> None:
    store, study = finished
    Path(study["int8-max"].variant.path).write_bytes(b"damaged")
    again = wb.run(model, data, ["fp32", "int8-max"], protocol=QUICK, store=store, name="mine")
    assert not again.failures
    onnx.load(again["int8-max"].variant.path)


@pytest.mark.parametrize("kind", ["study", "variant", "engine", "accuracy", "round", "kepttable", "alarm"])
def test_damaged_records_cost_only_themselves(model, data, finished, made_up_rounds, kind) -> None:
    store, _ = finished
    for key in store.keys(kind):
        store.put(kind, key, "{damaged")
    study = wb.run(model, data, ["fp32", "int8-max"], protocol=QUICK, store=store, name="mine")
    assert not study.failures and len(study["fp32"].measurement.rounds) == QUICK.rounds


def test_a_number_that_was_changed_in_the_store_is_not_believed(model, data, finished, made_up_rounds) -> None:
    store, _ = finished
    key = store.keys("round")[0]
    with sqlite3.connect(store.root / "index.sqlite") as index:
        index.execute("UPDATE records SET text = replace(text, '0.0', '9.0') WHERE kind = 'round' AND key = ?", (key,))
        index.execute("DELETE FROM records WHERE kind = 'study'")
    again = wb.run(model, data, ["fp32", "int8-max"], protocol=QUICK, store=store, name="mine")
    latencies = [
        each for item in again.record.results for one in item.measurement.rounds for each in one.latencies_seconds
    ]
    assert max(latencies) < 9 and made_up_rounds


def test_the_baseline_is_added_where_it_was_not_asked_for(model, data, store, made_up_rounds) -> None:
    study = wb.run(model, data, ["fp16"], protocol=replace(QUICK, rounds=1), store=store)
    assert [item.recipe.name for item in study.record.results] == ["fp32", "fp16"]


def test_without_data_inputs_are_random_and_no_accuracy_is_claimed(model, store, made_up_rounds) -> None:
    study = wb.run(model, None, ["fp32", "fp16"], protocol=replace(QUICK, rounds=1), store=store)
    assert study.record.data["kind"] == "random"
    assert any("random" in note for note in study.record.notes)
    assert study["fp16"].accuracy.metric is None and study["fp16"].accuracy.scores == ()


def test_without_calibration_samples_static_quantization_fails_with_what_to_do(
    model, data, store, made_up_rounds
) -> None:
    study = wb.run(model, replace(data, calibration=None), ["fp32", "int8-kl"], protocol=QUICK, store=store)
    assert study["int8-kl"].failure.error == CalibrationError.__name__
    assert "int8-dynamic" in study.failures["int8-kl"]


def test_a_fixed_batch_size_is_taken_and_noted(tmp_path, store, made_up_rounds) -> None:
    seven = datasets.arrays(np.random.default_rng(0).normal(size=(7, 8)).astype(np.float32))
    study = wb.run(wb.load(classifier(tmp_path, batch=2)), seven, ["fp32"], protocol=QUICK, store=store)
    assert study["fp32"].accuracy.samples == 7
    assert study.record.protocol.batch == 2
    assert any("batches of 2" in note for note in study.record.notes)


def test_what_cannot_be_is_refused_before_anything_starts(model, data, store) -> None:
    with pytest.raises(RecipeError, match="int8-kl"):
        wb.run(model, data, ["int8-lk"], store=store)
    with pytest.raises(LoadError, match=r"There is no file .*classifier\.onnx"):
        wb.run("classifier.onnx", data, store=store)
    with pytest.raises(DataError, match=r"datasets\.arrays"):
        wb.run(model, np.zeros((4, 8)), store=store)
    with pytest.raises(RecipeError, match="'fp61'"):
        wb.run(model, data, "fp61", store=store)
    with pytest.raises(BackendMissing, match="Known"):
        wb.run(model, data, ["fp32"], backend="abacus", store=store)
    with pytest.raises(RecipeError, match="more than once"):
        wb.run(model, data, ["fp32", Recipe("fp32")], store=store)
    with pytest.raises(DataError):
        wb.run(model, datasets.arrays(np.zeros((4, 9), np.float32)), ["fp32"], store=store)
    assert store.keys("study") == []


def test_a_baseline_that_fails_is_an_error(tmp_path, data, store) -> None:
    proto = onnx.load(str(classifier(tmp_path)))
    proto.graph.node[1].op_type, proto.graph.node[1].domain = "Frobnicate", "my.domain"
    proto.opset_import.append(helper.make_opsetid("my.domain", 1))
    onnx.save(proto, str(tmp_path / "strange.onnx"))
    with pytest.raises(WorkbenchError, match="Frobnicate"):
        wb.run(wb.load(tmp_path / "strange.onnx"), data, ["fp32"], protocol=QUICK, store=store)


def test_a_name_is_not_shared_by_studies_on_other_terms(model, data, finished) -> None:
    store, _ = finished
    with pytest.raises(StoreError, match="another name"):
        wb.run(model, data, ["fp32"], protocol=replace(QUICK, batch=2), store=store, name="mine")


def test_a_metric_that_changed_under_its_name_is_computed_anew(model, data, store, made_up_rounds) -> None:
    def constant(value: float) -> Metric:
        return Metric("mine", lambda outputs, labels: np.full(len(labels), value))

    one = wb.run(model, replace(data, metric=constant(1)), ["fp32"], protocol=QUICK, store=store)
    other = wb.run(model, replace(data, metric=constant(0)), ["fp32"], protocol=QUICK, store=store)
    assert set(one["fp32"].accuracy.scores) == {1.0} and set(other["fp32"].accuracy.scores) == {0.0}


def test_studies_are_opened_by_name_or_file_and_missing_ones_are_named(finished, tmp_path) -> None:
    store, study = finished
    assert wb.Study.open("mine", store).record == study.record
    saved = study.save(tmp_path / "study.json")
    assert wb.Study.open(saved).record == codec.portable(study.record)
    assert str(store.root) not in saved.read_text()
    packed = study.save(tmp_path / "study.json.gz")
    assert wb.Study.open(packed).record == codec.portable(study.record)
    assert packed.stat().st_size < saved.stat().st_size / 3
    with pytest.raises(StoreError, match="Did you mean 'mine'"):
        wb.Study.open("mime", store)
    with pytest.raises(StoreError, match="no file"):
        wb.Study.open(tmp_path / "absent.json")
    with pytest.raises(StoreError, match="holds no study yet"):
        wb.Study.open("mine", Store(tmp_path / "empty"))
    with pytest.raises(KeyError, match="fp32"):
        study["fp23"]
    assert "mine" in repr(study)


def test_fewer_calibration_samples_give_another_table(model, data, store, made_up_rounds) -> None:
    few = Recipe("few", (Quantize(calibrator="max", samples=3),))
    study = wb.run(model, data, ["fp32", "int8-max", few], protocol=replace(QUICK, rounds=1), store=store)
    assert study["few"].variant.calibration_sha256 != study["int8-max"].variant.calibration_sha256


def test_the_shipped_network_keeps_its_accuracy_in_int8(store, made_up_rounds) -> None:
    quick = replace(QUICK, rounds=1, batch=8)
    study = wb.run(wb.load("digits_resnet"), datasets.digits(), ["fp32", "int8-kl"], protocol=quick, store=store)
    scores = {item.recipe.name: np.mean(item.accuracy.scores) for item in study.record.results}
    stated = zoo.models()["digits_resnet"].metrics
    assert scores["fp32"] >= 0.98, stated
    assert abs(scores["int8-kl"] - scores["fp32"]) <= 0.01


def test_smoothing_and_pruning_are_calibrated_on_the_graph_that_they_leave(model, data, store, made_up_rounds) -> None:
    both = Recipe("sparse-int8", (Sparsify(), Quantize(calibrator="max")))
    smooth = Recipe("smooth-int8", (SmoothQuant(alpha=0.5), Quantize(calibrator="max")))
    study = wb.run(model, data, ["fp32", smooth, both, "int8-max"], protocol=replace(QUICK, rounds=1), store=store)
    assert not study.failures
    tables = {study[name].variant.calibration_sha256 for name in ("smooth-int8", "sparse-int8", "int8-max")}
    assert len(tables) == 3


def test_engines_that_compile_for_shapes_get_the_shapes_of_the_study(data) -> None:
    fed = replace(data, evaluation=data.evaluation.take(range(8)))
    (name,) = fed.evaluation.inputs
    given = request.with_profiles(BuildOptions(), "tensorrt", fed, QUICK).profiles
    assert given == ({name: ShapeProfile((1, 8), (4, 8), (4, 8))},)
    assert request.with_profiles(BuildOptions(), "onnxruntime-cpu", fed, QUICK).profiles == ()
    own = BuildOptions(profiles=({"x": ShapeProfile((1, 8), (2, 8), (3, 8))},))
    assert request.with_profiles(own, "tensorrt", fed, QUICK) == own


def test_damaged_records_are_told_in_the_report_and_measured_again(model, data, finished, made_up_rounds) -> None:
    store, study = finished
    with sqlite3.connect(store.root / "index.sqlite") as index:
        for key in [store.keys("round")[0], study.name]:
            index.execute("UPDATE records SET text = replace(text, '0', '9') WHERE key = ?", (key,))
    fresh = Store(store.root)
    again = wb.run(model, data, ["fp32", "int8-max"], protocol=QUICK, store=fresh, name="mine")
    assert made_up_rounds and not again.failures
    told = "Records in the store were not what had been written (1 x round, 1 x study): they were left out"
    assert any(note.startswith(told) for note in again.record.notes)
    assert any(note.startswith(told) for note in wb.Study.open("mine", fresh).record.notes)


def test_a_damaged_count_of_turns_takes_no_turn_twice(model, data, finished, made_up_rounds) -> None:
    store, _ = finished
    with sqlite3.connect(store.root / "index.sqlite") as index:
        index.execute("UPDATE records SET text = 'x' WHERE kind = 'number'")
    study = wb.run(model, data, ["fp32", "int8-max", "int8-kl"], protocol=QUICK, store=store, name="mine")
    assert [index for index, _ in rounds(study, "int8-kl")] == [2, 3] and not study.failures


def test_an_emptied_engine_is_built_again(model, data, finished) -> None:
    store, study = finished
    engine = study["int8-max"].engine
    for file in [Path(engine.path), *Path(engine.folder or store.root / "absent").rglob("*.*")]:
        file.write_bytes(b"")
    again = wb.run(model, data, ["fp32", "int8-max"], protocol=QUICK, store=store, name="mine")
    assert not again.failures and engines.intact(again["int8-max"].engine)


def test_a_study_that_is_run_elsewhere_is_left_alone(model, data, finished) -> None:
    store, _ = finished
    with turn.alone(store.root / "locks", "mine"), pytest.raises(StoreError, match="'mine' is being run already"):
        wb.run(model, data, ["fp32", "int8-max"], protocol=QUICK, store=store, name="mine")


def test_a_study_waits_for_another_measurement_and_says_so(
    model, data, store, made_up_rounds, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("WORKBENCH_TURN_FILE", str(tmp_path / "turn"))
    seen: list[str] = []

    # Builds and checks go on; measuring does not.
    with turn.measuring(), pytest.raises(Cancelled):
        wb.run(
            model, data, ["fp32"], protocol=QUICK, store=store, name="mine",
            progress=lambda step: seen.append(f"{step.stage}: {step.message}"),
            cancel=lambda: bool(seen) and "waiting for another" in seen[-1],
        )  # fmt: skip
    assert "check: " in seen and seen[-1].startswith("measure: waiting for another measurement (process")
    assert not made_up_rounds
    wb.run(model, data, ["fp32"], protocol=QUICK, store=store, name="mine")
    assert len(made_up_rounds) == QUICK.rounds


def test_the_progress_of_a_calibration_is_told_within_the_whole(model, data, store, made_up_rounds) -> None:
    seen: list[Progress] = []
    wb.run(model, data, ["int8-max"], protocol=QUICK, store=store, progress=seen.append)
    told = [step for step in seen if step.stage == "calibrate"]
    assert told and told[-1].message.endswith("samples") and max(step.fraction for step in told) < 1
    assert [step.fraction for step in seen] == sorted(step.fraction for step in seen)
