"""Choosing calibrators on a tiny real network whose activations have a rare, huge and useless outlier."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import workbench as wb
from workbench import datasets
from workbench.calibration.table import CalibrationTable, Provenance
from workbench.calibration.thresholds import METHODS
from workbench.datasets import Split
from workbench.errors import CalibrationError, Cancelled, RecipeError
from workbench.machine.handle import Handle
from workbench.recipes import NAMED, Fuse, Quantize, Recipe
from workbench.transformation import notes as calibration_notes
from workbench.transformation import observing
from workbench.transformation.observing import RangeAlarm
from workbench.tuning.calibrator_comparison import compare_calibrators
from workbench.tuning.calibrators import choose
from workbench.tuning.held_out import crossed

AUTO = NAMED["int8-auto"]


def outlier_net(folder: Path) -> Path:
    """(N, 8) -> MatMul -> Relu -> MatMul -> (N, 4): one hidden unit is huge now and then, and is not read."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(8, 16))
    first[:, 15] *= 300.0
    second = rng.normal(size=(16, 4))
    second[15] = 0.0
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
    ]
    weights = {"w1": first, "w2": second}
    graph = helper.make_graph(
        nodes,
        "outliers",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    path = folder / "outliers.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return wb.load(outlier_net(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def data():
    x = np.random.default_rng(1).normal(size=(600, 8)).astype(np.float32)
    return datasets.arrays(x, np.zeros(600, np.int64)).split_off(calibration=200)


@pytest.fixture(scope="module")
def choice(model, data):
    return choose(model, data.bound_to(model).calibration, AUTO)


def test_auto_clips_where_clipping_pays_at_the_outputs(choice) -> None:
    assert choice.calibrators["r"] != "max"
    assert choice.auto_db > choice.single_db["max"] + 6
    assert "x" not in choice.calibrators  # the graph's input keeps its full range


def test_auto_is_no_worse_than_the_best_single_calibrator_on_unseen_data(model, data, choice) -> None:
    found = compare_calibrators(model, data)
    best = max(row.sqnr_db for row in found.rows)
    known = replace(wb.calibrate(model, data), calibrators=choice.calibrators)
    from workbench.tuning.simulation import Simulation

    simulation = Simulation(model, AUTO, data.bound_to(model).evaluation, known)
    # Two methods whose difference is within the samples' noise count as equal: a tenth of a decibel is 2 % of noise.
    assert simulation.effect(AUTO).sqnr_db >= best - 0.1


def test_every_choice_has_its_reason_and_costs_few_trials(choice) -> None:
    assert choice.reasons.keys() == choice.calibrators.keys()
    assert all(choice.reasons.values())
    assert len(METHODS) <= choice.trials <= 20
    assert set(choice.single_db) == set(METHODS)
    assert "auto took" in choice.note


def test_the_choice_is_never_below_the_best_single_calibrator_by_its_own_judgement(model, data, choice) -> None:
    assert choice.auto_db >= max(choice.single_db.values()) == choice.single_db[choice.best_single]
    few = choose(model, data.bound_to(model).calibration.take(range(12)), AUTO)
    assert few.auto_db >= max(few.single_db.values())
    assert "few" in few.note and "few" not in choice.note


def test_one_sample_far_out_does_not_choose_for_all_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    weights = {"w1": rng.normal(size=(16, 32)), "w2": rng.normal(size=(32, 32)), "w3": rng.normal(size=(32, 6))}
    nodes, name = [], "x"
    for index in (1, 2, 3):
        nodes.append(helper.make_node("MatMul", [name, f"w{index}"], [f"a{index}"], name=f"layer{index}"))
        nodes.append(helper.make_node("Relu", [f"a{index}"], [f"r{index}"], name=f"relu{index}"))
        name = f"r{index}"
    nodes[-2].output[0] = "y"
    graph = helper.make_graph(
        nodes[:-1], "deep",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    path = tmp_path / "deep.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    model = wb.load(path)
    x = rng.normal(size=(400, 16)).astype(np.float32)
    x[5] *= 12.0  # one of the 200 calibration samples; judged by the mean noise, it alone decides for "max"
    step = Quantize(calibrator="auto", clip_inputs=True)
    recipe = Recipe("auto", (step,))
    calibration = Split({"x": x[:200]})
    found = choose(model, calibration, recipe)
    known = wb.calibrate(model, calibration, Recipe("plain", (replace(step, calibrator="max"),)))
    from workbench.tuning.simulation import Simulation

    def typical(calibrators: dict[str, str], calibrator: str) -> float:
        simulation = Simulation(model, recipe, Split({"x": x[200:]}), replace(known, calibrators=calibrators))
        proto, _ = simulation.quantized(Recipe("one", (replace(step, calibrator=calibrator),)))
        return float(-10 * np.log10(np.median(simulation.nsr(proto))))

    singles = {method: typical({}, method) for method in METHODS}
    assert max(singles.values()) > singles["max"] + 6  # it matters
    assert typical(found.calibrators, "max") > max(singles.values()) - 1.0  # other samples than it chose on


def test_the_same_samples_give_the_same_choice(model, data, choice) -> None:
    again = choose(model, data.bound_to(model).calibration, AUTO)
    assert (again.calibrators, again.auto_db) == (choice.calibrators, choice.auto_db)


def test_statistics_of_the_halves_come_from_the_pass_over_all(model, data, choice, monkeypatch) -> None:
    seen: list[int] = []
    held = observing.batches

    def counting(*arguments):
        for batch in held(*arguments):
            seen.append(batch.samples)
            yield batch

    monkeypatch.setattr(observing, "batches", counting)
    found = wb.calibrate(model, data, "int8-auto")
    assert sum(seen) == 200, "each of the calibration samples is run once"
    assert found.calibrators == choice.calibrators
    one = wb.calibrate(model, data, "int8-max")
    assert found.table is not None and one.table is not None and found.table.provenance == one.table.provenance
    assert {name: found.table[name].elements for name in found.table} == {
        name: one.table[name].elements for name in one.table
    }
    # Kernels are picked by the batch, so that the last bits may differ.
    assert all(found.table[name].abs_max == pytest.approx(one.table[name].abs_max, rel=1e-5) for name in one.table)


def test_a_graph_of_a_fixed_batch_takes_its_samples_in_two_passes(tmp_path: Path, data) -> None:
    proto = onnx.load(str(outlier_net(tmp_path)))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 8
    onnx.save(proto, str(tmp_path / "fixed.onnx"))
    found = wb.calibrate(wb.load(tmp_path / "fixed.onnx"), data, "int8-auto")
    assert found.table is not None and found.table.samples == 200 and found.calibrators


def test_thresholds_are_judged_on_samples_they_were_not_found_on() -> None:
    split = Split({"x": np.arange(40.0).reshape(40, 1)})
    seen: list[float] = []
    for fitted, judged in crossed(split):
        assert not set(fitted.inputs["x"].ravel()) & set(judged.inputs["x"].ravel())
        seen += judged.inputs["x"].ravel().tolist()
    assert sorted(seen) == list(range(40))


def test_few_samples_serve_both_ends() -> None:
    split = Split({"x": np.zeros((3, 1))})
    assert crossed(split) == [(split, split)]


def test_a_recipe_without_static_ranges_has_nothing_to_choose(model, data) -> None:
    with pytest.raises(RecipeError, match="nothing to choose"):
        choose(model, data.bound_to(model).calibration, NAMED["int8-dynamic"])
    with pytest.raises(RecipeError, match="nothing to compare"):
        compare_calibrators(model, data, recipe="fp16")


def test_comparing_calibrators_needs_calibration_samples(model) -> None:
    with pytest.raises(CalibrationError, match="split_off"):
        compare_calibrators(model, datasets.arrays(np.ones((4, 8), np.float32)))


def test_choosing_can_be_cancelled(model, data) -> None:
    calls = iter([False] * 12)
    with pytest.raises(Cancelled):
        choose(
            model,
            data.bound_to(model).calibration,
            AUTO,
            handle=Handle(cancelled=lambda: next(calls, None) is not False),
        )


def test_side_by_side_names_what_each_calibrator_clips_and_costs(model, data) -> None:
    found = compare_calibrators(model, data, ["max", "percentile-99.9"])
    rows = {row.calibrator: row for row in found.rows}
    assert all(record.clipped_share == 0 for record in rows["max"].tensors)
    assert any(record.clipped_share > 0 for record in rows["percentile-99.9"].tensors)
    assert found.samples == 400
    table = found.table()
    assert list(table["outputs, dB"]) == sorted(table["outputs, dB"], reverse=True)


def test_a_study_resolves_auto_and_tells_how_calibration_went(model, data, tmp_path: Path) -> None:
    from workbench.study.stages import Stages

    store = wb.Store(tmp_path)
    stages = Stages(store, model, data.bound_to(model), "onnxruntime-cpu", wb.BuildOptions(), 8)
    report = stages.variant(AUTO).reports[-1]
    assert report.details["auto"]["calibrators"]["r"] == report.details["thresholds"]["r"]["calibrator"]
    assert any(note.startswith("auto took") for note in report.notes)
    assert any(("calibration samples" in note and "last value" in note) or "moved" in note for note in report.notes)
    remembered = Stages(store, model, data.bound_to(model), "onnxruntime-cpu", wb.BuildOptions(), 8)
    assert remembered.calibrated(AUTO).calibrators == stages.calibrated(AUTO).calibrators
    assert len(store.keys("choice")) == 1


def test_evaluation_samples_out_of_the_calibrated_range_are_told(model, tmp_path: Path) -> None:
    from workbench.study.stages import Stages

    rng = np.random.default_rng(2)
    calm, wild = rng.normal(size=(40, 8)).astype(np.float32), rng.normal(size=(30, 8)).astype(np.float32)
    wild[7] *= 50
    data = datasets.arrays(wild, np.zeros(30, np.int64), calibration=calm).bound_to(model)
    stages = Stages(wb.Store(tmp_path), model, data, "onnxruntime-cpu", wb.BuildOptions(), 8)
    told = stages.alarm(Recipe("int8", (Fuse(), Quantize(calibrator="max"))))
    assert told is not None and "of 30 evaluation samples leave the range" in told
    assert stages.alarm(NAMED["fp32"]) is None and stages.alarm(NAMED["int8-dynamic"]) is None


def table_of(*batches: np.ndarray) -> CalibrationTable:
    table = CalibrationTable(["t"], Provenance("m", "d", "n"))
    for batch in batches:
        table.update({"t": batch}, len(batch))
    return table


def test_notes_say_when_thresholds_settled() -> None:
    steady = np.tile(np.linspace(0.01, 1.0, 100, dtype=np.float32), (10, 1))
    assert "within 1% of their last value after 10 of 100" in (
        calibration_notes.settled(table_of(*[steady] * 10)) or ""
    )
    growing = [steady * (1 + index) for index in range(10)]
    assert "still moved" in (calibration_notes.settled(table_of(*growing)) or "")
    assert calibration_notes.settled(CalibrationTable(["t"], Provenance("m", "d", "n"))) is None


def test_notes_name_odd_tensors_and_alarms() -> None:
    assert "zero throughout: t" in calibration_notes.troubles(table_of(np.zeros((2, 3), np.float32)))[0]
    assert "one value throughout" in calibration_notes.troubles(table_of(np.ones((2, 3), np.float32)))[0]
    assert calibration_notes.alarmed(RangeAlarm(10, (), {}, {})) is None
    assert "2 of 10" in (calibration_notes.alarmed(RangeAlarm(10, (1, 2), {"t": 2}, {"t": 1.5})) or "")
