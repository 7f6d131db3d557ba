"""Chosen nodes get a type, and no other node another one: what a recipe's steps leave out says so."""

from __future__ import annotations

import re

import pytest

from workbench.errors import RecipeError
from workbench.recipes import Fuse, Precision, Quantize, QuantizeWeights, Recipe, SmoothQuant, named
from workbench.study.node_types import typed

NODES = {"/a/Conv": "Conv", "/a/Relu": "Relu", "/b/Conv": "Conv", "/head/Gemm": "Gemm"}
MODULES = {"/a/Conv": "body.a", "/a/Relu": "body.a", "/b/Conv": "body.b", "/head/Gemm": "head"}
MIXED = Recipe("mixed", (Fuse(), Quantize(exclude=("^body",)), Precision("fp16")))


def covered(recipe: Recipe, kind: str) -> set[str]:
    step = recipe.step(kind)
    if step is None:
        return set()
    return {
        node
        for node in NODES
        if not any(re.search(pattern, word) for pattern in step.exclude for word in (node, MODULES[node]))
    }


def test_a_type_that_the_recipe_lacks_comes_for_the_chosen_nodes_alone() -> None:
    found = typed(named("fp32"), ["/b/Conv"], "int8", NODES, modules=MODULES)
    assert covered(found, "quantize") == {"/b/Conv"} and found.name == "fp32-int8x1"
    found = typed(named("int8-kl"), ["/b/Conv"], "fp16", NODES, modules=MODULES)
    assert covered(found, "precision") == {"/b/Conv"} and covered(found, "quantize") == set(NODES) - {"/b/Conv"}
    assert found.step("quantize").calibrator == "kl"


def test_what_a_pattern_left_out_comes_back_without_what_else_it_left_out() -> None:
    found = typed(MIXED, ["/a/Conv"], "int8", NODES, modules=MODULES)
    assert covered(found, "quantize") == {"/a/Conv", "/head/Gemm"} and covered(found, "precision") == set(NODES)


def test_fp32_leaves_every_step_that_lowers_and_fp16_only_those_in_eight_bits() -> None:
    smooth = Recipe("smooth", (SmoothQuant(), Quantize(), Precision("fp16")))
    found = typed(smooth, ["/a/Conv", "/a/Relu"], "fp32", NODES, modules=MODULES)
    for kind in ("smooth_quant", "quantize", "precision"):
        assert covered(found, kind) == {"/b/Conv", "/head/Gemm"}
    found = typed(smooth, ["/a/Conv"], "fp16", NODES, modules=MODULES)
    assert covered(found, "precision") == set(NODES) and "/a/Conv" not in covered(found, "quantize")
    weights = Recipe("weights", (QuantizeWeights(),))
    found = typed(weights, ["/head/Gemm"], "int8", NODES, modules=MODULES)
    assert covered(found, "quantize") == {"/head/Gemm"} and "/head/Gemm" not in covered(found, "quantize_weights")


@pytest.mark.parametrize(
    ("recipe", "chosen", "to", "words"),
    [
        (MIXED, [], "fp16", "nothing to give a type"),
        (MIXED, ["/a/Conv"], "int4", "no type 'int4'"),
        (MIXED, ["/a/Conv"], "bf16", "computes in FP16 elsewhere"),
        (MIXED, ["/a/Conv"], "fp8", "computes in INT8 elsewhere"),
        (MIXED, ["/a/Relu"], "int8", "None of what is chosen can be INT8"),
        (MIXED, ["/head/Gemm"], "int8", "is INT8 already"),
        (named("fp32"), ["/a/Conv"], "fp32", "is FP32 already"),
    ],
)
def test_what_cannot_be_said_in_a_recipe_is_refused_with_the_reason(
    recipe: Recipe, chosen: list[str], to: str, words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        typed(recipe, chosen, to, NODES, modules=MODULES)
