"""`model.py` against a stand-in of the python backend's interface: for machines without the server.

The stand-in keeps tensors by name and hands them back, as the server does; `test_triton_server.py` has the real one.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import workbench as wb


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array

    @classmethod
    def from_dlpack(cls, name: str, capsule: Any) -> Tensor:
        holder = SimpleNamespace(__dlpack__=lambda **options: capsule, __dlpack_device__=lambda: (1, 0))
        return cls(name, np.from_dlpack(holder))

    def as_numpy(self) -> np.ndarray:
        return self.array

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


@pytest.fixture(params=[Tensor, OfNumpy1])
def served(request, study: wb.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = study.deploy("fp32", tmp_path / "repository", backend="python")
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", interface(request.param))
    place = tmp_path / "repository" / made.name
    spec = importlib.util.spec_from_file_location("model", place / "1" / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    model.initialize({"model_repository": str(place), "model_version": "1"})
    yield model, request.param
    model.finalize()


def test_several_requests_are_answered_in_their_order(served, study: wb.Study) -> None:
    model, tensor = served
    arrays = [np.random.default_rng(size).normal(size=(size, 8)).astype(np.float32) for size in (1, 3, 2)]
    responses = model.execute([{"x": tensor("x", array)} for array in arrays])
    with wb.open_runner(study["fp32"].engine) as runner:
        whole = runner.infer({"x": np.concatenate(arrays)})
    for response, start, size in zip(responses, (0, 1, 4), (1, 3, 2), strict=True):
        assert response.error is None
        assert np.array_equal(response.outputs["logits"], whole["logits"][start : start + size])
        assert np.array_equal(response.outputs["best"], whole["best"][start : start + size, None])


def test_a_request_that_fails_gets_its_error_and_the_others_their_answers(served) -> None:
    model, tensor = served
    good, bad = np.ones((1, 8), np.float32), np.ones((1, 7), np.float32)
    first, second = model.execute([{"x": tensor("x", good)}, {"x": tensor("x", bad)}])
    assert first.error is None and first.outputs["logits"].shape == (1, 3)
    assert "Got: 7 Expected: 8" in second.error.message
