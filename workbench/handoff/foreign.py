"""What other tools measured, as rows that say whose they are.

Such numbers come from one process, were taken at another time, and often on another machine: no ratio, interval or
verdict is made of them. Formats: trtexec's `--exportTimes` and `--exportProfile` of TensorRT 7 to 10 and
`--exportLayerInfo` of 8.2 and newer, the trace that ONNX Runtime's `enable_profiling` writes, polygraphy's `--save-outputs`,
Olive's footprints, the `--report_json` of TensorRT-LLM's trtllm-bench, and the SQLite export of NVIDIA Nsight Systems.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import codec
from workbench.errors import DataError, EngineError
from workbench.handoff import nsys
from workbench.judging.intervals import required_samples
from workbench.records import LayerTime

if TYPE_CHECKING:
    import pandas

_MILLISECOND, _MICROSECOND = 1e-3, 1e-6
_KERNEL = "_kernel_time"
_FORMS = (
    "trtexec --exportTimes=FILE, --exportProfile=FILE or --exportLayerInfo=FILE, the trace of ONNX Runtime's "
    "enable_profiling (session.end_profiling() names it), polygraphy run --save-outputs FILE, Olive's footprint.json, "
    "trtllm-bench ... --report_json FILE, nsys export --type=sqlite"
)


@dataclass(frozen=True)
class Foreign:
    """What one file of another tool says.

    Attributes:
        tool: such as `trtexec times`.
        boundary: what a latency covers, in words.
        latencies_seconds: one value a call, in the file's order; empty where the file has none.
        layers: in the file's order; empty where it has none. Seconds are NaN where the file has names alone.
        notes: what must be read with it, one sentence each.
        figures: what the tool itself made of its calls, by the name it gives them.
        parts: of a file that holds several models or runners, each as if it had a file of its own.
    """

    source: str
    tool: str
    boundary: str
    latencies_seconds: tuple[float, ...] = ()
    layers: tuple[LayerTime, ...] = ()
    notes: tuple[str, ...] = ()
    figures: tuple[tuple[str, float], ...] = ()
    parts: tuple[Foreign, ...] = ()

    def table(self) -> pandas.DataFrame:
        """Return the layers, the slowest first: name, operator, milliseconds, share of their sum."""
        import pandas

        total = sum(layer.seconds for layer in self.layers) or math.nan
        known = [layer for layer in self.layers if not math.isnan(layer.seconds)]
        entries = sorted(known, key=lambda layer: -layer.seconds) or list(self.layers)
        return pandas.DataFrame(
            [(layer.name, layer.operator, layer.seconds * 1e3, layer.seconds / total) for layer in entries],
            columns=["Layer", "Operator", "ms", "Share"],
        )


def read_foreign(path: str | Path) -> Foreign:
    """Read a file of another tool.

    Args:
        path: JSON, or SQLite of nsys; which tool wrote it is found out from what is in it.

    Raises:
        DataError: no such file, too large, no JSON, or of no known form.
    """
    if not isinstance(path, (str, Path)):
        raise DataError(f"read_foreign takes the path of a file, got a {type(path).__name__}. Pass one of: {_FORMS}.")
    file = Path(path)
    try:
        size = codec.size_of(file)  # first: a pipe would be waited for
        if nsys.is_export(file):
            layers, notes = nsys.kernels(file)
            return Foreign(file.name, "nsys", "kernels, by NVTX range", layers=layers, notes=notes)
        if size > codec.LARGEST_FILE_BYTES:
            raise DataError(
                f"{file} has {size} bytes; at most {codec.LARGEST_FILE_BYTES} are read. Profile fewer calls."
            )
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"Cannot read {file} as JSON: {error}. Pass a file of: {_FORMS}.") from error
    readers: Sequence[tuple[_Fits, Callable[[str, Any], Foreign]]] = ()
    if isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries):
        readers = _READERS
    elif isinstance(entries, dict):
        readers = _READERS_OF_ONE
    for fits, reader in readers:
        if fits(entries):
            try:
                return reader(file.name, entries)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, EngineError) as error:
                raise DataError(
                    f"{file} looks like a file of another tool, but an entry is damaged ({error}). Write it again."
                ) from error
    raise DataError(f"{file} is of no known form. Pass a file of: {_FORMS}.")


def foreign_rows(found: Foreign | Sequence[Foreign]) -> pandas.DataFrame:
    """Return one row a file, to be read beside a study's table: never in one ratio with it.

    A percentile is shown where the calls suffice for it, as in a study.

    Raises:
        DataError: something that `read_foreign` did not return.
    """
    import pandas

    given = [found] if isinstance(found, Foreign) else list(found) if isinstance(found, (list, tuple)) else [None]
    rows = []
    for one in given:
        if not isinstance(one, Foreign):
            raise DataError("foreign_rows takes what read_foreign returned, one or a list. Read the files first.")
    for item in (part for one in given if one is not None for part in (one.parts or (one,))):
        values = np.asarray(item.latencies_seconds) * 1e3
        shown = {name: float(np.quantile(values, share)) if len(values) >= required_samples(share) else None
                 for name, share in (("p95 (ms)", 0.95), ("p99 (ms)", 0.99))}  # fmt: skip
        median = float(np.median(values)) if len(values) else None
        rows.append({"Variant": f"{item.source} (foreign)", "Tool": item.tool, "Boundary": item.boundary,
                     "Calls": len(values), "Latency (ms)": median, **shown,
                     "Its own figures": ", ".join(f"{name} {value:.4g}" for name, value in item.figures),
                     "Notes": " ".join(item.notes)})  # fmt: skip
    return pandas.DataFrame(rows)


def _times(source: str, entries: list[dict[str, Any]]) -> Foreign:
    values = tuple(_seconds(entry["computeMs"], _MILLISECOND) for entry in entries)
    note = "From one process of trtexec: no interval, and no ratio with a study."
    return Foreign(source, "trtexec times", "compute, by events of the GPU", values, notes=(note,))


def _profile(source: str, entries: list[dict[str, Any]]) -> Foreign:
    # Median where there is one (from 8.4 on): the first calls are slower.
    layers = tuple(
        LayerTime(str(entry["name"]), "", _seconds(entry.get("medianMs", entry.get("averageMs")), _MILLISECOND))
        for entry in entries
        if "name" in entry
    )
    kind = "medians" if any("medianMs" in entry for entry in entries) else "means"
    note = f"Layers are {kind} while being profiled, and do not add up to a latency."
    return Foreign(source, "trtexec profile", "layers", layers=layers, notes=(note,))


def _trace(source: str, entries: list[dict[str, Any]]) -> Foreign:
    layers: dict[str, tuple[str, list[float]]] = {}
    calls = []
    for entry in entries:
        name = str(entry.get("name", ""))
        if entry.get("cat") == "Session" and name == "model_run":
            calls.append(_seconds(entry["dur"], _MICROSECOND))
        elif entry.get("cat") == "Node" and name.endswith(_KERNEL):
            operator = str((entry.get("args") or {}).get("op_name", ""))
            layers.setdefault(name.removesuffix(_KERNEL), (operator, []))[1].append(
                _seconds(entry["dur"], _MICROSECOND)
            )
    times = tuple(LayerTime(name, operator, float(np.median(each))) for name, (operator, each) in layers.items())
    note = "Taken while being profiled, which slows calls; the first ones are not left out. No ratio with a study."
    return Foreign(source, "ONNX Runtime profile", "end_to_end, host clock", tuple(calls), times, (note,))


def _layer_info(source: str, content: dict[str, Any]) -> Foreign:
    from workbench.engines.tensorrt import layers

    found = layers.parse(json.dumps(content))
    times = tuple(LayerTime(layer.name, layer.layer_type or layer.kind, math.nan, layer.nodes) for layer in found)
    return Foreign(source, "trtexec layer information", "layers", layers=times, notes=("Layers without times.",))


def _polygraphy(source: str, content: dict[str, Any]) -> Foreign:
    note = "Host clock around each call of one process of polygraphy, the first ones included; no ratio with a study."
    parts = tuple(
        Foreign(
            f"{source}: {re.sub(r'-N[0-9]+-.*$', '', str(name))}", "polygraphy", "end_to_end, host clock",
            tuple(_seconds(call["runtime"], 1.0) for call in calls), notes=(note,),
        )
        for name, calls in content["lst"]
    )  # fmt: skip
    return Foreign(source, "polygraphy", "end_to_end, host clock", notes=(note,), parts=parts)


def _olive(source: str, content: dict[str, Any]) -> Foreign:
    note = "Olive's metrics as it names them (latencies in its milliseconds); no raw samples, no ratio with a study."
    parts = []
    for node in content.values():
        figures = [(name, _figure(value)) for name, value in ((node.get("metrics") or {}).get("value") or {}).items()]
        way = str(node.get("from_pass") or "input model")
        parts.append(Foreign(f"{source}: {way}", "Olive", "as Olive measures", notes=(note,), figures=tuple(figures)))
    return Foreign(source, "Olive", "as Olive measures", notes=(note,), parts=tuple(parts))


def _trtllm(source: str, content: dict[str, Any]) -> Foreign:
    engine, performance = content["engine"], content["performance"]
    figures = [("requests/s", _figure(performance["request_throughput_req_s"])),
               ("output tokens/s", _figure(performance["system_output_throughput_tok_s"]))]  # fmt: skip
    percentiles = performance.get("request_latency_percentiles_ms") or {}
    figures += [(f"request {name} (ms)", _figure(percentiles[name])) for name in ("p50", "p99") if name in percentiles]
    streaming = content.get("streaming_metrics") or {}
    spoken = (("avg_ttft_ms", "mean time to first token"), ("avg_tpot_ms", "mean time a token"))
    figures += [(f"{words} (ms)", _figure(streaming[name])) for name, words in spoken if name in streaming]
    what = " ".join(str(engine[name]) for name in ("backend", "dtype", "quantization") if engine.get(name))
    notes = (
        f"{engine.get('model')} by TensorRT-LLM {engine.get('version')} ({what}) on "
        f"{(content.get('machine') or {}).get('name', 'a machine that it does not name')}; "
        f"{content.get('request_info', {}).get('num_requests')} requests, all at once unless it was told otherwise.",
    )
    return Foreign(source, "trtllm-bench", "a request, with its wait", notes=notes, figures=tuple(figures))


def _figure(value: Any) -> float:
    if isinstance(value, dict):
        value = value["value"]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no figure")
    return float(value)


def _seconds(value: Any, unit: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is no time")
    return value * unit


_Fits = Callable[[Any], bool]
_READERS: tuple[tuple[_Fits, Callable[[str, list[dict[str, Any]]], Foreign]], ...] = (
    (lambda entries: "computeMs" in entries[0], _times),
    (lambda entries: "count" in entries[0] and any("averageMs" in entry for entry in entries), _profile),
    (lambda entries: any(entry.get("cat") in ("Session", "Node") for entry in entries), _trace),
)
_READERS_OF_ONE: tuple[tuple[_Fits, Callable[[str, dict[str, Any]], Foreign]], ...] = (
    (lambda content: "performance" in content and "engine" in content, _trtllm),
    (lambda content: isinstance(content.get("Layers"), list), _layer_info),
    (lambda content: content.get("polygraphy_class") == "RunResults", _polygraphy),
    (lambda content: bool(content) and all(isinstance(node, dict) and "model_id" in node for node in content.values()),
     _olive),
)  # fmt: skip
