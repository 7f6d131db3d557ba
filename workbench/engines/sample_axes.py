"""Find the axis of each output that counts the samples, by running the model rather than by its look.

Where the batch is free, it is the axis whose length is the number of samples in every call, two sizes at least. Where
the batch is fixed, samples are fed in another order: their answers change places along that axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from workbench.engines.base import Feeds
from workbench.errors import RunError
from workbench.records import TensorSpec

Outputs = Mapping[str, np.ndarray]
Call = tuple[int, Outputs]

# Samples of the call that is made only to see a second size.
_PROBED = 3
# Kernels may round differently when samples change places; answers of other samples differ by far more.
_SAME = 1e-2


def sample_axes(
    infer: Callable[[Feeds], Outputs],
    feeds: Feeds,
    calls: Sequence[Call],
    fixed: int | None,
    specs: Sequence[TensorSpec],
) -> dict[str, int | None]:
    """Return output name -> the axis that counts its samples, or None where no axis (or more than one) does.

    Args:
        infer: runs the model once.
        feeds: the samples of the first call.
        calls: all calls that were made: samples fed, and outputs.
        fixed: the batch that the model insists on, or None.
        specs: the outputs as the model states them.
    """
    found = {name: _fitting(name, calls) for name in calls[0][1]}
    if fixed is not None:
        return _by_order(infer, feeds, calls[0][1], fixed, found)
    stated = {spec.name: spec.shape for spec in specs}
    if len({size for size, _ in calls}) == 1:
        found = _at_another_size(infer, feeds, calls[0][0], found)
    for name, axes in found.items():
        shape = stated.get(name, ())
        # An axis that is stated to be of one length counts no samples where their number is free.
        found[name] = [axis for axis in axes if axis >= len(shape) or shape[axis] is None]
    return {name: axes[0] if len(axes) == 1 else None for name, axes in found.items()}


def _fitting(name: str, calls: Sequence[Call]) -> list[int]:
    rank = min(outputs[name].ndim for _, outputs in calls)
    return [axis for axis in range(rank) if all(outputs[name].shape[axis] == size for size, outputs in calls)]


def _at_another_size(
    infer: Callable[[Feeds], Outputs], feeds: Feeds, size: int, found: dict[str, list[int]]
) -> dict[str, list[int]]:
    other = min(size - 1, _PROBED) if size > 1 else 2
    try:
        outputs = infer({name: np.ascontiguousarray(array[np.arange(other) % size]) for name, array in feeds.items()})
    except RunError:
        return found  # the engine was built for one size only
    return {name: [axis for axis in axes if outputs[name].shape[axis] == other] for name, axes in found.items()}


def _by_order(
    infer: Callable[[Feeds], Outputs], feeds: Feeds, outputs: Outputs, fixed: int, found: Mapping[str, list[int]]
) -> dict[str, int | None]:
    if fixed == 1:
        return {name: axes[0] if axes else None for name, axes in found.items()}
    rolled = infer({name: np.ascontiguousarray(np.roll(array, 1, axis=0)) for name, array in feeds.items()})
    return {
        name: next((axis for axis in axes if _same(np.roll(outputs[name], 1, axis=axis), rolled[name])), None)
        for name, axes in found.items()
    }


def _same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    if ours.shape != theirs.shape:
        return False
    if ours.dtype.kind not in "fiub" and ours.dtype.name != "bfloat16":
        return bool((ours == theirs).all())
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    usable = np.isfinite(ours)
    if not np.array_equal(usable, np.isfinite(theirs)):
        return False
    difference = np.abs(ours[usable] - theirs[usable]).max(initial=0.0)
    return bool(difference <= _SAME * np.abs(ours[usable]).max(initial=0.0))
