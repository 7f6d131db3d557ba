"""Simulations judge all values of an output, on whichever axis its samples are, and through infinities that belong there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from small_nets import net, run

import workbench as wb
from workbench.datasets import Split
from workbench.datasets.metrics import Metric
from workbench.errors import CalibrationError
from workbench.graph.pruned import Pruned
from workbench.machine.store import Store
from workbench.recipes import NAMED
from workbench.transformation.steps import Calibrated
from workbench.tuning.simulation import Simulation

RANDOM = np.random.default_rng(0)
W = RANDOM.normal(size=(8, 5)).astype(np.float32)
X = RANDOM.normal(size=(40, 6, 8)).astype(np.float32)
TIME_MAJOR = "(float[N,6,8] x) => (float[6,N,5] y) { t = Transpose<perm = [1, 0, 2]>(x)  y = MatMul(t, w) }"
FORBIDDEN = "(float[N,6,8] x) => (float[N,6,5] y) { a = MatMul(x, w)  y = Where(allowed, a, never) }"
TWO_LAYERS = "(float[N,6,8] x) => (float[N,6,8] y) { a = MatMul(x, w)  y = MatMul(a, v) }"
WHOLE = "(float[N,6,8] x) => (float loss) { a = MatMul(x, w)  loss = ReduceMean<keepdims = 0>(a) }"


def simulated(folder: Path, text: str, metric: Metric | None = None, **weights: np.ndarray):
    proto = net(text, w=W, **weights)
    onnx.save(proto, str(folder / "m.onnx"))
    model = wb.load(folder / "m.onnx")
    split = Split({"x": X}, np.zeros(len(X), np.int64))
    known = wb.calibrate(model, split)
    simulation = Simulation(model, NAMED["fp32"], split, known, metric)
    lowered, _ = simulation.quantized(NAMED["int8-max"])
    ours, theirs = (run(one, {"x": X}, fusion="all")["y"].astype(np.float64) for one in (lowered, proto))
    return simulation.judge(lowered), ours, theirs


def test_a_time_major_output_is_judged_sample_by_sample_over_all_steps(tmp_path: Path) -> None:
    shapes = set()

    def seen(outputs, labels):
        shapes.add(outputs["y"].shape)
        return np.ones(len(labels))

    effect, ours, theirs = simulated(tmp_path, TIME_MAJOR, Metric("seen", seen))
    expected = np.square(ours - theirs).mean(axis=(0, 2)) / np.square(theirs).mean()
    assert effect.nsr == pytest.approx(expected, rel=1e-3)
    assert shapes == {(6, 32, 5), (6, 8, 5)}, "a metric sees the model's own layout"


def test_places_forbidden_by_both_are_no_nsr(tmp_path: Path) -> None:
    allowed = np.array([True, False, True, True, True])
    effect, ours, theirs = simulated(tmp_path, FORBIDDEN, allowed=allowed, never=np.asarray(np.float32(-np.inf)))
    difference = np.where(allowed, ours - np.where(allowed, theirs, 0), 0)
    expected = np.square(difference).mean(axis=(1, 2)) / np.square(theirs[..., allowed]).mean()
    assert effect.nsr == pytest.approx(expected, rel=1e-3) and np.isfinite(effect.sqnr_db)


def test_a_model_without_an_output_of_samples_cannot_be_simulated(tmp_path: Path) -> None:
    onnx.save(net(WHOLE, w=W), str(tmp_path / "m.onnx"))
    with pytest.raises(CalibrationError, match="with an axis of samples"):
        Simulation(wb.load(tmp_path / "m.onnx"), NAMED["fp32"], Split({"x": X}))


def test_an_effect_is_remembered_by_all_that_was_observed(tmp_path: Path) -> None:
    onnx.save(net(TWO_LAYERS, w=W, v=W.T.copy()), str(tmp_path / "m.onnx"))
    model, split, store = wb.load(tmp_path / "m.onnx"), Split({"x": X}), Store(tmp_path / "store")
    # A large activation keeps its node in FP32, so these two do not lower the same nodes.
    small, large = ({"x": 1.0, "a": value, "y": 1.0} for value in (1.0, 1e9))
    effects = [
        Simulation(model, NAMED["fp16"], split, Calibrated(magnitudes=seen), store=store).effect(NAMED["fp16"]).nsr
        for seen in (small, large)
    ]
    fresh = Simulation(model, NAMED["fp16"], split, Calibrated(magnitudes=large)).effect(NAMED["fp16"]).nsr
    assert effects[1] == fresh != effects[0]


def test_what_decides_a_variant_is_in_the_hash_of_what_was_found_out() -> None:
    one = Calibrated("ort-cpu")
    others = [
        Calibrated("strong"),
        Calibrated("ort-cpu", calibrators={"x": "kl"}),
        Calibrated("ort-cpu", magnitudes={"x": 1.0}),
        Calibrated("ort-cpu", channel_maxima={"x": np.ones(3, np.float32)}),
        Calibrated("ort-cpu", channel_maxima={"x": np.full(3, 2, np.float32)}),
        Calibrated("ort-cpu", pruned={"n": Pruned(np.ones(3, np.float32), 0.1)}),
    ]
    assert len({item.sha256 for item in (one, *others)}) == len(others) + 1
    assert replace(one, notes=("a",), seconds=1.0).sha256 == one.sha256
