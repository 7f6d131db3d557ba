"""A decoder with slots whose answers can be computed in the head, for tests of where its cache goes."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

INT, FLOAT = TensorProto.INT32, TensorProto.FLOAT
MODULUS = 7


def counting_graph(
    kind: str, batch: int | str, columns: int | str, *, keys_transposed: bool = False
) -> onnx.ModelProto:
    """Return a graph of one head of width 1 whose keys are the fed tokens and whose values are their positions.

    The logits (vocabulary 2) are the sum of all keys that are shown, the fed token's among them, and of all values
    likewise; the next token is the sum of the keys modulo 7.
    """
    keys = "keys_transposed.0" if keys_transposed else "keys.0"
    nodes, constants = (_step if kind == "step" else _prefill)(keys, keys_transposed)
    new = columns if kind == "prefill" else 1
    shapes = {"tokens": (INT, [batch, columns] if kind == "prefill" else [batch])}
    if kind == "step":
        shapes |= {"positions": (INT, [batch]), "mask": (FLOAT, [batch, 1, 1, columns])}
        shapes |= {keys: (FLOAT, _shape(batch, columns, keys_transposed))}
        shapes |= {"values.0": (FLOAT, _shape(batch, columns, False))}
    else:
        shapes |= {"lengths": (INT, [batch])}
    given = {"logits": (FLOAT, [batch, 2]), "next_tokens": (INT, [batch])}
    given |= {f"new_{keys}": (FLOAT, _shape(batch, new, keys_transposed))}
    given |= {"new_values.0": (FLOAT, _shape(batch, new, False))}
    inputs, outputs = (
        [helper.make_tensor_value_info(name, *what) for name, what in table.items()] for table in (shapes, given)
    )
    graph = helper.make_graph(nodes, kind, inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _shape(batch: int | str, columns: int | str, transposed: bool) -> list[int | str]:
    return [batch, 1, 1, columns] if transposed else [batch, 1, columns, 1]


def _constant(name: str, kind: int, values: list[float]) -> onnx.TensorProto:
    return helper.make_tensor(name, kind, [len(values)], values)


def _end(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> None:
    """Add logits and next token from `key_sum` and `value_sum`, both (batch, 1)."""
    nodes += [
        helper.make_node("Concat", ["key_sum", "value_sum"], ["logits"], axis=1),
        helper.make_node("Squeeze", ["key_sum", "axis_1"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["whole"], to=INT),
        helper.make_node("Mod", ["whole", "modulus"], ["next_tokens"]),
    ]
    constants += [
        _constant("axis_1", TensorProto.INT64, [1]),
        helper.make_tensor("modulus", INT, [], [MODULUS]),
    ]


def _step(keys: str, transposed: bool) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    nodes = [
        helper.make_node("Greater", ["mask", "hidden"], ["seen"]),
        helper.make_node("Cast", ["seen"], ["weights"], to=FLOAT),
        helper.make_node("Squeeze", ["weights", "axes_12"], ["weights_row"]),
    ]
    for kind, fed, cache, axes in (
        ("key", "tokens", keys, "axes_12" if transposed else "axes_13"),
        ("value", "positions", "values.0", "axes_13"),
    ):
        nodes += [
            helper.make_node("Cast", [fed], [f"{kind}_new"], to=FLOAT),
            helper.make_node("Unsqueeze", [f"{kind}_new", "axes_123"], [f"new_{cache}"]),
            helper.make_node("Unsqueeze", [f"{kind}_new", "axis_1"], [f"{kind}_column"]),
            helper.make_node("Squeeze", [cache, axes], [f"{kind}_row"]),
            helper.make_node("Mul", [f"{kind}_row", "weights_row"], [f"{kind}_seen"]),
            helper.make_node("ReduceSum", [f"{kind}_seen", "axis_1"], [f"{kind}_past"]),
            helper.make_node("Add", [f"{kind}_past", f"{kind}_column"], [f"{kind}_sum"]),
        ]
    constants = [
        _constant("hidden", FLOAT, [-1.0]),
        _constant("axes_12", TensorProto.INT64, [1, 2]),
        _constant("axes_13", TensorProto.INT64, [1, 3]),
        _constant("axes_123", TensorProto.INT64, [1, 2, 3]),
    ]
    _end(nodes, constants)
    return nodes, constants


def _prefill(keys: str, transposed: bool) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    nodes = [
        helper.make_node("Cast", ["tokens"], ["key_rows"], to=FLOAT),
        helper.make_node("Mul", ["key_rows", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "one"], ["ones"]),
        helper.make_node("CumSum", ["ones", "along"], ["counted"]),
        helper.make_node("Sub", ["counted", "one"], ["value_rows"]),
        helper.make_node("Cast", ["lengths"], ["lengths_float"], to=FLOAT),
        helper.make_node("Unsqueeze", ["lengths_float", "axis_1"], ["lengths_column"]),
        helper.make_node("Less", ["value_rows", "lengths_column"], ["within"]),
        helper.make_node("Cast", ["within"], ["weights"], to=FLOAT),
    ]
    for kind, cache, axes in (
        ("key", keys, "axes_12" if transposed else "axes_13"),
        ("value", "values.0", "axes_13"),
    ):
        nodes += [
            helper.make_node("Unsqueeze", [f"{kind}_rows", axes], [f"new_{cache}"]),
            helper.make_node("Mul", [f"{kind}_rows", "weights"], [f"{kind}_seen"]),
            helper.make_node("ReduceSum", [f"{kind}_seen", "axis_1"], [f"{kind}_sum"]),
        ]
    constants = [
        _constant("zero", FLOAT, [0.0]),
        _constant("one", FLOAT, [1.0]),
        helper.make_tensor("along", TensorProto.INT64, [], [1]),
        _constant("axes_12", TensorProto.INT64, [1, 2]),
        _constant("axes_13", TensorProto.INT64, [1, 3]),
    ]
    _end(nodes, constants)
    return nodes, constants
