"""A decoder with slots whose answers can be computed in the head, for tests of where its cache goes."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INT, FLOAT = TensorProto.INT32, TensorProto.FLOAT
MODULUS = 7
LAYERS, HEADS, WIDTH = 2, 2, 3


def counting_graph(
    kind: str, batch: int | str, columns: int | str, *, keys_transposed: bool = False
) -> onnx.ModelProto:
    """Return a graph of 2 layers and 2 heads of width 3 whose keys are the fed tokens and whose values are their positions.

    Every element of the cache holds them times a number of its own, so that none can take another's place. The logits
    (vocabulary 2) are the sum of all keys that are shown, the fed token's among them, and of all values likewise; the next
    token is the sum of the keys modulo 7.
    """
    graph = _Graph(batch, columns, keys_transposed)
    (graph.step if kind == "step" else graph.prefill)()
    graph.end()
    inputs, outputs = (
        [helper.make_tensor_value_info(name, *what) for name, what in table.items()]
        for table in (graph.inputs, graph.outputs)
    )
    made = helper.make_graph(graph.nodes, kind, inputs, outputs, graph.constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


class _Graph:
    def __init__(self, batch: int | str, columns: int | str, keys_transposed: bool) -> None:
        self.batch, self.columns = batch, columns
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.inputs: dict[str, tuple] = {}
        self.outputs: dict[str, tuple] = {"logits": (FLOAT, [batch, 2]), "next_tokens": (INT, [batch])}
        # kind -> whether its tensors lie as (batch, heads, width, columns)
        self.kinds = {"keys_transposed" if keys_transposed else "keys": keys_transposed, "values": False}
        for name, value in (("axis_1", [1]), ("axes_12", [1, 2]), ("axes_13", [1, 3]), ("axes_123", [1, 2, 3])):
            self.constant(name, np.array(value, np.int64))

    def constant(self, name: str, value: np.ndarray) -> None:
        self.constants.append(numpy_helper.from_array(value, name))

    def node(self, kind: str, inputs: list[str], output: str, **attributes: object) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))

    def shape(self, kind: str, columns: int | str) -> list[int | str]:
        return [self.batch, HEADS, WIDTH, columns] if self.kinds[kind] else [self.batch, HEADS, columns, WIDTH]

    def spread(self, kind: str, flat: str, columns: int | str) -> None:
        """Give the new tensors of a kind from (batch, columns): times a number of each element's own."""
        self.node("Unsqueeze", [flat, "axes_12" if self.kinds[kind] else "axes_13"], f"{kind}_thin")
        for layer in range(LAYERS):
            numbers = np.arange(1, HEADS * WIDTH + 1, dtype=np.float32).reshape(1, HEADS, 1, WIDTH) * (layer + 1)
            numbers = numbers.transpose(0, 1, 3, 2) if self.kinds[kind] else numbers
            self.constant(f"{kind}_numbers_{layer}", np.ascontiguousarray(numbers))
            self.node("Mul", [f"{kind}_thin", f"{kind}_numbers_{layer}"], f"new_{kind}.{layer}")
            self.outputs[f"new_{kind}.{layer}"] = (FLOAT, self.shape(kind, columns))

    def step(self) -> None:
        self.inputs = {"tokens": (INT, [self.batch]), "positions": (INT, [self.batch])}
        self.inputs["mask"] = (FLOAT, [self.batch, 1, 1, self.columns])
        self.constant("hidden", np.array([-1.0], np.float32))
        self.node("Greater", ["mask", "hidden"], "seen")
        self.node("Cast", ["seen"], "weights", to=FLOAT)
        self.node("Squeeze", ["weights", "axes_12"], "weights_row")
        for kind, fed in zip(self.kinds, ("tokens", "positions"), strict=True):
            self.node("Cast", [fed], f"{kind}_fed", to=FLOAT)
            self.node("Unsqueeze", [f"{kind}_fed", "axis_1"], f"{kind}_column")
            self.spread(kind, f"{kind}_column", 1)
            rows = []
            for layer in range(LAYERS):
                # Each element by its number, so that one in another's place does not cancel out.
                cache = f"{kind}.{layer}"
                self.inputs[cache] = (FLOAT, self.shape(kind, self.columns))
                self.node("Div", [cache, f"{kind}_numbers_{layer}"], f"{cache}_plain")
                self.node(
                    "ReduceMean", [f"{cache}_plain"], f"{cache}_row", axes=[1, 2 if self.kinds[kind] else 3], keepdims=0
                )
                rows.append(f"{cache}_row")
            self.node("Mean", rows, f"{kind}_row")
            self.node("Mul", [f"{kind}_row", "weights_row"], f"{kind}_seen")
            self.node("ReduceSum", [f"{kind}_seen", "axis_1"], f"{kind}_past")
            self.node("Add", [f"{kind}_past", f"{kind}_column"], f"{kind}_sum")

    def prefill(self) -> None:
        self.inputs = {"tokens": (INT, [self.batch, self.columns]), "lengths": (INT, [self.batch])}
        keys, values = self.kinds
        self.constant("zero", np.array([0.0], np.float32))
        self.constant("one", np.array([1.0], np.float32))
        self.constant("along", np.array(1, np.int64))
        self.node("Cast", ["tokens"], f"{keys}_flat", to=FLOAT)
        self.node("Mul", [f"{keys}_flat", "zero"], "zeros")
        self.node("Add", ["zeros", "one"], "ones")
        self.node("CumSum", ["ones", "along"], "counted")
        self.node("Sub", ["counted", "one"], f"{values}_flat")
        self.node("Cast", ["lengths"], "lengths_float", to=FLOAT)
        self.node("Unsqueeze", ["lengths_float", "axis_1"], "lengths_column")
        self.node("Less", [f"{values}_flat", "lengths_column"], "within")
        self.node("Cast", ["within"], "weights", to=FLOAT)
        for kind in self.kinds:
            self.spread(kind, f"{kind}_flat", self.columns)
            self.node("Mul", [f"{kind}_flat", "weights"], f"{kind}_seen")
            self.node("ReduceSum", [f"{kind}_seen", "axis_1"], f"{kind}_sum")

    def end(self) -> None:
        keys, values = self.kinds
        self.constant("modulus", np.array(MODULUS, np.int32))
        self.node("Concat", [f"{keys}_sum", f"{values}_sum"], "exact", axis=1)
        self.node("Round", ["exact"], "logits")
        self.node("Squeeze", [f"{keys}_sum", "axis_1"], "flat")
        self.node("Round", ["flat"], "rounded")
        self.node("Cast", ["rounded"], "whole", to=INT)
        self.node("Mod", ["whole", "modulus"], "next_tokens")
