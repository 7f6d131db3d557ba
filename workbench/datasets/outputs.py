"""What a model gave for many samples: its outputs by name, and which axis of each counts the samples.

Most outputs have the samples on axis 0, recognisers often on axis 1 (time, samples, classes), and some have no such
axis: a loss, a matrix of all pairs, boxes of which the number depends on the pictures. Knows numpy arrays only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class Answers(dict[str, np.ndarray]):
    """Output name -> array of all samples, as the model lays it out.

    Attributes:
        samples: how many samples were run.
        axes: output name -> the axis that counts the samples, or None where none does.
        counts: of an output without such an axis whose calls were put one behind the other: the rows of each call.
        calls: how many calls the samples were run in.
    """

    def __init__(
        self,
        outputs: Mapping[str, np.ndarray],
        axes: Mapping[str, int | None] | None = None,
        *,
        samples: int | None = None,
        counts: Mapping[str, Sequence[int]] | None = None,
        calls: int = 1,
    ) -> None:
        super().__init__(outputs)
        self.axes = {name: 0 if value.ndim else None for name, value in outputs.items()} if axes is None else dict(axes)
        self.counts = {name: tuple(sizes) for name, sizes in (counts or {}).items()}
        self.calls = calls
        self.samples = next(self._lengths(), 1) if samples is None else samples

    @property
    def whole(self) -> list[str]:
        """The outputs without an axis of samples."""
        return [name for name in self if self.axes.get(name) is None]

    def samples_first(self) -> Answers:
        """Return the same values with the samples on axis 0 of every output that has them."""
        moved = {
            name: np.moveaxis(value, axis, 0) if (axis := self.axes[name]) else value for name, value in self.items()
        }
        axes = {name: None if axis is None else 0 for name, axis in self.axes.items()}
        return Answers(moved, axes, samples=self.samples, counts=self.counts, calls=self.calls)

    def about(self) -> dict[str, Any]:
        """Return everything but the arrays, in JSON types: the other arguments to make this again."""
        return {
            "axes": self.axes,
            "samples": self.samples,
            "counts": {name: list(sizes) for name, sizes in self.counts.items()},
            "calls": self.calls,
        }

    def _lengths(self) -> Any:
        return (self[name].shape[axis] for name, axis in self.axes.items() if axis is not None and name in self)


def answers_of(outputs: Mapping[str, np.ndarray]) -> Answers:
    """Return outputs as Answers; plain ones have their samples on axis 0."""
    return outputs if isinstance(outputs, Answers) else Answers(outputs)


def side_by_side(parts: Sequence[Answers]) -> Answers:
    """Put the answers of several runs behind one another, sample after sample."""
    if len(parts) == 1:
        return parts[0]
    axes = parts[0].axes
    joined = {name: np.concatenate([part[name] for part in parts], axis=axes[name] or 0) for name in parts[0]}
    counts = {name: [size for part in parts for size in part.counts[name]] for name in parts[0].counts}
    samples, calls = (sum(getattr(part, what) for part in parts) for what in ("samples", "calls"))
    return Answers(joined, axes, samples=samples, counts=counts, calls=calls)


def joined_calls(parts: Sequence[np.ndarray], shape: Sequence[int | None]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Join what the calls gave for an output that has no axis of samples.

    Args:
        shape: as the model states it, None for an axis of any length.

    Returns:
        One call: its array. Several of one shape: (calls, ...), unless one axis is of any length: then behind one another
        along that or the one that differs, and the length of each call; where more than one differs, the values flat.
    """
    if len(parts) == 1:
        return parts[0], ()
    shapes = {part.shape for part in parts}
    free = [axis for axis, size in enumerate(shape) if size is None and axis < parts[0].ndim]
    if len(shapes) == 1 and len(free) != 1:
        return np.stack(parts), ()
    differ = [axis for axis in range(parts[0].ndim) if len({part.shape[axis] for part in parts}) > 1]
    if len(differ) > 1:
        flat = [part.ravel() for part in parts]
        return np.concatenate(flat), tuple(len(part) for part in flat)
    axis = differ[0] if differ else free[0]
    return np.concatenate(parts, axis=axis), tuple(part.shape[axis] for part in parts)
