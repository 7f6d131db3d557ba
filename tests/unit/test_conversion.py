from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from workbench import conversion
from workbench.errors import CalibrationError, LoadError, RecipeError, RunError
from workbench.machine.store import Store
from workbench.records import TensorSpec

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


class Named(torch.nn.Module):
    """A dict of results, an argument that is no tensor, and one that may be absent."""

    def forward(self, x: torch.Tensor, scale: float = 2.0, shift: torch.Tensor | None = None):
        return {"scaled": x * scale if shift is None else x * scale + shift, "pair": (x - 1, None)}


def test_results_come_back_in_the_form_that_the_module_returns(store: Store) -> None:
    module, x = Named(), torch.randn(3, 8)
    with wb.convert(module, [x], store=store) as fast:
        results = fast(x)
    wanted = module(x)
    assert list(results) == ["scaled", "pair"] and results["pair"][1] is None
    torch.testing.assert_close(results["scaled"], wanted["scaled"])
    torch.testing.assert_close(results["pair"][0], wanted["pair"][0])


def test_an_argument_whose_default_is_in_the_graph_is_not_ignored(store: Store) -> None:
    x = torch.randn(3, 8)
    with wb.convert(Named(), [x], store=store) as fast:
        for same in (fast(x, 2.0), fast(x, scale=2.0), fast(x, shift=None)):
            torch.testing.assert_close(same["scaled"], x * 2)
        with pytest.raises(RunError, match="cannot follow the argument 'scale'"):
            fast(x, scale=5.0)
        with pytest.raises(RunError, match="cannot follow the argument 'shift'"):
            fast(x, shift=x)


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict"])
def test_example_inputs_come_in_any_form_that_load_takes(store: Store, form: str) -> None:
    x = torch.randn(3, 8)
    module = Two()
    with wb.convert(module, {"tensor": x, "tuple": (x,), "dict": {"x": x}}[form], store=store) as fast:
        torch.testing.assert_close(fast(x)[0], module(x)[0].detach(), rtol=1e-4, atol=1e-5)


def test_what_is_no_module_is_refused(store: Store) -> None:
    with pytest.raises(LoadError, match=r"takes a torch\.nn\.Module, got a str"):
        wb.convert("digits_resnet", [torch.ones(2, 8)], store=store)


def test_arguments_that_do_not_fit_are_refused(affine) -> None:
    _, fast = affine
    with pytest.raises(RunError, match="wants float32"):
        fast(torch.ones(2, 8, dtype=torch.float64), torch.ones(2, 16))
    with pytest.raises(RunError, match="'x' is bfloat16"):
        fast(torch.ones(2, 8, dtype=torch.bfloat16), torch.ones(2, 16))
    with pytest.raises(TypeError, match="scale"):
        fast(torch.ones(2, 8))


@pytest.mark.parametrize(
    "form", ["array", "tensor", "dict", "batches", "tuples", "labelled", "dicts", "double", "split", "dataset"]
)
def test_int8_takes_calibration_samples_in_any_usual_form(store: Store, form: str) -> None:
    module = Two()
    samples = torch.randn(64, 8)
    given = {
        "array": samples.numpy(),
        "tensor": samples,
        "dict": {"x": samples},
        "batches": list(samples.split(16)),
        "tuples": [(batch,) for batch in samples.split(16)],
        "labelled": [(batch, torch.zeros(16)) for batch in samples.split(16)],
        "dicts": [{"x": batch} for batch in samples.split(16)],
        "double": samples.double(),
        "split": wb.datasets.arrays(samples).evaluation,
        "dataset": wb.datasets.arrays(torch.randn(4, 8), calibration=samples),
    }[form]
    x = torch.randn(6, 8)
    with wb.convert(module, [x], precision="int8-max", calibration=given, store=store) as fast:
        error = (fast(x)[0] - module(x)[0]).abs().max().item()
    assert 0 < error < 0.1  # 8 bits over a range of about +-4: a step of 0.03; zero would mean nothing was quantized
    assert fast.variant.calibration_sha256


def test_int8_without_calibration_samples_says_what_to_pass(store: Store) -> None:
    with pytest.raises(CalibrationError, match="calibration="):
        wb.convert(Two(), [torch.ones(2, 8)], precision="int8", store=store)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "gave no batches"),
        ({"xx": np.ones((2, 8))}, "Did you mean 'x'"),
        (np.ones((2, 9), np.float32), r"shape \(2, 9\), the model wants"),
        (np.ones((2, 8), np.uint8), "has type uint8"),
        ([(np.ones((2, 8)),) * 3], "A batch has 3 fields"),
        (5, "They are a int"),
        ("folder", "They are a str"),
        (wb.datasets.arrays(np.ones((2, 8))), "no calibration samples"),
    ],
)
def test_calibration_samples_that_do_not_fit_are_refused(store: Store, given: object, words: str) -> None:
    with pytest.raises(CalibrationError, match=words):
        wb.convert(Two(), [torch.ones(2, 8)], precision="int8", calibration=given, store=store)


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


class DeviceRunner:
    """Stands in for an engine on a GPU, where there is none: computes `ids * 2 + offset` on tensors, in INT32 inside.

    What is checked is real; which tensors count as CUDA tensors is the test's word.
    """

    inputs = (TensorSpec("ids", "int64", (None, 3)), TensorSpec("offset", "float32", (3,)))
    outputs = (TensorSpec("sum", "float32", (None, 3)), TensorSpec("last", "int64", (None,)))
    device_dtypes = {"ids": "int32", "offset": "float32", "sum": "float32", "last": "int32"}  # noqa: RUF012

    def __init__(self) -> None:
        self.streams: list[int] = []

    def __exit__(self, *exception: object) -> None: ...

    def infer(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise AssertionError("the tensors were copied to the host")

    def infer_device(self, feeds: dict[str, torch.Tensor], stream: int = 0) -> dict[str, torch.Tensor]:
        self.streams.append(stream)
        for name, tensor in feeds.items():
            assert str(tensor.dtype) == f"torch.{self.device_dtypes[name]}" and tensor.is_contiguous(), name
            assert not tensor.requires_grad
        return {"sum": feeds["ids"] * 2 + feeds["offset"], "last": feeds["ids"][:, -1].clone()}


@pytest.fixture
def on_gpu(store: Store, monkeypatch: pytest.MonkeyPatch) -> tuple[conversion.Converted, DeviceRunner]:
    runner = DeviceRunner()
    monkeypatch.setattr(conversion, "_is_on_gpu", lambda value: isinstance(value, torch.Tensor))
    monkeypatch.setattr(conversion, "_current_stream", lambda tensor: 77)

    class Module(torch.nn.Module):
        def forward(self, ids: torch.Tensor, offset: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return ids * 2 + offset, ids[:, -1]

    fast = conversion.Converted.__new__(conversion.Converted)
    fast._runner = runner  # type: ignore[assignment]
    fast._form = conversion._Form(Module(), [torch.ones(2, 3, dtype=torch.int64), torch.zeros(3)])
    return fast, runner


def test_tensors_on_the_gpu_stay_there_and_keep_the_models_types(on_gpu) -> None:
    fast, runner = on_gpu
    ids = torch.arange(12).reshape(3, 4).T[:, :]  # (4, 3), not contiguous
    offset = torch.tensor([0.5, 1.5, 2.5], requires_grad=True)
    total, last = fast(ids, offset)
    assert runner.streams == [77]
    torch.testing.assert_close(total, ids * 2 + offset.detach())
    assert last.dtype == torch.int64 and last.tolist() == ids[:, -1].tolist()


def test_a_wrong_type_on_the_gpu_is_refused_like_on_the_host(on_gpu) -> None:
    fast, _ = on_gpu
    with pytest.raises(RunError, match="'ids' is int32, the model wants int64"):
        fast(torch.zeros(2, 3, dtype=torch.int32), torch.zeros(3))


def test_one_tensor_on_the_host_sends_all_through_the_host(on_gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, runner = on_gpu
    monkeypatch.setattr(
        runner, "infer", lambda feeds: {"sum": feeds["ids"] * 2, "last": feeds["ids"][:, -1]}, raising=False
    )
    result, _ = fast(torch.ones(2, 3, dtype=torch.int64), np.zeros(3, np.float32))
    assert runner.streams == [] and result.tolist() == [[2.0] * 3] * 2


@pytest.mark.parametrize("precision", ["int8-auto", "int8-smooth"])
def test_recipes_that_look_at_the_data_twice_work_in_one_line_too(store: Store, precision: str) -> None:
    module = Two()
    x = torch.randn(6, 8)
    with wb.convert(module, [x], precision=precision, calibration=torch.randn(64, 8), store=store) as fast:
        error = (fast(x)[0] - module(x)[0]).abs().max().item()
    assert 0 < error < 0.1  # 8 bits over a range of about +-4, as above


def test_a_calibration_source_without_end_is_read_to_its_limit_and_that_is_told(store: Store) -> None:
    taken = 0

    def endless():
        nonlocal taken
        while taken < 10_000:  # far enough to be wrong, near enough to fail in good time
            taken += 100
            yield torch.randn(100, 8), torch.zeros(100)

    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU())
    with wb.convert(module, torch.randn(2, 8), "int8", calibration=endless(), store=store) as fast:
        assert "Calibration: The first 1024 samples of the loader were taken; it has more." in fast.model.origin.notes
    assert taken <= 1200


def test_a_data_set_of_single_samples_calibrates(store: Store) -> None:
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randn(40, 8), torch.zeros(40))
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU())
    with wb.convert(module, torch.randn(2, 8), "int8", calibration=data, store=store) as fast:
        x = torch.randn(6, 8)
        error = (fast(x) - module(x).detach()).square().sum() / module(x).detach().square().sum()
        assert error < 0.01


def test_a_bfloat16_module_is_called_in_its_own_type(store: Store) -> None:
    module = Two().bfloat16()
    with wb.convert(module, torch.ones(2, 8, dtype=torch.bfloat16), store=store) as fast:
        x = torch.randn(5, 8, dtype=torch.bfloat16)
        hidden, total = fast(x)
        assert hidden.dtype == total.dtype == torch.bfloat16
        torch.testing.assert_close(hidden, module(x)[0].detach(), rtol=2e-2, atol=2e-2)
