"""A decoder whose answers can be computed in the head, for tests of what happens to its cache."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def counting_decoder(path: Path, element: int = TensorProto.FLOAT) -> Path:
    """Write a decoder of one head of width 1 whose keys are the fed tokens and whose values are their positions.

    The logits (vocabulary 2) are the sum of all keys that the mask shows, and of all values likewise.
    """
    ints = {"input_ids": ["n", "s"], "attention_mask": ["n", "t"], "position_ids": ["n", "s"]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in ints.items()]
    inputs += [
        helper.make_tensor_value_info(f"past_key_values.0.{kind}", element, ["n", 1, "p", 1])
        for kind in ("key", "value")
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", "s", 2])]
    outputs += [
        helper.make_tensor_value_info(f"present.0.{kind}", element, ["n", 1, "t", 1]) for kind in ("key", "value")
    ]
    nodes = []
    for kind, source in (("key", "input_ids"), ("value", "position_ids")):
        nodes += [
            helper.make_node("Cast", [source], [f"{kind}_cast"], to=element),
            helper.make_node("Unsqueeze", [f"{kind}_cast", "axes"], [f"{kind}_new"]),
            helper.make_node("Concat", [f"past_key_values.0.{kind}", f"{kind}_new"], [f"present.0.{kind}"], axis=2),
            helper.make_node("Cast", [f"present.0.{kind}"], [f"{kind}_float"], to=TensorProto.FLOAT),
            helper.make_node("Squeeze", [f"{kind}_float", "axes"], [f"{kind}_row"]),
            helper.make_node("Mul", [f"{kind}_row", "mask_float"], [f"{kind}_seen"]),
            helper.make_node("ReduceSum", [f"{kind}_seen", "last"], [f"{kind}_sum"]),
        ]
    nodes = [helper.make_node("Cast", ["attention_mask"], ["mask_float"], to=TensorProto.FLOAT), *nodes]
    nodes += [
        helper.make_node("Concat", ["key_sum", "value_sum"], ["sums"], axis=1),
        helper.make_node("Unsqueeze", ["sums", "middle"], ["row"]),
        helper.make_node("Shape", ["input_ids"], ["shape"]),
        helper.make_node("Concat", ["shape", "one"], ["wanted"], axis=0),
        helper.make_node("Expand", ["row", "wanted"], ["logits"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [2], [1, 3]),
        helper.make_tensor("last", TensorProto.INT64, [1], [-1]),
        helper.make_tensor("middle", TensorProto.INT64, [1], [1]),
        helper.make_tensor("one", TensorProto.INT64, [1], [1]),
    ]
    graph = helper.make_graph(nodes, "counting", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path
