"""Engines that compute something else than their file says: made wrong on purpose, and by kernels that saturate."""

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
from workbench.machine import device
from workbench.machine.store import Store
from workbench.measuring import arithmetic
from workbench.measuring.arithmetic import arithmetic_note, verdict
from workbench.recipes import NAMED, Quantize, Recipe
from workbench.records import Engine, Model, Protocol, Variant

QUICK = Protocol(batch=4, rounds=1, min_seconds=0.001, min_runs=2, warmup_seconds=0.0, warmup_runs=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """(N, 16) -> MatMul -> Relu -> Neg -> MatMul -> (N, 5): half of the products of the second are large."""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(16, 64)), "w2": rng.normal(size=(64, 5))}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Neg", ["r"], ["n"], name="turned"),
        helper.make_node("MatMul", ["n", "w2"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return wb.load(path)


@pytest.fixture(scope="module")
def data(model: Model) -> wb.Dataset:
    x = np.random.default_rng(1).normal(size=(64, 16)).astype(np.float32)
    return datasets.arrays(x).split_off(calibration=32).bound_to(model)


def made(
    model: Model, data: wb.Dataset, store: Store, recipe: str, dialect: str | None = None
) -> tuple[Variant, Engine]:
    table = wb.calibrate(model, data.calibration, recipe) if NAMED[recipe].needs_calibration else None
    variant = wb.transform(model, recipe, dialect=dialect, table=table, store=store)
    return variant, engines.build(variant, "onnxruntime-cpu", store=store)


def tampered(engine: Engine, folder: Path, factor: float = 1.0, without: str | None = None) -> Engine:
    """The engine of a runtime with a fault: it scales its answers, or drops a node."""
    proto = onnx.load(engine.path)
    if without is not None:
        node = next(node for node in proto.graph.node if node.op_type == without)
        for reader in proto.graph.node:
            for place, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[place] = node.input[0]
        proto.graph.node.remove(node)
    last = next(node for node in proto.graph.node if node.output[0] == "y")
    last.output[0] = "before"
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    proto.graph.node.append(helper.make_node("Mul", ["before", "factor"], ["y"]))
    onnx.save(proto, folder / "wrong.onnx")
    return replace(engine, path=str(folder / "wrong.onnx"))


@pytest.mark.parametrize(
    "recipe",
    ["fp32", "fp32-unfused", "fp16", "bf16", "int8-max", "int8-dynamic", "int8-kl-fp16", "fp8", "int8-weights", "int4-weights"],
)  # fmt: skip
def test_engines_that_compute_what_the_file_says_get_no_note(model, data, store, recipe: str) -> None:
    variant, engine = made(model, data, store, recipe)
    assert arithmetic_note(engine, variant, model, data.calibration) is None


@pytest.mark.parametrize("recipe", ["int8-max", "int8-dynamic"])
def test_full_8_bit_weights_are_found_out_where_kernels_saturate(model, data, store, recipe: str) -> None:
    variant, engine = made(model, data, store, recipe, "ort-cpu")
    note = arithmetic_note(engine, variant, model, data.calibration)
    if device.int8().saturates:
        assert note is not None and "computes it differently" in note and "dB against" in note
        assert any("another kind of CPU" in told for told in engine.notes)
    else:
        assert note is None and not any("another kind of CPU" in told for told in engine.notes)


@pytest.mark.parametrize("recipe", ["fp32", "fp16", "int8-max", "int8-dynamic", "fp8"])
@pytest.mark.parametrize("fault", [{"factor": 0.5}, {"without": "Neg"}])
def test_a_wrong_engine_is_found_out(model, data, store, tmp_path: Path, recipe: str, fault) -> None:
    variant, engine = made(model, data, store, recipe)
    note = arithmetic_note(tampered(engine, tmp_path, **fault), variant, model, data.calibration)
    assert note is not None and "computes it differently" in note and "'y'" in note


def test_a_dropped_relu_is_found_out(model, data, store, tmp_path: Path) -> None:
    variant, engine = made(model, data, store, "fp32")
    note = arithmetic_note(tampered(engine, tmp_path, without="Relu"), variant, model, data.calibration)
    assert note is not None and "computes it differently" in note


def test_answers_that_only_the_engine_loses_are_told(model, data, store, tmp_path: Path) -> None:
    variant, engine = made(model, data, store, "int8-max")
    note = arithmetic_note(tampered(engine, tmp_path, factor=np.inf), variant, model, data.calibration)
    assert note is not None and "not finite" in note


def test_what_cannot_be_checked_is_said(model, data, store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    variant, engine = made(model, data, store, "fp32")
    monkeypatch.setattr(arithmetic, "exact_form", lambda proto: None)
    assert "was not checked" in str(arithmetic_note(engine, variant, model, data.calibration))
    monkeypatch.undo()
    proto = onnx.load(variant.path)
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Plugin", "vendor"
    proto.opset_import.append(helper.make_opsetid("vendor", 1))
    onnx.save(proto, tmp_path / "plugin.onnx")
    foreign = replace(variant, path=str(tmp_path / "plugin.onnx"))
    note = arithmetic_note(engine, foreign, model, data.calibration)
    assert note is not None and "was not checked" in note and "Plugin" in note


def test_a_model_that_takes_more_samples_than_there_are_is_left_alone(model, data, store) -> None:
    variant, engine = made(model, data, store, "fp32")
    wide = replace(variant, inputs=(replace(variant.inputs[0], shape=(100, 16)),))
    assert arithmetic_note(engine, wide, model, data.calibration) is None


def test_rounding_that_the_recipe_explains_is_not_told() -> None:
    rng = np.random.default_rng(2)
    parent = {"y": rng.normal(size=(8, 100))}
    noisy = [{"y": parent["y"] + 0.03 * rng.normal(size=(8, 100))} for _ in range(2)]
    quantized = Recipe("mine", (Quantize(),))
    # Two roundings of equal noise: each as right as the other.
    assert verdict(noisy[0], noisy[1], parent, quantized, 8) is None
    assert verdict({"y": parent["y"] + 0.1 * rng.normal(size=(8, 100))}, noisy[1], parent, quantized, 8) is not None
    # Without quantization the same difference has no excuse.
    assert verdict(noisy[0], noisy[1], parent, NAMED["fp32"], 8) is not None
    assert verdict({}, noisy[1], parent, quantized, 8) is None


def test_a_study_tells_it_with_the_accuracy(
    model, data, store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = wb.run(model, data, ["fp32", "int8-max"], protocol=QUICK, store=store, progress=None)
    assert not any("differently" in note for item in study.record.results for note in item.accuracy.notes)
    real = jobs.infer

    def faulty(engine, feeds, batch, **more):
        answers = real(engine, feeds, batch, **more)
        return {name: 0.5 * values for name, values in answers.items()} if engine.variant == "int8-max" else answers

    monkeypatch.setattr(jobs, "infer", faulty)
    study = wb.run(model, data, ["fp32", "int8-max"], protocol=QUICK, store=Store(tmp_path), progress=None)
    told = {item.recipe.name: " ".join(item.accuracy.notes) for item in study.record.results}
    assert "computes it differently" in told["int8-max"] and "differently" not in told["fp32"]
