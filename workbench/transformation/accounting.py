"""Which part of a network a recipe reached: every node that holds weights or multiplies is quantized, reduced or kept.

Knows step reports and the graph they started from; runs nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import onnx

from workbench.graph.bodies import LOOPS
from workbench.graph.cost import MULTIPLIES, node_flops
from workbench.graph.editing import FLOAT_TYPES, label, subgraphs
from workbench.recipes import Precision, Quantize, QuantizeWeights, Recipe
from workbench.records import Skipped, StepReport, Variant

# Weights of fewer elements are scales and shifts, whose type matters to nobody's time.
_FEWEST_WEIGHTS = 64
_FORMATS: dict[int, str] = {onnx.TensorProto.FLOAT: "fp32", onnx.TensorProto.FLOAT16: "fp16", onnx.TensorProto.BFLOAT16: "bf16",
            onnx.TensorProto.DOUBLE: "fp64"}  # fmt: skip
# Attention grows with the square of a length: at length 1 its products would be nothing. As random data have it.
_LENGTH = 32
_LOWERING = ("quantize", "quantize_weights", "precision")


@dataclass(frozen=True)
class _Place:
    """A node, the nodes in whose bodies it lies (the outermost first), and the constants that it can read by name."""

    node: onnx.NodeProto
    owners: tuple[onnx.NodeProto, ...]
    constants: Mapping[str, _Constant]

    @property
    def label(self) -> str:
        return label(self.node)

    def weights(self) -> list[_Constant]:
        """The weights that the node itself reads, each once."""
        found = (self.constants.get(name) for name in dict.fromkeys(self.node.input))
        return [one for one in found if one is not None and _is_weight(one.tensor)]


@dataclass(frozen=True)
class _Constant:
    """An initializer, and the body that holds it: two branches may use one name."""

    tensor: onnx.TensorProto
    body: str


@dataclass(frozen=True)
class Coverage:
    """In which formats a network multiplies and keeps its weights after a recipe.

    Attributes:
        flops: format -> share of the counted multiplications, the largest first; empty where none could be counted.
        weight_bytes: format -> share of the weights' bytes (as the file had them), those in bodies of nodes among them.
        uncounted: nodes that multiply and whose operations could not be counted; for those in a loop the loop.
        assumed: nodes of which the branch that multiplies most was counted.
        length: that free axes behind the first were taken to have, on which shares depend; None where there are none.
    """

    flops: dict[str, float]
    weight_bytes: dict[str, float]
    uncounted: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    length: int | None = None

    def plain(self) -> dict[str, Any]:
        """Return the same as data for a report."""
        return {**asdict(self), "uncounted": list(self.uncounted), "assumed": list(self.assumed)}


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
    named = {name for report in lowering for name in report.changed}
    reasons = {item.name: item.reason for report in lowering for item in report.skipped}
    functions = {
        (one.domain, one.name): sum(node.op_type in MULTIPLIES for node in one.node) for one in before.functions
    }
    silent = [Skipped(place.label, why) for place in _places(before.graph)
              if place.label not in named | reasons.keys() and (why := _reason(place, reasons, functions))]  # fmt: skip
    coverage = _coverage(before, lowering, recipe)
    last = lowering[-1]
    told = replace(
        last,
        skipped=(*last.skipped, *silent),
        notes=(*last.notes, *_words(coverage)),
        details={**last.details, "coverage": coverage.plain()},
    )
    return tuple(told if report is last else report for report in reports), coverage


def _places(graph: onnx.GraphProto, outside: _Place | None = None) -> Iterator[_Place]:
    """Yield every node of a graph and of the bodies in it."""
    owners = () if outside is None else (*outside.owners, outside.node)
    body = "/".join((*map(label, owners), graph.name))
    constants = {} if outside is None else dict(outside.constants)
    constants.update((tensor.name, _Constant(tensor, body)) for tensor in graph.initializer)
    for node in graph.node:
        place = _Place(node, owners, constants)
        yield place
        for inner in subgraphs(node):
            yield from _places(inner, place)


def _reason(place: _Place, reasons: Mapping[str, str], functions: Mapping[tuple[str, str], int]) -> str | None:
    """Why a node was left as it was; None where it neither multiplies nor holds weights."""
    node = place.node
    holds = bool(place.weights()) and not subgraphs(node)
    inside = functions.get((node.domain, node.op_type), 0)
    if node.op_type not in MULTIPLIES and not holds and not inside:
        return None
    owner = next((owner for owner in reversed(place.owners) if label(owner) in reasons), None)
    if owner is not None:
        return f"it lies in a body of {label(owner)!r}: {reasons[label(owner)]}"
    if inside:
        return f"it calls a function with {inside} nodes that multiply; Fuse writes functions out unless told not to"
    what = "" if node.op_type in MULTIPLIES else "holds weights, and "
    return f"{node.op_type} {what}is no operator that this step has a form for"


def _coverage(before: onnx.ModelProto, lowering: Sequence[StepReport], recipe: Recipe) -> Coverage:
    arithmetic, stored = _formats(lowering, recipe)
    flops, length = _operations(before)
    multiplied: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    functions = {(one.domain, one.name) for one in before.functions}
    uncounted: dict[str, None] = {}
    assumed: dict[str, None] = {}
    seen = set()
    for place in _places(before.graph):
        name, weights = place.label, place.weights()
        own = next((_FORMATS.get(one.tensor.data_type, "fp32") for one in weights), "fp32")
        multiplied[arithmetic.get(name, own)] += flops.get(name, 0)
        if name in flops:
            assumed.update((label(owner), None) for owner in place.owners)
        elif place.node.op_type in MULTIPLIES or (place.node.domain, place.node.op_type) in functions:
            loop = next((owner for owner in place.owners if owner.op_type in LOOPS), place.node)
            uncounted[label(loop)] = None
        for one in weights:
            if (one.body, one.tensor.name) not in seen:
                seen.add((one.body, one.tensor.name))
                kept[stored.get(name, _FORMATS.get(one.tensor.data_type, "fp32"))] += _size_bytes(one.tensor)
    return Coverage(_shares(multiplied), _shares(kept), tuple(uncounted), tuple(assumed), length)


def _operations(model: onnx.ModelProto) -> tuple[dict[str, int], int | None]:
    """Return node -> operations, and the length that free axes behind the first were given; 1 where no other can be fed."""
    constants = {tensor.name for tensor in model.graph.initializer}
    sizes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in model.graph.input
        if value.name not in constants
    }
    shortest = node_flops(model)
    if all(size for axes in sizes.values() for size in axes[1:]):
        return shortest, None
    shapes = {
        name: tuple(size or (_LENGTH if place else 1) for place, size in enumerate(axes))
        for name, axes in sizes.items()
    }
    longer = node_flops(model, shapes)
    return (longer, _LENGTH) if len(longer) >= len(shortest) else (shortest, 1)


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


def _shares(counted: Counter[str]) -> dict[str, float]:
    total = sum(counted.values())
    return {name: count / total for name, count in counted.most_common() if count} if total else {}


def _words(coverage: Coverage) -> tuple[str, ...]:
    shares = ((coverage.flops, "of the multiplications"), (coverage.weight_bytes, "of the weights"))
    told = "; ".join(_listed(formats, what) for formats, what in shares if formats)
    words = f"{told}." if told else ""
    if coverage.uncounted:
        shown = ", ".join(coverage.uncounted[:5]) + (", ..." if len(coverage.uncounted) > 5 else "")
        words += f" Not counted, because their operations cannot be told from shapes: {shown}."
    if coverage.length is not None and coverage.flops:
        words += f" Axes of free length are counted as {coverage.length} long."
    if coverage.assumed:
        words += f" Of {', '.join(coverage.assumed[:5])} the branch that multiplies most is counted."
    return (words.strip(),) if words else ()


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
