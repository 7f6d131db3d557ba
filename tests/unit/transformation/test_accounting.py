"""Every node that holds weights or multiplies is spoken of, and how far a recipe reached is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import workbench as wb
from workbench.graph.cost import node_flops
from workbench.transformation.accounting import _percent


def recurrent(folder: Path) -> Path:
    """(T, N, 8) -> LSTM of 16 -> MatMul; an Einsum and a branch behind it."""
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.normal(size=(1, 64, 8)), "r": rng.normal(size=(1, 64, 16)), "k": rng.normal(size=(16, 12)),
        "e": rng.normal(size=(12, 12)), "f": rng.normal(size=(12, 12)),
    }  # fmt: skip
    body = helper.make_graph(
        [helper.make_node("MatMul", ["p", "f"], ["b"], name="inside")],
        "then", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Neg", ["p"], ["n"], name="other")],
        "else", [], [helper.make_tensor_value_info("n", TensorProto.FLOAT, None)],
    )  # fmt: skip
    nodes = [
        helper.make_node("LSTM", ["x", "w", "r"], ["h4"], hidden_size=16, name="lstm"),
        helper.make_node("Squeeze", ["h4", "one"], ["h"], name="squeeze"),
        helper.make_node("MatMul", ["h", "k"], ["m"], name="product"),
        helper.make_node("Einsum", ["m", "e"], ["p"], equation="tni,ij->tnj", name="einsum"),
        helper.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=other, name="branch"),
    ]
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()]
    initializers += [numpy_helper.from_array(np.array([1]), "one"), numpy_helper.from_array(np.array(True), "yes")]
    graph = helper.make_graph(
        nodes, "recurrent", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["T", "N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", "N", 12])], initializers,
    )  # fmt: skip
    path = folder / "recurrent.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


@pytest.mark.parametrize("recipe", ["int8-max", "int8-dynamic", "int8-weights"])
def test_what_stays_in_floating_point_is_named(tmp_path: Path, recipe: str) -> None:
    model = wb.load(recurrent(tmp_path))
    split = wb.datasets.Split({"x": np.random.default_rng(1).normal(size=(4, 4, 8)).astype(np.float32)})
    store = wb.Store(tmp_path / "store")
    report = wb.transform(model, recipe, table=wb.calibrate(model, split, recipe), store=store).reports[-1]
    reasons = {item.name: item.reason for item in report.skipped}
    assert "no operator" in reasons["lstm"] and "no operator" in reasons["einsum"]
    assert "1 nodes that multiply" in reasons["branch"] or "inside" in reasons
    assert any("of the multiplications" in note for note in report.notes)


def test_shares_are_those_of_the_counted_work_and_of_the_weights(tmp_path: Path) -> None:
    model = wb.load(recurrent(tmp_path))
    flops = node_flops(onnx.load(model.path))
    assert flops["lstm"] == 2 * 64 * (8 + 16) and flops["product"] == 2 * 16 * 12
    report = wb.transform(model, "int8-dynamic", store=wb.Store(tmp_path / "store")).reports[-1]
    assert report.changed == ("product",)
    shares = report.details["coverage"]
    assert shares["flops"] == pytest.approx(
        {"int8": flops["product"] / sum(flops.values()), "fp32": flops["lstm"] / sum(flops.values())}
    )
    # The matrix that only a branch reads is weights too.
    whole = 512 + 1024 + 192 + 144 + 144
    assert shares["weight_bytes"] == pytest.approx({"int8": 192 / whole, "fp32": 1 - 192 / whole})
    assert shares["uncounted"] == ["einsum", "branch"]
    assert any("Not counted" in note and "einsum, branch" in note for note in report.notes)


def test_a_whole_network_is_reached_or_spoken_of(tmp_path: Path) -> None:
    for name in ("digits_resnet", "digits_vit"):
        model = wb.load(name)
        data = wb.datasets.digits()
        variant = wb.transform(model, "int8-max", table=wb.calibrate(model, data), store=wb.Store(tmp_path / "store"))
        report = variant.reports[-1]
        assert report.details["coverage"]["flops"]["int8"] > 0.9, name
        assert report.details["coverage"]["uncounted"] == [], name


def test_two_formats_of_one_recipe_are_told_apart(tmp_path: Path) -> None:
    model, data = wb.load("digits_vit"), wb.datasets.digits()
    recipe = wb.Recipe("both", (wb.Fuse(), wb.Quantize(calibrator="max", exclude=("mlp",)), wb.Precision("fp16")))
    variant = wb.transform(model, recipe, table=wb.calibrate(model, data, recipe), store=wb.Store(tmp_path / "store"))
    shares = variant.reports[-1].details["coverage"]
    flops = node_flops(onnx.load(model.path))
    excluded = sum(count for name, count in flops.items() if "mlp" in model.modules.get(name, name))
    assert 0 < excluded / sum(flops.values()) < 1
    assert shares["flops"]["fp16"] >= excluded / sum(flops.values()) > 0.1
    assert shares["flops"]["int8"] > 0.1 and sum(shares["flops"].values()) == pytest.approx(1)


def test_weights_alone_leave_the_arithmetic_as_it_was(tmp_path: Path) -> None:
    model = wb.load("digits_vit")
    shares = wb.transform(model, "int4-weights", store=wb.Store(tmp_path)).reports[-1].details["coverage"]
    assert shares["flops"] == {"fp32": 1.0}
    assert shares["weight_bytes"]["int4"] > 0.5


def test_what_is_nearly_all_is_not_called_all() -> None:
    assert [_percent(share) for share in (1, 0.9999, 0.996, 0.994, 0.5, 0.001)] == [
        "100 %", "> 99.9 %", "99.6 %", "99 %", "50 %", "< 0.5 %",
    ]  # fmt: skip
