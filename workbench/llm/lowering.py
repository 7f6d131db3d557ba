"""Recipes for decoders: the ordinary ones, with the head and the products inside attention left in high precision.

Embeddings stay high by themselves: no recipe lowers a Gather. What is left alone is in the step reports.
"""

from __future__ import annotations

import re

import onnx

from workbench.engines.decoding import LOGITS
from workbench.graph.editing import Graph
from workbench.llm.loading import LanguageModel
from workbench.recipes import Recipe, named

_QUANTIZING = ("quantize", "quantize_weights", "smooth_quant", "sparsify")


def recipe(
    language: LanguageModel,
    which: str | Recipe,
    *,
    head: bool = False,
    attention: bool = False,
    name: str | None = None,
) -> Recipe:
    """Return a recipe fit for this decoder.

    Args:
        which: a recipe, or the name of one. Without a step that quantizes or prunes it comes back unchanged.
        head: also lower the head (the product that gives the logits). A head that shares the embeddings' weights has to
            be stored apart for that: `load(..., untie_head=True)`.
        attention: also lower the two products of activations inside attention.
        name: None keeps the recipe's.

    Raises:
        RecipeError: there is no such recipe.
    """
    chosen = named(which)
    patterns = [*([] if head else head_patterns(language)), *([] if attention else attention_patterns(language))]
    steps = tuple(
        step if step.kind not in _QUANTIZING else Recipe("one", (step,)).excluding(*patterns).steps[0]
        for step in chosen.steps
    )
    return Recipe(name or chosen.name, steps)


def head_patterns(language: LanguageModel) -> list[str]:
    """Return regular expressions for the node that gives the logits."""
    graph = _graph(language)
    node = graph.producer.get(LOGITS)
    while node is not None and node.op_type not in ("MatMul", "Gemm"):
        node = graph.producer.get(node.input[0])
    return [] if node is None else _patterns(language, [node])


def attention_patterns(language: LanguageModel) -> list[str]:
    """Return regular expressions for the MatMul nodes that multiply two activations."""
    graph = _graph(language)
    computed = [
        node
        for node in graph.nodes
        if node.op_type == "MatMul" and not any(_from_weights(graph, name) for name in node.input)
    ]
    return _patterns(language, computed)


def _graph(language: LanguageModel) -> Graph:
    return Graph(onnx.load(language.model.path, load_external_data=False))


def _from_weights(graph: Graph, name: str) -> bool:
    """Whether a tensor is a constant, or a constant that was only turned or cast."""
    node = graph.producer.get(name)
    while node is not None and node.op_type in ("Transpose", "Cast", "Identity"):
        name = node.input[0]
        node = graph.producer.get(name)
    return graph.is_constant(name)


def _patterns(language: LanguageModel, nodes: list[onnx.NodeProto]) -> list[str]:
    """One pattern for all layers where module paths tell: numbers in them become `\\d+`; else the nodes' names."""
    labels = [language.model.modules.get(node.name) or node.name for node in nodes]
    return list(dict.fromkeys("^" + re.sub(r"\d+", r"\\d+", re.escape(label)) + "$" for label in labels))
