"""Per-layer times from ONNX Runtime's own profiler, on the CPU. Run it in a child process: profiling slows a session.

The times of layers are those of a profiled run; they say where the time goes, and do not add up to a measured latency.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from workbench.engines.onnxruntime_session import runtime, session_options, session_settings
from workbench.errors import EngineError
from workbench.graph.fused_layers import fusion_map
from workbench.machine import disk
from workbench.records import Engine, LayerProfile, LayerTime, TensorSpec

Event = Mapping[str, object]

_SUFFIX = "_kernel_time"
_MICROSECOND = 1e-6
_CALL = "model_run"
# What ONNX Runtime calls element types, where numpy calls them otherwise.
_TYPES = {"float": "float32", "double": "float64"}


def profile(engine: Engine, feeds: Mapping[str, np.ndarray], runs: int) -> LayerProfile:
    """Run an engine with profiling on, and join what is executed with the nodes of the variant's file.

    Args:
        runs: calls that count, after as many to warm up (at most 5).

    Raises:
        EngineError: another provider than the CPU's, or ONNX Runtime refuses the file or the feeds.
    """
    if engine.backend != "onnxruntime-cpu":
        raise EngineError(
            f"ONNX Runtime times the host's side of layers only where they run on its CPU provider, and "
            f"{engine.variant!r} was built for {engine.backend}. Build it for onnxruntime-cpu or tensorrt."
        )
    path = Path(engine.path)
    events, executed = _run(path, engine.fusion, engine.options.threads, feeds, runs)
    calls = _calls(events)[min(runs, 5) :]
    mapped = fusion_map(onnx.load(str(path), load_external_data=False), executed)
    sources = {layer.name: layer.sources for layer in mapped.layers}
    layers = _Layers(executed, feeds).of(calls, sources)
    # Whole calls, as the profiler timed them: the layers' times and whatever lies between them.
    whole = [float(str(call[_CALL, ""][-1]["dur"])) * _MICROSECOND for call in calls]
    return LayerProfile(tuple(layers), float(np.median(whole)))


def _run(
    path: Path, fusion: str, threads: int | None, feeds: Mapping[str, np.ndarray], runs: int
) -> tuple[list[Event], onnx.ModelProto]:
    library, settings = runtime(), session_settings(path, fusion, threads, "onnxruntime-cpu")
    options = session_options(settings)
    options.enable_profiling = True
    with disk.temporary() as folder:
        options.profile_file_prefix = str(folder / "profile")
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        try:
            session = library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for _ in range(min(runs, 5) + runs):
                session.run(None, dict(feeds))
        except Exception as error:
            raise EngineError(
                f"ONNX Runtime could not profile {path.name}: {error}. Build the engine again."
            ) from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        optimized = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return events, optimized


def _calls(events: list[Event]) -> list[dict[tuple[str, str], list[Event]]]:
    """Split what the profiler wrote into calls: (layer, operator) -> its events; the call itself comes last of each."""
    calls: list[dict[tuple[str, str], list[Event]]] = []
    current: dict[tuple[str, str], list[Event]] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            key = (name.removesuffix(_SUFFIX), str(_arguments(event).get("op_name", "")))
            current.setdefault(key, []).append(event)
        elif event.get("cat") == "Session" and name == _CALL:
            current[_CALL, ""] = [event]
            calls.append(current)
            current = {}
    return calls


class _Layers:
    """Joins events with the graph that was executed: times from the ones, dataflow from the other."""

    def __init__(self, executed: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> None:
        self._nodes = {node.name: node for node in executed.graph.node}
        self._constants = {
            tensor.name: TensorSpec(tensor.name, _element(tensor.data_type), tuple(tensor.dims))
            for tensor in executed.graph.initializer
        }
        self._known = dict(self._constants)
        self._known |= {name: TensorSpec(name, array.dtype.name, array.shape) for name, array in feeds.items()}

    def of(
        self, calls: list[dict[tuple[str, str], list[Event]]], sources: Mapping[str, tuple[str, ...]]
    ) -> list[LayerTime]:
        found = []
        for name, operator in calls[-1]:
            node = self._nodes.get(name)
            if (name, operator) == (_CALL, "") or (node is None and name):
                continue  # nodes inside a body are part of their owner's time
            each = [sum(float(str(one["dur"])) for one in call.get((name, operator), ())) for call in calls]
            reads, writes = self._tensors(node, calls[-1][name, operator][-1])
            found.append(
                LayerTime(
                    name,
                    operator,
                    float(np.median(each)) * _MICROSECOND,
                    nodes=tuple(sources.get(name, ())),
                    precision=reads[0].dtype if reads else "",
                    reads=reads,
                    writes=writes,
                    constants=tuple(one.name for one in reads if one.name in self._constants),
                )
            )
        return found

    def _tensors(
        self, node: onnx.NodeProto | None, event: Event
    ) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        if node is None:
            return (), ()
        told = _arguments(event).get("output_type_shape")
        given = [item for item in told if isinstance(item, dict)] if isinstance(told, list) else []
        for name, item in zip([name for name in node.output if name], given, strict=False):
            for kind, shape in item.items():
                self._known[name] = TensorSpec(name, _TYPES.get(str(kind), str(kind)), tuple(shape))
        # The event leaves out weights that were packed beforehand, so what is read is told by the graph.
        reads = tuple(self._known[name] for name in node.input if name in self._known)
        return reads, tuple(self._known[name] for name in node.output if name in self._known)


def _element(data_type: int) -> str:
    return str(onnx.helper.tensor_dtype_to_np_dtype(data_type).name)


def _arguments(event: Event) -> Mapping[str, object]:
    found = event.get("args")
    return found if isinstance(found, dict) else {}
