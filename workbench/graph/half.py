"""Write a graph of FP16 or BF16 tensors in FP32 arithmetic that rounds each operator's result to the type of the file.

For engines without such arithmetic: they compute several operators in FP32 between two roundings, and hide what
overflows. Sums inside an operator are FP32, as on tensor cores; beyond the largest number the result is infinite, as it
is there. Knows no engine.
"""

from __future__ import annotations

import onnx

from workbench.graph.casting import Conversion, rehearse
from workbench.graph.editing import Graph, subgraphs
from workbench.graph.tensor_types import tensor_types

HALF_TYPES = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
_CASTS = ("Cast", "CastLike")


def half_type(model: onnx.ModelProto) -> str | None:
    """Return `fp16` or `bf16` where a node besides casts computes in it, else None."""
    elements = tensor_types(model).elements
    for name, kind in HALF_TYPES.items():
        if any(
            elements.get(tensor) == kind
            for node in model.graph.node
            if node.op_type not in _CASTS
            for tensor in node.output
        ):
            return name
    return None


def rounded_form(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Return a copy that computes in FP32 and rounds after each operator, outputs FP32; None where that cannot be done.

    That is so where subgraphs or functions work on half types, which are left alone, and where nothing is half.
    """
    kind = half_type(model)
    if kind is None or model.functions or any(True for node in model.graph.node for _ in subgraphs(node)):
        return None
    target = HALF_TYPES[kind]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = Graph(result)
    graph.lift_constants()
    elements = tensor_types(result).elements
    low: dict[str, int] = {name: target for name, element in elements.items() if element == target}
    for value in result.graph.input:
        if value.name in low and value.name not in graph.initializers:
            wide = graph.unique(f"{value.name}_fp32")
            graph.rewire(value.name, wide)
            graph.add_node("Cast", [value.name], [wide], f"{value.name}/to_fp32", to=onnx.TensorProto.FLOAT)
            del low[value.name]
    rehearse(graph, Conversion([], low), target)
    for value in result.graph.output:
        if value.name in low:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    graph.finish()
    return result
