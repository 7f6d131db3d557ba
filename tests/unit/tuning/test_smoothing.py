"""How strongly SmoothQuant smooths is chosen by what it costs at the outputs, and it is left off where it does not help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_nets import net, run

import workbench as wb
from workbench.datasets import Split
from workbench.tuning.smoothing import STRENGTHS

RANDOM = np.random.default_rng(5)
LINEAR = "(float[N,16] x) => (float[N,16] y) { a = MatMul(x, w)  r = Relu(a)  y = MatMul(r, v) }"
W, V = (RANDOM.normal(size=(16, 16)).astype(np.float32) for _ in range(2))
# Channels whose ranges are far apart are what smoothing is for: one scale serves all of them badly.
OUTLIERS = np.array([300.0] * 2 + [1.0] * 14, np.float32)


def model(folder: Path, weights: np.ndarray) -> wb.Model:
    onnx.save(net(LINEAR, w=weights, v=V), str(folder / "m.onnx"))
    return wb.load(folder / "m.onnx")


def error(variant: wb.Variant, whole: onnx.ModelProto, x: np.ndarray) -> float:
    ours = run(onnx.load(variant.path), {"x": x})["y"].astype(np.float64)
    theirs = run(whole, {"x": x})["y"].astype(np.float64)
    return float(np.square(ours - theirs).sum() / np.square(theirs).sum())


def made(folder: Path, weights: np.ndarray, x: np.ndarray, recipe: str | wb.Recipe) -> wb.Variant:
    one, store = model(folder, weights), wb.Store(folder / "store")
    return wb.transform(one, recipe, table=wb.calibrate(one, Split({"x": x}), recipe, store=store), store=store)


def test_it_smooths_where_channels_are_far_apart(tmp_path: Path) -> None:
    x = RANDOM.normal(size=(64, 16)).astype(np.float32) * OUTLIERS
    weights = W / OUTLIERS[:, None]
    smooth, plain = (made(tmp_path, weights, x, name) for name in ("int8-smooth", "int8-max"))
    (report,) = [item for item in smooth.reports if item.kind == "smooth_quant"]
    assert report.details["alpha"] in STRENGTHS[1:]
    (note,) = [note for note in smooth.reports[-1].notes if note.startswith("SmoothQuant was applied")]
    assert f"strength {report.details['alpha']:g}" in note and "off" in note
    fresh = RANDOM.normal(size=(64, 16)).astype(np.float32) * OUTLIERS
    whole = net(LINEAR, w=weights, v=V)
    assert error(smooth, whole, fresh) < 0.7 * error(plain, whole, fresh)


def test_it_is_left_off_where_nothing_is_surely_better_and_says_so(tmp_path: Path) -> None:
    x = RANDOM.uniform(-1, 1, size=(64, 16)).astype(np.float32)
    # All channels alike in activations and weights: smoothing has nothing to move.
    weights = np.sign(W).astype(np.float32)
    variant = made(tmp_path, weights, x, "int8-smooth")
    assert [item.kind for item in variant.reports] == ["fuse", "quantize"]
    assert any(note.startswith("SmoothQuant was left off") for note in variant.reports[-1].notes)
    whole = net(LINEAR, w=weights, v=V)
    assert error(variant, whole, x) == pytest.approx(error(made(tmp_path, weights, x, "int8-max"), whole, x))


def test_a_strength_that_was_asked_for_is_taken(tmp_path: Path) -> None:
    x = RANDOM.uniform(-1, 1, size=(64, 16)).astype(np.float32)
    recipe = wb.Recipe("mine", (wb.Fuse(), wb.SmoothQuant(alpha=0.9), wb.Quantize(calibrator="max")))
    (report,) = [item for item in made(tmp_path, W, x, recipe).reports if item.kind == "smooth_quant"]
    assert report.details["alpha"] == 0.9


def test_auto_and_smoothing_are_chosen_one_after_the_other(tmp_path: Path) -> None:
    x = RANDOM.normal(size=(64, 16)).astype(np.float32) * OUTLIERS
    recipe = wb.Recipe("both", (wb.Fuse(), wb.SmoothQuant(), wb.Quantize(calibrator="auto")))
    notes = made(tmp_path, W / OUTLIERS[:, None], x, recipe).reports[-1].notes
    first = [note.split()[0] for note in notes]  # there are others, such as those on what this CPU adds exactly
    assert [word for word in first if word in ("SmoothQuant", "auto")] == ["SmoothQuant", "auto"]


def test_a_choice_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = RANDOM.normal(size=(64, 16)).astype(np.float32) * OUTLIERS
    one, store = model(tmp_path, W), wb.Store(tmp_path / "store")
    first = wb.calibrate(one, Split({"x": x}), "int8-smooth", store=store)
    monkeypatch.setattr("workbench.tuning.calibrating.choose_strength", None)
    again = wb.calibrate(one, Split({"x": x}), "int8-smooth", store=store)
    assert again.smoothing == first.smoothing is not None and again.sha256 == first.sha256
