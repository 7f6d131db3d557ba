"""A stand-in of the python backend's interface, for machines without the server.

It keeps tensors by name and hands them back, as the server does.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array

    @classmethod
    def from_dlpack(cls, name: str, capsule: Any) -> Tensor:
        holder = SimpleNamespace(__dlpack__=lambda **options: capsule, __dlpack_device__=lambda: (1, 0))
        return cls(name, np.from_dlpack(holder))

    def as_numpy(self) -> np.ndarray:
        return self.array

    def to_dlpack(self) -> Any:
        return self.array.__dlpack__()

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class OfNumpy1(Tensor):
    """What a backend that was built for numpy 1 makes of numpy 2's arrays: memory of the right size with other values."""

    def as_numpy(self) -> np.ndarray:
        return np.zeros_like(self.array)


def interface(tensor: type[Tensor]) -> ModuleType:
    module = ModuleType("triton_python_backend_utils")
    module.Tensor = tensor  # type: ignore[attr-defined]
    module.TritonError = lambda message: SimpleNamespace(message=message)  # type: ignore[attr-defined]
    module.InferenceResponse = (  # type: ignore[attr-defined]
        lambda output_tensors, error=None: SimpleNamespace(
            outputs={one.name: one.array for one in output_tensors}, error=error
        )
    )
    module.get_input_tensor_by_name = lambda request, name: request[name]  # type: ignore[attr-defined]
    return module


def opened(folder: Path, backend: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Open a model's folder as the server does: its version is on the path of its own process."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    monkeypatch.delitem(sys.modules, "triton_tensors", raising=False)
    monkeypatch.syspath_prepend(folder / "1")
    spec = importlib.util.spec_from_file_location("model", folder / "1" / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.initialize({"model_repository": str(folder), "model_version": "1"})
    return model
