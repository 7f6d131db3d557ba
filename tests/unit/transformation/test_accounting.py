"""Every node that holds weights or multiplies is spoken of, and how far a recipe reached is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from bodies_nets import BRANCHES, LOOP, NESTED, SCAN, bodied, with_own_weights
from onnx import TensorProto, helper, numpy_helper
from small_nets import net, values

import workbench as wb
from workbench.graph.cost import node_flops
from workbench.graph.editing import graphs
from workbench.records import StepReport
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
    assert ("anew in every call" if recipe == "int8-weights" else "no operator") in reasons["lstm"]
    assert "no operator" in reasons["einsum"]
    why = {"int8-max": "ranges inside a body are not observed", "int8-weights": "last projection before the output 'y'"}
    assert why[recipe] in reasons["inside"] if recipe in why else "inside" in report.changed
    assert any("of the multiplications" in note for note in report.notes)


def test_shares_are_those_of_the_counted_work_and_of_the_weights(tmp_path: Path) -> None:
    model = wb.load(recurrent(tmp_path))
    flops = node_flops(onnx.load(model.path))
    assert flops["lstm"] == 2 * 64 * (8 + 16) and flops["product"] == 2 * 16 * 12
    report = wb.transform(model, "int8-dynamic", store=wb.Store(tmp_path / "store")).reports[-1]
    assert report.changed == ("inside", "product")
    shares = report.details["coverage"]
    lowered = flops["product"] + flops["inside"]
    assert shares["flops"] == pytest.approx(
        {"int8": lowered / sum(flops.values()), "fp32": flops["lstm"] / sum(flops.values())}
    )
    # The matrix that only a branch reads is weights too.
    whole = 512 + 1024 + 192 + 144 + 144
    assert shares["weight_bytes"] == pytest.approx({"int8": (192 + 144) / whole, "fp32": 1 - (192 + 144) / whole})
    assert shares["uncounted"] == ["einsum"] and shares["assumed"] == ["branch"]
    assert any("Not counted" in note and "shapes: einsum." in note for note in report.notes)
    assert any("Of branch the branch that multiplies most is counted" in note for note in report.notes)


@pytest.mark.parametrize(("length", "counted"), [("T", 32), (5, None)])
def test_products_that_grow_with_a_free_length_are_counted_at_one_that_is_told(tmp_path: Path, length, counted) -> None:
    model = net(
        f"""(float[N,{length},16] x) => (float[N,{length},16] y) {{
            [query] q = MatMul (x, w)
            turned = Transpose <perm = [0, 2, 1]> (x)
            [scores] s = MatMul (q, turned)
            [mix] y = MatMul (s, x)
        }}""",
        w=np.ones((16, 16), np.float32),
    )
    onnx.save(model, tmp_path / "attention.onnx")
    report = wb.transform(tmp_path / "attention.onnx", "int8-dynamic", store=wb.Store(tmp_path / "store")).reports[-1]
    size = counted or length
    lowered, kept = size * 16 * 16, 2 * size * size * 16
    share = lowered / (kept + lowered)
    assert report.details["coverage"]["flops"] == pytest.approx({"int8": share, "fp32": 1 - share})
    told = [note for note in report.notes if "Axes of free length are counted as 32 long" in note]
    assert bool(told) is (counted is not None)


def bodied_file(folder: Path, text: str) -> Path:
    onnx.save(bodied(text), str(folder / "bodied.onnx"))
    return folder / "bodied.onnx"


def test_of_an_if_the_branch_that_multiplies_most_is_counted(tmp_path: Path) -> None:
    flops = node_flops(bodied(BRANCHES))
    one = 2 * 64 * 64
    assert flops == {"then_product": 0, "else_one": one, "else_two": one, "after": one}
    recipe = wb.Recipe("part", (wb.Fuse(), wb.Quantize(activations="dynamic", exclude=("else_one",))))
    report = wb.transform(bodied_file(tmp_path, BRANCHES), recipe, store=wb.Store(tmp_path / "store")).reports[-1]
    assert set(report.changed) == {"then_product", "else_two", "after"}
    assert report.details["coverage"]["flops"] == pytest.approx({"int8": 2 / 3, "fp32": 1 / 3})
    assert not any("matches no node" in note for note in report.notes)


@pytest.mark.parametrize("text", [LOOP, NESTED, SCAN])
def test_a_loop_is_not_counted_and_named_once(tmp_path: Path, text: str) -> None:
    report = wb.transform(bodied_file(tmp_path, text), "int8-dynamic", store=wb.Store(tmp_path / "store")).reports[-1]
    assert len(report.changed) == 2
    shares = report.details["coverage"]
    assert len(shares["uncounted"]) == 1 and shares["uncounted"][0].startswith(("Loop", "Scan")) and not shares["flops"]
    assert shares["weight_bytes"] == {"int8": 1.0}
    assert any("Not counted" in note and shares["uncounted"][0] in note for note in report.notes)


def test_one_name_in_two_branches_is_two_weights(tmp_path: Path) -> None:
    model = with_own_weights(bodied(BRANCHES))
    branches = list(graphs(model.graph))[1:]
    for branch in branches:
        held = next(tensor for tensor in branch.initializer if tensor.name.startswith("w_"))
        reader = next(node for node in branch.node if held.name in node.input)
        reader.input[list(reader.input).index(held.name)] = held.name = "same"
    onnx.save(model, str(tmp_path / "same.onnx"))
    recipe = wb.Recipe("part", (wb.Fuse(), wb.Quantize(activations="dynamic", exclude=("then_product",))))
    report = wb.transform(tmp_path / "same.onnx", recipe, store=wb.Store(tmp_path / "store")).reports[-1]
    # Three matrices of the first kind (outside, and one in each branch), one of the second, and a bias.
    assert shares_of(report)["weight_bytes"]["fp32"] == pytest.approx(4096 / (4 * 4096 + 64))


def test_a_function_that_is_not_written_out_is_named(tmp_path: Path) -> None:
    model = net("(float[N,64] x) => (float[N,64] y) { h = MatMul (x, w) y = Relu (h) }", w=values((64, 64)))
    model.functions.append(
        onnx.parser.parse_function(
            '<domain: "own", opset_import: ["" : 17]> project (a, k) => (b) { b = MatMul (a, k) }'
        )
    )
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.graph.node[1].CopyFrom(helper.make_node("project", ["h", "w"], ["y"], domain="own", name="call"))
    onnx.save(model, str(tmp_path / "function.onnx"))
    store = wb.Store(tmp_path / "store")
    kept = wb.Recipe("kept", (wb.Fuse(keep=("project",)), wb.Quantize(activations="dynamic")))
    report = wb.transform(tmp_path / "function.onnx", kept, store=store).reports[-1]
    assert {item.name: item.reason for item in report.skipped}["call"].startswith("it calls a function with 1 nodes")
    assert shares_of(report)["uncounted"] == ["call"]
    report = wb.transform(tmp_path / "function.onnx", "int8-dynamic", store=store).reports[-1]
    assert len(report.changed) == 2 and not report.skipped and not shares_of(report)["uncounted"]


def shares_of(report: StepReport) -> dict[str, Any]:
    return report.details["coverage"]


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
