"""Arrays into and out of the tensors of Triton's python backend. Copied as it is beside each `model.py` that uses it."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


def exchange() -> tuple[Callable[[Any], np.ndarray], Callable[[str, np.ndarray], Any]]:
    """Return how this server's tensors are read as arrays, and how arrays are written under a name."""
    return (_read_plainly, pb_utils.Tensor) if _numpy_is_understood() else (_read, _written)


def renamed(tensor: Any, name: str) -> Any:
    """Return the same tensor under another name; it stays on its device and is not copied through numpy."""
    return pb_utils.Tensor.from_dlpack(name, tensor.to_dlpack())


def _numpy_is_understood() -> bool:
    """Whether this server's python backend can exchange arrays with the numpy that is installed.

    One that was built for numpy 1 (Triton 2.51 is) copies none of the bytes of numpy 2's arrays, and hands on what
    happened to lie in memory without a word.
    """
    if int(np.__version__.split(".")[0]) < 2:
        return True
    probes = [np.arange(1, 8, dtype=np.float32) * factor for factor in (np.pi, -np.e)]
    return all(np.array_equal(_written("probe", probe).as_numpy(), probe) for probe in probes)


def _read_plainly(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.as_numpy())


def _read(tensor: Any) -> np.ndarray:
    """Read through DLPack, whose layout does not depend on numpy's version; copied, as the memory is the server's."""
    return np.array(np.from_dlpack(tensor))


def _written(name: str, array: np.ndarray) -> Any:
    """Write through DLPack."""
    if not array.size:
        # Numpy counts an axis of 0 as 1 in the strides of the axes before it, the server as 0, and refuses the difference.
        strides = [array.itemsize * math.prod(array.shape[axis + 1 :]) for axis in range(array.ndim)]
        array = np.lib.stride_tricks.as_strided(array, strides=strides)
    capsule = array.__dlpack__()
    # The server takes the array over but marks the capsule in its own way, and numpy's destructor would complain of that
    # in the server's log, for every tensor; the server frees the array itself.
    forget = ctypes.pythonapi.PyCapsule_SetDestructor
    forget.argtypes, forget.restype = [ctypes.py_object, ctypes.c_void_p], ctypes.c_int
    forget(capsule, None)
    return pb_utils.Tensor.from_dlpack(name, capsule)
