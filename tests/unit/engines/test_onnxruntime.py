from __future__ import annotations

import importlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from workbench import engines
from workbench.engines import jobs, onnxruntime_session
from workbench.engines import onnxruntime as backend
from workbench.errors import BackendMissing, BuildError, EngineError, RunError, UnsupportedOperator
from workbench.machine.handle import Handle
from workbench.machine.store import Store, digest
from workbench.recipes import NAMED, Recipe
from workbench.records import BuildOptions, TensorSpec, Variant


def network(operator: str = "Relu", element: int = TensorProto.FLOAT, domain: str = "") -> onnx.ModelProto:
    """y = operator(x) for x of (N, 3)."""
    node = helper.make_node(operator, ["x"], ["y"], name="only", domain=domain)
    graph = helper.make_graph(
        [node],
        "tiny",
        [helper.make_tensor_value_info("x", element, ["N", 3])],
        [helper.make_tensor_value_info("y", element, ["N", 3])],
    )
    imports = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def variant(folder: Path, proto: onnx.ModelProto, recipe: Recipe = NAMED["fp32"]) -> Variant:
    place = folder / "model"
    place.mkdir()
    onnx.save(proto, str(place / "model.onnx"))
    spec = (TensorSpec("x", "float32", (None, 3)),)
    return Variant(
        recipe=recipe, model_sha256="m", path=str(place / "model.onnx"), sha256=digest(place), size_bytes=100, opset=17,
        inputs=spec, outputs=(TensorSpec("y", "float32", (None, 3)),), dialect="ort-cpu",
    )  # fmt: skip


X = np.array([[-1.0, 0.0, 2.0]], np.float32)


@pytest.fixture
def engine(tmp_path: Path):
    return engines.build(variant(tmp_path, network()), "onnxruntime-cpu", store=Store(tmp_path / "store"))


def test_a_built_engine_runs_and_gives_fresh_outputs(engine) -> None:
    with engines.open_runner(engine) as runner:
        first = runner.infer({"x": X})
        second = runner.infer({"x": X + 1})
    np.testing.assert_array_equal(first["y"], [[0, 0, 2]])
    np.testing.assert_array_equal(second["y"], [[0, 1, 3]])
    assert engine.inputs == (TensorSpec("x", "float32", (None, 3)),)


def test_the_optimized_graph_is_kept_for_the_fusion_view(engine) -> None:
    assert engine.folder is not None
    onnx.load(Path(engine.folder) / "optimized.onnx")


def test_an_engine_says_what_its_content_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    def built(recipe: str) -> str:
        place = tmp_path / f"{recipe}-{len(list(tmp_path.iterdir()))}"
        place.mkdir()
        made = replace(variant(place, network()), recipe=NAMED[recipe])
        return engines.build(made, "onnxruntime-cpu", store=store).sha256

    assert len(built("fp32")) == 64
    assert built("fp32") == built("fp32")  # the same file, built twice
    assert len({built(recipe) for recipe in ("fp32", "fp32-basic", "fp32-unfused")}) == 3  # one file, three engines


def test_a_build_in_a_child_process_gives_the_same_engine(tmp_path: Path, engine) -> None:
    lines: list[str] = []
    place = tmp_path / "second"
    place.mkdir()
    built = jobs.build(
        variant(place, network()),
        "onnxruntime-cpu",
        store=Store(tmp_path / "store"),
        handle=Handle(on_line=lines.append),
    )
    assert (built.variant, built.backend, built.inputs, built.outputs) == (
        engine.variant, engine.backend, engine.inputs, engine.outputs,
    )  # fmt: skip
    assert any("ready after" in line for line in lines)


def test_many_samples_are_run_in_batches_in_a_child_process(engine) -> None:
    many = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    outputs = jobs.infer(engine, {"x": many}, batch=3)
    np.testing.assert_array_equal(outputs["y"], np.maximum(many, 0))


@pytest.mark.parametrize("boundary", ["compute", "end_to_end", "throughput"])
def test_a_stopwatch_returns_positive_seconds_for_each_boundary(engine, boundary: str) -> None:
    with engines.open_runner(engine) as runner:
        once = runner.stopwatch({"x": X}, boundary)
        assert 0 < once() < 1
        assert runner.conditions() == {}


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"image": X}, r"takes the inputs \['x'\], got \['image'\]"),
        ({"x": X.astype(np.float64)}, "wants float32"),
        ({"x": np.zeros((1, 4), np.float32)}, r"\(None, 3\)"),
        ({"x": np.zeros(3, np.float32)}, r"\(None, 3\)"),
        ({"x": [[1.0, 2.0, 3.0]]}, "is a list. Pass a numpy array"),
    ],
)
def test_feeds_that_do_not_fit_are_refused_with_what_was_wanted(engine, feeds, message: str) -> None:
    with engines.open_runner(engine) as runner, pytest.raises(RunError, match=message):
        runner.infer(feeds)


def test_a_closed_runner_says_so(engine) -> None:
    with engines.open_runner(engine) as runner:
        pass
    with pytest.raises(RunError, match="closed"):
        runner.infer({"x": X})


def test_an_operator_without_kernel_is_named_before_and_while_building(tmp_path: Path) -> None:
    lacking = variant(tmp_path, network("Relu", TensorProto.BFLOAT16))
    with pytest.raises(UnsupportedOperator, match="Relu"):
        engines.build(lacking, "onnxruntime-cpu", store=Store(tmp_path / "store"))


def test_an_operator_that_nobody_knows_is_found_without_building(tmp_path: Path) -> None:
    strange = variant(tmp_path, network("Frobnicate", domain="my.domain"))
    found = backend.lacks("onnxruntime-cpu", Path(strange.path))
    assert list(found) == ["my.domain::Frobnicate"]
    with pytest.raises(BuildError, match="Frobnicate"):
        engines.build(strange, "onnxruntime-cpu", store=Store(tmp_path / "store"))


def test_nothing_is_lacking_in_ordinary_networks(tmp_path: Path) -> None:
    assert backend.lacks("onnxruntime-cpu", Path(variant(tmp_path, network("LayerNormalization")).path)) == {}


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(BuildError, match="refuses the model"):
        backend.open_file(path)


def test_an_engine_whose_file_is_gone_or_damaged_says_build_again(engine) -> None:
    Path(engine.path).write_bytes(b"damaged")
    with pytest.raises(EngineError, match="Build it again"):
        engines.open_runner(engine)
    Path(engine.path).unlink()
    with pytest.raises(EngineError, match="is gone"):
        engines.open_runner(engine)


def test_a_failure_while_running_is_a_run_error(tmp_path: Path) -> None:
    proto = network()
    proto.graph.node[0].CopyFrom(helper.make_node("Reshape", ["x", "shape"], ["y"], name="only"))
    proto.graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [2], [1, 3]))
    with backend.open_file(proto.SerializeToString()) as runner, pytest.raises(RunError, match="dynamic axes"):
        runner.infer({"x": np.zeros((2, 3), np.float32)})


def test_what_the_backend_ignores_or_cannot_do_is_noted(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    fp16 = variant(tmp_path, network(), NAMED["fp16"])
    assert any("storage only" in note for note in engines.build(fp16, "onnxruntime-cpu", store=store).notes)
    tf32 = replace(fp16, recipe=NAMED["tf32"])
    options = BuildOptions(workspace_bytes=1 << 20)
    notes = engines.build(tf32, "onnxruntime-cpu", options, store=store).notes
    assert any("TF32" in note for note in notes) and any("workspace_bytes" in note for note in notes)


def test_auto_takes_the_cpu_where_there_is_no_gpu_and_says_why() -> None:
    name, reason = engines.choose("auto")
    if name != "onnxruntime-cpu":
        pytest.skip("this machine has a GPU backend, so auto takes that")
    assert "not tensorrt" in reason and "onnxruntime-cpu is the fastest" in reason


def test_an_unknown_backend_suggests_the_nearest() -> None:
    with pytest.raises(BackendMissing, match="Did you mean 'onnxruntime-cpu'"):
        engines.choose("onnxruntime-gpu")


def test_a_backend_that_is_not_here_names_the_line_that_mends_it() -> None:
    absent = backend.missing("onnxruntime-cuda")
    if absent is None:
        pytest.skip("this machine has ONNX Runtime's CUDA provider")
    with pytest.raises(BackendMissing, match="pip"):
        engines.choose("onnxruntime-cuda")


def test_a_provider_that_cannot_start_is_an_error_and_not_the_cpu(tmp_path: Path) -> None:
    """ONNX Runtime warns and goes on with the next provider: a CPU's time would be shown as a GPU's."""
    if backend.missing("onnxruntime-cuda") is None:
        pytest.skip("this machine has ONNX Runtime's CUDA provider")
    with pytest.warns(UserWarning), pytest.raises(BuildError, match=r"could not start CUDA.* would have run on CPU"):
        backend.open_file(network().SerializeToString(), backend="onnxruntime-cuda")


@pytest.mark.parametrize("tf32", [False, True])
def test_products_on_a_gpu_are_tf32_only_where_that_was_asked_for(tf32: bool) -> None:
    settings = onnxruntime_session.session_settings(b"", "all", 1, "onnxruntime-cuda", tf32)
    assert dict(zip(settings["providers"], settings["provider_options"], strict=True)) == {
        "CUDAExecutionProvider": {"use_tf32": str(int(tf32))},
        "CPUExecutionProvider": {},
    }


def test_nodes_that_a_gpu_leaves_to_the_cpu_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU's own session: all nodes are on the CPU, and the session tells so as a GPU's would."""
    settings = onnxruntime_session.session_settings(b"", "all", 1, "onnxruntime-cuda")
    settings |= {"providers": ["CPUExecutionProvider"], "provider_options": [{}]}
    session = onnxruntime_session.open_session(network().SerializeToString(), settings)
    assert onnxruntime_session.placement_notes(session, "onnxruntime-cuda") == [
        "1 of 1 nodes run on the CPU, with copies there and back: Relu 1."
    ]
    assert onnxruntime_session.placement_notes(session, "onnxruntime-cpu") == []


def test_nothing_is_kept_at_home_or_reported_to_the_makers(tmp_path: Path) -> None:
    """From 1.29 on ONNX Runtime keeps a database of events in the home folder from its import on, and sends them."""
    onnx.save(network(), tmp_path / "model.onnx")
    code = (
        "from workbench.engines import onnxruntime as backend, onnxruntime_profiling\n"
        f"with backend.open_file({str(tmp_path / 'model.onnx')!r}) as runner: print(runner.outputs)\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    kept = {key: value for key, value in os.environ.items() if key not in ("ORT_DISABLE_TELEMETRY", "CI")}
    kept |= {"HOME": str(home), "XDG_CACHE_HOME": str(home), "PYTHONPATH": str(Path(backend.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], env=kept, check=True, cwd=tmp_path)
    assert list(home.rglob("*")) == []


def test_no_runtime_or_an_empty_one_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "not installed" in str(backend.missing("onnxruntime-cpu"))
    monkeypatch.undo()
    # What is left after onnxruntime and onnxruntime-gpu overwrote each other and one was removed: an empty namespace.
    monkeypatch.setattr(backend, "runtime", lambda: type(importlib)("onnxruntime"))
    assert "overwrote each other" in str(backend.missing("onnxruntime-cpu"))


def test_without_any_backend_auto_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "missing", lambda name: engines.Missing("gone.", "Run: x"))
    tensorrt = engines.backend("tensorrt")
    monkeypatch.setattr(tensorrt, "missing", lambda name: engines.Missing("gone.", "Run: x"))
    with pytest.raises(BackendMissing, match=r"trt-workbench\[cpu\]"):
        engines.choose("auto")


def test_an_engine_whose_backend_exchanges_no_weights_says_so(engine, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    with pytest.raises(EngineError, match=r"Only TensorRT exchanges.*onnxruntime-cpu"):
        engines.refit(engine, variant(tmp_path / "again", network()), store=Store(tmp_path / "store"))


def transposed_product(order: list[int], element: int = TensorProto.FLOAT16) -> onnx.ModelProto:
    """y = transpose(x) @ w for x of (N, 3, 4): what a sequence-first layer begins with."""
    weights = np.arange(20, dtype=np.float32).reshape(4, 5) / 20
    graph = helper.make_graph(
        [helper.make_node("Transpose", ["x"], ["t"], perm=order), helper.make_node("MatMul", ["t", "w"], ["y"])],
        "transposed",
        [helper.make_tensor_value_info("x", element, ["N", 3, 4])],
        [helper.make_tensor_value_info("y", element, [None, None, 5])],
        [onnx.numpy_helper.from_array(weights.astype(helper.tensor_dtype_to_np_dtype(element)), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_half_product_behind_a_moved_batch_runs_and_the_engine_says_what_was_left_out(tmp_path: Path) -> None:
    """ONNX Runtime 1.32 ends the whole process here, unless its fusion of transposes into products is left out."""
    found = replace(
        variant(tmp_path, transposed_product([1, 0, 2])),
        inputs=(TensorSpec("x", "float16", (None, 3, 4)),), outputs=(TensorSpec("y", "float16", (None, None, 5)),),
    )  # fmt: skip
    made = engines.build(found, "onnxruntime-cpu", store=Store(tmp_path / "store"))
    assert any("MatmulTransposeFusion is left out" in note for note in made.notes)
    x = np.ones((2, 3, 4), np.float16)
    with engines.open_runner(made) as runner:
        answer = runner.infer({"x": x})["y"]
    weights = np.arange(20, dtype=np.float32).reshape(4, 5) / 20
    # Sums of four FP16 products of at most 1: half a unit in the last place of 4.
    np.testing.assert_allclose(answer, np.ones((3, 2, 4)) @ weights, atol=2e-3)
    assert backend.layer_times(made, {"x": x}, 2)


@pytest.mark.parametrize(
    ("order", "element", "fusion", "left_out"),
    [
        ([1, 0, 2], TensorProto.FLOAT16, "all", True),
        ([1, 2, 0], TensorProto.FLOAT16, "all", True),
        ([0, 2, 1], TensorProto.FLOAT16, "all", False),
        ([1, 0, 2], TensorProto.FLOAT, "all", False),
        ([1, 0, 2], TensorProto.FLOAT16, "basic", False),
    ],
)
def test_the_fusion_is_left_out_only_where_it_crashes(
    order: list[int], element: int, fusion: str, left_out: bool, tmp_path: Path
) -> None:
    proto = transposed_product(order, element)
    onnx.save(proto, tmp_path / "m.onnx")
    for model in (proto.SerializeToString(), tmp_path / "m.onnx"):
        entries = onnxruntime_session.session_settings(model, fusion, 1, "onnxruntime-cpu")["entries"]
        assert (onnxruntime_session.LEFT_OUT in entries) == left_out
