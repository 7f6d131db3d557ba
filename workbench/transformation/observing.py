"""Observe the activations of an FP32 graph: their histograms, their largest values a channel, and who leaves a range.

All of it streams: one batch is held at a time (see `exposure`). Knows nothing of thresholds, scales and Q/DQ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from workbench.calibration.table import CalibrationTable, Provenance
from workbench.errors import CalibrationError, nearest
from workbench.graph.editing import FLOAT_TYPES
from workbench.graph.placement import observed_tensors
from workbench.graph.tensor_types import tensor_types
from workbench.transformation.intermediate_outputs import Batch, Observation, Samples, batches

# Names in a message; a broken model has hundreds of such tensors.
_NAMED = 3


@dataclass(frozen=True)
class RangeAlarm:
    """How many samples leave the range that calibration saw.

    Attributes:
        samples: how many were looked at.
        outside: indices of samples that leave it in some tensor.
        tensors: tensor -> how many samples leave its range; only those that some sample leaves.
        excess: tensor -> largest magnitude outside, over the largest magnitude in calibration (inf for a dead tensor).
    """

    samples: int
    outside: tuple[int, ...]
    tensors: dict[str, int]
    excess: dict[str, float]


def calibrate_proto(
    proto: onnx.ModelProto,
    inputs: Samples,
    provenance: Provenance,
    how: Observation | None = None,
    tensors: Sequence[str] | str | None = None,
) -> CalibrationTable:
    """Observe the activations of a graph as it stands.

    The table depends neither on the order of the samples nor on the batch, but for the engine's own rounding.

    Args:
        proto: an FP32 graph, fused as the one that will be quantized; not changed.
        inputs: input name -> array with samples on axis 0.
        tensors: which activations; None takes those that quantization may ask for, `all` every floating-point one.

    Returns:
        The table; its `samples` tells how many were seen, as a graph with a fixed batch leaves out those that do not
        fill a run. It has no convergence record where the values of a batch had to be taken in several passes.

    Raises:
        CalibrationError: there are no samples, they do not fit the graph, or an activation is NaN or infinite (with
            `all`, only where quantization may ask for that activation).
        Cancelled: the caller stopped it.
    """
    names = _chosen(proto, tensors)
    wanted = set(observed_tensors(proto)) if tensors == "all" else set(names)
    table = CalibrationTable(names, provenance)
    parts = [table]
    for batch in batches(proto, names, inputs, how or Observation()):
        if batch.groups > 1 and batch.first == 0:
            parts.append(CalibrationTable(batch.arrays, provenance))
        parts[-1].update(batch.arrays, batch.samples)
        _refuse_non_finite(parts[-1], batch, wanted)
    for part in parts[1:]:
        for name in part:
            table[name].merge(part[name])
        table.samples = part.samples
    return table


def calibrate_parts(
    proto: onnx.ModelProto,
    parts: Sequence[Samples],
    provenances: Sequence[Provenance],
    provenance: Provenance,
    how: Observation | None = None,
) -> tuple[CalibrationTable, list[CalibrationTable]] | None:
    """Observe samples once for a table of each part of them and one of all, which has seen the first part first.

    Args:
        parts: samples as for `calibrate_proto`, for each part.
        provenances: of the parts' tables.
        provenance: of the table of all.

    Returns:
        The table of all, and those of the parts; None where a batch's values have to be taken in several passes.

    Raises:
        CalibrationError, Cancelled: as `calibrate_proto`.
    """
    names = _chosen(proto, None)
    whole: CalibrationTable | None = None
    tables: list[CalibrationTable] = []
    for inputs, one in zip(parts, provenances, strict=True):
        table = CalibrationTable(names, one)
        for batch in batches(proto, names, inputs, how or Observation()):
            if batch.groups > 1:
                return None
            table.update(batch.arrays, batch.samples)
            _refuse_non_finite(table, batch, set(names))
            if whole is not None:
                whole.update(batch.arrays, batch.samples)
        whole = table.under(provenance) if whole is None else whole
        tables.append(table)
    return None if whole is None else (whole, tables)


def channel_maxima(
    proto: onnx.ModelProto,
    tensors: Sequence[str] | Mapping[str, int],
    inputs: Samples,
    how: Observation | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Return the largest magnitude of each channel of some activations, over all samples.

    Args:
        tensors: activations of the graph, such as the inputs of its MatMul nodes, with the axis that runs over their channels;
            without one it is the last.

    Returns:
        Tensor -> (channels,) float32.

    Raises:
        CalibrationError: as `calibrate_proto`; and an activation whose last axis changes from batch to batch.
    """
    found: dict[str, NDArray[np.float32]] = {}
    if not tensors:
        return found
    axes = tensors if isinstance(tensors, Mapping) else dict.fromkeys(tensors, -1)
    for batch in batches(proto, _chosen(proto, list(axes)), inputs, how or Observation()):
        for name, array in batch.arrays.items():
            by_channel = np.moveaxis(np.abs(array), axes[name], 0)
            largest = by_channel.reshape(len(by_channel), -1).max(axis=1, initial=0.0).astype(np.float32)
            if not np.isfinite(largest).all():
                raise _non_finite([name], batch)
            before = found.get(name, largest)
            if before.shape != largest.shape:
                raise CalibrationError(
                    f"The last axis of {name!r} had {before.size} elements before and {largest.size} now, so it does "
                    f"not count channels. Leave it out of SmoothQuant with its `exclude`."
                )
            found[name] = np.maximum(before, largest)
    return found


def magnitudes(proto: onnx.ModelProto, inputs: Samples, how: Observation | None = None) -> dict[str, float]:
    """Return the largest magnitude of every floating-point activation over all samples; infinite where one is not finite."""
    found: dict[str, float] = {}
    for batch in batches(proto, _chosen(proto, "all"), inputs, how or Observation()):
        for name, array in batch.arrays.items():
            largest = float(np.abs(array.astype(np.float64)).max(initial=0.0))
            found[name] = max(found.get(name, 0.0), largest if np.isfinite(largest) else np.inf)
    return found


def range_alarm(
    table: Mapping[str, Any], proto: onnx.ModelProto, inputs: Samples, how: Observation | None = None
) -> RangeAlarm:
    """Count the samples in which an activation goes beyond the smallest and largest value that calibration saw.

    Args:
        table: the calibration table of this graph.
        inputs: samples, usually those of the evaluation.
    """
    counts: dict[str, int] = {}
    excess: dict[str, float] = {}
    outside: set[int] = set()
    looked_at = 0
    for batch in batches(proto, _chosen(proto, list(table)), inputs, how or Observation()):
        looked_at += batch.samples if batch.group == 0 else 0
        for name, array in batch.arrays.items():
            seen = table[name]
            beyond = (array < seen.minimum) | (array > seen.maximum) | np.isnan(array)
            if not beyond.any():
                continue
            leaving = _samples_with(beyond, batch.samples)
            outside.update(batch.first + index for index in leaving)
            counts[name] = counts.get(name, 0) + len(leaving)
            ratio = float(np.abs(array[beyond]).max()) / seen.abs_max if seen.abs_max else np.inf
            excess[name] = max(excess.get(name, 0.0), ratio)
    return RangeAlarm(looked_at, tuple(sorted(outside)), counts, excess)


def _chosen(proto: onnx.ModelProto, tensors: Sequence[str] | str | None) -> tuple[str, ...]:
    if tensors is None:
        return observed_tensors(proto)
    elements = tensor_types(proto).elements
    constants = {tensor.name for tensor in proto.graph.initializer}
    constants |= {name for node in proto.graph.node if node.op_type == "Constant" for name in node.output}
    order = [value.name for value in proto.graph.input]
    order += [name for node in proto.graph.node for name in node.output if name]
    floats = [name for name in order if elements.get(name) in FLOAT_TYPES and name not in constants]
    if tensors == "all":
        return tuple(floats)
    for name in tensors:
        if name not in floats:
            raise CalibrationError(f"The graph has no floating-point activation {name!r}. {nearest(name, floats)}")
    return tuple(tensors)


def _refuse_non_finite(table: CalibrationTable, batch: Batch, wanted: set[str]) -> None:
    broken = [name for name in batch.arrays if name in wanted and (table[name].nans or table[name].infinities)]
    if broken:
        raise _non_finite(broken, batch)


def _non_finite(broken: Sequence[str], batch: Batch) -> CalibrationError:
    array = batch.arrays[broken[0]]
    samples = [batch.first + index for index in _samples_with(~np.isfinite(array), batch.samples)]
    names = ", ".join(map(repr, broken[:_NAMED])) + (
        f" and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
    )
    where = (
        f"first in sample {', '.join(map(str, samples[:_NAMED]))}" if samples else f"in the batch from {batch.first}"
    )
    return CalibrationError(
        f"NaN or infinite activations in {names}, {where}: no range can hold them. Look at these samples "
        f"(missing values? wrong normalisation?); if the inputs are sound, the model itself overflows in FP32."
    )


def _samples_with(flags: NDArray[np.bool_], samples: int) -> list[int]:
    """Return which samples of a batch are flagged; none where axis 0 does not count samples."""
    if flags.ndim == 0 or flags.shape[0] != samples:
        return []
    return [int(index) for index in np.flatnonzero(flags.reshape(samples, -1).any(axis=1))]
