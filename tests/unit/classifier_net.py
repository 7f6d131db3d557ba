"""A tiny classifier in modules, one of which costs accuracy when it is quantized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def classifier(folder: Path) -> Path:
    """(N, 8) -> three MatMuls with Relus in modules block.0, block.1, head; block.1 has an outlier that costs accuracy."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(8, 8)).astype(np.float32) for name in ("w0", "w1")}
    weights["w1"][:, 7] *= 400.0
    weights["w2"] = rng.normal(size=(8, 3)).astype(np.float32)
    weights["w2"][7] *= 1e-4
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h0"], name="/block/block.0/MatMul"),
        helper.make_node("Relu", ["h0"], ["r0"], name="/block/block.0/Relu"),
        helper.make_node("MatMul", ["r0", "w1"], ["h1"], name="/block/block.1/MatMul"),
        helper.make_node("Relu", ["h1"], ["r1"], name="/block/block.1/Relu"),
        helper.make_node("MatMul", ["r1", "w2"], ["logits"], name="/head/MatMul"),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = folder / "classifier.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path
