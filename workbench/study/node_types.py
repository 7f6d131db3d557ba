"""A recipe in which chosen nodes have another type: what one step can say with its list of nodes that it leaves out.

A recipe has one 8-bit type and one floating-point type beside FP32. Touches no graph: names of nodes in, a recipe out.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from workbench.errors import RecipeError
from workbench.graph.placement import QUANTIZABLE
from workbench.recipes import QUANTIZED_FORMATS, STEP_ORDER, Fuse, Precision, Quantize, Recipe, Step

TYPES = ("fp32", "fp16", "bf16", "int8", "fp8")
# What the other steps do to a node is for the type that it had.
_LOWERING = ("smooth_quant", "quantize", "quantize_weights")


def typed(
    recipe: Recipe,
    chosen: Collection[str],
    to: str,
    nodes: Mapping[str, str],
    *,
    modules: Mapping[str, str] | None = None,
    name: str | None = None,
) -> Recipe:
    """Return a recipe in which the chosen nodes have a type, and all others the one that they had.

    Args:
        chosen: names of nodes.
        to: one of `TYPES`.
        nodes: every node of the graph -> its operator.
        modules: node -> module path, which patterns of the recipe match too.

    Raises:
        RecipeError: nothing is chosen, there is no such type, no chosen node can have it, they have it already, or the recipe
            holds another type of the kind.
    """
    chosen = [one for one in nodes if one in set(chosen)]
    if not chosen:
        raise RecipeError("No node of the graph is chosen, so there is nothing to give a type.")
    if to not in TYPES:
        raise RecipeError(f"There is no type {to!r} for a node; allowed: {', '.join(TYPES)}.")
    if to in QUANTIZED_FORMATS:
        chosen = [one for one in chosen if nodes[one] in QUANTIZABLE]
        if not chosen:
            raise RecipeError(
                f"None of what is chosen can be {to.upper()}: only {', '.join(QUANTIZABLE)} have kernels in 8 bits."
            )
    steps: dict[str, Step] = {step.kind: step for step in recipe.steps}
    labels = {node: (node, (modules or {}).get(node, "")) for node in nodes}
    kind = "quantize" if to in QUANTIZED_FORMATS else "precision"
    for other in ("quantize_weights",) if kind == "quantize" else _LOWERING:
        if other in steps:
            steps[other] = _without(steps[other], chosen, labels)
    if to == "fp32":
        if "precision" in steps:
            steps["precision"] = _without(steps["precision"], chosen, labels)
    else:
        steps[kind] = _with(recipe, steps.get(kind), chosen, to, labels)
    found = tuple(steps[one] for one in STEP_ORDER if one in steps)
    if found == recipe.steps:
        raise RecipeError(f"What is chosen is {to.upper()} already, as {recipe.name} has it.")
    return Recipe(name or f"{recipe.name}-{to}x{len(chosen)}", found)


def _with(recipe: Recipe, step: Any, chosen: Collection[str], to: str, labels: Mapping[str, tuple[str, str]]) -> Step:
    """Return a step of this type that covers the chosen nodes too, and no others than before."""
    if step is None:
        others = _exactly(one for one in labels if one not in set(chosen))
        return Quantize(to=to, exclude=others) if to in QUANTIZED_FORMATS else Precision(to, exclude=others)  # type: ignore[arg-type]
    if step.to != to:
        raise RecipeError(
            f"{recipe.name} computes in {step.to.upper()} elsewhere, and a recipe has one such type: nothing in it can be "
            f"{to.upper()} too. Choose {step.to}, or another variant."
        )
    # A pattern that holds a chosen node gives way to the names of the other nodes that it holds.
    kept: list[str] = []
    for pattern in step.exclude:
        held = [one for one, words in labels.items() if any(re.search(pattern, word) for word in words)]
        kept += _exactly(one for one in held if one not in set(chosen)) if set(held) & set(chosen) else [pattern]
    return replace(step, exclude=tuple(dict.fromkeys(kept)))


def _without(step: Step, chosen: Collection[str], labels: Mapping[str, tuple[str, str]]) -> Step:
    """Return a step that leaves the chosen nodes out."""
    assert not isinstance(step, Fuse)
    held = [one for one in chosen if any(re.search(pattern, word) for pattern in step.exclude for word in labels[one])]
    return replace(step, exclude=(*step.exclude, *_exactly(one for one in chosen if one not in held)))


def _exactly(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"^{re.escape(one)}$" for one in names)
