"""Conditions on the sizes of inputs under which a file is what was exported: kept with it, checked before it is fed.

A tracer takes one way through a module. Where the way depends on a size, it leaves a condition such as "axis 1 of x is at
most 64"; beyond that the file still runs, and computes something else. A condition is Python over `L['x'][1]` (axis 1 of
input x), whole numbers, arithmetic and comparisons; it is read here and never executed as code. Knows no exporter.
"""

from __future__ import annotations

import ast
import functools
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

_OPERATORS: dict[type[ast.AST], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: dict[str, Any] = {"max": max, "min": min, "abs": abs}
_SIZE = re.compile(r"L\[(?P<quote>['\"])(?P<name>.*?)(?P=quote)\]\[(?P<axis>\d+)\]")
Sizes = Mapping[str, Sequence[int]]


@functools.lru_cache(maxsize=256)
def parsed(text: str) -> ast.expr:
    """Read a condition; kept, because every call of an engine asks.

    Raises:
        ValueError: it is not one, or uses more than sizes, whole numbers, arithmetic and comparisons.
    """
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"not a condition on sizes: {text[:100]}") from error
    axes(tree)
    return tree


def axes(tree: ast.expr) -> set[tuple[str, int]]:
    """Return the (input, axis) that a condition speaks of; ValueError where it holds anything else than it may."""
    size = _size(tree)
    if size is not None:
        return {size}
    match tree:
        case ast.Constant(value=int()):
            return set()
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return axes(left) | axes(right)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _OPERATORS:
            return axes(left) | axes(right)
        case ast.BoolOp(values=values):
            return set().union(*map(axes, values))
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            return axes(operand)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS and args:
            return set().union(*map(axes, args))
    raise ValueError(f"not a condition on sizes: {ast.unparse(tree)[:100]}")


def holds(tree: ast.expr, sizes: Sizes) -> bool:
    """Return whether a condition holds for inputs of these shapes; where it divides by zero it does not."""
    try:
        return bool(_value(tree, sizes))
    except ZeroDivisionError:
        return False


def broken(limits: Sequence[str], sizes: Sizes) -> list[str]:
    """Return the conditions that shapes do not keep, in words; one that speaks of an input that is not there is kept.

    Raises:
        ValueError: one is not a condition.
    """
    trees = {text: parsed(text) for text in limits}
    there = {(name, axis) for name, shape in sizes.items() for axis in range(len(shape))}
    return [shown(text) for text, tree in trees.items() if axes(tree) <= there and not holds(tree, sizes)]


def shown(text: str) -> str:
    """Return a condition for people: `x[1] <= 64`."""
    return _SIZE.sub(lambda match: f"{match['name']}[{match['axis']}]", text)


def _size(tree: ast.expr) -> tuple[str, int] | None:
    match tree:
        case ast.Subscript(
            value=ast.Subscript(value=ast.Name(id="L"), slice=ast.Constant(value=str() as name)),
            slice=ast.Constant(value=int() as axis),
        ) if axis >= 0:
            return name, axis
    return None


def _value(tree: ast.expr, sizes: Sizes) -> Any:
    size = _size(tree)
    if size is not None:
        return sizes[size[0]][size[1]]
    match tree:
        case ast.Constant(value=value):
            return value
        case ast.BinOp(left=left, op=op, right=right) | ast.Compare(left=left, ops=[op], comparators=[right]):
            return _OPERATORS[type(op)](_value(left, sizes), _value(right, sizes))
        case ast.BoolOp(op=op, values=values):
            results = (bool(_value(item, sizes)) for item in values)
            return all(results) if isinstance(op, ast.And) else any(results)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return not _value(operand, sizes)
        case ast.UnaryOp(operand=operand):
            return -_value(operand, sizes)
        case ast.Call(func=ast.Name(id=name), args=args):
            return _FUNCTIONS[name](*(_value(item, sizes) for item in args))
    raise ValueError(f"not a condition on sizes: {ast.unparse(tree)[:100]}")
