"""What calibration saw: one histogram per tensor, where they came from, and how thresholds settled; on disk as one .npz.

Knows numpy and the histograms: nothing of ONNX, of how activations are produced, or of what thresholds are used for.

Two parts are kept apart. Histograms, sample count and provenance are exact: the same bytes for any batch size and
order of samples (`sha256`, `==`). The convergence record depends on both, and takes no part in either.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.calibration.histogram import BINS, MOST_ELEMENTS, Histogram, working_type
from workbench.calibration.table_file import FORMAT_VERSION, MOST_TENSORS, read_table_file, write_table_file
from workbench.calibration.thresholds import threshold
from workbench.errors import CalibrationError

# A snapshot is taken when the sample count has grown by this factor: about 20 of them for 256 samples.
SNAPSHOT_GROWTH = 1.25
# Whose threshold the snapshots hold: it needs one running sum a tensor, where the KL search needs a matrix.
TRACKED_METHOD = "percentile-99.99"

# Sample count; abs-max and threshold of each tensor in table order.
Snapshot = tuple[int, list[float], list[float]]
ProblemKind = Literal["empty", "nan", "infinite", "dead", "constant"]


@dataclass(frozen=True)
class Provenance:
    """Which model and data a table belongs to.

    Attributes:
        model_sha256: of the model whose tensors were observed.
        dataset_sha256: of the calibration samples.
        dataset_name: for people.
    """

    model_sha256: str
    dataset_sha256: str
    dataset_name: str


@dataclass(frozen=True)
class Problem:
    """A tensor that calibration should not be trusted on without a look.

    Attributes:
        tensor: name of the tensor.
        kind: `empty` (no element seen), `nan`, `infinite`, `dead` (zero throughout), `constant` (one value throughout).
        count: how many elements are concerned.
        elements: how many were seen.
    """

    tensor: str
    kind: ProblemKind
    count: int
    elements: int


@dataclass(frozen=True)
class Convergence:
    """How the range of one tensor settled while samples came in; depends on their order.

    Attributes:
        tensor: name of the tensor.
        method: whose threshold was followed.
        samples: sample counts, growing; the last is the whole table.
        abs_max: largest magnitude at those counts.
        thresholds: threshold at those counts; 0.0 where no finite element had been seen.
    """

    tensor: str
    method: str
    samples: tuple[int, ...]
    abs_max: tuple[float, ...]
    thresholds: tuple[float, ...]

    def stable_after(self, tolerance: float = 0.01) -> int | None:
        """Return the sample count from which the threshold stayed within `tolerance` (relative) of its last value.

        None means that the last snapshot before the end was still outside, or that there was none.
        """
        final = self.thresholds[-1]
        stable = None
        for samples, value in zip(self.samples[-2::-1], self.thresholds[-2::-1], strict=True):
            if abs(value - final) > tolerance * final:
                break
            stable = samples
        return stable


class CalibrationTable(Mapping[str, Histogram]):
    """An ordered mapping from tensor name to `Histogram`, with sample count and provenance.

    Attributes:
        provenance: which model and data it belongs to.
        samples: number of samples seen.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tensors: Iterable[str], provenance: Provenance) -> None:
        """Make an empty table.

        Args:
            tensors: the tensors to observe; their order is the order of the table.
            provenance: which model and data it belongs to.

        Raises:
            CalibrationError: a name occurs twice, or there are too many.
        """
        names = tuple(tensors)
        self._histograms = {name: Histogram() for name in names}
        if len(self._histograms) != len(names) or len(names) > MOST_TENSORS:
            twice = sorted({name for name in names if names.count(name) > 1}) if len(names) <= MOST_TENSORS else []
            raise CalibrationError(
                f"A calibration table needs at most {MOST_TENSORS} tensors, each once; "
                f"got {len(names)}, of these more than once: {', '.join(map(repr, twice)) or 'none'}."
            )
        self.provenance = provenance
        self.samples = 0
        self._snapshots: list[Snapshot] = []

    def __getitem__(self, tensor: str) -> Histogram:
        return self._histograms[tensor]

    def __iter__(self) -> Iterator[str]:
        return iter(self._histograms)

    def __len__(self) -> int:
        return len(self._histograms)

    def __repr__(self) -> str:
        return f"CalibrationTable({len(self)} tensors, {self.samples:,} samples)"

    def __eq__(self, other: object) -> bool:
        """Compare the exact part bit for bit; the convergence record takes no part."""
        if not isinstance(other, CalibrationTable):
            return NotImplemented
        return self.sha256 == other.sha256

    @property
    def sha256(self) -> str:
        """Hash of the exact part: names in order, histograms, sample count, provenance."""
        digest = hashlib.sha256(self._text().encode())
        for histogram in self._histograms.values():
            for array in histogram.to_arrays().values():
                digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
        return digest.hexdigest()

    def update(self, arrays: Mapping[str, NDArray[Any]], samples: int) -> None:
        """Count what one batch produced.

        Args:
            arrays: one array per tensor of the table, any shapes, floating point.
            samples: number of samples in the batch, at least 1.

        Raises:
            CalibrationError: names do not match the table, samples is below 1, or an array is not of a
                floating-point type. Nothing is counted then.
        """
        missing, unknown = sorted(self.keys() - arrays.keys()), sorted(arrays.keys() - self.keys())
        if missing or unknown:
            raise CalibrationError(
                f"A batch must bring each tensor of the calibration table: missing {missing[:5]} ({len(missing)}), "
                f"unknown {unknown[:5]} ({len(unknown)}). Make the table from the names that are observed."
            )
        if samples < 1:
            raise CalibrationError(
                f"Calibration needs at least 1 sample a batch, got {samples}. Leave empty batches out."
            )
        for name, array in arrays.items():
            try:
                working_type(array)
            except CalibrationError as error:
                raise CalibrationError(f"Tensor {name!r}: {error}") from error
        for name, histogram in self._histograms.items():
            histogram.update(arrays[name])
        self.samples += samples
        if not self._snapshots or self.samples >= SNAPSHOT_GROWTH * self._snapshots[-1][0]:
            self._snapshots.append(self._snapshot())

    def merge(self, other: CalibrationTable) -> None:
        """Add what another table of the same model and data has seen.

        The convergence record starts anew, since two tables side by side have no one order of samples.

        Raises:
            CalibrationError: provenance or tensors differ.
        """
        if self.provenance != other.provenance:
            raise CalibrationError(
                f"Calibration tables of different origin cannot be merged: {self.provenance} and {other.provenance}. "
                "Calibrate both parts on the same model and dataset."
            )
        if list(self) != list(other):
            differing = sorted(self.keys() ^ other.keys())
            raise CalibrationError(
                f"Calibration tables of different tensors cannot be merged: {len(self)} and {len(other)} tensors, "
                f"only in one: {differing[:5]} ({len(differing)}), or another order. Observe the same tensors in both."
            )
        for name, histogram in self._histograms.items():
            histogram.merge(other[name])
        self.samples += other.samples
        self._snapshots = []

    def under(self, provenance: Provenance) -> CalibrationTable:
        """Return a copy that belongs to other data, of which it has seen the first part."""
        copied = copy.deepcopy(self)
        copied.provenance = provenance
        return copied

    def problems(self) -> tuple[Problem, ...]:
        """Return the tensors whose ranges deserve a look, in table order."""
        return tuple(
            Problem(name, kind, count, histogram.elements)
            for name, histogram in self._histograms.items()
            for kind, count in _problems(histogram)
        )

    def convergence(self) -> tuple[Convergence, ...]:
        """Return per tensor how its threshold moved; empty where no snapshot was taken."""
        if not self._snapshots:
            return ()
        snapshots = list(self._snapshots)
        if snapshots[-1][0] != self.samples:
            snapshots.append(self._snapshot())
        counts, abs_max, thresholds = zip(*snapshots, strict=True)
        return tuple(
            Convergence(name, TRACKED_METHOD, counts, tuple(a[k] for a in abs_max), tuple(t[k] for t in thresholds))
            for k, name in enumerate(self)
        )

    def save(self, path: str | Path) -> None:
        """Write the table to one .npz file (no pickle); an existing file is replaced at once or not at all."""
        states = [histogram.to_arrays() for histogram in self._histograms.values()]
        shape = (len(self._snapshots), len(self))
        arrays = {
            "counts": np.reshape([state["counts"] for state in states], (len(self), BINS)),
            "extrema": np.reshape([state["extrema"] for state in states], (len(self), 2)),
            "tallies": np.reshape([state["tallies"] for state in states], (len(self), 4)),
            "snapshot_samples": np.array([item[0] for item in self._snapshots], np.int64),
            "snapshot_abs_max": np.reshape([item[1] for item in self._snapshots], shape),
            "snapshot_thresholds": np.reshape([item[2] for item in self._snapshots], shape),
        }
        write_table_file(Path(path), self._text(), arrays)

    @classmethod
    def load(cls, path: str | Path) -> CalibrationTable:
        """Read a table, trusting nothing in the file.

        Raises:
            CalibrationError: the file cannot be read, is no calibration table, or contradicts itself; the message
                names what is wrong.
        """
        text, arrays = read_table_file(Path(path))
        try:
            table = cls(_names(text), _provenance(text))
            table.samples = _sample_count(text)
            for row, name in enumerate(table):
                state = {field: arrays[field][row] for field in ("counts", "extrema", "tallies")}
                table._histograms[name] = _histogram(name, state)
            table._snapshots = _snapshots(arrays, table.samples)
        except CalibrationError as error:
            raise CalibrationError(f"Damaged calibration table {path}: {error}") from error
        return table

    def _text(self) -> str:
        text = {"version": FORMAT_VERSION, "samples": self.samples, **asdict(self.provenance), "tensors": list(self)}
        return json.dumps(text, ensure_ascii=False)

    def _snapshot(self) -> Snapshot:
        histograms = self._histograms.values()
        thresholds = [threshold(item, TRACKED_METHOD) if item.finite else 0.0 for item in histograms]
        return self.samples, [item.abs_max for item in histograms], thresholds


def _problems(histogram: Histogram) -> Iterator[tuple[ProblemKind, int]]:
    if not histogram.elements:
        yield "empty", 0
    if histogram.nans:
        yield "nan", histogram.nans
    if histogram.infinities:
        yield "infinite", histogram.infinities
    if histogram.finite and not histogram.abs_max:
        yield "dead", histogram.finite
    elif histogram.finite > 1 and histogram.minimum == histogram.maximum:
        yield "constant", histogram.finite


def _names(text: Mapping[str, Any]) -> list[str]:
    names = text["tensors"]
    wrong = [name for name in names if not isinstance(name, str) or not name]
    if wrong:
        raise CalibrationError(f"a tensor name is {wrong[0]!r}, expected text.")
    return list(names)


def _provenance(text: Mapping[str, Any]) -> Provenance:
    values = {field.name: text.get(field.name) for field in fields(Provenance)}
    for name, value in values.items():
        if not isinstance(value, str):
            raise CalibrationError(f"{name} is {value!r}, expected text.")
    return Provenance(**{name: str(value) for name, value in values.items()})


def _sample_count(text: Mapping[str, Any]) -> int:
    samples = text.get("samples")
    if type(samples) is not int or not 0 <= samples <= MOST_ELEMENTS:
        raise CalibrationError(f"samples is {samples!r}, expected a count.")
    return samples


def _histogram(name: str, state: Mapping[str, NDArray[Any]]) -> Histogram:
    try:
        return Histogram.from_arrays(state)
    except CalibrationError as error:
        raise CalibrationError(f"tensor {name!r}: {error}") from error


def _snapshots(arrays: Mapping[str, NDArray[Any]], samples: int) -> list[Snapshot]:
    counts = arrays["snapshot_samples"]
    values = np.concatenate((arrays["snapshot_abs_max"], arrays["snapshot_thresholds"]), axis=None)
    if counts.size and (counts[0] < 1 or counts[-1] > samples or (np.diff(counts) < 1).any()):
        raise CalibrationError(f"snapshots at {counts[:5]} samples do not grow from 1 to {samples}.")
    if not (np.isfinite(values) & (values >= 0.0)).all():
        raise CalibrationError("a snapshot holds a negative or infinite range.")
    columns = (counts, arrays["snapshot_abs_max"], arrays["snapshot_thresholds"])
    return [tuple(row) for row in zip(*(column.tolist() for column in columns), strict=True)]
