"""Optimization profiles: which shapes an engine is built for. Pure until `add`, which hands them to TensorRT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.errors import BuildError
from workbench.records import BuildOptions, ShapeProfile, TensorSpec

Profile = Mapping[str, ShapeProfile]


def choose(inputs: Sequence[TensorSpec], options: BuildOptions, batch: tuple[int, int, int]) -> tuple[Profile, ...]:
    """Return the profiles to build for, at least one.

    Without profiles in the options, a dynamic axis 0 is taken for the batch and gets `batch`, and a static input its one
    shape: without any profile TensorRT 8.6 makes no execution context where an output's shape depends on data.

    Raises:
        BuildError: a profile does not fit an input, or another axis is dynamic and no profile says how far.
    """
    dynamic = {spec.name: spec for spec in inputs if None in spec.shape}
    if not options.profiles:
        return ({spec.name: _default(spec, batch) for spec in inputs if spec.shape},)
    known = {spec.name: spec for spec in inputs}
    for number, profile in enumerate(options.profiles):
        unknown = sorted(set(profile) - set(known))
        if unknown:
            raise BuildError(f"Profile {number} names {', '.join(unknown)}; the inputs are {', '.join(sorted(known))}.")
        missing = sorted(set(dynamic) - set(profile))
        if missing:
            raise BuildError(
                f"Profile {number} lacks the dynamic inputs {', '.join(missing)}. Give each a ShapeProfile."
            )
        for name, shapes in profile.items():
            _check(known[name], shapes, number)
    return tuple(options.profiles)


def _default(spec: TensorSpec, batch: tuple[int, int, int]) -> ShapeProfile:
    if None in spec.shape[1:]:
        axes = [axis for axis, size in enumerate(spec.shape) if size is None]
        raise BuildError(
            f"The input {spec.name!r} has the shape {spec.shape} with dynamic axes {axes}; only axis 0 is taken for the "
            f"batch without asking. Say how far they reach: BuildOptions(profiles=({{{spec.name!r}: "
            f"ShapeProfile(smallest=..., typical=..., largest=...)}},))."
        )
    if spec.shape[0] is not None:
        return _only(spec.shape)
    rest = tuple(size for size in spec.shape[1:] if size is not None)
    smallest, typical, largest = ((size, *rest) for size in batch)
    return ShapeProfile(smallest, typical, largest)


def _only(shape: Sequence[int | None]) -> ShapeProfile:
    fixed = tuple(size for size in shape if size is not None)
    return ShapeProfile(fixed, fixed, fixed)


def _check(spec: TensorSpec, shapes: ShapeProfile, number: int) -> None:
    triples = (shapes.smallest, shapes.typical, shapes.largest)
    what = f"Profile {number}, input {spec.name!r}: smallest, typical and largest {triples}"
    if any(len(shape) != len(spec.shape) for shape in triples):
        raise BuildError(f"{what} must all have {len(spec.shape)} axes like the model's {spec.shape}.")
    for axis, size in enumerate(spec.shape):
        low, middle, high = (shape[axis] for shape in triples)
        if size is not None and not low == middle == high == size:
            raise BuildError(f"{what}: axis {axis} is {size} in the model and must be {size} in all three.")
        if not 0 <= low <= middle <= high:
            raise BuildError(f"{what}: axis {axis} must rise from smallest over typical to largest.")


def add(builder: Any, network: Any, config: Any, profiles: Sequence[Profile]) -> None:
    """Hand profiles to a builder config.

    Raises:
        BuildError: TensorRT refuses one, or an input decides shapes by its values.
    """
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            raise BuildError(
                f"The values of the input {tensor.name!r} decide shapes inside the model (a shape tensor), which this "
                f"backend cannot build. Make it a constant when exporting, or pass the data whose shape it means."
            )
    for number, profile in enumerate(profiles):
        made = create(builder, profile)
        if config.add_optimization_profile(made) < 0:
            raise BuildError(
                f"TensorRT refuses profile {number}: {dict(profile)}. Do its shapes fit the model's operators?"
            )


def create(builder: Any, profile: Profile) -> Any:
    """Return TensorRT's own object for a profile."""
    made = builder.create_optimization_profile()
    for name, shapes in profile.items():
        try:
            made.set_shape(name, tuple(shapes.smallest), tuple(shapes.typical), tuple(shapes.largest))
        except (ValueError, RuntimeError) as error:
            raise BuildError(f"TensorRT refuses the shapes {shapes} of the input {name!r}: {error}.") from error
    return made


def calibration_shapes(inputs: Sequence[TensorSpec], profiles: Sequence[Profile], batch: int) -> Profile:
    """Return the one shape that calibration runs with: the typical shape of the first profile, in batches of `batch`."""
    fixed = {}
    for name, shapes in (profiles[0] if profiles else {}).items():
        spec = next(item for item in inputs if item.name == name)
        shape = (batch, *shapes.typical[1:]) if spec.shape and spec.shape[0] is None else shapes.typical
        fixed[name] = ShapeProfile(shape, shape, shape)
    return fixed
