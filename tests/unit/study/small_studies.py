"""A tiny network and a protocol of milliseconds, for studies that are about something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from workbench.records import Protocol

QUICK = Protocol(batch=4, rounds=2, min_seconds=0.001, min_runs=5, warmup_seconds=0.0, warmup_runs=1)


def classifier(folder: Path, batch: int | str = "N") -> Path:
    """(N, 8) -> Gemm -> Relu -> Gemm -> logits (N, 3), with fixed random weights."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(size=(8, 16)), "b1": rng.normal(size=16), "w2": rng.normal(size=(16, 3)), "b2": np.zeros(3),
    }  # fmt: skip
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], name="first"),
        helper.make_node("Relu", ["h"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["logits"], name="head"),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    path = folder / "classifier.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path
