"""The two nouns of data: a Split (arrays with samples on axis 0) and a Dataset (evaluation and calibration splits).

Every rule about data is checked here, once: equal lengths, no NaN, disjoint splits, names, shapes and types that fit
a model. Knows nothing of where data come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from workbench.datasets import metrics
from workbench.datasets.metrics import Metric
from workbench.errors import DataError, nearest
from workbench.machine.arrays import dtype_of
from workbench.records import Model, TensorSpec

Array = NDArray[Any]

# What to do about an input that is not given sample by sample.
ONE_VALUE = (
    "A value that all samples share, such as a temperature or a time step, is not fed here: give the input an axis for "
    "the samples, or write the value into the model (as an initializer of the ONNX graph, or inside a small wrapper "
    "module whose forward does not take it)."
)
_UNCLEAN = "Clean the data; calibration and accuracy mean nothing with them."
_MASKING = (
    "All of these are -inf: if they mark what must not be seen (an additive attention mask), write a large negative "
    "number instead, such as -1e4, which FP16 can hold: a softmax gives such places the weight 0 as well. Otherwise "
    "clean the data; no range can hold an infinite value."
)


@dataclass(frozen=True, eq=False)
class Split:
    """Samples on axis 0 of every array.

    Attributes:
        inputs: model input name -> array; the name "" stands for the model's only input.
        labels: one entry a sample, or None.

    Raises:
        DataError: no inputs, no samples, lengths that differ, objects instead of numbers, NaN or infinite values.
    """

    inputs: dict[str, Array]
    labels: Array | None = None

    def __post_init__(self) -> None:
        if not self.inputs:
            raise DataError("A split needs at least one input array, got none. Pass {input name: array}.")
        for name, array in self.inputs.items():
            _check_array(name or "the input", array)
        lengths = {name or "input": len(array) for name, array in self.inputs.items()}
        if self.labels is not None:
            if not np.ndim(self.labels):
                raise DataError(f"labels is one value ({str(self.labels)[:60]}), expected one entry a sample.")
            lengths["labels"] = len(self.labels)
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise DataError(
                f"Arrays of one split differ in length: {listed}. Axis 0 must be the samples in all of them."
            )

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def __repr__(self) -> str:
        arrays = {**self.inputs, **({} if self.labels is None else {"labels": self.labels})}
        listed = ", ".join(f"{name or 'input'} {array.dtype} {array.shape}" for name, array in arrays.items())
        return f"Split({listed})"

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """Yield input name -> array with `size` samples, in order; the last batch may be smaller.

        Raises:
            DataError: size is below 1.
        """
        if size < 1:
            raise DataError(f"The batch size is {size}; it must be at least 1.")
        for start in range(0, len(self), size):
            yield {name: array[start : start + size] for name, array in self.inputs.items()}

    def cycled(self, count: int) -> dict[str, Array]:
        """Return input name -> array of the first `count` samples, beginning again where there are too few."""
        rows = np.arange(count) % len(self)
        return {name: np.ascontiguousarray(array[rows]) for name, array in self.inputs.items()}

    def take(self, indices: Sequence[int] | Array) -> Split:
        """Return the samples at these positions, in this order.

        Raises:
            DataError: no index, or one outside the split.
        """
        chosen = np.asarray(indices, dtype=np.int64).reshape(-1)
        if not chosen.size:
            raise DataError(f"No samples were chosen out of {len(self)}. Pass at least one index.")
        if chosen.min() < 0 or chosen.max() >= len(self):
            raise DataError(f"Indices run from {chosen.min()} to {chosen.max()}, the split has 0..{len(self) - 1}.")
        labels = None if self.labels is None else self.labels[chosen]
        return Split({name: array[chosen] for name, array in self.inputs.items()}, labels)

    @cached_property
    def sha256(self) -> str:
        """Over names, types, shapes and bytes of all inputs and the labels."""
        whole = hashlib.sha256()
        labelled = {} if self.labels is None else {"labels": self.labels}
        for part, arrays in (("inputs", self.inputs), ("labels", labelled)):
            for name in sorted(arrays):
                array = np.ascontiguousarray(arrays[name])
                whole.update(f"{part}\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
                whole.update(array.tobytes())
        return whole.hexdigest()

    @cached_property
    def sample_hashes(self) -> tuple[bytes, ...]:
        """One hash a sample, of its inputs alone, so that the same sample is found again under another label."""
        arrays = [np.ascontiguousarray(self.inputs[name]) for name in sorted(self.inputs)]
        return tuple(
            hashlib.blake2b(b"".join(array[index].tobytes() for array in arrays), digest_size=16).digest()
            for index in range(len(self))
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """Evaluation data, and calibration data that share no sample with it.

    Attributes:
        kind: `user`, `shipped`, or `random` (no accuracy is claimed from it).
        calibration: None where there is none; see `split_off`.
        metric: how answers are scored against labels, or None for label-free comparison only.
        show: evaluation sample index -> {"kind": "image" | "text", "value": rows of 0..255 | str, "label": str | None}.
        notes: what was done to the data on the way in, one sentence each; shown in every report.
        scored_output: the output that the chosen metric scores; None takes the only one that fits.
        sample_axes: output name -> the axis that counts its samples, None where none does; others are found by running.

    Raises:
        DataError: calibration and evaluation share samples, or have other inputs.
    """

    name: str
    kind: Literal["user", "shipped", "random"]
    evaluation: Split
    calibration: Split | None = None
    metric: Metric | None = None
    show: Callable[[int], dict[str, Any]] | None = None
    notes: tuple[str, ...] = ()
    scored_output: str | None = None
    sample_axes: Mapping[str, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.calibration is None:
            return
        if set(self.calibration.inputs) != set(self.evaluation.inputs):
            raise DataError(
                f"Calibration data have the inputs {sorted(self.calibration.inputs)}, evaluation data "
                f"{sorted(self.evaluation.inputs)}. Give both the same inputs."
            )
        check_disjoint(self.evaluation, self.calibration)

    def __repr__(self) -> str:
        metric = None if self.metric is None else self.metric.name
        return (
            f"Dataset({self.name!r}, {self.kind} data, evaluation={self.evaluation}, calibration={self.calibration}, "
            f"metric={metric!r}, notes={list(self.notes)})"
        )

    @cached_property
    def sha256(self) -> str:
        """Over the evaluation and the calibration split."""
        parts = (self.evaluation.sha256, "" if self.calibration is None else self.calibration.sha256)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def split_off(self, calibration: int, seed: int = 0) -> Dataset:
        """Move randomly chosen evaluation samples into calibration; identical samples move together.

        Args:
            calibration: how many samples to move, at least; copies of a chosen sample come on top.
            seed: of the choice.

        Raises:
            DataError: there is calibration data already, or too few distinct samples to leave any for evaluation.
        """
        if self.calibration is not None:
            raise DataError(f"{self.name} has {len(self.calibration)} calibration samples already. Use them.")
        hashes = self.evaluation.sample_hashes
        groups: dict[bytes, list[int]] = {}
        for index, sample in enumerate(hashes):
            groups.setdefault(sample, []).append(index)
        if not 1 <= calibration < len(groups):
            raise DataError(
                f"Cannot take {calibration} of {len(groups)} distinct samples for calibration: at least one, and one "
                "must be left for evaluation. Ask for fewer, or bring more data."
            )
        order = np.random.default_rng(seed).permutation(len(groups))
        shuffled = [list(groups.values())[position] for position in order]
        moved = sorted(index for group in shuffled[:calibration] for index in group)
        kept = sorted(index for group in shuffled[calibration:] for index in group)
        show = self.show
        return replace(
            self,
            evaluation=self.evaluation.take(kept),
            calibration=self.evaluation.take(moved),
            show=None if show is None else lambda index: show(kept[index]),
            notes=(*self.notes, f"{len(moved)} samples were taken out of the evaluation data for calibration."),
        )

    def bound_to(self, model: Model) -> Dataset:
        """Return the data under the model's input names and in its element types.

        Lossless and usual conversions (float64 to float32, int32 to int64) are done and noted; all others refuse.

        Raises:
            DataError: names, number of axes, sizes or types do not fit the model's inputs, or no metric was named and
                labels and outputs do not tell which one is meant.
        """
        notes: dict[str, None] = {}
        splits = {}
        for part, split in (("evaluation", self.evaluation), ("calibration", self.calibration)):
            splits[part] = None if split is None else _bind(split, model, notes)
        new_notes = tuple(note for note in notes if note not in self.notes)
        bound = replace(self, **splits, notes=self.notes + new_notes)  # type: ignore[arg-type]
        return bound._with_metric(model) if model.outputs else bound

    def _with_metric(self, model: Model) -> Dataset:
        labels = self.evaluation.labels
        if labels is None:
            return self
        guessed = self.metric is not None and self.metric.by_default
        if not guessed and metrics.UNDECIDED.format(labels=labels) not in self.notes:
            return self  # somebody named the metric, or wants none
        metric, told = metrics.chosen(labels, self.evaluation.inputs, model.outputs, self.scored_output)
        undecided = metrics.UNDECIDED.format(labels=labels)
        notes = dict.fromkeys(note for note in (*self.notes, *told) if note != undecided)
        return replace(self, metric=metric, notes=tuple(notes))


def check_disjoint(evaluation: Split, calibration: Split) -> None:
    """Compare the splits by sample hash.

    Raises:
        DataError: they share samples; the message has their number and the first evaluation indices.
    """
    seen = set(calibration.sample_hashes)
    shared = [index for index, sample in enumerate(evaluation.sample_hashes) if sample in seen]
    if shared:
        first = ", ".join(map(str, shared[:10])) + (", ..." if len(shared) > 10 else "")
        raise DataError(
            f"{len(shared)} of {len(evaluation)} evaluation samples are calibration samples too (evaluation indices "
            f"{first}). Accuracy would be measured on data the thresholds were fitted to. Remove them from one of the "
            "two, or pass one split and call split_off()."
        )


def _check_array(name: str, array: Array) -> None:
    if not isinstance(array, np.ndarray):
        raise DataError(f"{name} is a {type(array).__name__}, expected a numpy array. Convert it with numpy.asarray.")
    if array.dtype.kind == "O":
        raise DataError(f"{name} holds Python objects, not numbers: are its rows of unequal length? Pad them.")
    if array.ndim == 0 or len(array) == 0:
        alone = "" if array.ndim else f" {ONE_VALUE}"
        raise DataError(
            f"{name} has no samples (shape {array.shape}). Axis 0 must be the samples, at least one.{alone}"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array).reshape(len(array), -1).all(axis=1))
        raise DataError(
            f"{name} has NaN or infinite values in {len(bad)} of {len(array)} samples (first: sample {bad[0]}). "
            + (_MASKING if bool((np.isfinite(array) | np.isneginf(array)).all()) else _UNCLEAN)
        )


def _bind(split: Split, model: Model, notes: dict[str, None]) -> Split:
    specs = {spec.name: spec for spec in model.inputs}
    given = dict(split.inputs)
    if set(given) == {""}:
        if len(specs) != 1:
            raise DataError(
                f"{model.name} has {len(specs)} inputs ({', '.join(specs)}), the data have one array without a name. "
                "Pass {input name: array}."
            )
        given = {next(iter(specs)): given[""]}
    for name in given:
        if name not in specs:
            raise DataError(f"The data have an input {name!r} that {model.name} lacks. {nearest(name, specs)}")
    missing = [name for name in specs if name not in given]
    if missing:
        raise DataError(f"{model.name} needs the inputs {', '.join(missing)} too, the data have {', '.join(given)}.")
    return Split({name: _fit(given[name], spec, notes) for name, spec in specs.items()}, split.labels)


def _fit(array: Array, spec: TensorSpec, notes: dict[str, None]) -> Array:
    if not spec.shape:
        raise DataError(f"Input {spec.name!r} of the model is a scalar: it has no axis for samples. {ONE_VALUE}")
    axes = zip(array.shape[1:], spec.shape[1:], strict=False)
    if array.ndim != len(spec.shape) or any(want not in (None, size) for size, want in axes):
        wanted = ", ".join("any" if size is None else str(size) for size in ("samples", *spec.shape[1:]))
        raise DataError(
            f"Input {spec.name!r} has shape {array.shape}, the model wants ({wanted}). Is the axis order right "
            "(samples, channels, height, width), and is the preprocessing the model's?"
        )
    return _convert(array, spec, notes)


def _convert(array: Array, spec: TensorSpec, notes: dict[str, None]) -> Array:
    if array.dtype.name == spec.dtype:
        return array
    wanted = dtype_of(spec.dtype)
    both_integer = wanted.kind in "iu" and array.dtype.kind in "iu"
    if array.dtype.kind == "f" and (wanted.kind == "f" or spec.dtype == "bfloat16"):
        converted = array.astype(wanted)
        fits = bool(np.isfinite(converted.astype(np.float64)).all())
    elif both_integer:
        converted = array.astype(wanted)
        # Compared both ways in the wider type: a wrapped negative would equal itself after a round trip.
        fits = bool((converted == array).all())
    else:
        raise DataError(
            f"Input {spec.name!r} has type {array.dtype}, the model wants {spec.dtype}. Convert it the way the model was "
            "trained with (scale, mean, standard deviation)."
        )
    if not fits:
        raise DataError(
            f"Input {spec.name!r} has type {array.dtype} and values that do not fit the model's {spec.dtype}."
        )
    notes[f"Input {spec.name!r} was converted from {array.dtype} to {spec.dtype}."] = None
    return converted
