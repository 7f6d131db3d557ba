"""Names of ONNX nodes: unique ones for every node, and the PyTorch module each node came from.

Recipes, reports and layer tables address nodes by name or module path, so both are settled once, when a model is
loaded. Knows nothing of files.
"""

from __future__ import annotations

import ast
import re
from collections import Counter

import onnx

from workbench.graph.editing import graphs

# Modules of our own around a user's keep it under this attribute, so that their traces can be taken out of a graph.
WRAPPER = "exported_module"
_SCOPES = "pkg.torch.onnx.name_scopes"
_NAMESPACE = "namespace"


def make_unique(proto: onnx.ModelProto) -> int:
    """Give nodes without a name, or with one that an earlier node has, a unique name; return how many were renamed."""
    nodes = [node for graph in graphs(proto.graph) for node in graph.node]
    taken = {node.name for node in nodes if node.name}
    seen: set[str] = set()
    numbers: Counter[str] = Counter()
    renamed = 0
    for index, node in enumerate(nodes):
        if not node.name or node.name in seen:
            stem = node.name or f"{node.op_type}_{index}"
            node.name = _free(stem, taken, numbers)
            taken.add(node.name)
            renamed += 1
        seen.add(node.name)
    return renamed


def modules(proto: onnx.ModelProto) -> dict[str, str]:
    """Return ONNX node name -> PyTorch module path (`layer1.0.conv1`) for the nodes that tell.

    The dynamo exporter writes the path into the node's metadata, the TorchScript exporter into its name
    (`/layer1/layer1.0/conv1/Conv`). Nodes outside any submodule are left out.
    """
    found = ((node.name, _module_path(node)) for graph in graphs(proto.graph) for node in graph.node)
    return {name: path for name, path in found if path}


def unwrap(proto: onnx.ModelProto) -> None:
    """Undo what exporting modules with `self.<WRAPPER> = module` did to the names of nodes, tensors and scopes.

    Other metadata of the exporter (stack traces with paths of this machine) are dropped.
    """
    for graph in graphs(proto.graph):
        for node in graph.node:
            node.name = _unwrap_name(node.name)
            node.doc_string = ""
            scopes = [_strip(scope) for scope in _scopes(node)]
            del node.metadata_props[:]
            if scopes:
                node.metadata_props.add(key=_SCOPES, value=repr(scopes))
    _rename_tensors(proto.graph)


def _module_path(node: onnx.NodeProto) -> str:
    scopes = _scopes(node)
    if scopes:
        # A convolution that swallowed its BatchNorm carries the BatchNorm's scope; its weight tells the truth.
        if node.op_type in ("Conv", "ConvTranspose") and len(node.input) > 1 and node.input[1].endswith(".weight"):
            return node.input[1].removesuffix(".weight")
        # The last scope is the traced operation itself; the one before it is the innermost module.
        path = scopes[-2] if len(scopes) > 1 else ""
        return "" if path.startswith("_empty_nn_module_stack") else path
    if not node.name.startswith("/"):
        return ""
    parts: list[str] = []
    previous = ""
    for segment in node.name.split("/")[1:-1]:
        # A child of a Sequential or ModuleList repeats its parent: /layer1/layer1.0 is layer1.0.
        if parts and segment.startswith(f"{previous}."):
            parts[-1] = segment
        else:
            parts.append(segment)
        previous = segment
    return ".".join(parts)


def _scopes(node: onnx.NodeProto) -> list[str]:
    metadata = {entry.key: entry.value for entry in node.metadata_props}
    if _SCOPES in metadata:
        try:
            scopes = ast.literal_eval(metadata[_SCOPES])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return []
        return [str(scope) for scope in scopes] if isinstance(scopes, list) else []
    if _NAMESPACE in metadata:
        return [part.partition(":")[0].strip() for part in metadata[_NAMESPACE].split("/")]
    return []


def _strip(scope: str) -> str:
    return re.sub(rf"^({WRAPPER}(\.|$))+", "", scope)


def _unwrap_name(name: str) -> str:
    """Turn `/W/conv/Conv` into `/conv/Conv`, `/W/W.0/Conv` into `/0/Conv`, and `W.fc.bias` into `fc.bias`."""
    inner = re.sub(rf"^(/{WRAPPER})+(?=/)", "", name)
    inner = re.sub(rf"^/{WRAPPER}\.", "/", inner)
    return re.sub(rf"^({WRAPPER}\.)+", "", inner)


def _rename_tensors(graph: onnx.GraphProto) -> None:
    every = list(graphs(graph))
    names = {name for inner in every for node in inner.node for name in (*node.input, *node.output)}
    names |= {tensor.name for inner in every for tensor in inner.initializer}
    names |= {value.name for inner in every for value in (*inner.input, *inner.output)}
    fixed = {value.name for inner in every for value in (*inner.input, *inner.output)}
    renamed = {}
    for name in sorted(names - fixed):
        new = _unwrap_name(name)
        if new != name and new not in names:
            renamed[name] = new
            names.add(new)
    for inner in every:
        for node in inner.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            node.output[:] = [renamed.get(name, name) for name in node.output]
        for named in (*inner.initializer, *inner.value_info):
            named.name = renamed.get(named.name, named.name)


def _free(stem: str, taken: set[str], numbers: Counter[str]) -> str:
    """Return a name that is not taken; `numbers` has the last one that was tried for each stem."""
    name = stem
    while name in taken:
        numbers[stem] += 1
        name = f"{stem}_{numbers[stem]}"
    return name
