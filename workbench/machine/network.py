"""No network for a process and for all that it starts: the kernel refuses it sockets, the local ones of Unix apart.

A filter on system calls (seccomp) does it, which needs no rights and changes nothing else: a network namespace would need
a user namespace with it, in which root loses its rights on files of others. Linux alone has it. Elsewhere, where the
kernel forbids it, and beside an NVIDIA driver, with which it was not tried, the process keeps its network, and
`workbench doctor` says so.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Machine:
    """Numbers of the kernel's interface: the architecture, as audit names it, and system calls."""

    architecture: int
    seccomp: int
    socket: int
    io_uring_setup: int


_MACHINES = {"x86_64": _Machine(0xC000003E, 317, 41, 425), "aarch64": _Machine(0xC00000B7, 277, 198, 425)}
_SET_FILTER, _ACTION_AVAILABLE = 1, 2
# For all threads; and without the slow mode for speculative loads that kernels before 5.16 switch on with a filter.
_ALL_THREADS, _KEEP_SPEED = 1, 4
_NO_NEW_PRIVILEGES = 38
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
# Calls of a second kind (x32) on x86-64 begin here.
_OTHER_KIND = 0x40000000
_NVIDIA_DRIVER = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
# AF_UNIX, whose names are files of this machine, and AF_NETLINK, for questions to its own kernel.
_ALLOWED_SOCKETS = (1, 16)


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint16), ("yes", ctypes.c_uint8), ("no", ctypes.c_uint8), ("value", ctypes.c_uint32)]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("first", ctypes.POINTER(_Instruction))]


def can_close() -> bool:
    """Whether processes are refused their network on this machine."""
    machine = _machine()
    if machine is None:
        return False
    action = ctypes.c_uint32(_REFUSE)
    return _library().syscall(machine.seccomp, _ACTION_AVAILABLE, 0, ctypes.byref(action)) == 0


def close() -> bool:
    """Refuse this process, and all that it starts, the network from now on; False where that is not done."""
    machine = _machine()
    if machine is None:
        return False
    program, library = _program(machine), _library()
    library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)  # without rights, a filter may be set only by who gains none later
    flags = _ALL_THREADS | _KEEP_SPEED
    return bool(library.syscall(machine.seccomp, _SET_FILTER, flags, ctypes.byref(program)) == 0)


def _machine() -> _Machine | None:
    if sys.platform != "linux" or sys.maxsize < 2**32 or any(place.exists() for place in _NVIDIA_DRIVER):
        return None  # Python of 32 bits on a machine of 64 has other numbers
    return _MACHINES.get(platform.machine())


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    return library


def _program(machine: _Machine) -> _Program:
    """Sockets of other kinds than the allowed ones are refused, and so are ways round: queues of calls, other calls."""
    lines = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 0, 7, machine.architecture),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 5, 0, _OTHER_KIND),
        (_EQUAL, 4, 0, machine.io_uring_setup),
        (_EQUAL, 0, 4, machine.socket),
        (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        (_EQUAL, 2, 0, _ALLOWED_SOCKETS[0]),
        (_EQUAL, 1, 0, _ALLOWED_SOCKETS[1]),
        (_RETURN, 0, 0, _REFUSE | errno.EACCES),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return _Program(len(lines), (_Instruction * len(lines))(*(_Instruction(*line) for line in lines)))
