"""`convert` on CUDA tensors, with PyTorch and TensorRT in one process. Skipped where either or the GPU is missing.

The right answer is the module itself on the same card, eager and in FP32 without TF32.
"""

from __future__ import annotations

import pytest

import workbench as wb
from workbench.errors import RunError
from workbench.machine.store import Store
from workbench.records import BuildOptions

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.skipif(wb.backends()["tensorrt"] is not None, reason="TensorRT cannot be used here"),
]
# Relative to the largest output, through six layers: FP32 differs by the order of sums, FP16 keeps 10 bits.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-2}


class Net(torch.nn.Module):
    """Two inputs, of which one is optional, and a dict of outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(
            *(layer for _ in range(3) for layer in (torch.nn.Linear(64, 64), torch.nn.ReLU())), torch.nn.Linear(64, 8)
        )

    def forward(self, x: torch.Tensor, shift: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        hidden = x if shift is None else x + shift
        answer = self.body(hidden)
        return {"logits": answer, "best": answer.argmax(-1)}


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    return Net().eval().cuda()


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def converted(module: torch.nn.Module, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    example = {"x": torch.randn(4, 64, device="cuda"), "shift": torch.randn(4, 64, device="cuda")}
    options = BuildOptions(optimization_level=1, extra={"batch": [1, 4, 32]})
    store = Store(tmp_path_factory.mktemp("store"))
    with wb.convert(module, example, request.param, backend="tensorrt", options=options, store=store) as made:
        yield request.param, made


def inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator("cuda").manual_seed(batch)
    return tuple(torch.randn(batch, 64, device="cuda", generator=generator) for _ in range(2))  # type: ignore[return-value]


@pytest.mark.parametrize("batch", [1, 4, 32, 3])
def test_answers_are_the_modules_own_in_its_own_form_and_on_its_device(converted, module, batch: int) -> None:
    precision, made = converted
    x, shift = inputs(batch)
    with torch.no_grad():
        want, got = module(x, shift), made(x, shift)
    assert list(got) == ["logits", "best"] and all(tensor.is_cuda for tensor in got.values())
    assert got["best"].dtype == torch.int64
    error = (got["logits"] - want["logits"]).abs().max() / want["logits"].abs().max()
    assert error <= TOLERANCE[precision]


def test_nothing_waits_for_the_host_or_is_copied_there(converted) -> None:
    _, made = converted
    x, shift = inputs(4)
    made(x, shift)
    torch.cuda.set_sync_debug_mode("error")  # PyTorch refuses whatever of its own would wait
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            made(x, shift)
            torch.cuda.set_sync_debug_mode("default")
            torch.cuda.synchronize()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    moved = [event.key for event in profile.key_averages() if "DtoH" in event.key or "HtoD" in event.key]
    assert moved == []


def test_it_runs_on_the_callers_stream_in_order(converted, module) -> None:
    """Inputs that are made late on a stream of the caller's, and used at once on the same stream, without waiting."""
    precision, made = converted
    x, shift = inputs(32)
    with torch.no_grad():
        want = module(x * 2, shift)["logits"]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # tens of milliseconds in which a launch on another stream would overtake
            got = made(x * 2, shift)["logits"] + 0
        torch.cuda.current_stream().wait_stream(stream)
    assert (got - want).abs().max() / want.abs().max() <= TOLERANCE[precision]


def test_outputs_of_an_earlier_call_are_not_overwritten(converted) -> None:
    _, made = converted
    first = made(*inputs(4))["logits"]
    kept = first.clone()
    made(*inputs(3))
    assert torch.equal(first, kept)


def test_another_type_is_refused_and_tensors_of_the_host_work_too(converted, module) -> None:
    precision, made = converted
    x, shift = inputs(4)
    with pytest.raises(RunError, match="float64"):
        made(x.double(), shift)
    got = made(x.cpu(), shift.cpu())["logits"]
    assert not got.is_cuda
    with torch.no_grad():
        want = module(x, shift)["logits"].cpu()
    assert (got - want).abs().max() / want.abs().max() <= TOLERANCE[precision]
