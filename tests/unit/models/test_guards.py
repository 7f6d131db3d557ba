"""An export holds for the sizes on which its module takes the traced way; other sizes are refused, wherever it is run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

import workbench as wb
from workbench.errors import LoadError, RunError
from workbench.machine.store import Store
from workbench.models.guards import limits_of

torch = pytest.importorskip("torch", reason="exports need PyTorch, and torch is not installed")
# What is public of an exported program, of which guards are read.
PUBLIC = ("graph", "graph_signature", "range_constraints")
FREE = {"x": {0: "batch", 1: "length"}}


class Branch(torch.nn.Module):
    """Doubles short inputs and triples long ones."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[1] <= 64 else x * 3


class Fours(torch.nn.Module):
    """Takes lengths that are multiples of four."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(x.shape[0], x.shape[1] // 4, 4, x.shape[2]).sum(2)


class Even(torch.nn.Module):
    """Something else for an odd batch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] % 2 == 0 else x


class Longer(torch.nn.Module):
    """Depends on which of two inputs is longer."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.sum(1) if x.shape[1] > y.shape[1] else y.sum(1)


class Table(torch.nn.Module):
    """Adds a table of 32 positions, as many transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = torch.nn.Parameter(torch.randn(1, 32, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.positions[:, : x.shape[1]]


class Plain(torch.nn.Module):
    """Depends on no size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.relu(x) @ torch.ones(3, 2)


class Sum(torch.nn.Module):
    """Two inputs of one size."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


class AloneOtherwise(torch.nn.Module):
    """Normalizes over the batch, unless a sample is alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0) if x.shape[0] > 1 else x


def limits(model: wb.Model) -> list[str]:
    return [text for spec in model.inputs for text in spec.limits]


def runner(model: wb.Model, store: Store):
    return wb.open_runner(wb.build(wb.transform(model, "fp32", store=store), "onnxruntime-cpu", store=store))


@pytest.mark.parametrize(
    ("module", "shape", "dynamic", "within", "beyond"),
    [
        (Branch(), (3, 8, 3), FREE, (3, 64, 3), (3, 65, 3)),
        (Fours(), (3, 8, 3), FREE, (3, 12, 3), (3, 9, 3)),
        (Even(), (4, 8), True, (2, 8), (5, 8)),
        (Table(), (4, 8, 3), FREE, (1, 32, 3), (4, 33, 3)),
        (AloneOtherwise(), (4, 8), True, (2, 8), (1, 8)),
    ],
)
def test_a_size_beyond_what_was_traced_is_refused(module, shape, dynamic, within, beyond, tmp_path: Path) -> None:
    store = Store(tmp_path)
    model = wb.load(module, torch.randn(shape), dynamic=dynamic, store=store)
    assert limits(model)
    x = np.random.default_rng(0).normal(size=within).astype(np.float32)
    with runner(model, store) as opened:
        np.testing.assert_allclose(
            opened.infer({"x": x})["output"], module(torch.tensor(x)).detach(), rtol=1e-5, atol=1e-5
        )
        with pytest.raises(RunError, match="exported for sizes with"):
            opened.infer({"x": np.zeros(beyond, np.float32)})


def test_a_condition_on_two_inputs_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    dynamic = {"x": {1: "long"}, "y": {1: "short"}}
    model = wb.load(Longer(), (torch.randn(4, 8), torch.randn(4, 5)), dynamic=dynamic, store=store)
    with runner(model, store) as opened, pytest.raises(RunError, match=r"x\[1\] > y\[1\]"):
        opened.infer({"x": np.zeros((4, 3), np.float32), "y": np.zeros((4, 9), np.float32)})


def test_a_module_that_depends_on_no_size_has_no_limits(tmp_path: Path) -> None:
    model = wb.load(Plain(), torch.randn(4, 8, 3), dynamic=FREE, store=Store(tmp_path))
    assert limits(model) == []
    assert not any("holds for sizes" in note for note in model.origin.notes)


def test_guards_are_read_from_ranges_where_pytorch_writes_no_others() -> None:
    program = torch.export.export(
        Branch(), (torch.randn(3, 8, 3),), dynamic_shapes=({1: torch.export.Dim.AUTO},), strict=False
    )
    found, lost = limits_of(SimpleNamespace(**{name: getattr(program, name) for name in PUBLIC}), ["x"])
    assert (found, lost) == (["L['x'][1] <= 64"], [])


def test_a_guard_that_cannot_be_read_is_told_and_not_dropped_in_silence() -> None:
    program = torch.export.export(Plain(), (torch.randn(2, 8, 3),), strict=False)
    program._guards_code = ["math.sqrt(L['tensors'][0].size()[0]) < 9"]
    assert limits_of(program, ["image"]) == ([], ["math.sqrt(image[0]) < 9"])


def test_axes_that_must_be_equal_are_a_limit_without_a_note(tmp_path: Path) -> None:
    store = Store(tmp_path)
    model = wb.load(Sum(), (torch.randn(4, 3), torch.randn(4, 3)), store=store)
    assert limits(model) == ["L['x'][0] == L['y'][0]"]
    assert not any("holds for sizes" in note for note in model.origin.notes)


def test_limits_are_in_the_file_and_come_back_with_it(tmp_path: Path) -> None:
    model = wb.load(
        Branch(), torch.randn(3, 8, 3), dynamic=FREE, folder=tmp_path / "kept", store=Store(tmp_path / "store")
    )
    assert limits(wb.load(model.path)) == limits(model) == ["L['x'][1] <= 64"]
    assert any("x[1] <= 64" in note for note in model.origin.notes)


def test_a_study_beyond_the_limits_is_refused_before_it_starts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    model = wb.load(Even(), torch.randn(4, 8), store=store)
    data = wb.datasets.arrays(np.zeros((6, 8), np.float32))
    with pytest.raises(RunError, match=r"x\[0\] % 2 == 0"):
        wb.run(model, data, ["fp32"], protocol=wb.Protocol(batch=3, rounds=2), store=store)


@pytest.mark.parametrize("text", ["{}", "not json", '["import os"]', "[\"L['x'][0]\" ,3]", '["' + "1+" * 9000 + '1"]'])
def test_damaged_limits_in_a_file_are_named(text: str, tmp_path: Path) -> None:
    model = wb.load(Plain(), torch.randn(2, 8, 3), store=Store(tmp_path / "store"))
    proto = onnx.load(model.path)
    proto.metadata_props.add(key="size_limits", value=text)
    onnx.save(proto, str(tmp_path / "m.onnx"))
    with pytest.raises(LoadError, match="size_limits"):
        wb.load(tmp_path / "m.onnx")
