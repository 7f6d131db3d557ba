"""Data from numpy arrays, .npz files, PyTorch-style loaders, and a random generator.

Torch tensors are taken by their methods (`detach`, `cpu`, `numpy`), so torch is not imported here.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from workbench.datasets.metrics import UNDECIDED, Metric, Outputs, guess, named
from workbench.datasets.split import ONE_VALUE, Array, Dataset, Split
from workbench.errors import DataError
from workbench.records import Model, TensorSpec

ArrayLike: TypeAlias = Any
MetricChoice: TypeAlias = "Metric | str | Callable[[Outputs, Array], Array | float] | None"

# A .npz of a few kilobytes can unpack to terabytes; what is larger than this is refused before it is unpacked.
LARGEST_NPZ_BYTES = 16 << 30
_CALIBRATION = "calibration_"
_RANDOM_AXIS = 32


def arrays(
    inputs: ArrayLike | Mapping[str, ArrayLike],
    labels: ArrayLike | None = None,
    *,
    calibration: ArrayLike | Mapping[str, ArrayLike] | None = None,
    metric: MetricChoice = "auto",
    output: str | None = None,
    sample_axes: Mapping[str, int | None] | None = None,
    name: str = "arrays",
) -> Dataset:
    """Make a dataset of arrays (numpy, or torch tensors).

    Args:
        inputs: one array (samples on axis 0) for a model with one input, or {input name: array}.
        labels: one entry a sample, as the metric wants them (see `workbench.metrics`).
        calibration: inputs for calibration, of other samples; None leaves the dataset without (see `split_off`).
        metric: a name such as "binary" or "token-top-1" (see `workbench.metrics`), a Metric, a function of (outputs,
            labels), or None for no score; "auto" takes the one that labels and the model's outputs allow, and refuses
            where they allow two.
        output: the output that is scored, where the model has several.
        sample_axes: output name -> the axis that counts its samples, None where none does; others are found by running.
        name: how reports call the data.

    Raises:
        DataError: no samples, unequal lengths, NaN, objects, or samples shared by both splits.
    """
    evaluation = Split(as_inputs(inputs), None if labels is None else to_numpy("labels", labels))
    held_back = None if calibration is None else Split(as_inputs(calibration))
    dataset = Dataset(name, "user", evaluation, held_back, sample_axes=dict(sample_axes or {}))
    return scored(dataset, metric, output)


def scored(dataset: Dataset, metric: MetricChoice, output: str | None = None) -> Dataset:
    """Return a dataset with a metric; see `arrays`.

    Raises:
        DataError: no such metric, or one without labels.
    """
    labels = dataset.evaluation.labels
    if metric is None:
        return dataset
    if isinstance(metric, str) and metric == "auto":
        if labels is None:
            return dataset
        guessed = guess(labels, dataset.evaluation.inputs)
        made = replace(dataset, metric=guessed, scored_output=output)
        if guessed is not None:
            return made
        return _with_notes(made, UNDECIDED.format(labels=labels))
    chosen, notes = named(metric, output)
    if labels is None:
        raise DataError(f"The metric {chosen.name} needs labels, got none. Pass labels=..., or metric=None.")
    return _with_notes(replace(dataset, metric=chosen), *notes)


def npz(
    path: Path | str, *, metric: MetricChoice = "auto", output: str | None = None, name: str | None = None
) -> Dataset:
    """Read a .npz file; pickled objects in it are refused.

    Arrays are called like the model's inputs, with `labels` (if any) for the labels, and `calibration_<input>` for
    calibration data. A lone input may be called `input`: it fits the only input of any model.

    Raises:
        DataError: no .npz file, damaged, larger than 16 GiB unpacked, with objects in it, or not fit to be a dataset.
    """
    file = Path(path)
    stored = read_npz(file)
    labels = stored.pop("labels", None)
    calibration = {
        key.removeprefix(_CALIBRATION): stored.pop(key) for key in list(stored) if key.startswith(_CALIBRATION)
    }
    if not stored:
        raise DataError(f"{file} has no input array. Store one array for each model input, samples on axis 0.")
    return arrays(
        _unnamed(stored),
        labels,
        calibration=_unnamed(calibration) or None,
        metric=metric,
        output=output,
        name=name or file.stem,
    )


def read_npz(file: Path) -> dict[str, Array]:
    """Return the arrays of a .npz file that may be damaged or hostile.

    Raises:
        DataError: as for `npz`.
    """
    if not file.is_file():
        raise DataError(f"There is no file {file} (looked in {file.absolute().parent}). Check the path.")
    try:
        with zipfile.ZipFile(file) as archive:
            unpacked_bytes = sum(item.file_size for item in archive.infolist())
        if unpacked_bytes > LARGEST_NPZ_BYTES:
            raise DataError(
                f"{file} unpacks to {unpacked_bytes} bytes, more than the {LARGEST_NPZ_BYTES} that are read. "
                "Store fewer samples, or pass a loader."
            )
        with np.load(file, allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise whatever a damaged file makes them stumble over
        raise DataError(
            f"Cannot read {file} as .npz: {error}. It is no .npz file, is damaged, or holds pickled objects, which are "
            "never loaded. Write it with numpy.savez from plain number arrays."
        ) from error


def loader(
    batches: Iterable[Any],
    *,
    inputs: Sequence[str] = ("",),
    samples: int = 1024,
    metric: MetricChoice = "auto",
    output: str | None = None,
    name: str = "loader",
) -> Dataset:
    """Take samples from a torch DataLoader, or any iterable of batches.

    Args:
        batches: yields an array, a tuple (inputs..., labels), or a dict with the inputs and maybe `labels`. A torch
            Dataset, or another object with a length and items by index, gives one sample an item instead of a batch.
        inputs: names for the first fields of a tuple; a field behind them is the labels. Unused for dicts.
        samples: stop after that many; the dataset notes it when the loader had more.

    Raises:
        DataError: no batches, a batch of another form, or what `arrays` refuses.
    """
    if samples < 1:
        raise DataError(f"samples is {samples}; it must be at least 1.")
    gathered: dict[str, list[Array]] = {}
    taken, more = 0, False
    for fields in _batches(batches, tuple(inputs)):
        if taken >= samples:
            more = True
            break
        if gathered and fields.keys() != gathered.keys():
            raise DataError(f"A batch has the fields {sorted(fields)}, the first had {sorted(gathered)}.")
        for key, value in fields.items():
            gathered.setdefault(key, []).append(value[: samples - taken])
        size = len(next(iter(fields.values())))
        if not size:
            raise DataError("The loader gave a batch without samples. Leave empty batches out.")
        more = taken + size > samples
        taken += size
    if not gathered:
        raise DataError("The loader gave no batches. Is its data set empty, or was the iterator used up before?")
    try:
        joined = {key: np.concatenate(parts) for key, parts in gathered.items()}
    except ValueError as error:
        raise DataError(
            f"Batches do not fit together: {error}. Samples must have one shape; pad or crop them."
        ) from error
    labels = joined.pop("labels", None)
    dataset = arrays(joined, labels, metric=metric, output=output, name=name)
    note = f"The first {samples} samples of the loader were taken; it has more."
    return _with_notes(dataset, note) if more else dataset


def random(
    model: Model,
    samples: int = 64,
    seed: int = 0,
    *,
    dynamic_size: int = _RANDOM_AXIS,
    integers: tuple[int, int] = (0, 2),
) -> Dataset:
    """Make random inputs for a model: normal floats, uniform integers; half as many more for calibration.

    Latency can be measured with them and variants compared with their parent; no accuracy is claimed.

    Args:
        dynamic_size: length given to dynamic axes other than axis 0.
        integers: lowest value and the one above the highest; masks (an input with `mask` in its name) are all ones.

    Raises:
        DataError: an input without a sample axis, or of a type that has no random values.
    """
    if samples < 1 or integers[0] >= integers[1]:
        raise DataError(
            f"samples is {samples}, integers {integers}: at least 1 sample and a range low < high are needed."
        )
    generator = np.random.default_rng(seed)
    extra = max(1, samples // 2)
    notes = [
        f"Inputs are random (seed {seed}): floats from a normal distribution, integers from {integers[0]} to "
        f"{integers[1] - 1}, masks all ones. No accuracy is claimed."
    ]
    if any(None in spec.shape[1:] for spec in model.inputs):
        notes.append(f"Dynamic axes were given the length {dynamic_size}.")
    drawn = {spec.name: _draw(spec, generator, (samples + extra, dynamic_size), integers) for spec in model.inputs}
    evaluation = Split({key: value[:samples] for key, value in drawn.items()})
    try:
        calibration = Split({key: value[samples:] for key, value in drawn.items()})
        return Dataset(f"random (seed {seed})", "random", evaluation, calibration, notes=tuple(notes))
    except DataError:
        # A model of small integer inputs alone has too few different samples for two disjoint splits.
        notes.append("No calibration data: too few different random samples exist for these inputs.")
        return Dataset(f"random (seed {seed})", "random", evaluation, notes=tuple(notes))


def as_inputs(data: ArrayLike | Mapping[str, ArrayLike]) -> dict[str, Array]:
    """Return {input name: numpy array}; a bare array gets the name "" (the model's only input)."""
    if isinstance(data, Mapping):
        return {str(key): to_numpy(f"input {key!r}", value) for key, value in data.items()}
    return {"": to_numpy("the input", data)}


def to_numpy(what: str, value: ArrayLike) -> Array:
    """Return a numpy array of an array, list or torch tensor.

    Raises:
        DataError: rows of unequal length, or something that is no array.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # numpy has no bfloat16; float32 holds all its values exactly.
        value = (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{what} is no array: {error}. Pad or crop the samples to one shape.") from error
    if array.dtype.kind not in "biufSUV":
        raise DataError(f"{what} is a {type(value).__name__}, which gives no numbers. Pass an array of numbers.")
    return array


def _batches(source: Any, inputs: tuple[str, ...]) -> Iterator[dict[str, Array]]:
    """Yield the fields of each batch; single samples become batches of one."""
    torch = sys.modules.get("torch")
    indexed = hasattr(source, "__getitem__") and hasattr(source, "__len__")
    single = torch is not None and isinstance(source, torch.utils.data.Dataset)
    single = single or (indexed and not isinstance(source, (list, tuple)))
    # By index, because not every data set with a length says where it ends when it is iterated.
    items = (source[index] for index in range(len(source))) if single and indexed else iter(source)
    for item in items:
        fields = _fields(item, inputs)
        if not fields:
            raise DataError("A batch is an empty dict. Give each batch the model's inputs by name.")
        if single or any(array.ndim == 0 for array in fields.values()):
            fields = {name: array[np.newaxis] for name, array in fields.items()}
        yield fields


def _fields(batch: Any, inputs: tuple[str, ...]) -> dict[str, Array]:
    """Return input name -> array, and "labels" -> array where there are labels."""
    if isinstance(batch, Mapping):
        return {str(key): to_numpy(f"field {key!r}", value) for key, value in batch.items()}
    values = list(batch) if isinstance(batch, (tuple, list)) else [batch]
    if not len(inputs) <= len(values) <= len(inputs) + 1:
        raise DataError(
            f"A batch has {len(values)} fields; expected {len(inputs)} inputs {inputs} and at most one of labels. "
            "Name the inputs with inputs=(...)."
        )
    names = (*inputs, "labels")
    return {key: to_numpy(f"field {key!r}", value) for key, value in zip(names, values, strict=False)}


def _unnamed(stored: dict[str, Array]) -> dict[str, Array]:
    return {"": stored["input"]} if set(stored) == {"input"} else stored


def _with_notes(dataset: Dataset, *notes: str) -> Dataset:
    return replace(dataset, notes=dataset.notes + notes)


def _draw(spec: TensorSpec, generator: np.random.Generator, sizes: tuple[int, int], integers: tuple[int, int]) -> Array:
    if not spec.shape:
        raise DataError(f"Input {spec.name!r} of the model is a scalar: it has no axis for samples. {ONE_VALUE}")
    samples, dynamic_size = sizes
    shape = (samples, *(dynamic_size if size is None else size for size in spec.shape[1:]))
    if "float" in spec.dtype:
        values: Array = generator.standard_normal(shape, dtype=np.float32)
        # bfloat16 is left to bound_to: numpy alone has no such type.
        return values if spec.dtype == "bfloat16" else values.astype(spec.dtype)
    if "mask" in spec.name.lower() and ("int" in spec.dtype or spec.dtype == "bool"):
        return np.ones(shape, spec.dtype)
    if spec.dtype == "bool":
        return generator.integers(0, 2, shape).astype(bool)
    if "int" in spec.dtype:
        return generator.integers(*integers, shape).astype(spec.dtype)
    raise DataError(f"Input {spec.name!r} has type {spec.dtype}, for which there are no random values. Pass your own.")
