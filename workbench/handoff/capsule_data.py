"""The data of a capsule: samples as bare bytes with their types and shapes, or nothing but their hash.

Bytes and no `.npy`: there is no header to be parsed, and memory is taken for what is there alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

import numpy as np

from workbench import datasets
from workbench.datasets import Dataset, Split, metrics
from workbench.datasets.metrics import Metric
from workbench.errors import DataError, StoreError
from workbench.handoff.capsule_file import Opened
from workbench.machine.arrays import dtype_of
from workbench.records import Model, StudyRecord

_TYPES = frozenset(
    [
        "bool",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "int4",
        "uint4",
    ]
)
_SHIPPED = {"digits": datasets.digits, "stdlib_text": datasets.stdlib_text}
_KINDS = ("user", "shipped", "random")


def described(data: Dataset) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return what a capsule says of data, and the parts that hold the samples.

    Raises:
        DataError: arrays of a type that does not travel, or a metric that is a function of the user's.
    """
    parts: dict[str, bytes] = {}
    splits: dict[str, Any] = {}
    for kind, split in (("evaluation", data.evaluation), ("calibration", data.calibration)):
        if split is None:
            continue
        arrays = {**{f"input {name}": array for name, array in split.inputs.items()}}
        if split.labels is not None:
            arrays["labels"] = split.labels
        splits[kind] = [_put(label, array, f"data/{kind}_{index}.bin", parts)
                        for index, (label, array) in enumerate(arrays.items())]  # fmt: skip
    about = {
        "name": data.name, "kind": data.kind, "splits": splits, "notes": list(data.notes), "metric": _named(data.metric),
        "scored_output": data.scored_output, "sample_axes": dict(data.sample_axes),
    }  # fmt: skip
    return about, parts


def restored(capsule: Opened) -> Dataset | None:
    """Return the data of a capsule; None where it holds their hash alone.

    Raises:
        StoreError: what the capsule says of them is damaged.
    """
    about = capsule.contents.get("data")
    if about is None:
        return None
    try:
        splits = {kind: _split(capsule, entries) for kind, entries in about["splits"].items()}
        if about["kind"] not in _KINDS or not set(splits) <= {"evaluation", "calibration"}:
            raise ValueError(f"kind {about['kind']!r} with {sorted(splits)}")
        return Dataset(
            name=str(about["name"]),
            kind=cast(Literal["user", "shipped", "random"], about["kind"]),
            evaluation=splits["evaluation"],
            calibration=splits.get("calibration"),
            metric=_metric(about["metric"]),
            notes=tuple(str(note) for note in about["notes"]),
            scored_output=None if about["scored_output"] is None else str(about["scored_output"]),
            sample_axes={str(name): None if axis is None else int(axis) for name, axis in about["sample_axes"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, DataError) as error:
        raise StoreError(
            f"The capsule {capsule.path} is damaged: its data cannot be read ({error}). Copy it again."
        ) from error


def wanted(record: StudyRecord, model: Model, given: Dataset | None) -> Dataset:
    """Return the data of a study whose capsule holds none: what was given, or what everyone has.

    Raises:
        DataError: there are none, or they are others than the study had.
    """
    name, kind = str(record.data.get("name", "")), record.data.get("kind")
    if given is None and kind == "shipped" and name in _SHIPPED:
        given = _SHIPPED[name]()
    elif given is None and kind == "random":
        given = datasets.random(model)
    if given is None:
        raise DataError(
            f"The capsule of {record.name!r} holds no samples, only the hash of {name!r} "
            f"({str(record.data.get('sha256'))[:12]}...). Pass the same data: confirm(path, data=...), or --data FILE."
        )
    found = given.bound_to(model)
    if found.sha256 != record.data.get("sha256"):
        raise DataError(
            f"The data {found.name!r} (sha256 {found.sha256[:12]}...) are not those of the study {record.name!r} "
            f"({str(record.data.get('sha256'))[:12]}...): other samples, another order, or another split into evaluation "
            f"and calibration. Pass the same, or run a study of its own with workbench.run(...)."
        )
    return found


def _put(label: str, array: np.ndarray, part: str, parts: dict[str, bytes]) -> dict[str, Any]:
    if array.dtype.name not in _TYPES:
        raise DataError(
            f"The data have {label!r} of type {array.dtype}, which a capsule does not hold (numbers only). Leave the data "
            f"out: capsule(path) without data= holds their hash."
        )
    # Big-endian numbers have the same name; bytes must be of one order everywhere.
    parts[part] = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return {"label": label, "dtype": array.dtype.name, "shape": list(array.shape), "part": part}


def _split(capsule: Opened, entries: Any) -> Split:
    found = {str(entry["label"]): _array(capsule, entry) for entry in entries}
    labels = found.pop("labels", None)
    return Split({label.removeprefix("input "): array for label, array in found.items()}, labels)


def _array(capsule: Opened, entry: Mapping[str, Any]) -> np.ndarray:
    if entry["dtype"] not in _TYPES:
        raise ValueError(f"the type {entry['dtype']!r}")
    dtype, shape = dtype_of(entry["dtype"]), tuple(int(size) for size in entry["shape"])
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != capsule.size(entry["part"]):
        raise ValueError(f"{entry['label']} of shape {shape} does not fill {capsule.size(entry['part'])} bytes")
    return np.frombuffer(bytearray(capsule.read(entry["part"])), dtype).reshape(shape)


def _named(metric: Metric | None) -> dict[str, Any] | None:
    if metric is None:
        return None
    for name, make in metrics.NAMED.items():
        if metrics.identity(make()) is not None and make().key == metric.key:
            return {"name": name, "output": metric.output, "by_default": metric.by_default}
    raise DataError(
        f"The metric {metric.name!r} is code, or has options, and does not travel in a capsule, where nothing is executed. "
        f"Leave the data out (capsule(path) holds their hash) and pass them, with the metric, to confirm(path, data=...)."
    )


def _metric(about: Any) -> Metric | None:
    if about is None:
        return None
    from dataclasses import replace

    made = metrics.NAMED[about["name"]]()
    return replace(made, output=about["output"], by_default=bool(about["by_default"]))
