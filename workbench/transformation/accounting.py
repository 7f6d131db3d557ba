"""Which part of a network a recipe reached: every node that holds weights or multiplies is quantized, reduced or kept.

Knows step reports and the graph they started from; runs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import onnx

from workbench.graph.cost import node_flops
from workbench.graph.editing import FLOAT_TYPES, graphs, subgraphs
from workbench.recipes import Precision, Quantize, QuantizeWeights, Recipe
from workbench.records import Skipped, StepReport, Variant

# What multiplies, whether or not it holds weights.
MULTIPLIES = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum", "FusedMatMul", "Attention", "MultiHeadAttention",
    "GroupQueryAttention", "FusedConv", "FusedGemm", "DeformConv",
)  # fmt: skip
# Weights of fewer elements are scales and shifts, whose type matters to nobody's time.
_FEWEST_WEIGHTS = 64
_FORMATS: dict[int, str] = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16",
            onnx.TensorProto.DOUBLE: "fp64"}  # fmt: skip
_LOWERING = ("quantize", "quantize_weights", "precision")


@dataclass(frozen=True)
class Coverage:
    """In which formats a network multiplies and keeps its weights after a recipe.

    Attributes:
        flops: format -> share of the counted multiplications, the largest first; empty where none could be counted.
        weight_bytes: format -> share of the weights' bytes (as the file had them), those in bodies of nodes among them.
        uncounted: nodes that multiply and whose operations could not be counted.
    """

    flops: dict[str, float]
    weight_bytes: dict[str, float]
    uncounted: tuple[str, ...] = ()


def accounted(
    before: onnx.ModelProto, reports: Sequence[StepReport], recipe: Recipe
) -> tuple[tuple[StepReport, ...], Coverage | None]:
    """Name what no step spoke of, and say how far the recipe reached.

    Args:
        before: the graph that lowering started from, fused.
        reports: of all steps; those that lower get what they left out.
        recipe: whose steps these were.

    Returns:
        The reports, and the coverage; None where no step lowers.
    """
    lowering = [report for report in reports if report.kind in _LOWERING]
    if not lowering:
        return tuple(reports), None
    weights = {tensor.name: tensor for tensor in before.graph.initializer}
    named = {name for report in lowering for name in (*report.changed, *(item.name for item in report.skipped))}
    silent = [Skipped(_label(node), why) for node in before.graph.node
              if _label(node) not in named and (why := _reason(node, weights))]  # fmt: skip
    coverage = _coverage(before, lowering, recipe)
    last = lowering[-1]
    told = replace(
        last,
        skipped=(*last.skipped, *silent),
        notes=(*last.notes, *_words(coverage)),
        details={**last.details, "coverage": {**asdict(coverage), "uncounted": list(coverage.uncounted)}},
    )
    return tuple(told if report is last else report for report in reports), coverage


def _reason(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> str | None:
    """Why a node was left as it was; None where it neither multiplies nor holds weights."""
    inner = _inner_nodes(node)
    if inner:
        count = sum(one.op_type in MULTIPLIES for one in inner)
        return f"its body is a graph of its own, with {count} nodes that multiply; bodies are left as they are"
    if node.op_type in MULTIPLIES:
        return f"{node.op_type} is no operator that this step has a form for"
    if any(name in weights and _is_weight(weights[name]) for name in node.input):
        return f"{node.op_type} holds weights, and is no operator that this step has a form for"
    return None


def _coverage(before: onnx.ModelProto, lowering: Sequence[StepReport], recipe: Recipe) -> Coverage:
    arithmetic, stored = _formats(lowering, recipe)
    flops = node_flops(before)
    multiplied: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    weights = {tensor.name: tensor for tensor in before.graph.initializer}
    uncounted, seen = [], set()
    for node in before.graph.node:
        label = _label(node)
        own = _own_format(node, weights)
        multiplied[arithmetic.get(label, own)] += flops.get(label, 0)
        if label not in flops and any(one.op_type in MULTIPLIES for one in (node, *_inner_nodes(node))):
            uncounted.append(label)
        for tensor in _weights_of(node, weights):
            if tensor.name not in seen:
                seen.add(tensor.name)
                kept[stored.get(label, _FORMATS.get(tensor.data_type, "fp32"))] += _size_bytes(tensor)
    return Coverage(_shares(multiplied), _shares(kept), tuple(uncounted))


def formats_of(variant: Variant) -> dict[str, str]:
    """Return node -> the format that a variant's recipe lowers it to: what it multiplies in, or else keeps its weights in."""
    lowering = [report for report in variant.reports if report.kind in _LOWERING]
    if len(lowering) != sum(step.kind in _LOWERING for step in variant.recipe.steps):
        return {}
    arithmetic, stored = _formats(lowering, variant.recipe)
    return {**stored, **arithmetic}


def _formats(lowering: Sequence[StepReport], recipe: Recipe) -> tuple[dict[str, str], dict[str, str]]:
    """Node -> the format that it multiplies in, and node -> the format of its weights: the first step that takes it decides."""
    arithmetic: dict[str, str] = {}
    stored: dict[str, str] = {}
    steps = [step for step in recipe.steps if isinstance(step, (Quantize, QuantizeWeights, Precision))]
    for report, step in zip(lowering, steps, strict=True):
        for name in report.changed:
            if report.kind != "quantize_weights":
                arithmetic.setdefault(name, step.to)
            if step.to != "tf32":
                stored.setdefault(name, step.to)
    return arithmetic, stored


def _own_format(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> str:
    return next((_FORMATS.get(tensor.data_type, "fp32") for tensor in _weights_of(node, weights)), "fp32")


def _weights_of(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> list[onnx.TensorProto]:
    """The weights that a node reads, in its bodies too, each once."""
    levels = [level for graph in subgraphs(node) for level in graphs(graph)]
    there = weights | {tensor.name: tensor for level in levels for tensor in level.initializer}
    names = dict.fromkeys(name for one in (node, *_inner_nodes(node)) for name in one.input)
    return [there[name] for name in names if name in there and _is_weight(there[name])]


def _inner_nodes(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    return [one for graph in subgraphs(node) for level in graphs(graph) for one in level.node]


def _shares(counted: Counter[str]) -> dict[str, float]:
    total = sum(counted.values())
    return {name: count / total for name, count in counted.most_common() if count} if total else {}


def _words(coverage: Coverage) -> tuple[str, ...]:
    if not coverage.flops or not coverage.weight_bytes:
        return ()
    words = f"{_listed(coverage.flops, 'of the multiplications')}; {_listed(coverage.weight_bytes, 'of the weights')}."
    if coverage.uncounted:
        shown = ", ".join(coverage.uncounted[:5]) + (", ..." if len(coverage.uncounted) > 5 else "")
        words += f" Not counted, because their operations cannot be told from shapes: {shown}."
    return (words,)


def _listed(shares: dict[str, float], what: str) -> str:
    (first, largest), *rest = shares.items()
    listed = "".join(f", {_percent(share)} in {name.upper()}" for name, share in rest)
    return f"{_percent(largest)} {what} in {first.upper()}{listed}"


def _percent(share: float) -> str:
    """Return a share in whole percent; what is not all is never called 100 %."""
    if 0.995 <= share < 1:
        return f"{100 * share:.1f} %" if share < 0.9995 else "> 99.9 %"
    return f"{100 * share:.0f} %" if share >= 0.005 else "< 0.5 %"


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
