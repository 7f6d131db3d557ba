"""What torch.export assumed of sizes while it traced a module: its guards, as limits of the exported file.

Guards come in two kinds. Those that a branch, a slice or a reshape made hold for some sizes and not for others: beyond
them the file computes something else, so they become limits. Those that only keep 0 and 1 apart from larger sizes are made
for every axis and say nothing of the module; `verification` tries size 1 instead.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

from workbench.engines.limits import Sizes, axes, holds, parsed, shown

_SIZE = re.compile(r"L\['(?P<argument>\w+)'\](?:\[(?P<place>\d+)\])?\.size\(\)\[(?P<axis>\d+)\]")
# Sizes that are tried to tell whether a guard can be broken at all: small ones, and up to a million.
_TRIALS = 2000


def limits_of(program: Any, inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the limits that an exported program's guards put on its inputs, and the guards that cannot be kept, in words.

    Args:
        program: a torch.export.ExportedProgram whose forward takes `*tensors`.
        inputs: the names that the tensors have in the ONNX file.
    """
    kept: list[ast.expr] = []
    lost: list[str] = []
    free = {(name, axis) for name, shape in _shapes(program, inputs).items() for axis in _free(shape)}
    # torch.export writes them for its own use; the ranges of single sizes are the public part of the same.
    texts = getattr(program, "_guards_code", None)
    for text in _ranges(program, inputs) if texts is None else texts:
        renamed = _SIZE.sub(lambda match: f"L[{inputs[int(match['place'] or 0)]!r}][{match['axis']}]", text)
        try:
            tree = parsed(renamed)
        except ValueError:
            lost.append(shown(renamed))
        else:
            if axes(tree) & free and not _only_tells_one_from_more(tree):
                kept.append(tree)
    return [ast.unparse(tree) for tree in _telling(kept)], lost


def is_equality(limit: str) -> bool:
    """Return whether a limit says that two axes are of one size: axes of one name in the file say the same."""
    tree = parsed(limit)
    return (
        isinstance(tree, ast.Compare) and isinstance(tree.ops[0], ast.Eq) and len(axes(tree)) == len(_sides(tree)) == 2
    )


def _sides(tree: ast.Compare) -> list[ast.expr]:
    return [side for side in (tree.left, *tree.comparators) if isinstance(side, ast.Subscript)]


def _shapes(program: Any, inputs: Sequence[str]) -> dict[str, Sequence[Any]]:
    """ONNX input name -> its sizes, whole numbers where they are fixed and symbols where they are free."""
    names = [spec.arg.name for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"]
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return {label: nodes[name].meta["val"].shape for name, label in zip(names, inputs, strict=True)}


def _free(shape: Sequence[Any]) -> list[int]:
    return [axis for axis, size in enumerate(shape) if not str(size).isdecimal()]


def _ranges(program: Any, inputs: Sequence[str]) -> list[str]:
    found = []
    ranges = {str(symbol): bounds for symbol, bounds in program.range_constraints.items()}
    for label, shape in _shapes(program, inputs).items():
        for axis, size in enumerate(shape):
            bounds = ranges.get(str(size))
            if bounds is not None and str(bounds.lower).isdecimal():
                found.append(f"L[{label!r}][{axis}] >= {bounds.lower}")
            if bounds is not None and str(bounds.upper).isdecimal():
                found.append(f"L[{label!r}][{axis}] <= {bounds.upper}")
    return found


def _only_tells_one_from_more(tree: ast.expr) -> bool:
    match tree:
        case ast.Compare(ops=[ast.NotEq()], comparators=[ast.Constant(value=0 | 1)]):
            return True
        case ast.Compare(ops=[ast.GtE()], comparators=[ast.Constant(value=0 | 1 | 2)]):
            return True
        case ast.Compare(ops=[ast.Gt()], comparators=[ast.Constant(value=0 | 1)]):
            return True
    return False


def _telling(trees: Sequence[ast.expr]) -> list[ast.expr]:
    """Return the conditions that can be broken while the others hold, the shortest first: one reshape makes five that say one."""
    places = sorted(set().union(*map(axes, trees)))
    trials = [_laid_out(places, sizes) for sizes in _trials(len(places))]
    found: list[ast.expr] = []
    for tree in sorted(trees, key=lambda item: len(ast.unparse(item))):
        broken = [sizes for sizes in trials if not holds(tree, sizes)]
        if broken:
            found.append(tree)
            trials = [sizes for sizes in trials if holds(tree, sizes)]
    return found


def _trials(count: int) -> Iterator[list[int]]:
    chance = random.Random(0)
    for _ in range(_TRIALS):
        sizes = [int(2 ** chance.uniform(1, chance.choice((6, 20)))) for _ in range(count)]
        # Conditions on two sizes are often about equal ones, or about one that is a few times the other.
        if sizes and chance.random() < 0.4:
            sizes = [sizes[0] * chance.choice((1, 1, 2, 4)) for _ in sizes]
        yield sizes


def _laid_out(places: Sequence[tuple[str, int]], sizes: Sequence[int]) -> Sizes:
    found: dict[str, list[int]] = {}
    for (name, axis), size in zip(places, sizes, strict=True):
        shape = found.setdefault(name, [])
        shape += [0] * (axis + 1 - len(shape))
        shape[axis] = size
    return found
