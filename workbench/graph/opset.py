"""Bring a model to another version of ONNX's operator set without losing names, weights or metadata.

`onnx.version_converter` does the operators; it drops the metadata of nodes (PyTorch module paths) and copies all
weights, so weights stay outside and metadata is put back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
from onnx import version_converter

from workbench.errors import TransformError
from workbench.graph.bodies import in_every_graph
from workbench.graph.dialects import family
from workbench.graph.editing import Graph, attribute, every_node, subgraphs
from workbench.graph.tensor_types import tensor_types
from workbench.recipes import Precision, Quantize, QuantizeWeights, Recipe

# Adapters read small constants (axes, shapes); larger ones are weights, which they must not touch.
_WEIGHT_BYTES = 4096
# Q/DQ with a scale a channel came with 13, FP8 and FP16 scales with 19, INT4 and blocks with 21, BF16 Conv with 22.
_PER_CHANNEL, _LOW_FLOAT, _BLOCKS, _BF16 = 13, 19, 21, 22
# Casts to and from BF16, between which engines without its arithmetic compute in FP32.
_BF16_CAST = 13
# From here on Resize can sample in several ways, and says which.
_RESIZE_MODES = 11
_RESIZES = ("Resize", "Upsample")
# Before 13 Hardmax flattened the axes from its axis on; since then it works along one axis.
_HARDMAX_AXIS = 13
_TENSORRT_8_LARGEST = 17
_TENSORRT_8_IR = 8


def fit(model: onnx.ModelProto, dialect: str, recipe: Recipe) -> tuple[str, ...]:
    """Bring the model, in place, to the opset that the recipe's steps need in this dialect.

    Returns:
        A sentence where the opset was changed, else nothing.

    Raises:
        TransformError: an operator of the model has no form in the opset needed.
    """
    dialect = family(dialect)
    needed = _needed(recipe, dialect)
    if dialect != "trt-8.6":
        return raise_to(model, needed)
    if needed > _TENSORRT_8_LARGEST:
        return raise_to(model, min(needed, _PER_CHANNEL))  # the step itself says that 8.6 has no such thing
    notes = raise_to(model, needed) + lower_to(model, _TENSORRT_8_LARGEST)
    model.ir_version = min(model.ir_version, _TENSORRT_8_IR)
    return notes


def raise_to(model: onnx.ModelProto, version: int) -> tuple[str, ...]:
    """Convert in place if the model's opset is lower; return what was done, in at most one sentence.

    Raises:
        TransformError: an operator cannot be converted.
    """
    return _convert(model, version) if _version(model) < version else ()


def lower_to(model: onnx.ModelProto, version: int) -> tuple[str, ...]:
    """Convert in place if the model's opset is higher; return what was done, in at most one sentence.

    Raises:
        TransformError: an operator did not exist then, or cannot be converted.
    """
    return _convert(model, version) if _version(model) > version else ()


def _needed(recipe: Recipe, dialect: str) -> int:
    quantize, precision = recipe.step("quantize"), recipe.step("precision")
    low_float = isinstance(precision, Precision) and precision.to in ("fp16", "bf16")
    needed = 1
    if isinstance(quantize, Quantize):
        weak = dialect == "trt-8.6" and quantize.to == "int8"
        needed = _LOW_FLOAT if quantize.to == "fp8" or (low_float and not weak) else _PER_CHANNEL
    weights = recipe.step("quantize_weights")
    if isinstance(weights, QuantizeWeights):
        blocks = dialect == "ort-cpu" or (dialect == "strong" and weights.to == "int4")
        needed = max(needed, _BLOCKS if blocks else _LOW_FLOAT if low_float and dialect == "strong" else _PER_CHANNEL)
    if isinstance(precision, Precision) and precision.to == "bf16":
        needed = max(needed, _BF16 if dialect == "strong" else _BF16_CAST)
    return needed


def _version(model: onnx.ModelProto) -> int:
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def _convert(model: onnx.ModelProto, version: int) -> tuple[str, ...]:
    old = _version(model)
    where = f"opset {old} to {version}"
    graph = Graph(model)
    _refuse((node for function in model.functions for node in function.node), old, version)
    _, left = in_every_graph(graph, lambda one: _convert_graph(one, version, where))
    names = {item.name for item in left}
    bodies = [body for node in every_node(graph.proto) if node.name in names for body in subgraphs(node)]
    _refuse((node for body in bodies for node in every_node(body)), old, version)
    return (f"The graph was converted from {where}.",)


def _convert_graph(graph: Graph, version: int, where: str) -> None:
    """Convert one graph, of which each body was converted before: the converter leaves bodies as they are."""
    old = _version(graph.model)
    # Older converters have no adapter for Constant nodes; as initializers they need none.
    graph.lift_constants()
    resized = [node for node in graph.nodes if node.op_type in _RESIZES] if old < _RESIZE_MODES <= version else []
    grid = {node.name: _nearest_mode(graph, node, where) for node in resized}
    if (old < _HARDMAX_AXIS) != (version < _HARDMAX_AXIS):
        _name_hardmax_axis(graph, where)
    light, weights = _without_weights(graph)
    try:
        converted = version_converter.convert_version(light, version)
    except (RuntimeError, ValueError, version_converter.ConvertError) as error:
        raise TransformError(
            f"The model cannot be brought from {where}: {_said(error)}. "
            f"Export it with opset {version}, or take a recipe or backend that does not need it."
        ) from error
    _drop_defaults(converted, old, version)
    _keep_names(graph, converted)
    _free_names(graph, converted)
    try:
        if graph.owner is None:  # a body is checked with the graph around it
            onnx.checker.check_model(converted)
    except onnx.checker.ValidationError as error:
        raise TransformError(
            f"Bringing the model from {where} gave no valid model: {str(error).splitlines()[0]}. "
            f"Export it with opset {version}, or take a recipe or backend that does not need it."
        ) from error
    _check_names(graph, converted, where)
    _keep_sampling_grid(converted, grid)
    _put_back(graph.model, converted, weights)


def _nearest_mode(graph: Graph, node: onnx.NodeProto, where: str) -> str:
    """Return how a Resize of opset 10 rounds where it samples: down where it enlarges, up where it shrinks.

    The operator's text leaves that open; so does ONNX Runtime (1.32), whose answers are taken for what was meant.
    """
    if attribute(node, "mode", b"nearest") != b"nearest":
        return "floor"
    scales = graph.array(node.input[1])
    if scales is not None and (scales >= 1).all():
        return "floor"
    if scales is not None and (scales <= 1).all():
        return "ceil"
    raise TransformError(
        f"The model cannot be brought from {where}: {node.name} is a nearest Resize that enlarges along one axis and "
        f"shrinks along another, or whose scales are computed, which later opsets cannot express. Export it with a newer "
        f"opset."
    )


def _keep_sampling_grid(model: onnx.ModelProto, nearest: Mapping[str, str]) -> None:
    """Write out where an Upsample, or a Resize of opset 10, samples: its one way is not the default of later opsets.

    No adapter says so: linear enlargements by two were off by half a pixel.
    """
    for node in model.graph.node:
        if node.op_type == "Resize" and node.name in nearest:
            modes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": nearest[node.name]}
            kept = [item for item in node.attribute if item.name not in modes]
            del node.attribute[:]
            node.attribute.extend(kept)
            node.attribute.extend(onnx.helper.make_attribute(name, mode) for name, mode in modes.items())


def _name_hardmax_axis(graph: Graph, where: str) -> None:
    """Give each Hardmax the axis that means the same on both sides of 13: the last one.

    Raises:
        TransformError: it works on another axis, or on a tensor of unknown rank.
    """
    shapes = tensor_types(graph.model).shapes
    for node in [node for node in graph.nodes if node.op_type == "Hardmax"]:
        shape = shapes.get(node.input[0])
        axis = attribute(node, "axis", 1 if _version(graph.model) < _HARDMAX_AXIS else -1)
        if shape is None or axis not in (-1, len(shape) - 1):
            raise TransformError(
                f"The model cannot be brought from {where}: {node.name} is a Hardmax over axis {axis} of {shape}, which "
                f"the other opset has no word for unless that is the last axis. Export it with the opset that is needed."
            )
        kept = [item for item in node.attribute if item.name != "axis"]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("axis", len(shape) - 1)])


def _keep_names(graph: Graph, converted: onnx.ModelProto) -> None:
    """Give tensors that an adapter renamed their names back: those that read them show which they are."""
    after = {node.name: node for node in converted.graph.node}
    made = {name for node in converted.graph.node for name in node.output}
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        now = after.get(node.name)
        for old, new in zip(node.input, () if now is None else now.input, strict=False):
            if old != new and old in graph.producer and old not in made and new in made:
                renamed[new] = old
    for node in converted.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = renamed.get(name, name)


def _free_names(graph: Graph, converted: onnx.ModelProto) -> None:
    """Give tensors that an adapter added names that no other graph of the model has: it saw this one alone."""
    before = {name for node in graph.nodes for name in node.output} | set(graph.initializers) | set(graph.inputs)
    added = [
        *(name for node in converted.graph.node for name in node.output),
        *(one.name for one in converted.graph.initializer),
    ]
    renamed = {name: graph.unique(name) for name in added if name and name not in before}
    for node in converted.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = renamed.get(name, name)
    for tensor in converted.graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)


def _said(error: Exception) -> str:
    """The converter's message without the place in its source."""
    return str(error).splitlines()[0].rpartition("failed: ")[2].rstrip(".")


def _refuse(nodes: Iterable[onnx.NodeProto], old: int, new: int) -> None:
    """Refuse operators that changed between the versions, in functions and in bodies that could not be opened."""
    for node in nodes:
        if node.domain not in ("", "ai.onnx"):
            continue
        if _since(node.op_type, old) != _since(node.op_type, new):
            raise TransformError(
                f"The model cannot be brought from opset {old} to {new}: {node.op_type} inside a subgraph or function "
                f"changed in between, and it could not be converted. Export it with opset {new}."
            )


def _since(operator: str, version: int) -> int | None:
    try:
        return int(onnx.defs.get_schema(operator, version, "").since_version)
    except onnx.defs.SchemaError:
        return None


def _without_weights(graph: Graph) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """A copy in which large weights are graph inputs, and those weights."""
    weights = [tensor for tensor in graph.proto.initializer if tensor.ByteSize() > _WEIGHT_BYTES]
    model = graph.model
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.name = graph.proto.name or "graph"
    light.graph.node.extend(graph.proto.node)
    light.graph.input.extend(graph.proto.input)
    light.graph.output.extend(graph.proto.output)
    light.graph.initializer.extend(
        _typed(tensor) for tensor in graph.proto.initializer if tensor.ByteSize() <= _WEIGHT_BYTES
    )
    for tensor in weights:
        light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light, weights


def _typed(tensor: onnx.TensorProto) -> onnx.TensorProto:
    """The same constant with its integers spelled out: the adapters of onnx 1.19 read raw bytes as no axes at all."""
    if tensor.data_type != onnx.TensorProto.INT64 or not tensor.HasField("raw_data"):
        return tensor
    values = onnx.numpy_helper.to_array(tensor).ravel().tolist()
    return onnx.helper.make_tensor(tensor.name, onnx.TensorProto.INT64, tensor.dims, values)


def _drop_defaults(model: onnx.ModelProto, old: int, new: int) -> None:
    """Drop attributes that the operator's other version lacks and that hold their default, which adapters leave."""
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or _since(node.op_type, new) is None or _since(node.op_type, old) is None:
            continue
        known = onnx.defs.get_schema(node.op_type, new, "").attributes
        former = onnx.defs.get_schema(node.op_type, old, "").attributes
        for item in [item for item in node.attribute if item.name not in known and item.name in former]:
            default = former[item.name].default_value
            if default.type and onnx.helper.get_attribute_value(default) == onnx.helper.get_attribute_value(item):
                node.attribute.remove(item)


def _check_names(graph: Graph, converted: onnx.ModelProto, where: str) -> None:
    """Make sure that what others refer to by name is still there, and rename nodes that an adapter replaced.

    Small constants may be gone, into attributes; weights never were in the adapters' hands.
    """
    result = Graph(converted)
    present = {node.name for node in result.nodes}
    lost = [name for name in graph.outputs if name not in result.outputs]
    for node in [node for node in graph.nodes if node.name not in present]:
        heir = result.producer.get(next(iter(node.output), ""))
        if heir is None:
            lost.append(node.name)
        else:
            heir.name = node.name
    if lost:
        raise TransformError(
            f"Bringing the model from {where} lost {len(lost)} names that later steps need, such as {lost[0]!r}. "
            f"Export it with the opset that is needed."
        )


def _put_back(model: onnx.ModelProto, converted: onnx.ModelProto, weights: list[onnx.TensorProto]) -> None:
    metadata = {node.name: list(node.metadata_props) for node in model.graph.node}
    kept = {tensor.name for tensor in weights}
    for node in converted.graph.node:
        if not node.metadata_props:
            node.metadata_props.extend(metadata.get(node.name, []))
    # Weights stay where they are: a copy of them all may not fit into memory.
    initializers = model.graph.initializer
    for index in reversed(range(len(initializers))):
        if initializers[index].name not in kept:
            del initializers[index]
    initializers.extend(tensor for tensor in converted.graph.initializer if tensor.name not in kept)
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(converted.graph.node)
    foreign = [(entry.domain, entry.version) for entry in model.opset_import if entry.domain not in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.append(
        onnx.helper.make_opsetid("", next(e.version for e in converted.opset_import if not e.domain))
    )
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in foreign)
    least = onnx.helper.find_min_ir_version_for([entry for entry in model.opset_import if not entry.domain])
    model.ir_version = max(model.ir_version, least)
