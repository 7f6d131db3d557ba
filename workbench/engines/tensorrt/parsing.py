"""An ONNX file into a TensorRT network, with the parser's complaints digested. Builds nothing."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner

from workbench.engines.tensorrt import plugins
from workbench.engines.tensorrt.capabilities import Capabilities, name_of
from workbench.engines.tensorrt.log import NO_DRIVER
from workbench.errors import BuildError, UnsupportedOperator

_NO_IMPORTER = re.compile(r"No importer registered for op: (\S+?)\.? ")
# Codes that ONNX Runtime's kernels want and TensorRT's parser refuses -> what they are, for people.
_FOREIGN_CODES = (
    (re.compile(r"input has type Int32 but must have type"), "its biases are INT32 codes, where TensorRT wants FP32"),
    (
        re.compile(r"Non-zero zero point is not supported"),
        "its activations have a zero point, where TensorRT wants signed symmetric codes",
    ),
)
_QUANTIZING = frozenset({"QuantizeLinear", "DequantizeLinear"})


def load_graph(path: Path) -> onnx.ModelProto:
    """Read the graph without its external weights.

    Raises:
        BuildError: the file is missing or no ONNX.
    """
    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:
        raise BuildError(f"Cannot read the variant's ONNX file {path}: {error}. Transform the model again.") from error


def is_quantized(graph: onnx.ModelProto) -> bool:
    """Return whether the graph holds Q/DQ nodes."""
    return any(node.op_type in _QUANTIZING for node in graph.graph.node)


def parse(caps: Capabilities, network: Any, logger: Any, path: Path, graph: onnx.ModelProto) -> Any:
    """Fill a network from a file and return the parser, which must live until the build is done.

    Raises:
        UnsupportedOperator: TensorRT lacks an operator; the message names node, operator and where it came from.
        BuildError: the parser refuses the file for another reason.
    """
    parser = caps.trt.OnnxParser(network, logger)
    bare = _without_plugins(caps, graph)
    if parser.parse_from_file(str(path)) if bare is None else parser.parse(bare, str(path)):
        return parser
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    raise _refusal(caps, errors, graph, path)


def _without_plugins(caps: Capabilities, graph: onnx.ModelProto) -> bytes | None:
    """Return the file without its definitions of operators that a plugin has, which go before plugins; None: it has none."""
    as_plugins = plugins.registered(caps) if graph.functions else frozenset()
    if not any(function.name in as_plugins for function in graph.functions):
        return None
    bare = onnx.ModelProto()
    bare.CopyFrom(graph)
    del bare.functions[:]
    bare.functions.extend(function for function in graph.functions if function.name not in as_plugins)
    return bytes(bare.SerializeToString())


def _refusal(caps: Capabilities, errors: list[Any], graph: onnx.ModelProto, path: Path) -> BuildError:
    if not errors:
        return BuildError(f"TensorRT's parser refuses {path.name} and says nothing. Is its external data beside it?")
    words = [_sentence(error, graph) for error in errors]
    for error, sentence in zip(errors, words, strict=True):
        if name_of(error.code()).startswith("UNSUPPORTED_NODE") or _NO_IMPORTER.search(error.desc()):
            return UnsupportedOperator(
                f"{caps.name} cannot run {sentence}. Define it by others (workbench.define), name the library of a plugin for it "
                f"(BuildOptions.extra['plugins']), or use the backend onnxruntime-cuda.",
                "\n".join(words),
            )
    for pattern, reason in _FOREIGN_CODES:
        if pattern.search(words[0]):
            return BuildError(
                f"{caps.name} cannot read the quantization in {path.name}: {reason}. It was written for another engine such "
                f"as ONNX Runtime. Load the model before it was quantized, and quantize it here: "
                f"workbench.transform(model, recipe, dialect={caps.dialect!r}). The parser said: {words[0]}",
                "\n".join(words),
            )
    opset = next((item.version for item in graph.opset_import if item.domain in ("", "ai.onnx")), None)
    return BuildError(
        f"{caps.name} cannot parse {path.name} (opset {opset}): {words[0]}. {_opset_advice(caps, opset)}",
        "\n".join(words),
    )


def _opset_advice(caps: Capabilities, opset: int | None) -> str:
    if caps.dialect == "trt-8.6" and (opset or 0) > 17:
        return f"TensorRT 8.6 reads up to opset 17; transform the model again with dialect={caps.dialect!r}."
    return (
        f"Transform the model again with dialect={caps.dialect!r}, which this release wants, or leave out the step that "
        f"wrote this node."
    )


def _said(error: Any) -> str:
    """Return the parser's words without what every call says where there is no driver."""
    words = error.desc().strip()
    if words == "false":  # an importer's check, all that is told of which is its name
        return f"its importer refuses it ({error.func()})"
    return "\n".join(line for line in words.splitlines() if NO_DRIVER not in line)


def _sentence(error: Any, graph: onnx.ModelProto) -> str:
    """Describe a parser error: from 10 on it names its node; before, the node's index is all there is."""
    index = error.node()
    node = graph.graph.node[index] if 0 <= index < len(graph.graph.node) else None
    operator = error.node_operator() if hasattr(error, "node_operator") else ""
    name = error.node_name() if hasattr(error, "node_name") else ""
    operator = operator or (node.op_type if node is not None else "an unknown operator")
    name = name or (node.name if node is not None else "")
    where = f" in {_module(node)}" if node is not None and _module(node) else ""
    return f"{operator} (node {name or index!r}{where}): {_said(error)}"


def _module(node: onnx.NodeProto) -> str:
    """Return the PyTorch module path that the exporter left in the node's metadata, or nothing."""
    found = {item.key: item.value for item in getattr(node, "metadata_props", ())}
    return found.get("namespace") or found.get("pkg.torch.onnx.name_scopes") or ""


def lacks(caps: Capabilities, network: Any, logger: Any, path: Path) -> dict[str, str]:
    """Return the operator types of a file that TensorRT cannot run -> the reason; empty where it can run all.

    Where the parser names nodes, these are the reason, and what it left unread after them is not blamed.
    """
    graph = load_graph(path)
    if graph.functions:
        graph = onnx.inliner.inline_local_functions(graph)  # as a recipe does
    parser = caps.trt.OnnxParser(network, logger)
    operators = Counter(node.op_type for node in graph.graph.node)
    as_plugins = plugins.registered(caps)
    missing = {
        name: "TensorRT has no importer for it"
        for name in operators
        if not parser.supports_operator(name) and name not in as_plugins
    }
    # 8.6 counts importers alone, and blames the neighbours of a plugin too: such a file is parsed instead of asked about.
    by_plugins = [name for name in operators if name in as_plugins and not parser.supports_operator(name)]
    if by_plugins:
        unsupported = []
        parser.parse(graph.SerializeToString(), str(path))
    else:
        unsupported = [
            index for index in _unsupported_nodes(caps, parser, graph, path) if 0 <= index < len(graph.graph.node)
        ]
    named: dict[str, str] = {}
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        if 0 <= error.node() < len(graph.graph.node):
            named.setdefault(graph.graph.node[error.node()].op_type, _sentence(error, graph))
    if named:
        return {**missing, **named}
    for index in unsupported:
        node = graph.graph.node[index]
        missing.setdefault(node.op_type, f"TensorRT cannot run node {node.name!r} as it is used here")
    return missing


def _unsupported_nodes(caps: Capabilities, parser: Any, graph: onnx.ModelProto, path: Path) -> list[int]:
    """Ask the parser about the whole model: the same operator may be fine in one place and not in another."""
    data = graph.SerializeToString()  # weights that lie beside the file stay there
    if caps.has("OnnxParser", "supports_model_v2"):
        if parser.supports_model_v2(data, str(path)):
            return []
        parts = [index for index in range(parser.num_subgraphs) if not parser.is_subgraph_supported(index)]
        return [int(node) for index in parts for node in parser.get_subgraph_nodes(index)]
    if caps.has("OnnxParser", "supports_model"):
        whole, subgraphs = parser.supports_model(data, str(path))
        return [] if whole else [int(node) for nodes, fine in subgraphs if not fine for node in nodes]
    return []
