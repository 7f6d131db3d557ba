"""Times of a PyTorch program's operations, from torch's own profiler, under the names of the modules they belong to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import EngineError
from workbench.records import Engine, LayerTime

if TYPE_CHECKING:
    import torch

_MARK = "workbench/"


def profile(engine: Engine, module: Any, tensors: list[torch.Tensor], runs: int) -> list[LayerTime]:
    """Run an eager program operation by operation with the profiler on.

    On a GPU the seconds are those of the kernels that an operation launched, on a CPU those of the operation.

    Args:
        module: the graph module of an exported program.
        tensors: its inputs, on its device.
        runs: calls that count, after as many to warm up (at most 5).

    Raises:
        EngineError: what runs is no graph of operations (torch.compile fuses them into kernels of its own).
    """
    import torch
    from torch.profiler import ProfilerActivity, record_function

    if not isinstance(module, torch.fx.GraphModule):
        raise EngineError(
            f"{engine.variant!r} was built for {engine.backend}, whose kernels stand for no single module. Profile it with "
            f"the backend 'torch'."
        )

    class Marked(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            if n.op != "call_function":
                return super().run_node(n)
            with record_function(f"{_MARK}{n.name}"):
                return super().run_node(n)

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if tensors[0].is_cuda else [])]
    warmup = min(runs, 5)
    taken: dict[str, list[float]] = {}
    with torch.no_grad():
        for index in range(warmup + runs):
            with torch.profiler.profile(activities=activities) as profiler:
                Marked(module).run(*tensors)
            for event in profiler.key_averages() if index >= warmup else ():
                if event.key.startswith(_MARK) and event.device_type.name == "CPU":
                    micros = event.device_time_total if tensors[0].is_cuda else event.cpu_time_total
                    taken.setdefault(event.key.removeprefix(_MARK), []).append(float(micros) * 1e-6)
    return [
        LayerTime(node.name, _operator(node), float(np.median(taken[node.name])), modules=_module(node))
        for node in module.graph.nodes
        if node.name in taken
    ]


def _operator(node: torch.fx.Node) -> str:
    return str(node.target).removeprefix("aten.")


def _module(node: torch.fx.Node) -> tuple[str, ...]:
    """The innermost module that the operation was called in; the exporter's wrapper is not among them."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path).partition("exported_module.")[2] for path, _ in stack.values()]
    return tuple(path for path in paths[-1:] if path)
