"""Check feeds against what an engine takes; the same words for every backend. Knows no backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from workbench.engines.base import Feeds
from workbench.engines.limits import broken
from workbench.errors import DataError, RunError
from workbench.records import TensorSpec


def check(inputs: Sequence[TensorSpec], feeds: Feeds) -> None:
    """Check that feeds name every input and nothing else, in its element type and shape.

    Raises:
        RunError: they do not, or their sizes are beyond what the file was exported for.
    """
    wanted = {spec.name: spec for spec in inputs}
    if set(feeds) != set(wanted):
        raise RunError(
            f"The engine takes the inputs {sorted(wanted)}, got {sorted(map(str, feeds))}. Rename or complete the feeds."
        )
    for name, array in feeds.items():
        if not isinstance(array, np.ndarray):
            raise RunError(
                f"Input {name!r} is a {type(array).__name__}. Pass a numpy array, such as numpy.asarray(...)."
            )
        spec = wanted[name]
        fits = len(array.shape) == len(spec.shape) and all(
            want is None or want == have for want, have in zip(spec.shape, array.shape, strict=True)
        )
        if str(array.dtype) != spec.dtype or not fits:
            raise RunError(
                f"Input {name!r} wants {spec.dtype} {spec.shape} (None = any size), got {array.dtype} {array.shape}. "
                f"Convert or reshape it."
            )
    check_limits(inputs, {name: array.shape for name, array in feeds.items()})


def as_feeds(inputs: Sequence[TensorSpec], feeds: object, verb: str) -> Feeds:
    """Return feeds where some are wanted: arrays by input name as they are, one array for the only input.

    Args:
        verb: what wants them.

    Raises:
        DataError: they are neither.
    """
    names = [spec.name for spec in inputs]
    if isinstance(feeds, np.ndarray) and len(names) == 1:
        return {names[0]: feeds}
    if isinstance(feeds, Mapping):
        return feeds
    raise DataError(
        f"{verb} takes one batch as numpy arrays by input name, {{{', '.join(f'{name!r}: array' for name in names)}}}, got a "
        f"{type(feeds).__name__} ({repr(feeds)[:60]})."
    )


def check_limits(inputs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]]) -> None:
    """Check shapes against the conditions on sizes under which a file is what was exported.

    Raises:
        RunError: one is not kept.
    """
    limits = [text for spec in inputs for text in spec.limits]
    if words := broken(limits, shapes):
        fed = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise RunError(
            f"The model was exported for sizes with {' and '.join(words)}, and got {fed}: beyond that its file would compute "
            f"something else than the module. Export it on an example of this size, or feed others."
        )


def fixed_batch(specs: Sequence[TensorSpec]) -> int | None:
    """Return the samples that every call must have; None where a caller may choose.

    Args:
        specs: of the inputs, samples on their first axis.
    """
    return next((spec.shape[0] for spec in specs if spec.shape and spec.shape[0] is not None), None)
