"""Element types and shapes of every tensor of a model, by ONNX shape inference on a copy without the big weights.

Knows nothing of steps. What inference cannot tell (outputs of custom operators) is absent.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

# Reshape targets and the like are needed to infer shapes; weights are not, and would be copied several times.
_COPIED_ELEMENTS = 1024

Shape = tuple[int | str | None, ...]


@dataclass(frozen=True)
class TensorTypes:
    """What is known of tensors by name.

    Attributes:
        elements: name -> ONNX element type (`onnx.TensorProto.FLOAT` and so on).
        shapes: name -> shape; a dynamic axis is its symbol where it has one, else None.
    """

    elements: dict[str, int]
    shapes: dict[str, Shape]


def tensor_types(model: onnx.ModelProto) -> TensorTypes:
    """Infer the element types and shapes of inputs, initializers and node outputs of the main graph."""
    inferred = onnx.shape_inference.infer_shapes(_without_weights(model), data_prop=True).graph
    elements, shapes = {}, {}
    for value in [*inferred.value_info, *inferred.output, *inferred.input]:
        kind = value.type.tensor_type
        if value.type.HasField("tensor_type") and kind.elem_type:
            elements[value.name] = kind.elem_type
            if kind.HasField("shape"):
                shapes[value.name] = tuple(_axis(axis) for axis in kind.shape.dim)
    for tensor in model.graph.initializer:
        elements[tensor.name], shapes[tensor.name] = tensor.data_type, tuple(tensor.dims)
    return TensorTypes(elements, shapes)


def _axis(axis: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if axis.HasField("dim_value"):
        return int(axis.dim_value)
    return axis.dim_param or None


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = model.graph
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.name = graph.name or "graph"
    light.graph.node.extend(graph.node)
    light.graph.input.extend(graph.input)
    light.graph.output.extend(graph.output)
    # Written types may be older than the last edit, so only those are taken that inference cannot find.
    foreign = {name for node in graph.node if node.domain not in ("", "ai.onnx") for name in node.output}
    light.graph.value_info.extend(value for value in graph.value_info if value.name in foreign)
    known = {value.name for value in graph.input}
    for tensor in graph.initializer:
        elements = 1
        for size in tensor.dims:
            elements *= size
        if elements <= _COPIED_ELEMENTS and not tensor.external_data:
            light.graph.initializer.append(tensor)
        elif tensor.name not in known:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light
