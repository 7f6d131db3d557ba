from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import workbench as wb
from workbench.engines import onnxruntime
from workbench.engines.base import Missing
from workbench.errors import ExportError
from workbench.machine.store import Store
from workbench.models import load, verification

torch = pytest.importorskip("torch", reason="exports need PyTorch, and torch is not installed")


class Doubler(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    return load(Doubler(), torch.ones(2, 3), store=Store(tmp_path_factory.mktemp("store")))


def test_an_export_is_compared_with_the_module_at_another_batch(tmp_path) -> None:
    model = wb.load(Doubler(), torch.ones(2, 3), store=Store(tmp_path))
    assert any("Compared with PyTorch on x (4, 3)" in note for note in model.origin.notes)


def test_a_file_that_computes_something_else_is_refused(exported) -> None:
    class Tripler(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 3 * x

    with pytest.raises(ExportError, match="differs from the module"):
        verification.compared(exported, Tripler(), torch.ones(2, 3))


def test_a_file_with_other_shapes_or_nan_is_refused(exported) -> None:
    class Summer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x.sum(1)

    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x / 0 - x / 0

    for module in (Summer(), Broken()):
        with pytest.raises(ExportError):
            verification.compared(exported, module, torch.ones(2, 3))


def test_a_baked_in_batch_is_refused_with_the_way_out(exported) -> None:
    # The file takes any batch; its description is told to promise less, as a baked-in size would.
    with pytest.raises(ExportError, match="dynamic=False"):
        verification.compared(exported, Doubler(), torch.ones(2, 4, 1))
    fixed = replace(exported, inputs=tuple(replace(spec, shape=(2, 3)) for spec in exported.inputs))
    assert any("x (2, 3)" in note for note in verification.compared(fixed, Doubler(), torch.ones(2, 3)).origin.notes)


def test_without_a_runtime_the_model_says_that_it_was_not_compared(exported, monkeypatch) -> None:
    monkeypatch.setattr(onnxruntime, "missing", lambda name: Missing("onnxruntime is not installed.", "Run: pip ..."))
    model = verification.compared(exported, Doubler(), torch.ones(2, 3))
    assert any("not compared" in note for note in model.origin.notes)


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([1.0, -np.inf], [1.0, -np.inf], 0.0),
        ([1.0, -np.inf], [2.0, -np.inf], 0.5),
        ([1.0, np.inf], [1.0, -np.inf], np.inf),
        ([1.0, -1e38], [1.0, -np.inf], np.inf),
        ([np.nan], [np.nan], np.inf),
        ([-np.inf], [-np.inf], 0.0),
    ],
)
def test_infinities_of_one_sign_are_equal_and_nothing_else_is(ours, theirs, expected):
    assert verification._relative_error(np.array(ours), np.array(theirs)) == expected
