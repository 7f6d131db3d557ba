"""Simulations judge all values of an output, on whichever axis its samples are, and through infinities that belong there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_nets import net, run

import workbench as wb
from workbench.datasets import Split
from workbench.datasets.metrics import Metric
from workbench.errors import CalibrationError
from workbench.recipes import NAMED
from workbench.tuning.simulation import Simulation

RANDOM = np.random.default_rng(0)
W = RANDOM.normal(size=(8, 5)).astype(np.float32)
X = RANDOM.normal(size=(40, 6, 8)).astype(np.float32)
TIME_MAJOR = "(float[N,6,8] x) => (float[6,N,5] y) { t = Transpose<perm = [1, 0, 2]>(x)  y = MatMul(t, w) }"
FORBIDDEN = "(float[N,6,8] x) => (float[N,6,5] y) { a = MatMul(x, w)  y = Where(allowed, a, never) }"
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
