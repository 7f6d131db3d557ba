"""The cell that does with the verbs what the app was set to do. Pure text; runs nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from workbench.recipes import NAMED, Recipe
from workbench.records import BuildOptions, Protocol


def cell(
    model: str,
    data: str,
    recipes: Iterable[Recipe],
    *,
    backend: str,
    protocol: Protocol,
    options: BuildOptions,
    name: str | None = None,
) -> str:
    """Return Python code with the public verbs.

    Args:
        model: an expression for the model, such as `wb.load("digits_resnet")`.
        data: an expression for the data, or `None`.
        name: of the study, where the user gave it one.
    """
    lines = ["import workbench as wb", ""]
    lines += [f"{variable} = {text}" for variable, text in (("model", model), ("data", data)) if variable != text]
    arguments = [
        "model",
        "data",
        f"recipes=[{', '.join(recipe_code(recipe) for recipe in recipes)}]",
        f"backend={backend!r}",
    ]
    if protocol != Protocol():
        arguments.append(f"protocol={construction('wb.Protocol', protocol, Protocol())}")
    if options != BuildOptions():
        arguments.append(f"options={construction('wb.BuildOptions', options, BuildOptions())}")
    if name is not None:
        arguments.append(f"name={name!r}")
    lines += ["study = wb.run(", *(f"    {argument}," for argument in arguments), ")", "study.table()"]
    return "\n".join(lines) + "\n"


def recipe_code(recipe: Recipe) -> str:
    """Return a recipe's name where it is a known one, else its construction."""
    if NAMED.get(recipe.name) == recipe:
        return repr(recipe.name)
    steps = "".join(f"{construction('wb.' + type(step).__name__, step, type(step)())}, " for step in recipe.steps)
    return f"wb.Recipe({recipe.name!r}, ({steps.strip()}))"


def construction(name: str, value: Any, default: Any) -> str:
    """Return the construction of a dataclass with those fields alone that differ from the default's."""
    changed = {
        item.name: getattr(value, item.name)
        for item in dataclasses.fields(value)
        if getattr(value, item.name) != getattr(default, item.name)
    }
    text = ", ".join(f"{key}={item!r}" for key, item in changed.items())
    return f"{name}({text})".replace("ShapeProfile(", "wb.records.ShapeProfile(")
