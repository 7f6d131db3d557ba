"""Which layers cost accuracy: the grouped search on a made-up net of 200 layers, and all of it on a real one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from classifier_net import classifier

import workbench as wb
from workbench import datasets
from workbench.datasets.metrics import top1
from workbench.engines import onnxruntime
from workbench.errors import CalibrationError, Cancelled, EngineError, RecipeError
from workbench.machine import turn
from workbench.machine.handle import Handle
from workbench.machine.store import Store
from workbench.recipes import NAMED, Precision, Recipe
from workbench.records import Accuracy, LayerTime
from workbench.tuning import sensitivity
from workbench.tuning.layers import layer_times, shared_tensors, tensor_errors, time_of
from workbench.tuning.sensitivity import kept, lowered, rank
from workbench.tuning.simulation import Effect, Simulation

INT8 = NAMED["int8-max"]
MIXED = Recipe("mixed", (*INT8.excluding(r"block\.0").steps, Precision("fp16", auto_exclude=False)))


class AdditiveNet:
    """Stands for a net of many layers, each with its own noise: the noises of lowered layers add up."""

    def __init__(self, noises: dict[str, float]) -> None:
        self.noises = noises
        self.calls = 0

    def __call__(self, names: Sequence[str]) -> Effect:
        self.calls += 1
        record = Accuracy("", "", "", 2, "", "user", "")
        return Effect((sum(self.noises[name] for name in names),) * 2, record)


def test_two_hundred_layers_need_tens_of_evaluations() -> None:
    noises = {f"layers.{index}": 1e-9 for index in range(200)}
    noises |= {"layers.17": 1e-3, "layers.101": 4e-4, "layers.160": 2e-4}
    net = AdditiveNet(noises)
    costs = rank(INT8, {name: (name,) for name in noises}, net)
    assert [row.name for row in costs.rows[:3]] == ["layers.17", "layers.101", "layers.160"]
    assert all(row.group == 1 for row in costs.rows[:3])
    assert len(costs.rows) == 200
    assert net.calls == costs.evaluations <= 64


def test_the_limit_on_evaluations_holds_even_if_every_layer_matters() -> None:
    noises = {f"layers.{index}": 1e-3 * (1 + index) for index in range(200)}
    net = AdditiveNet(noises)
    costs = rank(INT8, {name: (name,) for name in noises}, net, most_evaluations=30)
    assert net.calls <= 30
    assert {row.name for row in costs.rows} == set(noises)
    assert any(row.group > 1 for row in costs.rows)


def test_keeping_a_noisy_layer_brings_back_what_it_lost() -> None:
    net = AdditiveNet({"a": 1e-2, "b": 1e-4, "c": 1e-4})
    costs = rank(INT8, {name: (name,) for name in net.noises}, net)
    first = costs.rows[0]
    assert first.name == "a" and first.alone_db == pytest.approx(20)
    assert first.kept_db == pytest.approx(-10 * np.log10(2e-4))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return wb.load(classifier(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def data(model):
    x = np.random.default_rng(1).normal(size=(400, 8)).astype(np.float32)
    runner = onnxruntime.open_file(model.path)
    labels = runner.infer({"x": x})["logits"].argmax(-1)
    return datasets.arrays(x, labels, metric=top1()).split_off(calibration=200)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def costs(model, data, store):
    return wb.layer_costs(model, data, INT8, store=store)


def test_layers_are_named_by_module_path_and_have_times(costs) -> None:
    assert {row.name for row in costs.rows} == {"block.0", "block.1", "head"}
    assert costs.rows[0].name == "head"  # it reads the outliers
    assert costs.unit == "points of top-1" and costs.whole_drop > 0
    assert all(row.seconds is not None and row.quantized_seconds is not None for row in costs.rows)
    table = costs.table().sort_values("saved ms")
    assert len(table) == 3 and "accuracy drop alone, points of top-1" in table


def test_keeping_the_worst_layer_makes_a_recipe_that_loses_less(model, data, costs) -> None:
    mixed = costs.keeping(["head"], "int8-but-head")
    split = data.bound_to(model).calibration
    simulation = Simulation(model, INT8, split, wb.calibrate(model, split), metric=data.metric)
    assert simulation.effect(mixed).drop < simulation.effect(INT8).drop
    with pytest.raises(RecipeError, match="No layer is called 'haed'"):
        costs.keeping(["haed"])


def test_layers_that_one_step_of_a_mixed_recipe_lowers_alone_are_ranked_too(model, data, monkeypatch) -> None:
    """INT8 in two layers, FP16 in all three: by itself the third leaves INT8 nothing to do."""
    monkeypatch.setattr(sensitivity, "_NEGLIGIBLE", 0.0)  # looks into every group
    costs = wb.layer_costs(model, data, MIXED, backend="onnxruntime-cpu", times=False)
    assert all(row.group == 1 for row in costs.rows)
    alone = [row.alone_db for row in costs.rows]
    assert max(alone) > 60 > min(alone), "layers in FP16 alone, and layers in INT8"


def test_evaluations_are_remembered(model, data, costs, store, monkeypatch) -> None:
    monkeypatch.setattr(Simulation, "judge", lambda *arguments: pytest.fail("nothing may be run again"))
    again = wb.layer_costs(model, data, INT8, store=store, times=False)
    assert [row.alone_db for row in again.rows] == [row.alone_db for row in costs.rows]


def test_ranking_can_be_cancelled(model, data, tmp_path) -> None:
    with pytest.raises(Cancelled):
        wb.layer_costs(
            model, data, "int8-dynamic", store=Store(tmp_path), times=False, handle=Handle(cancelled=lambda: True)
        )


def test_ranking_needs_calibration_samples(model, tmp_path) -> None:
    with pytest.raises(CalibrationError, match="split_off"):
        wb.layer_costs(model, datasets.arrays(np.ones((4, 8), np.float32)), INT8, store=Store(tmp_path))


def test_a_recipe_that_lowers_nothing_is_refused(model, data) -> None:
    split = data.bound_to(model).calibration
    with pytest.raises(RecipeError, match="lowers no node"):
        lowered(Simulation(model, NAMED["fp32"], split), NAMED["fp32"])


def test_blocks_hold_all_their_layers() -> None:
    patterns = kept(INT8, ["layers.1", "head"]).step("quantize").exclude
    import re

    assert [bool(re.search(patterns[0], name)) for name in ("layers.1", "layers.1.mlp", "layers.11")] == [1, 1, 0]
    assert not re.search(patterns[1], "head.0")


def test_a_layer_that_stands_for_two_groups_is_shared_and_the_rest_is_told() -> None:
    times = [
        LayerTime("fused", "Conv", 4.0, ("a", "b")),
        LayerTime("cast", "Cast", 1.0),
        LayerTime("integer", "MatMulInteger", 2.0, ("a_MatMulInteger",)),
    ]
    assert time_of(times, {"first": ["a"], "second": ["b"]}) == ({"first": 4.0, "second": 2.0}, 1.0)


def test_operations_of_pytorch_are_found_by_their_modules() -> None:
    times = [LayerTime("linear", "linear.default", 3.0, modules=("head",)), LayerTime("relu", "relu.default", 1.0)]
    assert time_of(times, {"head": ["/head/MatMul"]}) == ({"head": 3.0}, 1.0)


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "openvino"])
def test_layers_are_timed_by_the_backends_own_profiler(model, data, store, backend) -> None:
    if wb.backends()[backend] is not None:
        pytest.skip(str(wb.backends()[backend]))
    costs = wb.layer_costs(model, data, INT8, store=store, backend=backend)
    assert costs.backend == backend and backend in costs.backend_reason
    assert {row.name for row in costs.rows} == {"block.0", "block.1", "head"}
    # OpenVINO counts in whole microseconds, and a layer of this network may take less.
    assert all(row.seconds is not None and row.seconds >= 0 for row in costs.rows)
    assert backend == "openvino" or all(row.seconds > 0 for row in costs.rows)


def test_layers_of_what_cannot_be_profiled_are_refused(model, store) -> None:
    engine = wb.build(wb.transform(model, "fp32", store=store), "onnxruntime-cpu", store=store)
    with pytest.raises(EngineError, match="onnxruntime-cuda"):
        layer_times(replace(engine, backend="onnxruntime-cuda"), {"x": np.ones((2, 8), np.float32)})
    with pytest.raises(EngineError, match="could not profile"):
        layer_times(engine, {"x": np.ones((2, 9), np.float32)})


def test_layers_are_not_timed_while_another_measures(model, store) -> None:
    engine = wb.build(wb.transform(model, "fp32", store=store), "onnxruntime-cpu", store=store)
    told: list[str] = []
    waiting = Handle(cancelled=lambda: bool(told), on_line=told.append)
    with turn.measuring(), pytest.raises(Cancelled, match="another measurement"):
        layer_times(engine, {"x": np.ones((2, 8), np.float32)}, handle=waiting)
    assert "waiting for another measurement" in told[0]


def test_errors_grow_along_the_layers(model, data) -> None:
    split = data.bound_to(model).calibration
    simulation = Simulation(model, INT8, split, wb.calibrate(model, split))
    lowered, _ = simulation.quantized(INT8)
    tensors = shared_tensors(simulation.graph, lowered, [node.name for node in simulation.graph.graph.node])
    assert "logits" in tensors.values()
    errors = dict(tensor_errors(simulation.graph, lowered, list(tensors.values()), split))
    assert errors["logits"] < errors["h0"]
