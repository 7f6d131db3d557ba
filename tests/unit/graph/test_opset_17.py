"""Lowering opset 18 to 17 keeps the numbers, or leaves the model alone and says which operator is in the way."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from workbench.graph.opset_17 import lower_to_17

X = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)


def model(nodes, constants=(), outputs=1):
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4, 6])],
        [helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, None) for index in range(outputs)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return onnx.shape_inference.infer_shapes(proto)


def run(proto):
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})


def constant_node(name, value):
    return helper.make_node("Constant", [], [name], name=name, value=numpy_helper.from_array(np.asarray(value), name))


AXES = [("axes", np.array([1, -1]))]
LOWERABLE = [
    *(
        (f"{kind} with axes", model([helper.make_node(kind, ["x", "axes"], ["y0"], keepdims=0)], AXES))
        for kind in ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare")
    ),
    ("ReduceMean over all", model([helper.make_node("ReduceMean", ["x"], ["y0"])])),
    (
        "axes in a Constant node",
        model([constant_node("axes", np.array([2])), helper.make_node("ReduceMax", ["x", "axes"], ["y0"])]),
    ),
    (
        "ReduceSum, which changed earlier",
        model([helper.make_node("ReduceSum", ["x", "axes"], ["y0"])], AXES),
    ),
    (
        "equal Split",
        model([helper.make_node("Split", ["x"], ["y0", "y1"], axis=2, num_outputs=2)], outputs=2),
    ),
    (
        "Split with sizes",
        model([helper.make_node("Split", ["x", "s"], ["y0", "y1"], axis=2)], [("s", np.array([1, 5]))], outputs=2),
    ),
    ("Pad", model([helper.make_node("Pad", ["x", "p"], ["y0"])], [("p", np.array([0, 0, 1, 0, 0, 1]))])),
    (
        "plain Resize",
        model(
            [helper.make_node("Resize", ["x", "", "s"], ["y0"], antialias=0, keep_aspect_ratio_policy="stretch")],
            [("s", np.array([1, 1, 2], np.float32))],
        ),
    ),
]


@pytest.mark.parametrize("proto", [proto for _, proto in LOWERABLE], ids=[name for name, _ in LOWERABLE])
def test_lowered_models_give_the_same_numbers(proto):
    expected = run(proto)
    assert lower_to_17(proto) == []
    assert proto.opset_import[0].version == 17
    onnx.checker.check_model(proto, full_check=True)
    for before, after in zip(expected, run(proto), strict=True):
        np.testing.assert_array_equal(before, after)  # the same kernels run, so the same bits


def test_axes_that_nothing_else_uses_are_removed():
    proto = model([helper.make_node("ReduceMax", ["x", "axes"], ["y0"])], AXES)
    lower_to_17(proto)
    assert not proto.graph.initializer


DATA = [("d", np.zeros((1, 3), np.int64)), ("u", np.zeros(1, np.float32))]
STUCK = [
    ("Mish", [helper.make_node("Mish", ["x"], ["y0"], name="act")], []),
    ("ReduceMax", [helper.make_node("ReduceMax", ["x"], ["y0"], name="n", noop_with_empty_axes=1)], []),
    ("ReduceMax", [helper.make_node("ReduceMax", ["x", "axes"], ["y0"], name="n")], [("axes", np.zeros(0, np.int64))]),
    (
        "ReduceMax",
        [
            helper.make_node("Cast", ["f"], ["axes"], name="c", to=TensorProto.INT64),
            helper.make_node("ReduceMax", ["x", "axes"], ["y0"], name="n"),
        ],
        [("f", np.ones(1, np.float32))],
    ),
    ("ScatterND", [helper.make_node("ScatterND", ["x", "d", "u"], ["y0"], name="n", reduction="max")], DATA),
    (
        "Pad",
        [helper.make_node("Pad", ["x", "p", "", "a"], ["y0"], name="n")],
        [("p", np.array([1, 1])), ("a", np.array([2]))],
    ),
    (
        "Resize",
        [helper.make_node("Resize", ["x", "", "s"], ["y0"], name="n", mode="linear", antialias=1)],
        [("s", np.array([1, 1, 0.5], np.float32))],
    ),
    ("Split", [helper.make_node("Split", ["x"], ["y0", "a", "b", "c"], name="n", axis=2, num_outputs=4)], []),
    (
        "Split",
        [
            helper.make_node("NonZero", ["x"], ["z"], name="z"),
            helper.make_node("Split", ["z"], ["y0", "y1"], name="n", axis=1, num_outputs=2),
        ],
        [],
    ),
]


@pytest.mark.parametrize(("operator", "nodes", "constants"), STUCK)
def test_operators_without_a_form_in_17_are_named_and_nothing_changes(operator, nodes, constants):
    proto = model(nodes, constants)
    before = proto.SerializeToString()
    assert lower_to_17(proto) == [f"{operator} ({nodes[-1].name})"]
    assert proto.SerializeToString() == before


def test_graphs_inside_nodes_are_left_alone():
    inner = helper.make_graph(
        [helper.make_node("ReduceMax", ["x"], ["r"])], "b", [], [helper.make_tensor_value_info("r", 1, None)]
    )
    node = helper.make_node("If", ["c"], ["y0"], name="if", then_branch=inner, else_branch=inner)
    assert lower_to_17(model([node], [("c", np.array(True))])) == ["nodes with graphs inside"]
