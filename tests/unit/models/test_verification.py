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


def test_an_export_is_compared_with_the_module_at_other_batches(tmp_path) -> None:
    model = wb.load(Doubler(), torch.ones(2, 3), store=Store(tmp_path))
    (note,) = [note for note in model.origin.notes if note.startswith("Compared with PyTorch")]
    assert all(size in note for size in ("x (2, 3)", "x (3, 3)", "x (4, 3)"))


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


class Pooled(torch.nn.Module):
    """The window of an adaptive pool is baked in by exporters; the global one is not."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.pool = torch.nn.AdaptiveAvgPool2d(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(x)


FREE = {"x": {0: "batch", 2: "height", 3: "width"}}


def test_an_axis_that_is_dynamic_in_name_only_is_refused(tmp_path) -> None:
    with pytest.raises(ExportError, match=r"x \(2, 3, 9, 8\)"):
        wb.load(Pooled(2), torch.randn(2, 3, 8, 8), dynamic=FREE, store=Store(tmp_path))
    model = wb.load(Pooled(1), torch.randn(2, 3, 8, 8), dynamic=FREE, store=Store(tmp_path))
    assert any("x (2, 3, 8, 16)" in note for note in model.origin.notes)


def test_a_branch_on_a_size_is_refused_or_the_size_is_fixed_and_said(tmp_path) -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.shape[0] <= 2 else x * 3

    model = wb.load(Branching(), torch.randn(2, 3), store=Store(tmp_path))
    assert model.inputs[0].shape == (2, 3) and any("fixed it to 2" in note for note in model.origin.notes)
    with pytest.raises(ExportError):
        wb.load(Branching(), torch.randn(2, 3), exporter="torchscript", store=Store(tmp_path))


class Counting(torch.nn.Module):
    """Keeps a buffer between calls; whether its answer depends on it is asked of it."""

    def __init__(self, answers: bool) -> None:
        super().__init__()
        self.answers = answers
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = self.seen + x.mean(0)
        return x + self.seen if self.answers else 2 * x


@pytest.mark.parametrize("answers", [True, False])
def test_a_module_that_keeps_state_is_refused_where_its_answer_depends_on_it_and_given_back_as_it_was(
    tmp_path, answers
) -> None:
    module = Counting(answers)
    buffer = module.seen
    if answers:
        with pytest.raises(ExportError, match="keeps state between calls"):
            wb.load(module, torch.randn(2, 3), store=Store(tmp_path))
    else:
        wb.load(module, torch.randn(2, 3), store=Store(tmp_path))
    assert module.seen is buffer and not module.seen.any()


class Careless(torch.nn.Module):
    """Writes into its input, its own parameter and its attributes; the answer to equal inputs is the same."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.last = 0, None
        self.weight = torch.nn.Parameter(torch.tensor([0.5, 1.5, -2.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.weight.data.clamp_(-1, 1)
        x += 1
        self.last = x * self.weight
        return self.last


def test_inputs_parameters_and_attributes_that_a_module_writes_into_are_given_back_as_they_were(tmp_path) -> None:
    module, x = Careless(), torch.arange(6.0).reshape(2, 3)
    model = wb.load(module, x, store=Store(tmp_path))
    assert torch.equal(x, torch.arange(6.0).reshape(2, 3))
    assert torch.equal(module.weight.detach(), torch.tensor([0.5, 1.5, -2.0]))
    assert module.calls == 0 and module.last is None
    assert any("Compared with PyTorch on x (2, 3)" in note for note in model.origin.notes)


def test_sizes_that_the_module_itself_refuses_are_told(tmp_path) -> None:
    class Even(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(-1, 2, x.shape[-1]).sum(1) if not torch.onnx.is_in_onnx_export() or True else x

    model = wb.load(Even(), torch.randn(2, 3), dynamic=False, store=Store(tmp_path))
    assert any("Compared with PyTorch on x (2, 3):" in note for note in model.origin.notes)


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


def test_integers_are_compared_by_the_share_that_differ_or_by_how_far() -> None:
    classes = np.arange(4000) % 7
    other = classes.copy()
    other[5] = 6
    assert verification._relative_error(classes, classes) == 0.0
    assert verification._relative_error(other, classes) == 1 / 4000
    assert verification._relative_error((classes + 3) % 7, classes) > 0.5
    assert verification._relative_error(np.array([10_001]), np.array([10_000])) == 1e-4
    assert verification._relative_error(np.array([True]), np.array([False])) == 1.0
