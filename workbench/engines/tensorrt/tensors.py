"""The inputs and outputs of an open engine, and the conversion between TensorRT's types and numpy's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from workbench.engines.tensorrt.capabilities import Capabilities, name_of
from workbench.errors import EngineError, RunError
from workbench.records import TensorSpec

_DTYPES: dict[str, Any] = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "FP8": ml_dtypes.float8_e4m3fn,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine.

    Attributes:
        dtype: as the engine has it.
        spec: as the model has it; TensorRT 8.6 knows no INT64 and has INT32 instead.
        on_host: whether the engine reads or writes it in host memory (it decides shapes).
    """

    name: str
    is_input: bool
    dtype: np.dtype[Any]
    spec: TensorSpec
    on_host: bool


def of_engine(caps: Capabilities, engine: Any, specs: Mapping[str, TensorSpec]) -> tuple[Tensor, ...]:
    """Return the tensors of an engine in its own order.

    Args:
        specs: name -> what the model says of it.

    Raises:
        EngineError: the engine has a tensor that the model does not, or one of a type without a numpy counterpart.
    """
    trt = caps.trt
    found = []
    for index in range(engine.num_io_tensors):
        name = str(engine.get_tensor_name(index))
        kind = name_of(engine.get_tensor_dtype(name))
        if name not in specs:
            raise EngineError(f"The plan has the tensor {name!r}, the model does not. Rebuild the engine.")
        if kind not in _DTYPES:
            raise EngineError(f"The tensor {name!r} is of the type {kind}, which cannot be fed from numpy.")
        on_host = engine.get_tensor_location(name) == trt.TensorLocation.HOST
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        found.append(Tensor(name, is_input, np.dtype(_DTYPES[kind]), specs[name], on_host))
    return tuple(found)


def checked(tensor: Tensor, value: Any) -> np.ndarray:
    """Return a feed as the engine wants it: the model's type and shape checked, the engine's type given.

    Raises:
        RunError: dtype or shape do not fit, or a value does not fit into the engine's narrower type.
    """
    array = np.asarray(value)
    if array.dtype != np.dtype(tensor.spec.dtype):
        raise RunError(
            f"The input {tensor.name!r} is {array.dtype}, the model wants {tensor.spec.dtype}. Convert it with "
            f".astype('{tensor.spec.dtype}')."
        )
    fits = len(array.shape) == len(tensor.spec.shape) and all(
        wanted in (None, size) for wanted, size in zip(tensor.spec.shape, array.shape, strict=True)
    )
    if not fits:
        raise RunError(f"The input {tensor.name!r} has the shape {array.shape}, the model wants {tensor.spec.shape}.")
    if array.dtype == tensor.dtype:
        return array
    if array.dtype == np.int64 and tensor.dtype == np.int32 and array.size:
        low, high, limit = int(array.min()), int(array.max()), np.iinfo(np.int32)
        if low < limit.min or high > limit.max:
            raise RunError(
                f"The input {tensor.name!r} holds values from {low} to {high}; the engine has INT32 where the model has "
                f"INT64. Use TensorRT 10 or later, or smaller values."
            )
    return array.astype(tensor.dtype)


def check_names(tensors: tuple[Tensor, ...], feeds: Mapping[str, Any]) -> None:
    """Check that feeds name every input and nothing else.

    Raises:
        RunError: a name is missing or unknown.
    """
    wanted = {tensor.name for tensor in tensors if tensor.is_input}
    if set(feeds) != wanted:
        raise RunError(f"The feeds name {sorted(feeds)}, the engine's inputs are {sorted(wanted)}.")
