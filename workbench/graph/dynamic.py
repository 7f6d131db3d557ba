"""INT8 with scales found at run time: DynamicQuantizeLinear before each MatMul and Gemm with a constant weight.

Written in standard ONNX, in the form that ONNX Runtime's CPU fuses into one kernel. Needs no calibration. Knows
nothing of ranges; TensorRT has nothing of the kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from workbench.errors import RecipeError, TransformError
from workbench.graph.bodies import in_every_graph
from workbench.graph.dialects import Dialect, dialect
from workbench.graph.editing import Context, Graph, attribute, label
from workbench.graph.placement import output_axis, quantizable_nodes, told
from workbench.graph.qdq import codes, scale_of_weight, weight_format
from workbench.graph.quantized_by import quantized_by
from workbench.recipes import Quantize
from workbench.records import Skipped, StepReport

# DynamicQuantizeLinear is the younger of the two operators: MatMulInteger came with opset 10.
_SMALLEST_OPSET = 11
_BATCH_NOTE = (
    "Dynamic scales are taken over the whole batch: a sample's answer depends a little on the samples run beside it."
)


def apply(model: onnx.ModelProto, step: Quantize, context: Context) -> StepReport:
    """Quantize in place with scales found at run time, in the bodies of nodes too.

    Args:
        model: an FP32 graph.
        context: only `dialect` and `modules` are used.

    Raises:
        TransformError: the dialect has no dynamic INT8, the graph is quantized already, or has nothing to quantize.
        RecipeError: the step asks for FP8 or for symmetric activations.
    """
    _check(model, step, context)
    style = dialect(context.dialect).ranged(step.reduce_range)
    found, left = in_every_graph(Graph(model), lambda graph: _lower_all(graph, step, context, style))
    names = tuple(name for done in found for name in done.names)
    skipped = (*left, *(item for done in found for item in done.skipped))
    if not names:
        reasons = told(skipped) or "it has no MatMul or Gemm"
        raise TransformError(f"Nothing in this model can be quantized dynamically ({reasons}). Quantize it statically.")
    narrow = list(names) if style.narrow else []
    inputs = [name for done in found for name in done.inputs]
    details = {
        "dialect": context.dialect, "format": "uint8", "seven_bit_weights": narrow, "dynamic_inputs": inputs
    }  # fmt: skip
    notes = (_BATCH_NOTE, *filter(None, [style.weights]))
    return StepReport(step.kind, 0.0, names, skipped, notes, details)


@dataclass(frozen=True)
class _Lowered:
    """What was lowered in one graph, what was not, and the activations that are coded there."""

    names: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    inputs: tuple[str, ...]


def _lower_all(graph: Graph, step: Quantize, context: Context, style: Dialect) -> _Lowered:
    nodes, skipped = quantizable_nodes(graph, step, context, style)
    lowered = []
    for node in nodes:
        reason = _obstacle(graph, node)
        if reason:
            skipped.append(Skipped(label(node), reason))
        else:
            lowered.append(node)
    coded: dict[str, tuple[str, str, str]] = {}
    names = tuple(label(node) for node in lowered)
    for node in lowered:
        _lower(graph, node, step.per_channel, style, coded)
    graph.finish()
    return _Lowered(names, tuple(skipped), tuple(coded))


def _check(model: onnx.ModelProto, step: Quantize, context: Context) -> None:
    if context.family != "ort-cpu":
        raise TransformError(
            f"The engine that this file is for (dialect {context.dialect!r}) has no INT8 with scales found at run time. "
            f"Take static quantization, such as the recipe 'int8-max', or the backend onnxruntime-cpu."
        )
    if step.to != "int8" or step.symmetric:
        raise RecipeError(
            f"Dynamic activations are unsigned INT8 with a zero point; the step asks for {step.to}, "
            f"symmetric={step.symmetric}. Leave both at their defaults."
        )
    origin = quantized_by(model)
    if origin is not None:
        raise TransformError(
            f"This graph is quantized already (by {origin}); quantizing twice would add the error of both. "
            f"Load the unquantized model, or run this one with the recipe 'fp32'."
        )
    if Graph(model).opset < _SMALLEST_OPSET:
        raise TransformError(
            f"The graph has opset {Graph(model).opset}, and dynamic quantization needs at least {_SMALLEST_OPSET}. "
            f"Load the model with a newer opset: workbench.load(source, opset=17)."
        )


def _obstacle(graph: Graph, node: onnx.NodeProto) -> str | None:
    if node.op_type in ("Conv", "ConvTranspose"):
        return "ONNX Runtime's convolution with scales found at run time is several times slower than FP32"
    if not graph.is_constant(node.input[1]):
        return "both its inputs are activations; with scales found at run time for both nothing is gained"
    if node.op_type == "Gemm":
        if attribute(node, "transA", 0):
            return "its first input is transposed, which integer products cannot do"
        if len(node.input) > 2 and node.input[2] and attribute(node, "beta", 1.0) != 1.0:
            return f"its bias is scaled by {attribute(node, 'beta', 1.0)}"
    return None


def _lower(
    graph: Graph, node: onnx.NodeProto, per_channel: bool, style: Dialect, coded: dict[str, tuple[str, str, str]]
) -> None:
    """Replace a MatMul or Gemm by DynamicQuantizeLinear, MatMulInteger, Cast, Mul (and Add)."""
    weight_name, name, output = node.input[1], label(node), node.output[0]
    bias = node.input[2] if len(node.input) > 2 else ""
    source = node.input[0]
    if source not in coded:
        parts = ("codes", "scale", "zero_point")
        coded[source] = tuple(graph.unique(f"{source}_{part}") for part in parts)  # type: ignore[assignment]
        graph.add_node("DynamicQuantizeLinear", [source], list(coded[source]), f"{source}_DynamicQuantizeLinear")
    array, axis = _weight(graph, node, per_channel)
    to = weight_format(node, array.shape, style)
    scale, _ = scale_of_weight(array, axis, to)
    graph.remove_node(node)
    stored = graph.add_initializer(f"{weight_name}_quantized", codes(array, scale, axis, to))
    zero = graph.add_initializer(f"{weight_name}_zero_point", np.zeros(scale.shape, np.int8))
    scale = scale * np.float32(attribute(node, "alpha", 1.0))
    weight_scale = graph.add_initializer(f"{weight_name}_scale", scale)
    x, x_scale, x_zero = coded[source]
    total, real, factor = (graph.unique(f"{output}_{part}") for part in ("integer", "float", "factor"))
    product = graph.unique(f"{output}_product") if bias else output
    graph.add_node("MatMulInteger", [x, stored, x_zero, zero], [total], f"{name}_MatMulInteger")
    graph.add_node("Cast", [total], [real], f"{name}_Cast", to=onnx.TensorProto.FLOAT)
    graph.add_node("Mul", [x_scale, weight_scale], [factor], f"{name}_Scale")
    graph.add_node("Mul", [real, factor], [product], name)
    if bias:
        graph.add_node("Add", [product, bias], [output], f"{name}_Bias")


def _weight(graph: Graph, node: onnx.NodeProto, per_channel: bool) -> tuple[NDArray[np.float32], int | None]:
    """Return the weight as (inputs, outputs), and the axis that its scales run along."""
    array = np.asarray(graph.array(node.input[1]))
    if node.op_type == "Gemm" and output_axis(node, 2) == 0:
        array = array.T
    return array, 1 if per_channel and array.ndim == 2 else None
