"""Which part of a network a recipe reached: every node that holds weights or multiplies is quantized, reduced or kept.

Knows step reports and the graph they started from; runs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from workbench.graph.cost import node_flops
from workbench.graph.editing import FLOAT_TYPES, subgraphs
from workbench.records import Skipped, StepReport

# What multiplies, whether or not it holds weights.
MULTIPLIES = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum", "FusedMatMul", "Attention", "MultiHeadAttention",
    "GroupQueryAttention", "FusedConv", "FusedGemm", "DeformConv",
)  # fmt: skip
# Weights of fewer elements are scales and shifts, whose type matters to nobody's time.
_FEWEST_WEIGHTS = 64
_LOWERING = ("quantize", "quantize_weights", "precision")


@dataclass(frozen=True)
class Coverage:
    """How much of the work and of the weights a recipe reached.

    Attributes:
        flops: share of the counted multiplications in nodes that were lowered; None where none could be counted.
        weight_bytes: share of the weights' bytes (as the file had them) in nodes that were lowered.
    """

    flops: float | None
    weight_bytes: float | None


def accounted(before: onnx.ModelProto, reports: Sequence[StepReport]) -> tuple[tuple[StepReport, ...], Coverage | None]:
    """Name what no step spoke of, and say how far the recipe reached.

    Args:
        before: the graph that lowering started from, fused.
        reports: of all steps; those that lower get what they left out.

    Returns:
        The reports, and the coverage; None where no step lowers.
    """
    lowering = [report for report in reports if report.kind in _LOWERING]
    if not lowering:
        return tuple(reports), None
    weights = {tensor.name: tensor for tensor in before.graph.initializer}
    changed = {name for report in lowering for name in report.changed}
    named = changed | {item.name for report in lowering for item in report.skipped}
    silent = [Skipped(_label(node), why) for node in before.graph.node
              if _label(node) not in named and (why := _reason(node, weights))]  # fmt: skip
    coverage = _coverage(before, changed, weights)
    last = lowering[-1]
    note = _words(last, coverage)
    told = StepReport(
        kind=last.kind,
        seconds=last.seconds,
        changed=last.changed,
        skipped=(*last.skipped, *silent),
        notes=(*last.notes, *([note] if note else [])),
        details={**last.details, "coverage": {"flops": coverage.flops, "weight_bytes": coverage.weight_bytes}},
    )
    return tuple(told if report is last else report for report in reports), coverage


def _reason(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> str | None:
    """Why a node was left as it was; None where it neither multiplies nor holds weights."""
    inner = [one for graph in subgraphs(node) for one in graph.node]
    if inner:
        count = sum(one.op_type in MULTIPLIES for one in inner)
        return f"its body is a graph of its own, with {count} nodes that multiply; bodies are left as they are"
    if node.op_type in MULTIPLIES:
        return f"{node.op_type} is no operator that this step has a form for"
    if any(name in weights and _is_weight(weights[name]) for name in node.input):
        return f"{node.op_type} holds weights, and is no operator that this step has a form for"
    return None


def _coverage(before: onnx.ModelProto, changed: set[str], weights: dict[str, onnx.TensorProto]) -> Coverage:
    flops = node_flops(before)
    counted, reached = sum(flops.values()), sum(count for name, count in flops.items() if name in changed)
    bytes_all = bytes_reached = 0
    seen: set[str] = set()
    for node in before.graph.node:
        for name in node.input:
            if name in weights and name not in seen and _is_weight(weights[name]):
                seen.add(name)
                size = _size_bytes(weights[name])
                bytes_all += size
                bytes_reached += size if _label(node) in changed else 0
    return Coverage(reached / counted if counted else None, bytes_reached / bytes_all if bytes_all else None)


def _words(report: StepReport, coverage: Coverage) -> str:
    if coverage.flops is None or coverage.weight_bytes is None:
        return ""
    kind = {"quantize": "Quantized", "quantize_weights": "Weights quantized", "precision": "Reduced"}[report.kind]
    return f"{kind}: {coverage.flops:.0%} of the multiplications and {coverage.weight_bytes:.0%} of the weights' bytes."


def _is_weight(tensor: onnx.TensorProto) -> bool:
    elements = 1
    for size in tensor.dims:
        elements *= size
    return tensor.data_type in FLOAT_TYPES and elements >= _FEWEST_WEIGHTS


def _size_bytes(tensor: onnx.TensorProto) -> int:
    elements = 1
    for size in tensor.dims:
        elements *= size
    return elements * (2 if tensor.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16) else 4)


def _label(node: onnx.NodeProto) -> str:
    return node.name or f"{node.op_type} -> {node.output[0]}"
