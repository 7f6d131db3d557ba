"""Which nodes stay in FP32 when the rest of a graph goes to FP16 or BF16, each with its reason.

Knows the graph, the calibration table and ONNX's operator schemas; changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import onnx

from workbench.graph.bodies import in_a_loop
from workbench.graph.cost import MULTIPLIES
from workbench.graph.editing import FLOAT_TYPES, Context, Graph, attribute, subgraphs
from workbench.graph.tensor_types import TensorTypes
from workbench.recipes import Precision

FLOAT = onnx.TensorProto.FLOAT
FLOAT16 = onnx.TensorProto.FLOAT16
LARGEST_FP16 = 65504.0
# Below it FP16 loses digits, and below a thousandth of it everything.
SMALLEST_FP16 = 2.0**-14
# From here on FP16 activations are kept out, with room for what data outside the calibration set does
# (the threshold of ModelOpt's AutoCast).
LARGEST_TRUSTED_ACTIVATION = 512.0
# A quantization scale may lose this much when rounded, about what BF16 loses; tiny scales in FP16 lose more.
LARGEST_SCALE_ERROR = 2.0**-8
# Constants of position and mask arithmetic are small; larger ones are weights.
_POSITION_CONSTANT_ELEMENTS = 4096

_NORMS = frozenset((
    "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization",
    "MeanVarianceNormalization", "RMSNormalization", "Softmax", "LogSoftmax", "SoftmaxCrossEntropyLoss",
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare",
))  # fmt: skip
_TYPE_BY_ATTRIBUTE = frozenset((
    "BlackmanWindow", "Bernoulli", "ConstantOfShape", "EyeLike", "HammingWindow", "HannWindow", "MelWeightMatrix",
    "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "SequenceEmpty",
))  # fmt: skip
MOVING = frozenset((
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
))  # fmt: skip
_PASSES_LARGE_VALUES = MOVING | {"Add", "Sub", "Mul", "Where", "Neg", "Abs", "Max", "Min", "Sum", "Clip", "Relu"}
_SCATTERING = ("ScatterND", "ScatterElements")
# The first two inputs of these are multiplied or divided: what is lost of one is lost of the result.
_FACTORS = ("Conv", "ConvTranspose", "Div", "Gemm", "MatMul", "Mul")
_MEASURED_BY_REDUCTION = ("Pow", "Mul", "Sub", "Abs", "Exp")
_USES_REDUCTION = ("Add", "Sub", "Sqrt", "Reciprocal", "Pow", "Div", "Mul")
_POSITION_ARITHMETIC = MOVING | {
    "Add", "Sub", "Mul", "Div", "Pow", "Neg", "Cast", "Cos", "Sin", "CumSum", "Equal", "Einsum", "Exp", "Floor", "MatMul",
    "Max", "Min", "Mod", "Not", "Range", "Reciprocal", "Where",
}  # fmt: skip


def kept_in_fp32(graph: Graph, step: Precision, context: Context, types: TensorTypes, target: int) -> dict[str, str]:
    """Return node name -> reason for every node that must stay in FP32.

    Args:
        graph: the model, opset and Q/DQ as they will be.
        step: its patterns always hold; its `auto_exclude` turns the rules on numerics on or off.
        context: calibration table and module paths.
        types: of the graph's tensors; nodes without FP32 tensors are not mentioned.
        target: `FLOAT16` or `BFLOAT16`.
    """
    nodes = [node for node in graph.nodes if touches_fp32(node, types) and node.op_type != "Constant"]
    kept: dict[str, str] = {}
    for node in nodes:
        pattern = context.excluded_by(node, step.exclude)
        reason = (
            f"it matches the pattern {pattern!r}" if pattern is not None else _impossible(graph, node, types, target)
        )
        if reason is None and step.auto_exclude:
            reason = _risky(graph, node, context, types, target)
        if reason is not None:
            kept[node.name] = reason
    if target == FLOAT16 and context.family == "ort-cpu":
        _keep_coded_in_bodies(graph, nodes, kept)
    _keep_before_fp32_inputs(graph, nodes, types, target, kept)
    if step.auto_exclude:
        _keep_norm_chains(graph, kept)
        _keep_position_arithmetic(graph, nodes, types, kept)
        if target == FLOAT16:
            _keep_readers_of_large_values(graph, nodes, kept)
        _keep_in_bodies(graph, nodes, kept)
    _keep_between(graph, nodes, types, kept)
    return kept


def touches_fp32(node: onnx.NodeProto, types: TensorTypes) -> bool:
    """Whether a node reads or writes an FP32 tensor, as far as types are known (custom operators count)."""
    names = [*node.input, *node.output]
    return node.domain not in ("", "ai.onnx") or any(types.elements.get(name) == FLOAT for name in names)


def schema_of(node: onnx.NodeProto, opset: int) -> onnx.defs.OpSchema | None:
    """Return the operator's schema at this opset, or None where it does not exist there."""
    try:
        return onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def accepts(schema: onnx.defs.OpSchema, index: int, target: int, output: bool = False) -> bool:
    """Whether input (or output) number `index` of an operator may have the element type `target`."""
    slots = schema.outputs if output else schema.inputs
    slot = slots[min(index, len(slots) - 1)]
    allowed = next(
        (item.allowed_type_strs for item in schema.type_constraints if item.type_param_str == slot.type_str), []
    )
    return f"tensor({onnx.TensorProto.DataType.Name(target).lower()})" in allowed


def _impossible(graph: Graph, node: onnx.NodeProto, types: TensorTypes, target: int) -> str | None:
    if subgraphs(node):
        return "its inputs and outputs keep their type, and its subgraph is converted by itself"
    if node.domain not in ("", "ai.onnx"):
        return f"{node.domain}::{node.op_type} is no standard ONNX operator, so its types are not known"
    if node.op_type in _TYPE_BY_ATTRIBUTE or "Sequence" in node.op_type or "Optional" in node.op_type:
        return f"the types of {node.op_type} do not follow from its inputs"
    unknown = [name for name in [*node.input, *node.output] if name and name not in types.elements]
    if unknown:
        return f"the type of {unknown[0]!r} could not be inferred"
    # BF16 graphs are written with opset 22 or later, where Conv and pooling take it.
    opset = graph.opset if target == FLOAT16 else max(graph.opset, 22)
    schema = schema_of(node, opset)
    fp32 = [index for index, name in enumerate(node.output) if types.elements.get(name) == FLOAT]
    name = "FP16" if target == FLOAT16 else "BF16"
    if schema is None or not all(accepts(schema, index, target, output=True) for index in fp32):
        return f"{node.op_type} has no {name} form in opset {opset}"
    inputs = [index for index, tensor in enumerate(node.input) if types.elements.get(tensor) == FLOAT]
    if inputs and not fp32 and not accepts(schema, inputs[0], target):
        return f"{node.op_type} takes no {name} in opset {opset}"
    if node.op_type in _SCATTERING and attribute(node, "reduction", b"none") != b"none":
        return f"{node.op_type} adds up or compares while it scatters, for which engines have no {name} kernel"
    return _bad_scale(graph, node, target)


def _bad_scale(graph: Graph, node: onnx.NodeProto, target: int) -> str | None:
    if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
        return None
    scale = graph.array(node.input[1])
    if scale is None or target != FLOAT16 or scale.dtype != np.float32:
        return None
    with np.errstate(over="ignore"):
        rounded = scale.astype(np.float16).astype(np.float32)
    error = float((np.abs(rounded - scale) / np.maximum(np.abs(scale), np.finfo(np.float32).tiny)).max(initial=0.0))
    return f"its scale would lose {error:.1%} in FP16" if error > LARGEST_SCALE_ERROR else None


def _risky(graph: Graph, node: onnx.NodeProto, context: Context, types: TensorTypes, target: int) -> str | None:
    if node.op_type in _NORMS:
        return f"{node.op_type} sums over many values and stays in FP32"
    if target != FLOAT16:
        return None  # BF16 has the range of FP32
    for index, name in enumerate(node.input):
        array = graph.array(name) if types.elements.get(name) == FLOAT else None
        largest = _largest_finite(array)
        if largest > LARGEST_FP16:
            return f"its constant {name!r} reaches {largest:g}, beyond FP16's {LARGEST_FP16:g}"
        if 0 < largest < SMALLEST_FP16 and node.op_type in _FACTORS and index < 2:
            return f"its constant {name!r} reaches only {largest:g}, below FP16's smallest normal number {SMALLEST_FP16:.2g}"
    for name in [*node.input, *node.output]:
        source = _before_quantization(graph, name)
        histogram = None if context.table is None else context.table.get(source)
        if histogram is not None and (histogram.nans or histogram.infinities):
            return f"{name!r} held NaN or infinite values during calibration"
        largest = max((context.magnitudes or {}).get(source, 0.0), 0.0 if histogram is None else histogram.abs_max)
        if largest > LARGEST_TRUSTED_ACTIVATION:
            return f"{name!r} reached {largest:.4g} during calibration, above {LARGEST_TRUSTED_ACTIVATION:g}"
        if 0 < largest < SMALLEST_FP16:
            return f"{name!r} reached only {largest:.2g} during calibration, below FP16's smallest normal number"
    return None


def _largest_finite(array: np.ndarray | None) -> float:
    if array is None:
        return 0.0
    return float(np.max(np.abs(array), initial=0.0, where=np.isfinite(array)))


def _before_quantization(graph: Graph, name: str) -> str:
    """The tensor that a DequantizeLinear's output stands for."""
    for operator in ("DequantizeLinear", "QuantizeLinear"):
        node = graph.producer.get(name)
        if node is not None and node.op_type == operator:
            name = node.input[0]
    return name


def _keep_before_fp32_inputs(
    graph: Graph, nodes: list[onnx.NodeProto], types: TensorTypes, target: int, kept: dict[str, str]
) -> None:
    """Keep what computes nothing but inputs that are FP32 by definition, such as the scales of a Resize.

    Rounded, they would give an output of another size.
    """
    exact: dict[str, str] = {}
    for node in reversed(nodes):
        uses = [(reader, index) for name in node.output for reader in graph.consumers.get(name, [])
                for index, read in enumerate(reader.input) if read == name]  # fmt: skip
        told = {_reads_fp32(reader, index, graph.opset, target) or exact.get(reader.name, "") for reader, index in uses}
        if told and "" not in told and not any(name in graph.pinned for name in node.output):
            exact[node.name] = next(iter(told))
            kept.setdefault(node.name, f"it computes what {exact[node.name]} takes in FP32 only")


def _reads_fp32(node: onnx.NodeProto, index: int, opset: int, target: int) -> str:
    """Return the operator where its input of this number cannot have the lower type while its first one can, else nothing."""
    schema = schema_of(node, opset if target == FLOAT16 else max(opset, 22)) if not node.domain else None
    exact = schema is not None and accepts(schema, 0, target) and not accepts(schema, index, target)
    return node.op_type if exact else ""


def _keep_norm_chains(graph: Graph, kept: dict[str, str]) -> None:
    """Keep what surrounds a reduction in a norm that is written out: x - mean, its square, + epsilon, sqrt, x / sqrt."""
    for reduction in [node for node in graph.nodes if node.op_type.startswith("Reduce") and node.name in kept]:
        reason = f"it is part of the norm around {reduction.name!r}, which stays in FP32"
        stack = [graph.producer.get(reduction.input[0])]
        while stack:
            node = stack.pop()
            square = node is not None and (node.op_type != "Mul" or node.input[0] == node.input[1])
            if node is not None and node.op_type in _MEASURED_BY_REDUCTION and square and node.name not in kept:
                kept[node.name] = reason
                stack.extend(graph.producer.get(name) for name in node.input)
        _keep_after(graph, reduction, kept, reason)


def _keep_after(graph: Graph, reduction: onnx.NodeProto, kept: dict[str, str], reason: str) -> None:
    queue = [(reader, False) for reader in graph.consumers.get(reduction.output[0], [])]
    while queue:
        node, rooted = queue.pop()
        # A reduction is also pooling; only a root or a reciprocal makes the product after it part of a norm.
        if node.op_type not in _USES_REDUCTION or node.name in kept or (node.op_type == "Mul" and not rooted):
            continue
        if node.op_type == "Add" and not any(graph.is_constant(name) for name in node.input):
            continue
        kept[node.name] = reason
        if node.op_type not in ("Div", "Mul", "Sub"):
            rooted = rooted or node.op_type in ("Sqrt", "Reciprocal", "Pow")
            queue.extend((reader, rooted) for reader in graph.consumers.get(node.output[0], []))
        elif node.op_type == "Div" and graph.is_constant(node.input[0]):
            # 1 / sqrt(...) is followed by the product that applies it.
            queue.extend((reader, True) for reader in graph.consumers.get(node.output[0], []))


def _keep_position_arithmetic(
    graph: Graph, nodes: Iterable[onnx.NodeProto], types: TensorTypes, kept: dict[str, str]
) -> None:
    """Keep what is computed from integers alone (positions, angles, masks): FP16 counts exactly to 2048 only."""
    counted: set[str] = set()
    for node in nodes:
        reals = [name for name in node.input if types.elements.get(name) in FLOAT_TYPES]
        computed = [name for name in reals if not graph.is_constant(name)]
        constants = [graph.initializers[name] for name in reals if name in graph.initializers]
        small = all(math.prod(tensor.dims) <= _POSITION_CONSTANT_ELEMENTS for tensor in constants)
        table = node.op_type.startswith("Gather") and bool(reals) and not computed
        if node.op_type in _POSITION_ARITHMETIC and small and not table and all(name in counted for name in computed):
            counted.update(node.output)
            kept.setdefault(node.name, "it computes with positions or masks, made from integers and truth values alone")


def _keep_readers_of_large_values(graph: Graph, nodes: Iterable[onnx.NodeProto], kept: dict[str, str]) -> None:
    large = {
        output: node.name
        for node in nodes
        if "beyond FP16" in kept.get(node.name, "") and node.op_type in _PASSES_LARGE_VALUES
        for output in node.output
    }
    for node in nodes:
        source = next((large[name] for name in node.input if name in large), None)
        if source is not None and node.op_type in _PASSES_LARGE_VALUES:
            kept.setdefault(node.name, f"it reads values that may lie beyond FP16's range, from {source!r}")
            large.update(dict.fromkeys(node.output, source))


def _keep_coded_in_bodies(graph: Graph, nodes: list[onnx.NodeProto], kept: dict[str, str]) -> None:
    """Keep products with weights of 8 or 4 bits in bodies, and the scales of these.

    With FP16 scales ONNX Runtime 1.32, its optimizer on, makes a MatMulNBits of them that gives wrong answers inside a body
    (as far off as the largest output) and right ones in the main graph.
    """
    if graph.owner is None:
        return
    reason = "ONNX Runtime computes wrong answers from FP16 scales of weights in a body"
    for node in nodes:
        makers = [node, *(graph.producer[name] for name in node.input if name in graph.producer)]
        if any(maker.op_type == "DequantizeLinear" for maker in makers):
            kept.setdefault(node.name, reason)


def _keep_in_bodies(graph: Graph, nodes: list[onnx.NodeProto], kept: dict[str, str]) -> None:
    """Keep bodies that multiply nothing, and in loops all but products: what is carried adds up the rounding of every turn."""
    if graph.owner is None:
        return
    multiplies = any(node.op_type in MULTIPLIES and node.name not in kept for node in nodes)
    reason = "it is no product, and lies in a loop, where rounding adds up from turn to turn"
    if not multiplies:
        reason = (
            "it lies in a body that multiplies nothing in the lower type, where casts would cost more than they save"
        )
    for node in nodes:
        product = node.op_type in (*MULTIPLIES, "QuantizeLinear", "DequantizeLinear")
        if not multiplies or (in_a_loop(graph) and not product):
            kept.setdefault(node.name, reason)


def _keep_between(graph: Graph, nodes: list[onnx.NodeProto], types: TensorTypes, kept: dict[str, str]) -> None:
    """Keep data movement and Q/DQ where it saves a cast: between FP32 nodes; Q after FP32, DQ before FP32."""
    above: set[str] = set()
    below: set[str] = set()
    for node in nodes:
        reals = [name for name in node.input if types.elements.get(name) == FLOAT and not graph.is_constant(name)]
        sources = [graph.producer.get(name) for name in reals]
        if not reals or not all(source is None or source.name in kept or source.name in above for source in sources):
            continue
        if node.op_type in MOVING:
            above.add(node.name)
        elif not any(types.elements.get(name) == FLOAT for name in node.output):
            kept.setdefault(node.name, "it reads FP32 tensors and writes none")
    for node in reversed(nodes):
        readers = [reader for name in node.output for reader in graph.consumers.get(name, [])]
        outward = any(name in graph.pinned for name in node.output)
        if not (readers or outward) or not all(reader.name in kept or reader.name in below for reader in readers):
            continue
        if node.op_type in MOVING:
            below.add(node.name)
        elif node.op_type == "DequantizeLinear":
            kept.setdefault(node.name, "all its readers are in FP32")
    for node in nodes:
        if node.name in above & below:
            kept.setdefault(node.name, "it moves data between FP32 nodes")
