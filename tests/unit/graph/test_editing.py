from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_nets import net, operators, run, values

from workbench.graph.editing import Context, Graph, attribute

DIAMOND = """(float[N,4] x) => (float[N,4] y) {
    a = MatMul (x, w)
    b = MatMul (x, w)
    y = Add (a, b)
}"""


def test_constants_are_found_in_initializers_and_in_every_kind_of_constant_node() -> None:
    text = """(float[N] x) => (float[N] y, float[N] z) {
        one = Constant <value_float: float = 1.5> ()
        many = Constant <value_ints: ints = [2, 3]> ()
        tensor = Constant <value = float[2] {4, 5}> ()
        word = Constant <value_string: string = "no"> ()
        s = Add (x, one)
        y = Add (s, w)
        z = Reshape (tensor, many)
    }"""
    graph = Graph(net(text, w=np.array([7.0], np.float32)))
    found = {name: graph.array(name) for name in ("one", "many", "tensor", "w", "word", "x")}
    assert found["word"] is None and found["x"] is None
    assert [found[name].tolist() for name in ("one", "many", "tensor", "w")] == [1.5, [2, 3], [4, 5], [7]]
    assert [found[name].dtype for name in ("one", "many")] == [np.float32, np.int64]
    assert graph.is_constant("tensor") and graph.is_constant("w") and not graph.is_constant("x")


def test_a_constant_of_one_reader_is_changed_in_place_and_a_shared_one_is_copied() -> None:
    model = net(DIAMOND, w=values((4, 4)))
    graph = Graph(model)
    copy = graph.give_constant(graph.nodes[0], 1, np.zeros((4, 4), np.float32))
    assert copy == "w_1" and graph.give_constant(graph.nodes[1], 1, np.eye(4, dtype=np.float32)) == "w"
    graph.finish()
    np.testing.assert_array_equal(run(model, {"x": values((2, 4))})["y"], values((2, 4)))


def test_a_scalar_stays_a_scalar() -> None:
    graph = Graph(net(DIAMOND, w=values((4, 4))))
    assert list(graph.initializers[graph.add_initializer("s", np.float32(2.0))].dims) == []


def test_unique_names_avoid_tensors_and_nodes_and_are_reserved() -> None:
    graph = Graph(net(DIAMOND, w=values((4, 4))))
    assert [graph.unique("w"), graph.unique("w"), graph.unique("MatMul_0"), graph.unique("new")] == [
        "w_1", "w_2", "MatMul_0_1", "new",
    ]  # fmt: skip


def test_rewiring_some_readers_leaves_the_others() -> None:
    model = net(DIAMOND, w=values((4, 4)))
    graph = Graph(model)
    graph.add_node("Neg", ["x"], ["minus"], "negation")
    graph.rewire("x", "minus", only=[graph.nodes[0]])
    assert [node.name for node in graph.consumers["minus"]] == ["MatMul_0"]
    assert [node.name for node in graph.consumers["x"]] == ["MatMul_1", "negation"]
    graph.finish()
    assert not run(model, {"x": values((2, 4))})["y"].any()


def test_finish_sorts_nodes_and_drops_what_nobody_reads() -> None:
    model = net(DIAMOND, w=values((4, 4)), unused=values((9,)))
    graph = Graph(model)
    graph.add_node("Relu", ["x"], ["r"], "late")
    graph.rewire("x", "r", only=graph.nodes[:2])
    graph.finish()
    assert operators(model) == ["Relu", "MatMul", "MatMul", "Add"]
    assert [tensor.name for tensor in model.graph.initializer] == ["w"]
    onnx.checker.check_model(model, full_check=True)


def test_what_a_subgraph_reads_survives_finish_and_is_pinned() -> None:
    text = """(bool c, float[4] x) => (float[4] y) {
        a = Neg (x)
        y = If (c) <
            then_branch = one () => (float[4] t) { t = Add (a, w) },
            else_branch = other () => (float[4] e) { e = Identity (a) }
        >
    }"""
    model = net(text, w=values((4,)))
    graph = Graph(model)
    assert {"a", "w", "y"} <= graph.pinned
    graph.finish()
    np.testing.assert_array_equal(run(model, {"c": np.array(True), "x": values((4,))})["y"], np.zeros(4))


@pytest.mark.parametrize(("pattern", "want"), [("layer1", "layer1"), ("^Conv", "^Conv"), ("layer2", None)])
def test_exclusion_looks_at_node_names_and_module_paths(pattern: str, want: str | None) -> None:
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="Conv_3")
    context = Context(modules={"Conv_3": "model.layer1.conv"})
    assert context.excluded_by(node, (pattern,)) == want


def test_attributes_have_defaults() -> None:
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=4)
    assert (attribute(node, "group", 1), attribute(node, "pads", "none")) == (4, "none")
