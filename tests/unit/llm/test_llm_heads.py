"""A head that shares the embeddings' weights gets its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from workbench.engines.onnxruntime import open_file
from workbench.llm.heads import untie, untied
from workbench.machine.store import Store
from workbench.models import load

TABLE = np.arange(15, dtype=np.float32).reshape(5, 3)
IDS = {"ids": np.array([4, 0, 2])}


def tied() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["hidden"], name="embedding"),
        helper.make_node("Transpose", ["table"], ["turned"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["hidden", "turned"], ["logits"], name="head"),
    ]
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 5])]
    graph = helper.make_graph(nodes, "tied", inputs, outputs, [numpy_helper.from_array(TABLE, "table")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_an_untied_head_reads_a_transposed_copy_and_gives_the_same_logits() -> None:
    proto = tied()
    before = open_file(proto.SerializeToString()).infer(IDS)["logits"]
    assert untie(proto)
    assert [node.op_type for node in proto.graph.node] == ["Gather", "MatMul"]
    assert sorted(tuple(tensor.dims) for tensor in proto.graph.initializer) == [(3, 5), (5, 3)]
    np.testing.assert_array_equal(open_file(proto.SerializeToString()).infer(IDS)["logits"], before)


def test_untying_a_model_keeps_its_origin_and_is_noted(tmp_path: Path) -> None:
    onnx.save(tied(), str(tmp_path / "tied.onnx"))
    model = load(str(tmp_path / "tied.onnx"))
    store = Store(tmp_path / "store")
    apart = untied(model, store)
    assert (apart.name, apart.parameters) == (model.name, 2 * model.parameters)
    assert "stored apart" in apart.origin.notes[-1]
    again = untied(apart, store)
    assert again.sha256 == apart.sha256
    assert "changed nothing" in again.origin.notes[-1]
