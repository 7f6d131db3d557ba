"""A study as Python code with the public verbs: what the app writes as a cell, and reports as "do it again".

Pure text; runs nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from workbench.recipes import NAMED, Recipe
from workbench.records import BuildOptions, Protocol, StudyRecord


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a study is made from.

    Attributes:
        model, data: lines of code that bind these names, or the expression to bind.
        name: of the study, where the user gave it one.
        report: path of a report to write at the end, or None.
    """

    model: str
    data: str
    recipes: tuple[Recipe, ...]
    backend: str
    protocol: Protocol = dataclasses.field(default_factory=Protocol)
    options: BuildOptions = dataclasses.field(default_factory=BuildOptions)
    baseline: str = "fp32"
    name: str | None = None
    report: str | None = None


def cell(asked: Asked) -> str:
    """Return the code that runs this study; names it uses are those of `import workbench as wb`."""
    lines = ["import workbench as wb", ""]
    for variable in ("model", "data"):
        text = getattr(asked, variable)
        if text != variable:
            lines.append(text if text.startswith(("#", f"{variable} =")) else f"{variable} = {text}")
    arguments = ["model", "data", f"recipes=[{', '.join(recipe_code(recipe) for recipe in asked.recipes)}]"]
    arguments.append(f"backend={literal(asked.backend)}")
    if asked.protocol != Protocol():
        arguments.append(f"protocol={literal(asked.protocol)}")
    if asked.options != BuildOptions():
        arguments.append(f"options={literal(asked.options)}")
    if asked.baseline != "fp32":
        arguments.append(f"baseline={literal(asked.baseline)}")
    if asked.name is not None:
        arguments.append(f"name={literal(asked.name)}")
    lines += ["study = wb.run(", *(f"    {argument}," for argument in arguments), ")", "study.table()"]
    lines += [] if asked.report is None else [f"study.report({literal(asked.report)})"]
    return "\n".join(lines) + "\n"


def reproduce(record: StudyRecord) -> str:
    """Return the code that runs a study again."""
    options = next((result.engine.options for result in record.results if result.engine is not None), record.options)
    return cell(
        Asked(
            model=_model(record),
            data=_data(record),
            recipes=tuple(result.recipe for result in record.results),
            backend=record.backend,
            protocol=record.protocol,
            options=options,
            baseline=record.baseline,
            report="report.html",
        )
    ).rstrip()


def recipe_code(recipe: Recipe) -> str:
    """Return a recipe's name where it is a known one, else its construction."""
    if NAMED.get(recipe.name) == recipe:
        return literal(recipe.name)
    return f"wb.Recipe({literal(recipe.name)}, {literal(recipe.steps)})"


def literal(value: Any) -> str:
    """Return the expression for a value: records by their public names, with those fields alone that are not the default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {
            item.name: getattr(value, item.name)
            for item in dataclasses.fields(value)
            if _default(item) is dataclasses.MISSING or getattr(value, item.name) != _default(item)
        }
        arguments = ", ".join(f"{name}={literal(one)}" for name, one in changed.items())
        return f"wb.{type(value).__name__}({arguments})"
    if isinstance(value, str):
        return json.dumps(value)  # JSON's escapes are Python's too
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(key)}: {literal(one)}" for key, one in value.items()) + "}"
    if isinstance(value, tuple):
        return f"({_joined(value)}{',' if len(value) == 1 else ''})"
    return f"[{_joined(value)}]" if isinstance(value, list) else repr(value)


def _joined(values: Iterable[Any]) -> str:
    return ", ".join(literal(value) for value in values)


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default


def _model(record: StudyRecord) -> str:
    origin, name = record.model.origin, Path(record.model.path.replace("\\", "/")).name
    if origin.kind == "torch":
        return (
            f"# {_comment(origin.reference)}: your torch.nn.Module, and example inputs for one call\n"
            f"model = wb.load(module, example_inputs)"
        )
    prefix = {"torchvision": "torchvision:", "timm": "timm:"}.get(origin.kind, "")
    reference = origin.reference if prefix == "" or origin.reference.startswith(prefix) else prefix + origin.reference
    source = name if origin.kind == "onnx" else reference
    return f"model = wb.load({literal(source)})  # sha256 {_comment(record.model.sha256[:12])}"


def _data(record: StudyRecord) -> str:
    name, kind = str(record.data.get("name", "")), record.data.get("kind")
    if not record.data:
        return "None"
    if kind == "shipped" and name.isidentifier():
        return f"wb.datasets.{name}()"
    if kind == "random":
        return "wb.datasets.random(model)"
    return f"...  # your own data, here {_comment(name)!r}; see wb.datasets.arrays, .npz, .image_folder, .text"


def _comment(text: str) -> str:
    """Keep text from outside within its comment: one line, and not a long one."""
    return " ".join(text.split())[:80]
