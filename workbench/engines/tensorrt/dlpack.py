"""Device tensors in and out through DLPack, the exchange format of torch, JAX and CuPy, without any of them.

The structures are those of dlpack.h (https://github.com/dmlc/dlpack), version 0: the capsule that every producer
still gives when it is not asked for a later one.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

CPU, CUDA = 1, 2
_NAME = b"dltensor"
# (type code, bits) <-> the names that numpy and ml_dtypes use
_TYPES = {
    (0, 8): "int8",
    (0, 32): "int32",
    (0, 64): "int64",
    (1, 8): "uint8",
    (2, 16): "float16",
    (2, 32): "float32",
    (2, 64): "float64",
    (4, 16): "bfloat16",
    (6, 8): "bool",
}
_CODES = {name: code for code, name in _TYPES.items()}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_DELETER = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _DELETER))

_DESTRUCTOR = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _DESTRUCTOR)(
    ("PyCapsule_New", ctypes.pythonapi)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
# In a destructor the capsule has no references left, so it must not become a Python object there.
_is_valid_raw = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer_raw = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


@dataclass(frozen=True)
class View:
    """What a capsule describes; valid for as long as `capsule` lives."""

    address: int
    shape: tuple[int, ...]
    dtype: str
    device_type: int
    device_id: int
    contiguous: bool
    capsule: Any


def peek(capsule: Any) -> View:
    """Read a capsule without taking it over: when it is dropped, its producer gets the memory back.

    Raises:
        ValueError: it is no DLPack capsule, was used up, or is of a type that numpy has no name for.
    """
    managed = ctypes.cast(_pointer(capsule, _NAME), ctypes.POINTER(_Managed)).contents
    tensor = managed.tensor
    dtype = _TYPES.get((tensor.code, tensor.bits)) if tensor.lanes == 1 else None
    if dtype is None:
        raise ValueError(f"DLPack type code {tensor.code} with {tensor.bits} bits has no counterpart here")
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    strides = tuple(tensor.strides[axis] for axis in range(tensor.ndim)) if tensor.strides else None
    return View(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=shape,
        dtype=dtype,
        device_type=tensor.device_type,
        device_id=tensor.device_id,
        contiguous=strides is None or _is_contiguous(shape, strides),
        capsule=capsule,
    )


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


# What consumers hold: address of the managed tensor -> all that must live until its deleter is called.
_exported: dict[int, tuple[Any, ...]] = {}


@_DELETER
def _delete(managed: Any) -> None:
    _exported.pop(ctypes.addressof(managed.contents), None)


@_DESTRUCTOR
def _destroy(capsule: int) -> None:
    if _is_valid_raw(capsule, _NAME):  # nobody took it over
        _exported.pop(_pointer_raw(capsule, _NAME), None)


def export(owner: Any, address: int, shape: tuple[int, ...], dtype: str, device: tuple[int, int]) -> Any:
    """Return a capsule for contiguous memory.

    Args:
        owner: kept alive until the consumer is done.
        device: device type (`CUDA`, `CPU`) and index.

    Raises:
        BufferError: DLPack has no code for the dtype.
    """
    if dtype not in _CODES:
        raise BufferError(f"DLPack has no code for {dtype}; copy the tensor to the host instead")
    code, bits = _CODES[dtype]
    sizes = (ctypes.c_int64 * len(shape))(*shape)
    steps = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        steps[axis] = steps[axis + 1] * shape[axis + 1]
    strides = (ctypes.c_int64 * len(shape))(*steps)
    pointer = ctypes.POINTER(ctypes.c_int64)
    managed = _Managed(
        _Tensor(
            address, *device, len(shape), code, bits, 1, ctypes.cast(sizes, pointer), ctypes.cast(strides, pointer), 0
        ),
        None,
        _delete,
    )
    place = ctypes.addressof(managed)
    _exported[place] = (managed, sizes, strides, owner)
    return _new(place, _NAME, _destroy)
