"""The search for a mix within a bound, on a tiny real classifier through real engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from classifier_net import classifier

import workbench as wb
from workbench import datasets
from workbench.engines import onnxruntime
from workbench.errors import CalibrationError, RecipeError
from workbench.machine.store import Store
from workbench.records import Protocol
from workbench.study import search
from workbench.study.search import Bound, optimize
from workbench.tuning.simulation import Simulation

QUICK = Protocol(batch=4, rounds=1, min_seconds=0.001, min_runs=5, warmup_seconds=0.0, warmup_runs=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return wb.load(classifier(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def data(model):
    import numpy as np

    from workbench.datasets.metrics import top1

    x = np.random.default_rng(1).normal(size=(400, 8)).astype(np.float32)
    labels = onnxruntime.open_file(model.path).infer({"x": x})["logits"].argmax(-1)
    return datasets.arrays(x, labels, metric=top1()).split_off(calibration=200)


def timed(costs):
    """The same layers, as if each took 1 ms in FP32 and half of it lowered: on this tiny net real times are noise."""
    return replace(costs, rows=tuple(replace(row, seconds=1e-3, quantized_seconds=5e-4) for row in costs.rows))


@pytest.fixture(scope="module")
def found_once(model, data, tmp_path_factory: pytest.TempPathFactory):
    store = Store(tmp_path_factory.mktemp("store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "layer_costs", lambda *a, **o: timed(wb.layer_costs(*a, **{**o, "times": False})))
        found = optimize(
            model, data, at_most_lost=1.0, candidates=["int8-max"], protocol=QUICK, store=store, progress=None
        )
    return store, found


def test_the_result_keeps_to_the_bound_on_evaluation_data(found_once) -> None:
    _, found = found_once
    best = next(tried for tried in found.path if tried.measured and tried.recipe == found.best)
    assert best.meets and best.drop <= 1.0 + 1e-9
    worst = next(tried for tried in found.path if tried.measured and tried.recipe == "int8-max")
    assert not worst.meets and worst.drop > 1.0
    assert found.unit == "points of top-1"


def test_the_path_shows_what_was_simulated_and_what_was_measured(found_once) -> None:
    _, found = found_once
    assert {tried.judged_on for tried in found.path} == {"calibration", "evaluation"}
    assert all(tried.seconds is not None for tried in found.path if tried.measured)
    mixes = [tried for tried in found.path if tried.measured and tried.kept]
    assert mixes and "head" in mixes[0].kept
    assert found.reason and found.costs["int8-max"].rows


def test_the_mix_lands_in_the_study_beside_its_parents(found_once) -> None:
    _, found = found_once
    names = [item.recipe.name for item in found.study.record.results]
    assert names[:2] == ["fp32", "int8-max"] and len(names) >= 3
    assert found.recipe.name == found.best


def test_the_same_search_again_only_reads(model, data, found_once, monkeypatch) -> None:
    store, found = found_once
    monkeypatch.setattr(Simulation, "judge", lambda *arguments: pytest.fail("nothing may be run again"))
    monkeypatch.setattr(search, "layer_costs", lambda *arguments, **options: found.costs["int8-max"])
    again = optimize(model, data, at_most_lost=1.0, candidates=["int8-max"], protocol=QUICK, store=store, progress=None)
    # The baseline's seconds may differ: it was measured again beside each mix.
    steps = [[(one.recipe, one.kept, one.drop, one.meets) for one in each.path] for each in (again, found)]
    assert steps[0] == steps[1]


def test_a_latency_budget_that_nothing_meets_says_so(model, data, found_once, monkeypatch) -> None:
    store, found = found_once
    monkeypatch.setattr(search, "layer_costs", lambda *arguments, **options: found.costs["int8-max"])
    tight = optimize(
        model, data, at_most_seconds=1e-9, candidates=["int8-max"], protocol=QUICK, store=store, progress=None
    )
    assert "Nothing that was tried meets the bound" in tight.reason
    wide = optimize(
        model, data, at_most_seconds=1.0, candidates=["int8-max"], protocol=QUICK, store=store, progress=None
    )
    assert wide.best == "fp32" and "Best: fp32" in wide.reason


def test_exactly_one_bound_is_given() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        Bound()
    with pytest.raises(ValueError, match="give one of them"):
        Bound(0.5, 0.1)


def test_a_search_needs_candidates_and_calibration_samples(model, data, tmp_path: Path) -> None:
    import numpy as np

    with pytest.raises(RecipeError, match="no recipe to mix"):
        optimize(model, data, at_most_lost=1.0, candidates=[], store=Store(tmp_path))
    with pytest.raises(CalibrationError, match="split_off"):
        optimize(model, datasets.arrays(np.ones((4, 8), np.float32)), at_most_lost=1.0, store=Store(tmp_path))
