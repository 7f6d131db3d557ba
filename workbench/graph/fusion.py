"""Fusion in the graph: what every engine would fold, done once, so that later steps see the nodes that will run.

BatchNormalization goes into the convolution or Gemm before it, constant subgraphs become constants, nodes without
effect and duplicates go. Fusing activations and choosing layouts is left to the engine. Knows nothing of engines.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.inliner

from workbench.graph.bodies import in_every_graph
from workbench.graph.constant_folding import fold_constants
from workbench.graph.editing import Context, Graph, attribute, every_node, subgraphs
from workbench.graph.products import merge_products
from workbench.graph.tensor_types import TensorTypes, tensor_types
from workbench.recipes import Fuse
from workbench.records import Skipped, StepReport

_FOLDED_INTO = ("Conv", "ConvTranspose", "Gemm")
_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli")
# Each pass may open the way for the next; chains longer than this do not occur in exported nets.
_MOST_PASSES = 5
# Constants of one value or few integers are worth sharing; equal weights are not, as later steps edit them apart.
_SHARED_INTEGERS = 64


@dataclass
class _Log:
    changed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, what: str, node: str) -> None:
        self.changed.append(node)
        self.counts[what] = self.counts.get(what, 0) + 1


def apply(model: onnx.ModelProto, step: Fuse, context: Context) -> StepReport:
    """Fold and clean the graph in place; outputs stay the same within rounding of the folded weights.

    Args:
        model: any ONNX model; bodies of its nodes are folded too, each by itself.
        step: level `off` changes nothing; `basic` and `all` do the same here and differ in the engine.
        context: not used, steps share one signature.

    Returns:
        A report whose details count what was done (`functions_inlined`, `constants_lifted`, `batchnorms_folded`,
        `constants_folded`, `identities_removed`, `duplicates_removed`, `products_merged`, `nodes_before`, `nodes_after`);
        `skipped` names every BatchNormalization that stays.
    """
    started = time.perf_counter()
    before = len(model.graph.node)
    absent = set(step.keep) - {node.op_type for node in every_node(model.graph)}
    notes = tuple(f"Fuse.keep names {name}, and no node is one." for name in sorted(absent))
    if step.level == "off":
        note = "Fusion is off: the graph is as exported, and engines that can leave it so do."
        details = {"nodes_before": before, "nodes_after": before}
        return StepReport("fuse", time.perf_counter() - started, notes=(note, *notes), details=details)
    log = _Log()
    if model.functions:
        kept = [(function.domain, function.name) for function in model.functions if function.name in step.keep]
        log.counts["functions_inlined"] = len(model.functions) - len(kept)
        model.CopyFrom(onnx.inliner.inline_selected_functions(model, kept, exclude=True))
    _, left = in_every_graph(Graph(model), lambda graph: _fold(graph, step, log))
    log.skipped.update({item.name: item.reason for item in left})
    present = {node.name for node in every_node(model.graph)}
    return StepReport(
        kind="fuse",
        seconds=time.perf_counter() - started,
        changed=tuple(dict.fromkeys(log.changed)),
        skipped=tuple(Skipped(name, reason) for name, reason in log.skipped.items() if name in present),
        notes=notes,
        details={**log.counts, "nodes_before": before, "nodes_after": len(model.graph.node)},
    )


def _fold(graph: Graph, step: Fuse, log: _Log) -> None:
    """Fold one graph until nothing is left to do."""
    log.counts["constants_lifted"] = log.counts.get("constants_lifted", 0) + len(graph.lift_constants())
    for _ in range(_MOST_PASSES):
        done = len(log.changed)
        _remove_without_effect(graph, log)
        folded, refused = fold_constants(graph)
        for name in folded:
            log.count("constants_folded", name)
        log.skipped.update(refused)
        _fold_batchnorms(graph, log)
        _remove_duplicates(graph, log)
        if len(log.changed) == done:
            break
    for name in merge_products(graph) if step.products else ():
        log.count("products_merged", name)
    graph.finish()


def _fold_batchnorms(graph: Graph, log: _Log) -> None:
    for norm in [node for node in graph.nodes if node.op_type == "BatchNormalization"]:
        reason = _fold_batchnorm(graph, norm)
        if reason is None:
            log.count("batchnorms_folded", norm.name)
        else:
            log.skipped[norm.name] = reason


def _fold_batchnorm(graph: Graph, norm: onnx.NodeProto) -> str | None:
    """Fold one BatchNormalization into the node before it; return why not, or None.

    Y = scale (X - mean) / sqrt(variance + epsilon) + shift, a factor and an offset a channel, computed in double.
    """
    before = graph.producer.get(norm.input[0])
    reason = _unfoldable(graph, norm, before)
    if reason or before is None:
        return reason
    scale, shift, mean, variance = (graph.array(name) for name in norm.input[1:5])
    if scale is None or shift is None or mean is None or variance is None:
        return "its parameters are not constant"
    if not attribute(norm, "spatial", 1) or any(one.ndim != 1 for one in (scale, shift, mean, variance)):
        return f"it has a value for each place (shape {scale.shape}), not one a channel"
    width = np.asarray(variance, np.float64) + attribute(norm, "epsilon", 1e-5)
    if not (width > 0).all():
        return f"variance + epsilon is not positive (smallest {width.min():g})"
    factor = np.asarray(scale, np.float64) / np.sqrt(width)
    offset = np.asarray(shift, np.float64) - np.asarray(mean, np.float64) * factor
    reason = (_into_gemm if before.op_type == "Gemm" else _into_conv)(graph, before, factor, offset)
    if reason is None:
        name = norm.input[0]
        output = norm.output[0]
        graph.remove_node(norm)
        graph.rename_output(before, name, output)
    return reason


def _unfoldable(graph: Graph, norm: onnx.NodeProto, before: onnx.NodeProto | None) -> str | None:
    if before is None or before.op_type not in _FOLDED_INTO:
        source = f"a {before.op_type}" if before is not None else "a graph input or constant"
        return f"its input comes from {source}, not from one of {', '.join(_FOLDED_INTO)}"
    if attribute(norm, "training_mode", 0) or len([name for name in norm.output if name]) > 1:
        return "it is in training mode"
    if len(graph.consumers[norm.input[0]]) > 1 or norm.input[0] in graph.pinned:
        return f"{before.name!r} has other readers besides it"
    if not graph.is_constant(before.input[1]):
        return f"the weights of {before.name!r} are not constant"
    if len(before.input) > 2 and before.input[2] and not graph.is_constant(before.input[2]):
        return f"the bias of {before.name!r} is not constant"
    return None


def _into_conv(graph: Graph, conv: onnx.NodeProto, factor: np.ndarray, offset: np.ndarray) -> str | None:
    weight, bias = _parameters(graph, conv)
    groups = int(attribute(conv, "group", 1))
    if conv.op_type == "Conv":
        scaled = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    else:
        # Weights of ConvTranspose are (inputs, outputs / groups, ...), inputs ordered by group.
        per_group = weight.reshape(groups, -1, *weight.shape[1:])
        scaled = per_group * factor.reshape(groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
        scaled = scaled.reshape(weight.shape)
    return _store(graph, conv, scaled, (0.0 if bias is None else bias) * factor + offset)


def _into_gemm(graph: Graph, gemm: onnx.NodeProto, factor: np.ndarray, offset: np.ndarray) -> str | None:
    weight, bias = _parameters(graph, gemm)
    if bias is not None and bias.size > 1 and bias.shape not in ((factor.size,), (1, factor.size)):
        return f"the bias of {gemm.name!r} has shape {bias.shape}, not one value a channel"
    beta = attribute(gemm, "beta", 1.0)
    scaled = weight * (factor[:, None] if attribute(gemm, "transB", 0) else factor[None, :])
    offset = (0.0 if bias is None else beta * bias.reshape(-1)) * factor + offset
    reason = _store(graph, gemm, scaled, offset)
    if reason is None:
        for item in [item for item in gemm.attribute if item.name == "beta"]:
            gemm.attribute.remove(item)
    return reason


def _parameters(graph: Graph, node: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray | None]:
    weight = graph.array(node.input[1])
    bias = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    return np.asarray(weight, np.float64), None if bias is None else np.asarray(bias, np.float64)


def _store(graph: Graph, node: onnx.NodeProto, weight: np.ndarray, bias: np.ndarray) -> str | None:
    dtype = graph.array(node.input[1]).dtype  # type: ignore[union-attr]
    largest = float(max(np.abs(weight).max(initial=0.0), np.abs(bias).max(initial=0.0)))
    limit = float(np.finfo(dtype).max) if dtype.kind == "f" else float(np.finfo(np.float32).max)
    if not largest <= limit:
        return f"the folded weights of {node.name!r} reach {largest:g}, beyond {dtype}"
    graph.give_constant(node, 1, weight.astype(dtype))
    if len(node.input) > 2 and node.input[2]:
        graph.give_constant(node, 2, bias.astype(dtype))
        return None
    name = node.input[1]
    stem = name.removesuffix(".weight")
    graph.set_input(node, 2, graph.add_initializer(f"{stem}.bias", bias.astype(dtype)))
    return None


def _remove_without_effect(graph: Graph, log: _Log) -> None:
    types = tensor_types(graph.model)
    for node in list(graph.nodes):
        test = _WITHOUT_EFFECT.get(node.op_type)
        if test is None or node.domain not in ("", "ai.onnx") or not test(graph, node, types):
            continue
        reason = graph.bypass(node)
        if reason is None:
            log.count("identities_removed", node.name)
        else:
            log.skipped[node.name] = reason


def _drops_nothing(graph: Graph, node: onnx.NodeProto, types: TensorTypes) -> bool:
    training = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else np.array(False)
    mask = node.output[1] if len(node.output) > 1 else ""
    read = bool(graph.consumers.get(mask)) or mask in graph.pinned
    return training is not None and not training.any() and not read


def _casts_nothing(graph: Graph, node: onnx.NodeProto, types: TensorTypes) -> bool:
    return types.elements.get(node.input[0]) == attribute(node, "to", None)


def _permutes_nothing(graph: Graph, node: onnx.NodeProto, types: TensorTypes) -> bool:
    order = attribute(node, "perm", None)
    return order is not None and list(order) == list(range(len(order)))


def _reshapes_nothing(graph: Graph, node: onnx.NodeProto, types: TensorTypes) -> bool:
    target, have = graph.array(node.input[1]), types.shapes.get(node.input[0])
    if target is None or have is None or target.size != len(have) or attribute(node, "allowzero", 0):
        return False
    # 0 keeps an axis. Where all others are kept, -1 can only be what it was, unless an axis may be empty.
    wanted = [size if wish == 0 else int(wish) for wish, size in zip(target, have, strict=True)]
    free = wanted.count(-1)
    same = all(wish in (size, -1) for wish, size in zip(wanted, have, strict=True))
    return same and free <= 1 and (free == 0 or 0 not in have)


def _pads_nothing(graph: Graph, node: onnx.NodeProto, types: TensorTypes) -> bool:
    pads = graph.array(node.input[1]) if len(node.input) > 1 else None
    return pads is not None and not pads.any()


def _has_one_input(graph: Graph, node: onnx.NodeProto, types: TensorTypes) -> bool:
    return len(node.input) == 1


_WITHOUT_EFFECT: dict[str, Callable[[Graph, onnx.NodeProto, TensorTypes], bool]] = {
    "Identity": lambda graph, node, types: True,
    "Dropout": _drops_nothing,
    "Cast": _casts_nothing,
    "Transpose": _permutes_nothing,
    "Reshape": _reshapes_nothing,
    "Pad": _pads_nothing,
    "Concat": _has_one_input,
    "Sum": _has_one_input,
    "Max": _has_one_input,
    "Min": _has_one_input,
}


def _remove_duplicates(graph: Graph, log: _Log) -> None:
    """Merge equal small constants, then nodes that do the same to the same tensors."""
    first: dict[object, str] = {}
    for name, tensor in list(graph.initializers.items()):
        elements = int(np.prod(tensor.dims, dtype=np.int64))
        integer = tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)
        if name not in graph.pinned and elements <= (_SHARED_INTEGERS if integer else 1):
            value = graph.array(name)
            key = (tensor.data_type, tuple(tensor.dims), value.tobytes())  # type: ignore[union-attr]
            if first.setdefault(key, name) != name:
                graph.rewire(name, first[key])
    seen: dict[object, onnx.NodeProto] = {}
    for node in list(graph.nodes):
        if node.op_type in (*_RANDOM, "Dropout", "Constant") or subgraphs(node):
            continue
        attributes = tuple(sorted(item.SerializeToString() for item in node.attribute))
        same = seen.setdefault((node.domain, node.op_type, tuple(node.input), len(node.output), attributes), node)
        if same is not node and not any(name in graph.pinned for name in node.output):
            graph.remove_node(node)
            for index, (old, new) in enumerate(zip(node.output, same.output, strict=True)):
                if old and not new:  # an output that only the second one gives
                    same.output[index] = old
                    graph.producer[old] = same
                else:
                    graph.rewire(old, new)
            log.count("duplicates_removed", node.name)
