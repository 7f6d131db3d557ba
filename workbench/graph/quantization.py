"""Quantize a graph with static scales: INT8 in three dialects, FP8 (E4M3) in two.

`placement` says where; the calibration table and the calibrator say which range; this module turns ranges into scales
and zero points and has `qdq` write them. Knows nothing of how activations are observed, and opens no engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from workbench.calibration.histogram import Histogram
from workbench.calibration.table import CalibrationTable
from workbench.calibration.thresholds import clipped_share, threshold
from workbench.errors import CalibrationError, RecipeError, TransformError
from workbench.graph.chains import clip_bounds
from workbench.graph.dialects import Dialect, dialect
from workbench.graph.editing import Context, Graph, attribute, every_node, label, subgraphs
from workbench.graph.placement import QUANTIZABLE, Placement, channel_bias, place, told
from workbench.graph.qdq import (
    FLOAT8,
    SEVEN_BIT,
    SIGNED,
    SMALLEST_SCALE,
    UNSIGNED,
    Bias,
    Format,
    WeightWriter,
    scale_of_weight,
    weight_format,
    write_bias,
    write_pair,
)
from workbench.graph.quantized_by import quantized_by
from workbench.recipes import Quantize
from workbench.records import Skipped, StepReport

# Per-channel scales came with opset 13, float8 with opset 19.
_SMALLEST_OPSET = {"int8": 13, "fp8": 19}
_LARGEST_OPSET_TRT_8 = 17


@dataclass(frozen=True)
class Scale:
    """How an activation is coded, and what its calibrator decided.

    Attributes:
        calibrator: which one had the say.
        threshold: largest magnitude that is not clipped.
        abs_max: largest magnitude seen.
        clipped_share: share of the calibration values beyond the threshold.
    """

    calibrator: str
    threshold: float
    abs_max: float
    clipped_share: float
    scale: float
    zero_point: int


def apply(model: onnx.ModelProto, step: Quantize, context: Context) -> StepReport:
    """Quantize in place.

    Args:
        model: an FP32 graph with BatchNormalization folded, in the dialect's opset.
        context: `table` must hold the graph's activations; `calibrators` overrides the step's per tensor.

    Returns:
        A report; `details["thresholds"]` tells what every activation got.

    Raises:
        RecipeError: the dialect does not know what the step asks for, or `auto` was not resolved.
        CalibrationError: there is no calibration table.
        TransformError: quantized already, opset too old, calibrated on another graph, or nothing to quantize.
    """
    style = dialect(context.dialect).ranged(step.reduce_range)
    to = activation_format(step, style)
    _check(model, step, style)
    if context.table is None:
        raise CalibrationError(
            "Static quantization needs the ranges of activations, and no calibration table was given. Pass data with a "
            "calibration split, or ask for Quantize(activations='dynamic'), which needs none."
        )
    graph = Graph(model)
    placement = place(graph, step, context, style, _unseen(context.table))
    skipped = (*placement.skipped, *_in_bodies(graph, step))
    if not placement.lowered:
        reasons = told(skipped) or "it has no such operator"
        raise TransformError(f"Nothing in this model can be quantized ({reasons}). Leave the Quantize step out.")
    scales = _scales(graph, placement, step, context, to)
    signed = _before_relus(graph, placement) if to is SIGNED and style.integer_chains else None
    rewritten = _protect_relus(graph, placement) if to is FLOAT8 and style.integer_chains else 0
    narrow, dead_channels = _lower(graph, placement, scales, step, style)
    for name, readers in placement.readers.items():
        restored = write_pair(graph, name, scales[name].scale, scales[name].zero_point, to)
        graph.rewire(name, restored, readers)
    graph.finish()
    return StepReport(
        kind=step.kind,
        seconds=0.0,
        changed=tuple(label(node) for node in placement.lowered),
        skipped=skipped,
        notes=(
            *_weight_notes(narrow, placement, style),
            *_notes(scales, dead_channels, rewritten, signed, step, style),
        ),
        details={
            "dialect": style.name,
            "format": to.dtype.name,
            "seven_bit_weights": narrow,
            "thresholds": {name: asdict(scale) for name, scale in scales.items()},
            "also_reading_codes": _followers(placement),
            "dead_weight_channels": dead_channels,
        },
    )


def activation_format(step: Quantize, style: Dialect) -> Format:
    """Return the number format of activations.

    Raises:
        RecipeError: the step's symmetry contradicts its format or the dialect.
        TransformError: the dialect has no FP8.
    """
    if step.to == "fp8":
        if not style.fp8:
            raise TransformError(
                f"FP8 Q/DQ does not exist in the dialect {style.name!r} ({style.engine}). Take int8, or a newer engine."
            )
        if step.symmetric is False:
            raise RecipeError("FP8 has no zero point: Quantize(to='fp8', symmetric=False). Leave `symmetric` out.")
        return FLOAT8
    symmetric = style.symmetric if step.symmetric is None else step.symmetric
    if not symmetric and not style.asymmetric_allowed:
        raise RecipeError(
            f"Quantize(symmetric=False) is not possible in the dialect {style.name!r}: {style.engine} takes signed "
            f"symmetric codes only. Leave `symmetric` out, so that each dialect takes what suits it."
        )
    return SIGNED if symmetric else UNSIGNED


def encode(histogram: Histogram, calibrator: str, to: Format) -> Scale:
    """Turn a range into scale and zero point.

    Signed and floating-point formats scale the threshold to their largest code. Unsigned ones cover
    [minimum, maximum], clipped to the threshold on both sides and widened to hold zero, which has a code of its own.
    """
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    levels = 128
    if to is UNSIGNED and low < high:
        # As many codes as lie between zero and the farther end: 128 for a symmetric range, 256 for a one-sided one.
        levels = int(to.high * histogram.abs_max / (high - low)) + 1
    limit = threshold(histogram, calibrator, levels)
    if to is UNSIGNED:
        low, high = (max(low, -limit), min(high, limit)) if low < high else (0.0, limit)
        scale = float(np.float32(max((high - low) / to.high, SMALLEST_SCALE)))
        zero_point = int(np.clip(np.rint(-low / scale), to.low, to.high))
    else:
        scale, zero_point = float(np.float32(max(limit / to.high, SMALLEST_SCALE))), 0
    lost = clipped_share(histogram, limit)
    return Scale(calibrator, limit, histogram.abs_max, lost, scale, zero_point)


def _check(model: onnx.ModelProto, step: Quantize, style: Dialect) -> None:
    origin = quantized_by(model)
    if origin is not None:
        raise TransformError(
            f"This graph is quantized already (by {origin}); quantizing twice would add the error of both. "
            f"Load the unquantized model, or run this one with the recipe 'fp32'."
        )
    opset, needed = Graph(model).opset, _SMALLEST_OPSET[step.to]
    if opset < needed:
        raise TransformError(
            f"The graph has opset {opset}, and {step.to} Q/DQ needs at least {needed}. "
            f"Load the model with a newer opset: workbench.load(source, opset={needed})."
        )
    if style.name == "trt-8.6" and opset > _LARGEST_OPSET_TRT_8:
        raise TransformError(
            f"The graph has opset {opset}, and {style.engine} reads up to {_LARGEST_OPSET_TRT_8}. "
            f"Load the model with an older opset: workbench.load(source, opset={_LARGEST_OPSET_TRT_8})."
        )


def _unseen(table: CalibrationTable) -> dict[str, str]:
    reason = f"had no finite value in {table.samples} calibration samples"
    return {name: reason for name, histogram in table.items() if not histogram.finite}


def _in_bodies(graph: Graph, step: Quantize) -> list[Skipped]:
    """Return what would be quantized if it did not lie in a body: calibration sees outputs of the main graph only."""
    reason = "it lies in a body of {!r}, and ranges inside a body are not observed"
    inside = [(node, inner) for node in graph.nodes for body in subgraphs(node) for inner in every_node(body)]
    wanted = step.op_types or QUANTIZABLE
    return [Skipped(label(inner), reason.format(node.name)) for node, inner in inside if inner.op_type in wanted]


def _scales(graph: Graph, placement: Placement, step: Quantize, context: Context, to: Format) -> dict[str, Scale]:
    chained = dialect(context.dialect).integer_chains
    table: Mapping[str, Histogram] = context.table or {}
    sources = {name: placement.ranges.get(name, (name,)) for name in placement.readers}
    missing = sorted({name for names in sources.values() for name in names} - set(table))
    if missing:
        raise TransformError(
            f"The calibration table holds no range for {len(missing)} of the activations to quantize, such as "
            f"{', '.join(missing[:3])}. It was made on another graph: calibrate the graph that is quantized."
        )
    found: dict[tuple[str, ...], Scale] = {}
    for names in sources.values():
        if names not in found:
            scale = encode(
                Histogram.joined(table[name] for name in names), _calibrator(graph, names, step, context), to
            )
            bounds = [bound for name in names if (bound := clip_bounds(graph, graph.producer.get(name)))]
            found[names] = _within(scale, *bounds[0], to) if bounds and to is UNSIGNED and chained else scale
    return {name: found[names] for name, names in sources.items()}


def _within(scale: Scale, low: float, high: float, to: Format) -> Scale:
    """Return the codes nearest to a scale that end within the bounds of a Clip, which an engine takes out only then.

    Otherwise a zero point that was rounded lets them end half a code beyond.
    """
    found = []
    for zero in {math.floor(-low / scale.scale), math.ceil(-low / scale.scale)} if math.isfinite(low) else ():
        if 0 <= zero <= to.high:
            below = -low / zero if zero else math.inf
            found.append((min(below, high / (to.high - zero) if zero < to.high else math.inf), zero))
    inside = scale.zero_point * scale.scale <= -low and (to.high - scale.zero_point) * scale.scale <= high
    if inside or not found:
        return scale
    largest, zero = max(found)
    return replace(scale, scale=float(np.float32(min(largest, scale.scale))), zero_point=int(zero))


def _calibrator(graph: Graph, names: tuple[str, ...], step: Quantize, context: Context) -> str:
    """Return whose word counts for a range: the one chosen for it, else full range for inputs, else the step's."""
    chosen = next((context.calibrators[name] for name in names if name in context.calibrators), None)
    if chosen is not None:
        return chosen
    if not step.clip_inputs and any(name in graph.inputs for name in names):
        return "max"
    if step.calibrator == "auto":
        raise RecipeError(
            f"The calibrator 'auto' was not resolved for {names[0]!r}: a graph step cannot measure output errors. "
            f"workbench.run resolves it; or name a calibrator, such as Quantize(calibrator='max')."
        )
    return step.calibrator


def _lower(
    graph: Graph, placement: Placement, scales: Mapping[str, Scale], step: Quantize, style: Dialect
) -> tuple[list[str], int]:
    """Quantize weights, and biases where the dialect wants that.

    Returns:
        The nodes whose weights have 7 bits, and how many weight channels are zero throughout.
    """
    writer, dead, narrow = WeightWriter(graph, style.integer_constants), 0, []
    for weight in placement.weights:
        node = weight.node
        if style.integer_chains and step.to == "int8":
            _plain(graph, node)
        array = _constant(graph, node.input[1])
        to = FLOAT8 if step.to == "fp8" else weight_format(node, array.shape, style)
        narrow += [label(node)] if to is SEVEN_BIT else []
        bias = _bias(graph, node, scales) if style.integer_constants and to is not FLOAT8 else None
        scale, dead_here = scale_of_weight(array, weight.axis, to, bias)
        dead += dead_here
        if bias is not None:
            node.input[2] = write_bias(graph, bias, scale)
        node.input[1] = writer.write(node.input[1], array, scale, weight.axis, to)
    graph.refresh()
    return narrow, dead


def _before_relus(graph: Graph, placement: Placement) -> list[str]:
    """Return the layers that ONNX Runtime fuses with a Relu into an FP32 kernel, as signed codes do not stand for the Relu."""
    behind = {
        node.output[0] for node in placement.lowered
        if node.op_type in ("Conv", "Gemm") and [one.op_type for one in graph.consumers.get(node.output[0], [])] == ["Relu"]
    }  # fmt: skip
    return [label(node) for node in placement.lowered if node.output[0] in behind - graph.pinned]


def _protect_relus(graph: Graph, placement: Placement) -> int:
    """Write each Relu before a float8 pair as Max(x, 0); return how many.

    ONNX Runtime (1.32 at least) takes the zero of float8 for the zero of uint8, and drops the Relu as already done by
    the pair: a small CNN fell from 99.8 % to 14.7 % without this.
    """
    relus = [graph.producer[name] for name in placement.readers if name in graph.producer]
    relus = [node for node in relus if node.op_type == "Relu"]
    for node in relus:
        node.op_type = "Max"
        graph.set_input(node, 1, graph.add_initializer("zero", np.array(0.0, np.float32)))
    return len(relus)


def _plain(graph: Graph, node: onnx.NodeProto) -> None:
    """Write a Gemm's factors into its constants, and its bias as a vector: ONNX Runtime has no other integer Gemm."""
    if node.op_type != "Gemm":
        return
    alpha, beta = (np.float32(attribute(node, name, 1.0)) for name in ("alpha", "beta"))
    if alpha != 1:
        graph.give_constant(node, 1, _constant(graph, node.input[1]) * alpha)
    bias = channel_bias(graph, node)
    if bias is not None and (beta != 1 or _constant(graph, node.input[2]).ndim != 1):
        graph.give_constant(node, 2, bias * beta)
    kept = [item for item in node.attribute if item.name not in ("alpha", "beta")]
    del node.attribute[:]
    node.attribute.extend(kept)


def _bias(graph: Graph, node: onnx.NodeProto, scales: Mapping[str, Scale]) -> Bias | None:
    """Return the bias that an integer kernel can take: a constant vector, added as it is."""
    array = channel_bias(graph, node) if node.op_type in ("Conv", "Gemm") else None
    return None if array is None else Bias(node.input[2], array, scales[node.input[0]].scale)


def _constant(graph: Graph, name: str) -> NDArray[np.float32]:
    array = graph.array(name)
    if array is None:
        raise KeyError(name)
    return array


def _followers(placement: Placement) -> list[str]:
    """Return the nodes that read codes without being lowered themselves: additions, pooling, copies, float consumers."""
    lowered = {id(node) for node in placement.lowered}
    names = [label(node) for nodes in placement.readers.values() for node in nodes if id(node) not in lowered]
    return list(dict.fromkeys(names))


def _weight_notes(narrow: list[str], placement: Placement, style: Dialect) -> tuple[str, ...]:
    if not narrow:
        return (style.weights,) if style.forced and not style.narrow else ()
    full = len(placement.weights) - len(narrow)
    rest = f" {full} others keep 8 bits: their kernels do not." if full else ""
    return (f"{style.weights}{rest}",)


def _notes(
    scales: Mapping[str, Scale],
    dead_channels: int,
    rewritten: int,
    signed: list[str] | None,
    step: Quantize,
    style: Dialect,
) -> tuple[str, ...]:
    notes = []
    dead = [name for name, scale in scales.items() if not scale.abs_max]
    if dead:
        notes.append(
            f"{len(dead)} activations were zero in all calibration samples ({', '.join(dead[:3])}); "
            f"their scale is arbitrary. Check that the calibration data reach every branch."
        )
    if dead_channels:
        notes.append(f"{dead_channels} weight channels are zero throughout; their scale is arbitrary and not zero.")
    if style.family == "ort-cpu" and step.to == "fp8":
        notes.append("FP8 on a CPU is a rehearsal of accuracy: values are rounded to FP8 and computed in FP32, slowly.")
    if rewritten:
        notes.append(
            f"{rewritten} Relu nodes are written as Max(x, 0), because ONNX Runtime's optimizer drops a Relu before FP8."
        )
    if signed is not None:
        notes.append("Signed activations are slow on ONNX Runtime's CPU; leave `symmetric` out for speed.")
    if signed:
        notes.append(
            f"{len(signed)} layers with a Relu behind them ({', '.join(signed[:3])}{', ...' if len(signed) > 3 else ''}) are "
            f"quantized in the file, and ONNX Runtime's CPU computes them in FP32: it has no kernel for them with signed codes."
        )
    return tuple(notes)
