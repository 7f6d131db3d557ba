"""Where the time and the error are, layer by layer, in names of the model's own modules.

Times come from each backend's own profiler, in a child process, and are joined with the nodes and the PyTorch modules that each
executed layer stands for. Errors are those of the tensors behind each layer. Judges nothing, formats nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from workbench.datasets import Split
from workbench.engines import jobs
from workbench.engines.base import Feeds
from workbench.machine.handle import QUIET, Handle
from workbench.records import Engine, LayerTime
from workbench.transformation.intermediate_outputs import Observation, batches


def layer_times(
    engine: Engine,
    feeds: Feeds,
    modules: Mapping[str, str] | None = None,
    *,
    runs: int = 30,
    handle: Handle = QUIET,
) -> tuple[LayerTime, ...]:
    """Return the time of every executed layer, in the order of execution, from the backend's own profiler.

    Args:
        feeds: input name -> one batch.
        modules: ONNX node name -> module path, `Model.modules`.
        runs: profiled calls.

    Raises:
        EngineError: the backend has no profiler of layers, or refuses the engine or the feeds.
        ChildKilled, Cancelled: as every child process.
    """
    found = []
    for layer in jobs.layer_times(engine, feeds, runs=runs, handle=handle):
        paths = dict.fromkeys(path for path in ((modules or {}).get(node) for node in layer.nodes) if path)
        found.append(replace(layer, modules=(*layer.modules, *paths)))
    return tuple(found)


def time_of(times: Sequence[LayerTime], groups: Mapping[str, Sequence[str]]) -> tuple[dict[str, float], float]:
    """Sum layers' seconds over groups of nodes.

    A layer that stands for nodes of several groups is shared equally; what stands for no node of a group (added casts
    and reorders, layers between) is the second value.

    Args:
        groups: name -> node names.
    """
    owner = {node: name for name, nodes in groups.items() for node in nodes}
    sums = dict.fromkeys(groups, 0.0)
    rest = 0.0
    for layer in times:
        # A node that was replaced lives on in nodes called after it, such as `MatMul_MatMulInteger`.
        known = (node if node in owner else node.rpartition("_")[0] for node in layer.nodes)
        # PyTorch's operations know no ONNX nodes, but the same modules.
        paths = layer.modules if not layer.nodes else ()
        names = list(dict.fromkeys([*(owner[node] for node in known if node in owner), *(set(paths) & set(groups))]))
        for name in names:
            sums[name] += layer.seconds / len(names)
        rest += 0.0 if names else layer.seconds
    return sums, rest


def tensor_errors(
    parent: onnx.ModelProto, lowered: onnx.ModelProto, tensors: Sequence[str], split: Split, samples: int = 64
) -> tuple[tuple[str, float | None], ...]:
    """Return the SQNR in dB of tensors in a quantized graph against its FP32 parent, for a waterfall; None without error.

    Args:
        tensors: activations that both graphs have, in the order of execution (see `shared_tensors`).
        samples: from the front of the split.
    """
    how = Observation(samples=samples)
    first, second = (batches(graph, tensors, split.inputs, how) for graph in (parent, lowered))
    sums = {name: [0.0, 0.0] for name in tensors}
    for theirs, ours in zip(first, second, strict=True):
        for name in theirs.arrays.keys() & ours.arrays.keys():
            x, y = (one.arrays[name].astype(np.float64).ravel() for one in (theirs, ours))
            sums[name][0] += float(x @ x)
            sums[name][1] += float((x - y) @ (x - y))
    return tuple(
        (name, None if noise == 0 or signal == 0 else float(10 * np.log10(signal / noise)))
        for name, (signal, noise) in sums.items()
    )


def shared_tensors(parent: onnx.ModelProto, lowered: onnx.ModelProto, nodes: Sequence[str]) -> dict[str, str]:
    """Return node name -> its first output, for those nodes whose output both graphs have, in the parent's order."""
    wanted, there = set(nodes), {name for node in lowered.graph.node for name in node.output}
    return {node.name: node.output[0] for node in parent.graph.node if node.name in wanted and node.output[0] in there}
