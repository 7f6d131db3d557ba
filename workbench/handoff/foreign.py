"""What other tools measured: times and profiles of trtexec, profiles of ONNX Runtime, as rows that say whose they are.

Such numbers come from one process, were taken at another time, and often on another machine: no ratio, interval or
verdict is made of them. Formats: trtexec's `--exportTimes` and `--exportProfile` of TensorRT 7 to 10, the trace that
ONNX Runtime's `enable_profiling` writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import codec
from workbench.errors import DataError
from workbench.judging.intervals import required_samples
from workbench.records import LayerTime

if TYPE_CHECKING:
    import pandas

_MILLISECOND, _MICROSECOND = 1e-3, 1e-6
_KERNEL = "_kernel_time"
_FORMS = (
    "trtexec --exportTimes=FILE, trtexec --exportProfile=FILE, or the trace of ONNX Runtime's enable_profiling "
    "(session.end_profiling() names it)"
)


@dataclass(frozen=True)
class Foreign:
    """What one file of another tool says.

    Attributes:
        tool: such as `trtexec times`.
        boundary: what a latency covers, in words.
        latencies_seconds: one value a call, in the file's order; empty where the file has none.
        layers: in the file's order; empty where it has none.
        notes: what must be read with it, one sentence each.
    """

    source: str
    tool: str
    boundary: str
    latencies_seconds: tuple[float, ...] = ()
    layers: tuple[LayerTime, ...] = ()
    notes: tuple[str, ...] = ()

    def table(self) -> pandas.DataFrame:
        """Return the layers, the slowest first: name, operator, milliseconds, share of their sum."""
        import pandas

        total = sum(layer.seconds for layer in self.layers) or math.nan
        entries = sorted(self.layers, key=lambda layer: -layer.seconds)
        return pandas.DataFrame(
            [(layer.name, layer.operator, layer.seconds * 1e3, layer.seconds / total) for layer in entries],
            columns=["Layer", "Operator", "ms", "Share"],
        )


def read_foreign(path: str | Path) -> Foreign:
    """Read a file of another tool.

    Args:
        path: JSON; which tool wrote it is found out from what is in it.

    Raises:
        DataError: no such file, too large, no JSON, or of no known form.
    """
    if not isinstance(path, (str, Path)):
        raise DataError(f"read_foreign takes the path of a file, got a {type(path).__name__}. Pass one of: {_FORMS}.")
    file = Path(path)
    try:
        if (size := codec.size_of(file)) > codec.LARGEST_FILE_BYTES:
            raise DataError(
                f"{file} has {size} bytes; at most {codec.LARGEST_FILE_BYTES} are read. Profile fewer calls."
            )
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"Cannot read {file} as JSON: {error}. Pass a file of: {_FORMS}.") from error
    if isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries):
        for fits, reader in _READERS:
            if fits(entries):
                try:
                    return reader(file.name, entries)
                except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
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
    for item in given:
        if not isinstance(item, Foreign):
            raise DataError("foreign_rows takes what read_foreign returned, one or a list. Read the files first.")
        values = np.asarray(item.latencies_seconds) * 1e3
        shown = {name: float(np.quantile(values, share)) if len(values) >= required_samples(share) else None
                 for name, share in (("p95 (ms)", 0.95), ("p99 (ms)", 0.99))}  # fmt: skip
        median = float(np.median(values)) if len(values) else None
        rows.append({"Variant": f"{item.source} (foreign)", "Tool": item.tool, "Boundary": item.boundary,
                     "Calls": len(values), "Latency (ms)": median, **shown, "Notes": " ".join(item.notes)})  # fmt: skip
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


def _seconds(value: Any, unit: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is no time")
    return value * unit


_Fits = Callable[[list[dict[str, Any]]], bool]
_READERS: tuple[tuple[_Fits, Callable[[str, list[dict[str, Any]]], Foreign]], ...] = (
    (lambda entries: "computeMs" in entries[0], _times),
    (lambda entries: "count" in entries[0] and any("averageMs" in entry for entry in entries), _profile),
    (lambda entries: any(entry.get("cat") in ("Session", "Node") for entry in entries), _trace),
)
