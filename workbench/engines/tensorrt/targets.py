"""What an engine is built for: the GPU of this machine, or compute capabilities where the library builds ahead of time.

TensorRT times kernels on the GPU at hand. TensorRT for RTX compiles for compute capabilities, on any machine; the kernels
are finished on the user's GPU when they first run. Knows nothing of recipes and graphs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from workbench.engines.tensorrt.capabilities import Capabilities, Device
from workbench.errors import BuildError, nearest
from workbench.records import BuildOptions

PORTABLE = "portable"
# What a portable engine is judged by: it leaves out the GPUs that lack one of its types by itself.
NEWEST = Device("the newest GPU", (12, 1))
# What the first release for RTX with Ampere kernels takes when nothing is said: its own default, of its documentation.
_PORTABLE_SINCE = (8, 0)
# GPUs that TensorRT for RTX 1.7 runs on, from its support matrix; it refused an H200 (9.0) when that was tried.
RUNS_ON = ((7, 5), (8, 6), (8, 9), (12, 0), (12, 1))


@dataclass(frozen=True)
class Targets:
    """What an engine is built for.

    Attributes:
        devices: the GPU here, or one for each compute capability; empty where it is for every later GPU (portable).
        members: of the library's ComputeCapability, to be set; empty where the library is not told.
    """

    devices: tuple[Device, ...]
    members: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The device in words, for records and messages: `NVIDIA H200`, `sm86, sm89`."""
        any_later = f"any GPU of compute capability {_PORTABLE_SINCE[0]}.{_PORTABLE_SINCE[1]} or later"
        return ", ".join(device.name for device in self.devices) or any_later

    @property
    def capability(self) -> str:
        """The compute capabilities in words: `9.0`, `8.6, 8.9`; empty where it is portable."""
        return ", ".join(device.capability for device in self.devices)


def known(caps: Capabilities) -> dict[str, tuple[int, int]]:
    """Return the targets that a library compiles for, such as `sm89` -> (8, 9), in rising order."""
    members = getattr(getattr(caps.trt, "ComputeCapability", None), "__members__", {})
    numbers = sorted(int(name[2:]) for name in members if re.fullmatch(r"SM\d+", name))
    return {f"sm{number}": divmod(number, 10) for number in numbers}


def read(caps: Capabilities, options: BuildOptions, here: Device | None) -> tuple[Targets, list[str]]:
    """Return what to build for, and notes.

    Args:
        options: its `target`: `sm89`, several as `sm86,sm89`, `portable`, or None for the GPU here if this library runs
            on it, else portable.
        here: this machine's GPU; None where there is none, which only a library that builds ahead of time can do without.

    Raises:
        BuildError: the library knows no such target.
    """
    asked = options.target
    if not caps.ahead_of_time:
        if here is None:
            raise BuildError(f"{caps.name} builds on a GPU, and there is none here. Use the backend 'tensorrt-rtx'.")
        ignored = f"{caps.name} ignores target={asked!r}: it builds for the GPU of this machine, {here.name}."
        return Targets((here,)), [] if asked is None else [ignored]
    notes = []
    if asked is None and here is not None and here.compute_capability in RUNS_ON:
        asked = "sm{}{}".format(*here.compute_capability)
        notes.append(f"No target was named, so it is that of this machine's {here.name}: {asked}.")
    elif asked is None:
        asked = PORTABLE
        notes.append("No target was named, so the engine is portable; name one, such as 'sm89', for one kind of GPU.")
    return _named(caps, asked), notes


def _named(caps: Capabilities, asked: object) -> Targets:
    possible = known(caps)
    if not isinstance(asked, str) or not asked.strip():
        raise BuildError(
            f"BuildOptions.target is {asked!r}; it must be text such as 'sm89', 'sm86,sm89' or 'portable'."
        )
    names = list(dict.fromkeys(name.strip().lower() for name in asked.split(",")))
    if names == [PORTABLE]:
        return Targets(())
    for name in names:
        if name not in possible:
            raise BuildError(
                f"BuildOptions.target is {asked!r}, and {caps.name} does not compile for {name!r}; it knows "
                f"{', '.join(possible)}, and 'portable' alone. {nearest(name, [*possible, PORTABLE])}"
            )
    return Targets(tuple(Device(name, possible[name]) for name in names), tuple(name.upper() for name in names))
