"""PyTorch as a backend on a real GPU: eager, compiled, and replayed from a CUDA graph. Skipped where there is none.

The right answer is the module itself, in FP32 on the CPU. Tolerances are stated where they are used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

import workbench as wb
from workbench import engines
from workbench.engines import torch as backend
from workbench.machine.store import Store
from workbench.records import BuildOptions, Engine, Model

torch = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")]
FEEDS = {"image": np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32)}
# Relative to the largest output, through about ten layers: FP32 differs by the order of sums; TF32 and FP16 keep 10 bits
# of significand, BF16 7.
TOLERANCE = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 8e-2}


class Net(torch.nn.Module):
    """A residual network in small: convolutions, norms, a sum, a pool and a head; and a part that is FP32 on purpose."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Conv2d(3, 32, 3, padding=1)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(
                torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.BatchNorm2d(32), torch.nn.ReLU(),
                torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.BatchNorm2d(32),
            )
            for _ in range(3)
        )  # fmt: skip
        self.head = torch.nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.relu(self.stem(image))
        for block in self.blocks:
            hidden = torch.relu(hidden + block(hidden))
        pooled = hidden.mean((2, 3))
        scaled = pooled.float() * torch.rsqrt(pooled.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.head(scaled.to(pooled.dtype)), pooled


@pytest.fixture(scope="session")
def model(store: Store) -> Model:
    return wb.load(Net().eval(), torch.randn(2, 3, 32, 32), store=store)


@pytest.fixture(scope="session")
def built(model: Model, store: Store) -> Callable[[str, str], Engine]:
    """Build once a session: torch.compile takes a while."""
    made: dict[tuple[str, str], Engine] = {}

    def make(name: str, recipe: str) -> Engine:
        if (name, recipe) not in made:
            made[name, recipe] = engines.build(
                wb.transform(model, recipe, store=store), name, BuildOptions(), store=store
            )
        return made[name, recipe]

    return make


def right(image: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        return [value.numpy() for value in Net().eval()(torch.from_numpy(image))]


def error(outputs: dict[str, np.ndarray], image: np.ndarray) -> float:
    pairs = zip(outputs.values(), right(image), strict=True)
    return max(float(np.abs(ours - theirs).max() / np.abs(theirs).max()) for ours, theirs in pairs)


@pytest.mark.parametrize("name", backend.NAMES)
def test_the_backend_can_be_used_and_names_the_gpu(name: str) -> None:
    assert backend.missing(name) is None
    assert backend.device(name) == torch.cuda.get_device_name()


@pytest.mark.parametrize("recipe", TOLERANCE)
@pytest.mark.parametrize("name", backend.NAMES)
def test_answers_are_the_modules_own(built, name: str, recipe: str) -> None:
    with engines.open_runner(built(name, recipe)) as runner:
        outputs = runner.infer(FEEDS)
    assert all(value.dtype == np.float32 for value in outputs.values())
    assert error(outputs, FEEDS["image"]) <= TOLERANCE[recipe]


@pytest.mark.parametrize("name", backend.NAMES)
def test_other_inputs_and_batches_give_their_own_answers(built, name: str) -> None:
    with engines.open_runner(built(name, "fp32")) as runner:
        first = runner.infer(FEEDS)
        kept = {key: value.copy() for key, value in first.items()}
        for batch in (4, 2, 4):
            image = np.random.default_rng(batch).normal(size=(batch, 3, 32, 32)).astype(np.float32)
            assert error(runner.infer({"image": image}), image) <= TOLERANCE["fp32"]
        for key, value in first.items():
            np.testing.assert_array_equal(value, kept[key])  # what was handed out is the caller's own


@pytest.mark.parametrize("boundary", ["compute", "end_to_end"])
@pytest.mark.parametrize("name", backend.NAMES)
def test_stopwatches_tell_a_time_and_say_whether_a_graph_was_taken(built, name: str, boundary) -> None:
    with engines.open_runner(built(name, "fp16")) as runner:
        watch = runner.stopwatch(FEEDS, boundary, cuda_graph=name != "torch-compile")
        assert min(watch() for _ in range(20)) > 0
        found = runner.conditions()
    assert found["cuda_graph_refused"] is None
    assert found["device_memory_peak_seen_bytes"] > 0


@pytest.mark.parametrize("recipe", ["fp16", "bf16"])
def test_nothing_is_cast_or_moved_between_the_first_operator_and_the_last(built, recipe: str) -> None:
    with engines.open_runner(built("torch", recipe)) as runner:
        watch = runner.stopwatch(FEEDS, "compute")
        watch()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            watch()
    counted = Counter(event.name for event in profile.events())
    assert counted["aten::convolution"] == 7
    # The input once, two outputs, and the part in FP32: on a CPU 9 with what PyTorch's own operators cast inside. A cast
    # at each operator would add more than 20.
    assert counted["aten::_to_copy"] <= 9


def test_tf32_is_a_setting_of_the_open_runner_alone(built) -> None:
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    for recipe, allowed in (("tf32", True), ("fp32", False)):
        with engines.open_runner(built("torch", recipe)):
            assert torch.backends.cudnn.allow_tf32 is allowed
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == before


def test_a_batch_that_does_not_fit_is_out_of_memory(built) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    held = torch.empty(int(total * 0.97) - torch.cuda.memory_reserved(), dtype=torch.uint8, device="cuda")
    try:
        with engines.open_runner(built("torch", "fp32")) as runner, pytest.raises(wb.errors.OutOfMemory):
            runner.infer({"image": np.zeros((40_000, 3, 32, 32), np.float32)})
    finally:
        del held
        torch.cuda.empty_cache()


def test_opening_and_closing_leaks_no_device_memory(built) -> None:
    def once() -> None:
        with engines.open_runner(built("torch-cudagraph", "fp16")) as runner:
            runner.stopwatch(FEEDS, "compute")()

    once()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        once()
    assert torch.cuda.memory_allocated() - before < 2**20  # a leak of one set of weights a round would be more
