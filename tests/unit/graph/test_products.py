"""Products that read one activation become one, and each part keeps its name and its values."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from small_nets import net, values

from workbench.graph import fusion
from workbench.graph.editing import Context
from workbench.recipes import Fuse

TEXT = """(float[N, 4] x) => (float[N, 6] q, float[N, 2] y) {
    h = Relu (x)
    q = MatMul (h, wq)
    k = MatMul (h, wk)
    other = MatMul (x, wo)
    y = Add (k, other)
}"""


def fuse(model: onnx.ModelProto, *, products: bool = True):
    return fusion.apply(model, Fuse("all", products), Context())


def test_products_of_one_activation_become_one_and_a_split() -> None:
    model = net(TEXT, wq=values((4, 6)), wk=values((4, 2)), wo=values((4, 2)))
    for node, name in zip(
        model.graph.node, ("/act", "/a/q_proj/MatMul", "/a/k_proj/MatMul", "/o/MatMul", "/add"), strict=True
    ):
        node.name = name
    feeds = {"x": values((3, 4))}
    wanted = ReferenceEvaluator(model).run(None, feeds)
    report = fuse(model)
    assert report.details["products_merged"] == 2
    assert {"/a/q_proj/MatMul", "/a/k_proj/MatMul"} <= set(report.changed)
    assert {node.name for node in model.graph.node if node.op_type in ("MatMul", "Split")} == {
        "/a/q_proj+k_proj/MatMul",
        "/a/q_proj+k_proj/MatMul_split",
        "/o/MatMul",
    }
    for ours, theirs in zip(ReferenceEvaluator(model).run(None, feeds), wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)  # the same sums


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("(float[N, 4] x) => (float[N, 2] y) { k = MatMul (x, wk) q = MatMul (k, wq) y = MatMul (q, wq) }", {}),
        ("(float[4, 4] x) => (float[4, 2] y) { z = MatMul (x, x) k = MatMul (x, wk) y = Add (k, k) }", {}),
    ],
    ids=["each its own input", "no constant"],
)
def test_what_is_no_group_stays(text: str, weights: dict) -> None:
    model = net(text, wk=values((4, 2)), wq=values((2, 2)), **weights)
    before = [node.op_type for node in model.graph.node]
    assert "products_merged" not in fuse(model).details
    assert [node.op_type for node in model.graph.node] == before


def test_it_is_done_only_where_asked_and_needs_a_split_with_sizes_as_input() -> None:
    text = "(float[N, 4] x) => (float[N, 2] y) { a = MatMul (x, wa) b = MatMul (x, wb) y = Add (a, b) }"
    weights = {"wa": values((4, 2)), "wb": values((4, 2))}
    assert "products_merged" not in fuse(net(text, **weights), products=False).details
    old = net(text, **weights)
    old.opset_import[0].version = 12
    assert "products_merged" not in fuse(old).details
    with pytest.raises(ValueError, match=r"Fuse.products is True with the level 'off'"):
        Fuse("off", products=True)
