"""Operators that a file uses and ONNX does not know, defined by those that it knows: as ONNX functions."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.external_data_helper
import onnx.parser

from workbench.errors import LoadError
from workbench.graph.editing import graphs
from workbench.models import onnx_file

_EARLIEST_IR = 8  # the first in which a file can hold functions


def define(source: str | Path | onnx.ModelProto, *definitions: str | onnx.FunctionProto) -> onnx.ModelProto:
    """Return a model with definitions of its own operators, for `load`.

    Every engine can then run them: recipes put the definition in place of each node, unless `Fuse.keep` names the operator
    for an engine that has a plugin for it, and what the plugin computes is compared with the definition.

    Args:
        source: an .onnx file, or a ModelProto.
        definitions: an ONNX function each, as text of ONNX's own syntax, such as
            `<opset_import: ["": 17], domain: "mine"> Twice (x) => (y) { y = Add(x, x) }`.

    Raises:
        LoadError: the file cannot be read, a text is no function, or is of another opset, or no node is of its operator.
    """
    model = _model(source)
    used = {(node.domain, node.op_type) for graph in graphs(model.graph) for node in graph.node}
    for definition in definitions:
        function = _function(definition)
        name = f"{function.domain}::{function.name}"
        if (function.domain, function.name) not in used:
            own = sorted(f"{domain}::{operator}" for domain, operator in used if domain not in ("", "ai.onnx"))
            raise LoadError(f"No node of the model is a {name}; those of other domains than ONNX's are {own}.")
        asked = {item.domain: item.version for item in function.opset_import}.get("")
        if asked not in (None, onnx_file.opset(model)):
            raise LoadError(
                f"The definition of {name} is of opset {asked}, the model of {onnx_file.opset(model)}. Write the definition in "
                f"the model's."
            )
        model.functions.append(function)
        if function.domain not in {item.domain for item in model.opset_import}:
            model.opset_import.append(onnx.helper.make_opsetid(function.domain, 1))
    model.ir_version = max(model.ir_version, _EARLIEST_IR)
    return model


def _model(source: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        return model
    if not isinstance(source, (str, Path)):
        raise LoadError(f"define takes an .onnx file or a ModelProto, got a {type(source).__name__}.")
    file = Path(source)
    model = onnx_file.parse(file)
    if onnx_file.external_files(model, file):
        onnx.external_data_helper.load_external_data_for_model(model, str(file.parent))
    return model


def _function(definition: str | onnx.FunctionProto) -> onnx.FunctionProto:
    if isinstance(definition, onnx.FunctionProto):
        return definition
    try:
        return onnx.parser.parse_function(definition)
    except (onnx.parser.ParseError, TypeError) as error:
        raise LoadError(f"The definition of an operator is no ONNX function: {error}. It is {definition!r}.") from error
