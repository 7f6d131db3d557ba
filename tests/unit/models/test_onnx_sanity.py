"""ONNX files that the checker lets pass and that nothing can run: an error with the place. And nodes out of order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import workbench as wb
from workbench.engines.onnxruntime import open_file
from workbench.errors import LoadError


def net(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    found = nodes or (
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["y"]),
    )
    graph = helper.make_graph(
        list(found),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def written(folder: Path, proto: onnx.ModelProto | bytes) -> Path:
    file = folder / "m.onnx"
    file.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    return file


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("element", [0, 99])
def test_element_types_that_do_not_exist_are_refused(tmp_path: Path, element: int) -> None:
    for place in ("input 'x'", "output 'y'", "weight 'w'"):
        proto = net()
        if place.startswith("weight"):
            proto.graph.initializer[0].data_type = element
        else:
            value = proto.graph.input[0] if place.startswith("input") else proto.graph.output[0]
            value.type.tensor_type.elem_type = element
        with pytest.raises(LoadError, match=f"{place} has the element type {element}"):
            wb.load(written(tmp_path, proto))


def test_an_output_without_type_and_shape_is_inferred(tmp_path: Path) -> None:
    proto = net()
    proto.graph.output[0].type.tensor_type.Clear()
    proto.graph.output[0].type.tensor_type.SetInParent()
    assert wb.load(written(tmp_path, proto)).outputs[0].dtype == "float32"


def test_an_axis_of_5000_digits_is_free_and_one_of_few_is_fixed(tmp_path: Path) -> None:
    proto = net()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "9" * 5000
    assert wb.load(written(tmp_path, proto)).inputs[0].shape == (None, 4)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "4"
    assert wb.load(written(tmp_path, proto)).inputs[0].shape == (4, 4)


def test_shapes_that_no_machine_holds_are_refused(tmp_path: Path) -> None:
    proto = net()
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2**62
    with pytest.raises(LoadError, match="input 'x' has at least 4611686018427387904 elements"):
        wb.load(written(tmp_path, proto))


def test_weights_longer_than_their_shape_are_refused(tmp_path: Path) -> None:
    proto = net()
    proto.graph.initializer[0].raw_data *= 2
    with pytest.raises(LoadError, match=r"weight 'w' of shape \(4, 3\) holds 96 bytes instead of 48"):
        wb.load(written(tmp_path, proto))


def test_packed_weights_have_the_size_they_have(tmp_path: Path) -> None:
    from workbench.models.onnx_sanity import refuse_nonsense

    proto = net()
    for element, size in (
        (TensorProto.INT4, 6),
        (TensorProto.UINT4, 6),
        (TensorProto.FLOAT4E2M1, 6),
        (TensorProto.BFLOAT16, 24),
    ):
        proto.graph.initializer[0].CopyFrom(TensorProto(name="w", dims=[4, 3], data_type=element, raw_data=bytes(size)))
        refuse_nonsense(proto, tmp_path)
        proto.graph.initializer[0].raw_data += b"x"
        with pytest.raises(LoadError, match=f"holds {size + 1} bytes instead of {size}"):
            refuse_nonsense(proto, tmp_path)


@pytest.mark.parametrize("what", ["node name", "operator", "domain", "attribute", "tensor", "weight name"])
def test_names_that_are_not_utf_8_are_refused(tmp_path: Path, what: str) -> None:
    proto = net(helper.make_node("Gemm", ["x", "w"], ["y"], name="first", alpha=1.0))
    node = proto.graph.node[0]
    if what == "attribute":
        node.attribute[0].name = "QQQQ"
    elif what == "tensor":
        node.output[0] = "QQQQ"
    elif what == "weight name":
        proto.graph.initializer[0].name = "QQQQ"
    else:
        setattr(node, {"node name": "name", "operator": "op_type", "domain": "domain"}[what], "QQQQ")
    with pytest.raises(LoadError, match=rf"the {what}.* is not UTF-8 text"):
        wb.load(written(tmp_path, proto.SerializeToString().replace(b"QQQQ", b"\xff\xfe\xff\xfe")))


@pytest.mark.parametrize("axis", [2**40, -(2**40)])
def test_an_axis_beyond_all_tensors_is_refused(tmp_path: Path, axis: int) -> None:
    proto = net(
        helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Softmax", ["h"], ["y"], name="s", axis=axis)
    )
    with pytest.raises(LoadError, match=f"node 's' .Softmax. works along axis {axis}"):
        wb.load(written(tmp_path, proto))


def test_nodes_out_of_order_are_sorted_in_a_copy_that_computes_the_same(tmp_path: Path) -> None:
    proto = net(helper.make_node("Relu", ["h"], ["y"]), helper.make_node("MatMul", ["x", "w"], ["h"]))
    file = written(tmp_path, proto)
    model = wb.load(file)
    assert [node.op_type for node in onnx.load(model.path).graph.node] == ["MatMul", "Relu"]
    assert "Nodes were out of order and were sorted." in model.origin.notes
    assert file.read_bytes() == proto.SerializeToString()
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    with open_file(model.path) as sorted_, open_file(proto.SerializeToString()) as given:
        np.testing.assert_array_equal(sorted_.infer({"x": x})["y"], given.infer({"x": x})["y"])


def test_a_node_waits_for_what_its_branches_take_too(tmp_path: Path) -> None:
    from workbench.models.onnx_sanity import sort

    branch = helper.make_graph([helper.make_node("Relu", ["h"], ["b"])], "branch", [], [
        helper.make_tensor_value_info("b", TensorProto.FLOAT, None)])  # fmt: skip
    proto = net(
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
    )
    assert sort(proto) and [node.op_type for node in proto.graph.node] == ["MatMul", "If"]
    assert not sort(proto)


def test_nodes_in_a_circle_are_refused(tmp_path: Path) -> None:
    proto = net(helper.make_node("Relu", ["h"], ["y"]), helper.make_node("Relu", ["y"], ["h"]))
    with pytest.raises(LoadError, match="topologically sorted"):
        wb.load(written(tmp_path, proto))
