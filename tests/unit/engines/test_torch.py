from __future__ import annotations

import gc
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import workbench as wb
from workbench import engines
from workbench.engines import torch as backend
from workbench.engines.torch_lowering import lower
from workbench.engines.torch_running import launching
from workbench.errors import BuildError, EngineError, RunError
from workbench.machine.store import Store, digest
from workbench.measuring.latency import take_round
from workbench.records import BuildOptions, Engine, Model, ShapeProfile, Variant

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("onnxscript", reason="the dynamo exporter needs onnxscript, which is not installed")

FEEDS = {"image": np.random.default_rng(0).normal(size=(3, 3, 16, 16)).astype(np.float32)}


class Net(torch.nn.Module):
    """Two outputs, a BatchNorm whose statistics matter, and a part that is FP32 on purpose."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8)
        self.norm.running_var.fill_(0.5)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = torch.relu(self.norm(self.conv(image))).mean((2, 3))
        scaled = hidden.to(torch.float32) * torch.rsqrt(hidden.to(torch.float32).pow(2).mean(-1, keepdim=True) + 1e-6)
        logits = self.head(scaled.to(hidden.dtype))
        return logits, hidden


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def model(store: Store) -> Model:
    return wb.load(Net(), torch.randn(2, 3, 16, 16), store=store)


def variant_of(model: Model, recipe: str, store: Store) -> Variant:
    return wb.transform(model, recipe, store=store)


def built(model: Model, recipe: str, store: Store, name: str = "torch", **options: object) -> Engine:
    return engines.build(variant_of(model, recipe, store), name, BuildOptions(**options), store=store)  # type: ignore[arg-type]


def expected() -> list[np.ndarray]:
    with torch.no_grad():
        return [value.numpy() for value in Net().eval()(torch.from_numpy(FEEDS["image"]))]


def relative_error(outputs: dict[str, np.ndarray]) -> float:
    pairs = zip(outputs.values(), expected(), strict=True)
    return max(float(np.abs(ours - theirs).max() / np.abs(theirs).max()) for ours, theirs in pairs)


# FP32: the same kernels on the same weights. BF16 has 8 bits of significand and FP16 11; a few roundings in a row.
@pytest.mark.parametrize(("recipe", "low", "high"), [("fp32", 0, 1e-6), ("bf16", 1e-4, 2e-2), ("fp16", 1e-5, 3e-3)])
def test_a_program_answers_like_its_module_in_each_precision(
    model: Model, store: Store, recipe: str, low: float, high: float
) -> None:
    with engines.open_runner(built(model, recipe, store)) as runner:
        outputs = runner.infer(FEEDS)
    assert list(outputs) == [spec.name for spec in model.outputs]
    assert all(value.dtype == np.float32 for value in outputs.values())
    assert low <= relative_error(outputs) <= high


class Chain(torch.nn.Module):
    """Convolutions, norms and a residual sum: all of it can stay in one type from the first operator to the last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.head = torch.nn.BatchNorm2d(3), torch.nn.Linear(3, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.first(image)))
        return self.head((hidden + self.second(hidden)).mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_lowered_program_casts_where_it_begins_and_ends_alone(dtype: torch.dtype) -> None:
    program = torch.export.export(Chain().eval(), (torch.randn(2, 3, 8, 8),)).module(check_guards=False)
    assert lower(program, dtype) == 2
    casts = [node for node in program.graph.nodes if node.target is torch.ops.aten.to.dtype]
    assert [(node.args[0].op, node.args[1]) for node in casts] == [
        ("placeholder", dtype),
        ("call_function", torch.float32),
    ]


def test_a_compiled_program_answers_like_its_module(store: Store) -> None:
    absent = backend.missing("torch-compile")
    if absent is not None:
        pytest.skip(str(absent))
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.GELU()).eval()
    engine = built(wb.load(module, torch.ones(2, 4), store=store), "bf16", store, "torch-compile")
    assert engine.fusion == "all" and engine.build_seconds > 0
    feeds = {"input": np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)}  # the shape that was compiled
    with engines.open_runner(engine) as runner:
        outputs = runner.infer(feeds)
        assert runner.stopwatch(feeds, "compute")() > 0
    with torch.no_grad():
        wanted = module(torch.from_numpy(feeds["input"])).numpy()
    np.testing.assert_allclose(outputs["output"], wanted, rtol=2e-2, atol=2e-2)  # 8 bits of significand, values near 1


def test_it_is_built_and_measured_in_processes_of_its_own(model: Model, store: Store) -> None:
    engine = wb.build(variant_of(model, "bf16", store), "torch", store=store)
    protocol = wb.Protocol(batch=3, rounds=1, min_seconds=0.0, min_runs=3, warmup_seconds=0.0, warmup_runs=1)
    assert len(take_round(engine, FEEDS, protocol, 0).latencies_seconds) == 3


@pytest.mark.parametrize("boundary", ["compute", "end_to_end", "throughput"])
def test_the_stopwatch_runs_within_each_boundary(model: Model, store: Store, boundary: str) -> None:
    with engines.open_runner(built(model, "fp32", store)) as runner:
        watch = runner.stopwatch(FEEDS, boundary, cuda_graph=True)  # type: ignore[arg-type]
        assert 0 < watch() < 60
        if not torch.cuda.is_available():
            assert runner.conditions() == {"cuda_graph_refused": "there is no CUDA device"}


def test_outputs_are_the_callers_own(store: Store) -> None:
    class Same(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.view(-1, 4), x * 2

    model = wb.load(Same(), torch.ones(2, 4), store=store)
    given = np.ones((2, 4), np.float32)
    with engines.open_runner(built(model, "fp32", store)) as runner:
        first = runner.infer({"x": given})
    first["output_0"][...] = 7
    assert (given == 1).all()


def test_threads_are_set_while_it_is_open_and_given_back(model: Model, store: Store) -> None:
    before = torch.get_num_threads()
    with engines.open_runner(built(model, "fp32", store), threads=1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before


def test_an_onnx_file_has_no_program_and_the_message_says_what_to_load(model: Model, store: Store) -> None:
    bare = wb.load(model.path, store=store)
    assert bare.program is None
    with pytest.raises(BuildError, match=r"loaded from an ONNX file.*workbench\.load\(module"):
        built(bare, "fp32", store)


def test_recipes_that_change_the_graph_are_refused(model: Model, store: Store) -> None:
    with pytest.raises(BuildError, match="sparsify change the ONNX graph"):
        built(model, "sparse-2:4", store)
    kept = replace(variant_of(model, "fp16", store), recipe=wb.recipes.named("fp16").excluding("head", name="mixed"))
    with pytest.raises(BuildError, match="keeps head in FP32"):
        engines.build(kept, "torch", store=store)


def test_what_is_ignored_is_noted(model: Model, store: Store) -> None:
    engine = built(
        model, "tf32", store, workspace_bytes=1, extra={"mode": "max-autotune", "colour": 3, "channels_last": True}
    )
    notes = " ".join(engine.notes)
    for words in ("not the ONNX file", "operator by operator", "'max-autotune'", "'workspace_bytes'", "'colour'"):
        assert words in notes
    assert "channels last" in notes
    if not torch.cuda.is_available():
        assert "TF32 exists on NVIDIA GPUs only" in notes
    with engines.open_runner(engine) as runner:
        assert relative_error(runner.infer(FEEDS)) <= 1e-5


@pytest.mark.parametrize("extra", [{"mode": "fast"}, {"channels_last": "yes"}])
def test_an_option_with_a_wrong_value_is_refused(model: Model, store: Store, extra: dict[str, object]) -> None:
    with pytest.raises(BuildError, match="are not possible"):
        built(model, "fp32", store, extra=extra)


def test_a_program_that_is_gone_is_a_build_error(model: Model, store: Store, tmp_path: Path) -> None:
    assert model.program is not None
    variant = variant_of(model, "fp32", store)
    gone = replace(variant, program=replace(model.program, path=str(tmp_path / "gone.pt2")))
    with pytest.raises(BuildError, match="is gone"):
        engines.build(gone, "torch", store=store)
    other = replace(variant, program=replace(model.program, inputs=("image", "extra")))
    with pytest.raises(BuildError, match="takes the inputs extra"):
        engines.build(other, "torch", store=store)


def test_a_changed_program_is_never_opened(model: Model, store: Store, tmp_path: Path) -> None:
    engine = built(model, "fp32", store)
    copy = tmp_path / "program.pt2"
    shutil.copy(engine.path, copy)
    with copy.open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"?")
    with pytest.raises(EngineError, match="was changed since"):
        engines.open_runner(replace(engine, path=str(copy)))
    with pytest.raises(EngineError, match="belongs to the engine"):
        engines.open_runner(replace(engine, folder=str(tmp_path)))


def test_a_program_of_another_format_is_an_engine_error(model: Model, store: Store, tmp_path: Path) -> None:
    assert model.program is not None
    odd = tmp_path / "program.pt2"
    odd.write_bytes(b"no archive")
    program = replace(model.program, path=str(odd), sha256=digest(odd))
    with pytest.raises(BuildError, match="cannot open the program"):
        engines.build(replace(variant_of(model, "fp32", store), program=program), "torch", store=store)


def test_feeds_that_do_not_fit_and_a_closed_runner_are_refused(model: Model, store: Store) -> None:
    with engines.open_runner(built(model, "fp32", store)) as runner, pytest.raises(RunError, match="wants float32"):
        runner.infer({"image": FEEDS["image"].astype(np.float64)})
    with pytest.raises(RunError, match="closed"):
        runner.infer(FEEDS)


def test_a_module_that_fails_at_other_sizes_fails_while_building(store: Store) -> None:
    class Baked(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.ones(4, 4)

    model = wb.load(Baked(), torch.ones(4, 4), store=store, dynamic=False)
    free = replace(variant_of(model, "fp32", store), inputs=(replace(model.inputs[0], shape=(None, 4)),))
    with pytest.raises(BuildError, match="PyTorch failed while running"):
        engines.build(free, "torch", store=store)


def test_other_dynamic_axes_are_tried_only_with_a_profile(store: Store) -> None:
    class Sums(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cumsum(1)

    model = wb.load(Sums(), torch.ones(2, 4), store=store, dynamic={"x": {0: "batch", 1: "sequence"}})
    assert any("Not tried" in note for note in built(model, "fp32", store).notes)
    profile = {"x": ShapeProfile((1, 1), (2, 6), (4, 8))}
    assert not any("Not tried" in note for note in built(model, "fp32", store, profiles=(profile,)).notes)


def test_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.hardware, "gpus", tuple)
    assert "CUDA build" in str(backend.missing("torch-cudagraph"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "g++" in str(backend.missing("torch-compile"))
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert "trt-workbench[torch]" in str(backend.missing("torch"))


def test_a_gpu_without_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.hardware, "gpus", lambda: ("a GPU",))
    monkeypatch.setattr(backend.hardware, "version", lambda name: "2.11.0+cu130")
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None if name == "triton" else object())
    assert "triton" in str(backend.missing("torch-compile"))
    assert backend.missing("torch-cudagraph") is None


def test_operations_are_timed_under_their_modules(model: Model, store: Store) -> None:
    found = backend.layer_times(built(model, "fp32", store), FEEDS, 3)
    modules = {path for layer in found for path in layer.modules}
    assert {"conv", "norm", "head"} <= modules
    assert all(layer.seconds > 0 for layer in found) and any("conv" in layer.operator for layer in found)


def test_compiled_kernels_are_not_taken_for_modules(model: Model, store: Store) -> None:
    engine = built(model, "fp32", store)
    with engines.open_runner(engine) as runner:
        runner._call = lambda *tensors: tensors
        with pytest.raises(EngineError, match="stand for no single module"):
            runner.profile(replace(engine, backend="torch-compile"), FEEDS, 3)


@pytest.mark.parametrize("recipe", ["fp32", "bf16"])
def test_closing_frees_the_tensors_at_once(model: Model, store: Store, recipe: str) -> None:
    engine = built(model, recipe, store)

    def tensors() -> set[int]:
        found = [item for item in gc.get_objects() if isinstance(item, torch.Tensor)]
        return {id(item) for item in found if not isinstance(item, torch._subclasses.FakeTensor)}

    gc.collect()
    gc.disable()  # what lies in cycles would stay until Python looks for them, on a GPU with all its memory
    try:
        before = tensors()
        with engines.open_runner(engine) as runner:
            runner.infer(FEEDS)
            weights = [weakref.ref(item) for item in (*runner._call.parameters(), *runner._call.buffers())]
            # One of each: neither the program nor what was lowered keeps FP32 weights beside those that are used.
            assert len(tensors() - before) <= len(weights) + 6
        assert len(weights) == 9 and not any(item() is not None for item in weights)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("calls", "found"),
    [
        ([], {}),
        ([(5e-3, 5.1e-3), (6e-3, 6.1e-3), (7e-3, 7.1e-3)], {"host_launch_seconds": 6e-3, "launch_bound": True}),
        ([(1e-3, 5e-3), (1e-3, 6e-3), (9e-3, 9e-3)], {"host_launch_seconds": 1e-3, "launch_bound": False}),
    ],
)
def test_launches_that_take_all_the_time_are_told(calls: list[tuple[float, float]], found: dict[str, object]) -> None:
    assert launching(calls) == found
