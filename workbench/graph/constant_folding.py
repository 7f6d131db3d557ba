"""Replace nodes that read only constants by their results, computed with the ONNX reference evaluator.

Knows nothing of steps and reports. Weights are folded (transposed, cast) where that does not store them twice.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from workbench.graph.editing import Graph
from workbench.graph.tensor_types import TensorTypes, tensor_types

# Results up to this size are stored even where they are larger than what they are made of.
LARGEST_GROWN_ELEMENTS = 1 << 16

# Pure, deterministic operators whose reference implementation is exact or rounds as any other does. Q/DQ is not
# among them: folded weights would lose their integers.
_FOLDABLE = frozenset((
    "Abs", "Add", "And", "Cast", "Ceil", "Concat", "ConstantOfShape", "Cos", "Div",
    "Equal", "Exp", "Expand", "Flatten", "Floor", "Gather", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Log", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or",
    "Pow", "Range", "Reciprocal", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "ScatterND",
    "Shape", "Sin", "Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Tile",
    "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
))  # fmt: skip


def fold_constants(graph: Graph) -> tuple[list[str], dict[str, str]]:
    """Fold every foldable node of one graph, in order, so that chains collapse in one go.

    Returns:
        Names of the nodes that went, and name -> reason for those that could have and stay.
    """
    folded: list[str] = []
    refused: dict[str, str] = {}
    types = tensor_types(graph.model)
    for node in list(graph.nodes):
        if node.op_type not in _FOLDABLE or node.domain not in ("", "ai.onnx"):
            continue
        if not all(graph.is_constant(name) for name in node.input if name):
            continue
        constants = {name: np.asarray(graph.array(name)) for name in node.input if name}
        if any(array.dtype.kind not in "biuf" for array in constants.values()):
            continue
        reason = _refusal(graph, node, constants, types)
        if reason is None:
            try:
                _replace(graph, node, constants)
                folded.append(node.name)
                continue
            except _EVALUATION_ERRORS as error:
                reason = f"the reference evaluator cannot compute it: {error}"
        refused[node.name] = reason
    return folded, refused


# What the evaluator raises on a model that only an engine's kernel accepts.
_EVALUATION_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, ArithmeticError)


def _refusal(graph: Graph, node: onnx.NodeProto, constants: dict[str, np.ndarray], types: TensorTypes) -> str | None:
    if any(name in graph.outputs for name in node.output):
        return "its result is a graph output"
    stored = sum(array.size for array in constants.values())
    for name in node.output:
        shape = types.shapes.get(name, (None,))
        if any(not isinstance(size, int) for size in shape):
            return "the size of its result could not be inferred"
        elements = math.prod(size for size in shape if isinstance(size, int))
        if elements > max(LARGEST_GROWN_ELEMENTS, stored):
            return f"its result of {elements} elements would be stored in the file"
    shared = [
        name for name, array in constants.items() if array.size > LARGEST_GROWN_ELEMENTS and graph.places(name) > 1
    ]
    if shared:
        return f"{shared[0]!r} has other readers, so folding would store it twice"
    return None


def _replace(graph: Graph, node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> None:
    from onnx.reference import ReferenceEvaluator  # slow to import, and most graphs need no folding

    outputs = [name for name in node.output if name]
    alone = onnx.helper.make_graph(
        [node],
        "constant",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in constants.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    model = onnx.helper.make_model(alone, opset_imports=list(graph.model.opset_import))
    with np.errstate(all="ignore"):
        results = ReferenceEvaluator(model).run(None, constants)
    graph.remove_node(node)
    for name, result in zip(outputs, results, strict=True):
        graph.put_constant(name, np.asarray(result))
