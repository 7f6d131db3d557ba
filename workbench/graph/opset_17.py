"""Lower an ONNX graph from opset 18 to 17, so that TensorRT 8.6 can read what torch's dynamo exporter writes.

The dynamo exporter writes opset 18 and leaves going lower to onnx's version converter, which gives up on the first
ReduceMean (its axes became an input in 18). Few operators changed between 17 and 18; those that a trained network has
are put back here, and anything else is named instead of guessed. Source: onnx's operator changelog, version 18.
"""

from __future__ import annotations

import onnx
from onnx import helper, numpy_helper

# What these got in 18 is an attribute or input that is rarely used; without it 17 means the same.
_NEW_ATTRIBUTES = {
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"},
    "ScatterElements": {},
    "ScatterND": {},
    "Pad": {},
    "Split": {},
}


def lower_to_17(proto: onnx.ModelProto) -> list[str]:
    """Rewrite a model of opset 18 as one of opset 17, if every operator allows it.

    Returns:
        The operators that have no form in opset 17, as `Type (node name)`; the model is untouched if there are any.
    """
    lowered = onnx.ModelProto()
    lowered.CopyFrom(proto)
    constants = _constants(lowered.graph)
    stuck = [f"{node.op_type} ({node.name})" for node in lowered.graph.node if not _lower(node, lowered, constants)]
    if any(attribute.type == onnx.AttributeProto.GRAPH for node in proto.graph.node for attribute in node.attribute):
        stuck.append("nodes with graphs inside")
    if stuck:
        return stuck
    _drop_unused_axes(proto.graph, lowered.graph)
    for entry in lowered.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = 17
    proto.CopyFrom(lowered)
    return []


def _lower(node: onnx.NodeProto, proto: onnx.ModelProto, constants: dict[str, onnx.TensorProto]) -> bool:
    if node.domain not in ("", "ai.onnx") or not _changed_in_18(node.op_type):
        return True
    if node.op_type.startswith("Reduce"):
        return _axes_to_attribute(node, constants)
    if node.op_type not in _NEW_ATTRIBUTES:
        return False
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Pad" and len(node.input) > 3 and node.input[3]:
        return False
    if attributes.get("reduction") in (b"max", b"min") or (node.op_type == "Resize" and "axes" in attributes):
        return False
    if node.op_type == "Split" and "num_outputs" in attributes:
        return _equal_split(node, proto.graph)
    for name, default in _NEW_ATTRIBUTES[node.op_type].items():
        if attributes.get(name, default) != default:
            return False
        _remove_attribute(node, name)
    return True


def _changed_in_18(op_type: str) -> bool:
    if not onnx.defs.has(op_type):
        return False
    try:
        return bool(onnx.defs.get_schema(op_type, 18).since_version == 18)
    except onnx.defs.SchemaError:
        return True


def _axes_to_attribute(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    nothing_to_do = any(item.name == "noop_with_empty_axes" and item.i for item in node.attribute)
    axes_name = node.input[1] if len(node.input) > 1 else ""
    if not axes_name and nothing_to_do:
        return False
    _remove_attribute(node, "noop_with_empty_axes")
    if axes_name:
        if axes_name not in constants:
            return False
        axes = numpy_helper.to_array(constants[axes_name]).reshape(-1).tolist()
        if not axes:
            return False
        del node.input[1:]
        node.attribute.append(helper.make_attribute("axes", axes))
    return True


def _equal_split(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """Whether dropping num_outputs means the same: 17 splits into equal parts only."""
    axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
    values = {value.name: value for value in (*graph.value_info, *graph.input)}
    if node.input[0] not in values:
        return False
    dimensions = values[node.input[0]].type.tensor_type.shape.dim
    if not -len(dimensions) <= axis < len(dimensions):
        return False
    size = dimensions[axis].dim_value
    if size == 0 or size % len(node.output):
        return False
    _remove_attribute(node, "num_outputs")
    return True


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def _drop_unused_axes(before: onnx.GraphProto, after: onnx.GraphProto) -> None:
    """Remove the constants that only the old axes inputs used."""
    kept = {name for node in after.node for name in node.input} | {value.name for value in after.output}
    unused = {name for node in before.node for name in node.input} - kept
    initializers = [tensor for tensor in after.initializer if tensor.name not in unused]
    nodes = [node for node in after.node if not (node.op_type == "Constant" and node.output[0] in unused)]
    del after.initializer[:], after.node[:]
    after.initializer.extend(initializers)
    after.node.extend(nodes)


def _remove_attribute(node: onnx.NodeProto, name: str) -> None:
    kept = [item for item in node.attribute if item.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
