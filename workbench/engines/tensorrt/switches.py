"""The backend's own switches in `BuildOptions.extra`, checked. Knows nothing of the tensorrt module.

They come from JSON and from users, so each is checked for type and range; a wrong value is a BuildError and an
unknown name is a note.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from workbench.errors import BuildError, nearest
from workbench.records import BuildOptions

CALIBRATORS = ("entropy", "minmax")
HARDWARE = ("none", "ampere+", "same-compute-capability")
VERBOSITY = ("none", "names", "detailed")


@dataclass(frozen=True)
class Switches:
    """What `BuildOptions.extra` may hold for this backend.

    Attributes:
        batch: smallest, typical and largest size of a dynamic axis 0, where no profiles are given.
        native_calibrator: `entropy` or `minmax`: let TensorRT (before 11) calibrate INT8 itself, to compare with.
        calibration_cache: path of a cache that TensorRT wrote before; calibration is skipped where it fits.
        timing_cache: keep tactic timings between builds, a file for each TensorRT version and device.
        version_compatible: the plan runs on later releases too.
        hardware_compatibility: devices the plan runs on beside this one: `none`, `ampere+`, `same-compute-capability`.
        tactic_sources: names such as `CUBLAS`; None takes TensorRT's own choice.
        refit: allow new weights in the finished engine.
        sparse: use 2:4 sparse kernels where weights allow; None asks the recipe.
        verbosity: how much the engine tells of its layers: `none`, `names`, `detailed`.
        auxiliary_streams: streams beside the main one; None takes TensorRT's own choice.
        timing_iterations: timings a tactic, of which the mean counts; None takes TensorRT's own choice.
        plugins: paths of libraries with plugins, for operators that TensorRT does not know: shared ones, or Python files.
    """

    batch: tuple[int, int, int] = (1, 8, 32)
    native_calibrator: str | None = None
    calibration_cache: str | None = None
    timing_cache: bool = True
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    tactic_sources: tuple[str, ...] | None = None
    refit: bool = False
    sparse: bool | None = None
    verbosity: str = "detailed"
    auxiliary_streams: int | None = None
    timing_iterations: int | None = None
    plugins: tuple[str, ...] = ()


def read(options: BuildOptions, *, ahead_of_time: bool = False) -> tuple[Switches, list[str]]:
    """Return the checked switches and notes on options that have no effect here.

    Args:
        ahead_of_time: the library builds without a GPU (TensorRT for RTX), which leaves several switches without a meaning.

    Raises:
        BuildError: a switch has a value it cannot have, or what it asks for cannot be had.
    """
    known: dict[str, Any] = {}
    notes: list[str] = []
    for name, value in options.extra.items():
        check = _CHECKS.get(name)
        if check is None:
            notes.append(f"TensorRT ignores the option {name!r}: it has no such switch. {nearest(name, _CHECKS)}")
            continue
        try:
            known[name] = check(value)
        except (TypeError, ValueError) as error:
            raise BuildError(f"The option {name!r} of the tensorrt backend is {value!r}: {error}.") from error
    if options.threads not in (None, 1):
        notes.append(f"TensorRT ignores threads={options.threads}: its work is on the GPU.")
    if options.optimization_level is not None and not 0 <= options.optimization_level <= 5:
        raise BuildError(f"BuildOptions.optimization_level is {options.optimization_level}; TensorRT has 0 to 5.")
    if options.workspace_bytes is not None and options.workspace_bytes < 0:
        raise BuildError(f"BuildOptions.workspace_bytes is {options.workspace_bytes}; it cannot be negative.")
    chosen = Switches(**known)
    return _ahead_of_time(chosen, known, notes) if ahead_of_time else (chosen, notes)


def _ahead_of_time(chosen: Switches, given: dict[str, Any], notes: list[str]) -> tuple[Switches, list[str]]:
    """Leave out, or refuse, what has no place in a build of TensorRT for RTX without a GPU.

    Tried with 1.7.1: REFIT fails in its compiler, VERSION_COMPATIBLE for want of a library. A level of hardware compatibility
    builds, but says what targets say better.
    """
    for name, on, reason in (
        ("refit", chosen.refit, "a build without a GPU fails with it; build the new weights, which takes seconds"),
        ("version_compatible", chosen.version_compatible, "its wheels lack the runtime that such a plan carries"),
        ("plugins", bool(chosen.plugins), "it takes none; define the operator by others that it knows"),
        ("hardware_compatibility", chosen.hardware_compatibility != "none", "name them in BuildOptions.target instead"),
    ):
        if on:
            raise BuildError(f"TensorRT for RTX cannot build with the option {name}={given[name]!r}: {reason}.")
    for name in ("timing_cache", "tactic_sources", "timing_iterations"):
        if given.get(name):
            notes.append(f"TensorRT for RTX ignores the option {name!r}: it times no kernels when it builds.")
    return replace(chosen, timing_cache=False, tactic_sources=None, timing_iterations=None), notes


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("it must be True or False")
    return value


def _optional_flag(value: Any) -> bool | None:
    return None if value is None else _flag(value)


def _choice(allowed: tuple[str, ...]) -> Callable[[Any], str | None]:
    def check(value: Any) -> str | None:
        if value not in allowed:
            raise ValueError(f"allowed are {', '.join(allowed)}")
        return str(value)

    return check


def _optional_calibrator(value: Any) -> str | None:
    return None if value is None else _choice(CALIBRATORS)(value)


def _whole(value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"it must be a whole number of at least {least}")
    return value


def _optional_count(least: int) -> Callable[[Any], int | None]:
    return lambda value: None if value is None else _whole(value, least)


def _batch(value: Any) -> tuple[int, int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise TypeError("it must be three whole numbers: smallest, typical and largest batch")
    smallest, typical, largest = (_whole(item, 1) for item in value)
    if not smallest <= typical <= largest:
        raise ValueError("it must rise: smallest <= typical <= largest")
    return smallest, typical, largest


def _names(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise TypeError("it must be a list of names")
    return tuple(value)


def _path(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError("it must be a path as text")
    return value


def _paths(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise TypeError("it must be a list of paths as text")
    return tuple(value)


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "batch": _batch,
    "native_calibrator": _optional_calibrator,
    "calibration_cache": _path,
    "timing_cache": _flag,
    "version_compatible": _flag,
    "hardware_compatibility": _choice(HARDWARE),
    "tactic_sources": _names,
    "refit": _flag,
    "sparse": _optional_flag,
    "verbosity": _choice(VERBOSITY),
    "auxiliary_streams": _optional_count(0),
    "timing_iterations": _optional_count(1),
    "plugins": _paths,
}
