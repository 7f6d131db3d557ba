"""A two-node ONNX model that tests build on."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper


def small_model(opset=17, names=("first", "second"), producer="test"):
    """x (batch, 2) -> Gemm -> Relu -> y, with the weights as initialisers."""
    weights = [
        numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w"),
        numpy_helper.from_array(np.ones(3, np.float32), "b"),
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name=names[0]),
        helper.make_node("Relu", ["h"], ["y"], name=names[1]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        weights,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name=producer
    )
