"""FP16 that a CPU would pass and a GPU would not: seen, left out of FP16, or failed; never a number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import workbench as wb
from workbench import datasets, engines
from workbench.engines import jobs
from workbench.errors import LostAnswers
from workbench.machine import device
from workbench.machine.store import Store
from workbench.measuring.answers import check
from workbench.measuring.own_arithmetic import judged
from workbench.records import Protocol

QUICK = Protocol(batch=4, rounds=1, min_seconds=0.001, min_runs=2, warmup_seconds=0.0, warmup_runs=1)
X = np.random.default_rng(5).normal(size=(96, 16)).astype(np.float32)


def model_of(folder: Path, scale: float, kind: int = TensorProto.FLOAT) -> wb.Model:
    rng = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = {"w": scale * rng.normal(size=(16, 32)), "w2": rng.normal(size=(32, 5)) / scale}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", kind, ["N", 16])],
        [helper.make_tensor_value_info("y", kind, ["N", 5])],
        [numpy_helper.from_array(value.astype(dtype), name) for name, value in weights.items()],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(folder / "net.onnx")
    )
    return wb.load(folder / "net.onnx")


def test_without_calibration_samples_an_overflow_is_a_failed_check_and_the_assumption_is_told(tmp_path: Path) -> None:
    model = model_of(tmp_path, 12_000.0)
    study = wb.run(
        model, datasets.arrays(X), ["fp32", "fp16"], protocol=QUICK, store=Store(tmp_path / "s"), progress=None
    )
    failure = study["fp16"].failure
    assert failure is not None and failure.stage == "check" and failure.error == "LostAnswers"
    assert "NaN or infinite" in failure.message and "65504" in failure.message
    assert study["fp16"].accuracy is None and study["fp16"].measurement is None
    assert any("assumed" in note for note in study["fp16"].variant.notes)


def test_with_calibration_samples_the_nodes_that_overflow_stay_in_fp32(tmp_path: Path) -> None:
    model = model_of(tmp_path, 12_000.0)
    data = datasets.arrays(X).split_off(calibration=32)
    study = wb.run(model, data, ["fp32", "fp16"], protocol=QUICK, store=Store(tmp_path / "s"), progress=None)
    result = study["fp16"]
    assert result.failure is None and (result.accuracy.sqnr_db["y"] or np.inf) > 50  # None: exact
    kept = {item.name: item.reason for report in result.variant.reports for item in report.skipped}
    assert "first" in kept and "during calibration" in kept["first"]
    assert not any("assumed" in note for note in result.variant.notes)


def test_sound_fp16_is_judged_in_its_own_arithmetic_and_says_so(tmp_path: Path) -> None:
    model = model_of(tmp_path, 1.0)
    data = datasets.arrays(X).split_off(calibration=32)
    study = wb.run(model, data, ["fp32", "fp16"], protocol=QUICK, store=Store(tmp_path / "s"), progress=None)
    accuracy = study["fp16"].accuracy
    assert any("own arithmetic" in note for note in accuracy.notes)
    assert not any("own arithmetic" in note for note in study["fp32"].accuracy.notes)
    assert accuracy.variant_sha256 == study["fp16"].variant.sha256
    # An independent answer: numpy, every result rounded.
    x = (
        data.evaluation.inputs["input"]
        if "input" in data.evaluation.inputs
        else data.bound_to(model).evaluation.inputs["x"]
    )
    w, w2 = (numpy_helper.to_array(item) for item in onnx.load(model.path).graph.initializer)
    half = [array.astype(np.float16).astype(np.float32) for array in (x, w, w2)]
    a = np.maximum((half[0] @ half[1]).astype(np.float16), 0).astype(np.float32)
    y, right = (a @ half[2]).astype(np.float16).astype(np.float64), np.maximum(x @ w, 0) @ w2
    by_hand = 10 * np.log10((right**2).sum() / ((right - y) ** 2).sum())
    assert abs(accuracy.sqnr_db["y"] - by_hand) < 1.5  # sums in another order round elsewhere


def test_a_file_in_fp16_is_judged_so_too(tmp_path: Path) -> None:
    model = model_of(tmp_path, 1.0, TensorProto.FLOAT16)
    store = Store(tmp_path / "s")
    engine = engines.build(wb.transform(model, "fp32", store=store), "onnxruntime-cpu", store=store)
    stand_in, note = judged(engine, store)
    assert note is not None and "FP16" in note and stand_in.path != engine.path
    answers = jobs.infer(stand_in, {"x": X.astype(np.float16)}, 32)
    assert answers["y"].dtype == np.float32 and np.isfinite(answers["y"]).all()


def test_openvino_with_bf16_arithmetic_is_judged_as_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    store = Store(tmp_path / "s")
    variant = wb.transform(model_of(tmp_path, 1.0), "bf16", dialect="strong", store=store)
    engine = engines.build(variant, "openvino", store=store)
    for flags, itself in ((("avx2",), False), (("avx512_bf16",), True)):
        monkeypatch.setattr(device, "cpu_flags", lambda flags=flags: flags)
        stand_in, note = judged(engine, store)
        assert (stand_in == engine) is itself and (note is None) is itself


def test_infinities_that_the_parent_has_too_are_no_loss(tmp_path: Path) -> None:
    model = model_of(tmp_path, 1.0)
    store = Store(tmp_path / "s")
    engine = engines.build(wb.transform(model, "fp32", store=store), "onnxruntime-cpu", store=store)
    data = datasets.Dataset("numbers", "user", datasets.Split({"x": X}))
    proto = onnx.load(engine.path)
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.full((32, 5), np.inf, np.float32), "w2"))
    onnx.save(proto, tmp_path / "lost.onnx")
    lost = replace(engine, path=str(tmp_path / "lost.onnx"), variant="lost")
    assert check(lost, lost, data).samples == len(X)
    with pytest.raises(LostAnswers, match=r"'lost' is NaN or infinite in 96 of 96"):
        check(lost, engine, data, batch=96)
