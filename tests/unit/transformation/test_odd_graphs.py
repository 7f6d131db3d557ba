"""Old files and odd forms of operators, through whole recipes, against ONNX Runtime on the file as it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import workbench as wb
from workbench.engines.onnxruntime import open_file
from workbench.errors import TransformError

X = np.random.default_rng(1).normal(size=(32, 4)).astype(np.float32)
W = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))


def loaded(folder: Path, nodes: list, weights: dict, opset: int = 17, ir: int = 8):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    file = folder / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir), str(file))
    return wb.load(file)


def error_of(model, recipe: str) -> float:
    """Largest difference from the file itself, over its largest output."""
    known = wb.calibrate(model, X, recipe) if recipe == "int8-max" else None
    variant = wb.transform(model, recipe, table=known)
    with open_file(variant.path) as ours, open_file(model.path, "off") as theirs:
        found, wanted = ours.infer({"x": X})["y"], theirs.infer({"x": X})["y"]
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 1), (1, 3)])
@pytest.mark.parametrize("recipe", ["fp32", "int8-max"])
def test_a_bias_of_one_value_is_a_bias_for_every_channel(tmp_path: Path, recipe: str, shape: tuple[int, ...]) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="fc"),
        helper.make_node("Relu", ["h"], ["y"], name="r"),
    ]
    model = loaded(tmp_path, nodes, {"w": W, "b": np.full(shape, 0.5, np.float32)})
    # 8 bits for activations and weights: two roundings of at most half a step of 1/127.
    assert error_of(model, recipe) < (1e-6 if recipe == "fp32" else 0.02)


@pytest.mark.parametrize("recipe", ["fp32", "fp32-unfused", "fp16", "bf16", "int8-max", "int8-dynamic", "int8-weights"])
def test_a_file_of_ir_3_with_constant_nodes_goes_through_every_recipe(tmp_path: Path, recipe: str) -> None:
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(W), name="weight"),
        helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
        helper.make_node("Relu", ["h"], ["y"], name="r"),
    ]
    assert error_of(loaded(tmp_path, nodes, {}, opset=6, ir=3), recipe) < 0.03


def test_a_graph_that_the_converter_refuses_is_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
        helper.make_node("Constant", [], ["k"], value=numpy_helper.from_array(np.ones(3, np.float32)), name="c"),
        helper.make_node("Add", ["h", "k"], ["y"], name="add", broadcast=1, axis=1),
    ]
    model = loaded(tmp_path, nodes, {"w": W}, opset=6, ir=4)
    with pytest.raises(TransformError, match="cannot be brought from opset 6 to"):
        wb.transform(model, "int8-dynamic")


@pytest.mark.parametrize("operator", ["ScatterND", "ScatterElements"])
@pytest.mark.parametrize("reduction", ["add", "none"])
def test_scattering_that_reduces_stays_in_fp32(tmp_path: Path, operator: str, reduction: str) -> None:
    indices = {"ScatterND": np.array([[0]]), "ScatterElements": np.array([[0, 0, 0]])}[operator]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="fc"),
        helper.make_node(operator, ["h", "i", "u"], ["y"], name="scatter", reduction=reduction),
    ]
    model = loaded(tmp_path, nodes, {"w": W, "i": indices, "u": np.ones((1, 3), np.float32)})
    assert error_of(model, "fp16") < 2e-3  # FP16 keeps 11 bits
    skipped = {item.name: item.reason for report in wb.transform(model, "fp16").reports for item in report.skipped}
    assert ("scatter" in skipped and "no FP16 kernel" in skipped["scatter"]) == (reduction == "add")
