from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from workbench.errors import CalibrationError, RecipeError, RunError
from workbench.store import Store

torch = pytest.importorskip("torch", reason="convert takes PyTorch modules, and torch is not installed")


class Affine(torch.nn.Module):
    """Two arguments, one result: relu(W x + bias) * scale."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(8, 16)

    def forward(self, x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(x)) * scale


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.linear(x)
        return hidden, hidden.sum(1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def affine(store: Store):
    module = Affine()
    with wb.convert(module, [torch.ones(2, 8), torch.ones(2, 16)], store=store) as fast:
        yield module, fast


def test_it_is_called_like_the_module_at_another_batch_size(affine) -> None:
    module, fast = affine
    x, scale = torch.randn(5, 8), torch.rand(5, 16)
    for result in (fast(x, scale), fast(x, scale=scale), fast(scale=scale, x=x)):
        torch.testing.assert_close(result, module(x, scale).detach(), rtol=1e-4, atol=1e-5)


def test_the_module_is_left_as_it_was(affine) -> None:
    module, _ = affine
    assert module.training


def test_several_outputs_come_back_as_a_tuple(store: Store) -> None:
    module = Two()
    x = torch.randn(3, 8)
    with wb.convert(module, [x], store=store) as fast:
        results = fast(x)
    for result, wanted in zip(results, module(x), strict=True):
        torch.testing.assert_close(result, wanted.detach(), rtol=1e-4, atol=1e-5)


def test_arguments_that_do_not_fit_are_refused(affine) -> None:
    _, fast = affine
    with pytest.raises(RunError, match="wants float32"):
        fast(torch.ones(2, 8, dtype=torch.float64), torch.ones(2, 16))
    with pytest.raises(TypeError, match="scale"):
        fast(torch.ones(2, 8))


@pytest.mark.parametrize("form", ["array", "tensor", "dict", "batches", "tuples"])
def test_int8_takes_calibration_samples_in_any_usual_form(store: Store, form: str) -> None:
    module = Two()
    samples = torch.randn(64, 8)
    given = {
        "array": samples.numpy(),
        "tensor": samples,
        "dict": {"x": samples},
        "batches": list(samples.split(16)),
        "tuples": [(batch,) for batch in samples.split(16)],
    }[form]
    x = torch.randn(6, 8)
    with wb.convert(module, [x], precision="int8-max", calibration=given, store=store) as fast:
        error = (fast(x)[0] - module(x)[0]).abs().max().item()
    assert 0 < error < 0.1  # 8 bits over a range of about +-4: a step of 0.03; zero would mean nothing was quantized
    assert fast.variant.calibration_sha256


def test_int8_without_calibration_samples_says_what_to_pass(store: Store) -> None:
    with pytest.raises(CalibrationError, match="calibration="):
        wb.convert(Two(), [torch.ones(2, 8)], precision="int8", store=store)
    with pytest.raises(CalibrationError, match="got 0"):
        wb.convert(Two(), [torch.ones(2, 8)], precision="int8", calibration=[], store=store)
    with pytest.raises(CalibrationError, match="Did you mean 'x'"):
        wb.convert(Two(), [torch.ones(2, 8)], precision="int8", calibration={"xx": np.ones((2, 8))}, store=store)


def test_an_unknown_precision_suggests_the_nearest(store: Store) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'fp16'"):
        wb.convert(Two(), [torch.ones(2, 8)], precision="fp61", store=store)


def test_closing_twice_is_fine_and_calling_after_it_says_so(store: Store) -> None:
    fast = wb.convert(Two(), [torch.ones(2, 8)], store=store)
    assert "fp32" in repr(fast) and Path(fast.engine.path).exists()
    fast.close()
    fast.close()
    with pytest.raises(RunError, match="closed"):
        fast(torch.ones(2, 8))
