"""Nets whose products lie in bodies: branches of If, bodies of Loop and Scan, and one in the other."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper
from small_nets import copied, net, values

from workbench.graph.editing import graphs

WEIGHTS = {"w": values((64, 64), scale=0.1), "v": values((64, 64), 2, 0.1), "b": values((64,), 3)}
BRANCHES = """(float[N,64] x, bool c) => (float[N,64] y) {
    h = Relu (x)
    r = If (c) <
        then_branch = small () => (float[N,64] t) { [then_product] p = MatMul (h, w)  t = Tanh (p) },
        else_branch = large () => (float[N,64] e) { [else_one] q = MatMul (h, w)  [else_two] s = Gemm (q, v, b)  e = Tanh (s) }>
    [after] m = MatMul (r, w)
    y = Relu (m)
}"""
# The state is carried from turn to turn, and what every turn gives is stacked.
LOOP = """(float[N,64] x, int64 turns, bool go) => (float[N,64] y, float[T,N,64] all) {
    y0, all = Loop (turns, go, x) <
        body = turn (int64 i, bool on, float[N,64] state) => (bool more, float[N,64] next, float[N,64] each) {
            more = Identity (on)
            [recurrent] a = MatMul (state, w)
            [driven] d = MatMul (x, v)
            s = Add (a, d)
            next = Tanh (s)
            each = Relu (next)
        }>
    y = Relu (y0)
}"""
NESTED = """(float[N,64] x, int64 turns, bool go, bool c) => (float[N,64] y) {
    y0 = Loop (turns, go, x) <
        body = turn (int64 i, bool on, float[N,64] state) => (bool more, float[N,64] next) {
            more = Identity (on)
            next = If (c) <
                then_branch = there () => (float[N,64] t) { [inner_then] p = MatMul (state, w)  t = Tanh (p) },
                else_branch = here () => (float[N,64] e) { [inner_else] q = MatMul (state, v)  e = Sigmoid (q) }>
        }>
    y = Relu (y0)
}"""
SCAN = """(float[N,64] x, float[T,N,64] each) => (float[N,64] y) {
    y0, all = Scan (x, each) <num_scan_inputs = 1,
        body = turn (float[N,64] state, float[N,64] now) => (float[N,64] next, float[N,64] out) {
            [driven] d = MatMul (now, v)
            [recurrent] a = MatMul (state, w)
            s = Add (a, d)
            next = Tanh (s)
            out = Identity (next)
        }>
    y = Relu (y0)
}"""
YES, NO, TURNS = np.array(True), np.array(False), np.array(5)
X = values((7, 64), 11)
CASES: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "then": (BRANCHES, {"x": X, "c": YES}),
    "else": (BRANCHES, {"x": X, "c": NO}),
    "loop": (LOOP, {"x": X, "turns": TURNS, "go": YES}),
    "loop of no turns": (LOOP, {"x": X, "turns": np.array(0), "go": YES}),
    "nested then": (NESTED, {"x": X, "turns": TURNS, "go": YES, "c": YES}),
    "nested else": (NESTED, {"x": X, "turns": TURNS, "go": YES, "c": NO}),
    "scan": (SCAN, {"x": X, "each": values((4, 7, 64), 5)}),
}  # fmt: skip


def bodied(text: str, opset: int = 21) -> onnx.ModelProto:
    """The net with its weights outside, where bodies read them."""
    return net(text, opset, **WEIGHTS)


def with_own_weights(parent: onnx.ModelProto) -> onnx.ModelProto:
    """The net with a copy of the weights in each body, under names of its own, and none that only bodies read outside."""
    model = copied(parent)
    for number, level in enumerate(list(graphs(model.graph))[1:]):
        read = {name for node in level.node for name in node.input} & WEIGHTS.keys()
        for name in sorted(read):
            level.initializer.append(numpy_helper.from_array(WEIGHTS[name], f"{name}_{number}"))
        for node in level.node:
            node.input[:] = [f"{name}_{number}" if name in read else name for name in node.input]
    used = {name for node in model.graph.node for name in node.input}
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name not in used:
            del model.graph.initializer[index]
    onnx.checker.check_model(model)
    return model


def inner_operators(model: onnx.ModelProto) -> list[str]:
    """Operator types of all nodes in bodies."""
    return [node.op_type for level in list(graphs(model.graph))[1:] for node in level.node]
