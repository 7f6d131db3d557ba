"""TensorRT for RTX where it has a GPU, against the API surface of 1.7.1: nobody here has such a card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from tiny_variants import feeds, variant

from workbench import engines
from workbench.engines import tensorrt as backend
from workbench.engines.tensorrt import just_in_time
from workbench.errors import BuildError, EngineError
from workbench.records import Engine
from workbench.study.offers import refusals


def cache_of(engine: Engine) -> Path:
    return Path(engine.path + just_in_time.CACHE_SUFFIX)


def configs(rtx) -> list[tuple[str, str]]:
    """The strategies that each execution context was made with."""
    made = [config.state for (config,) in rtx.trt.called("ICudaEngine.create_execution_context")]
    return [
        (config.dynamic_shapes_kernel_specialization_strategy.name, config.cuda_graph_strategy.name) for config in made
    ]


def test_it_is_usable_on_the_gpus_it_supports_and_says_so_elsewhere(rtx) -> None:
    assert backend.missing("tensorrt-rtx") is None and engines.choose("tensorrt-rtx")[0] == "tensorrt-rtx"
    assert (backend.dialect("tensorrt-rtx"), backend.device("tensorrt-rtx")) == ("strong", "NVIDIA GeForce RTX 4090")
    rtx.cuda.name, rtx.cuda.capability = "NVIDIA H200", (9, 0)
    absent = str(backend.missing("tensorrt-rtx"))
    assert "7.5, 8.6, 8.9, 12.0, 12.1 only; NVIDIA H200 has 9.0" in absent and "backend tensorrt" in absent
    assert backend.missing_to_build("tensorrt-rtx") is None


def test_without_a_target_the_engine_is_for_the_gpu_here(rtx, tmp_path: Path) -> None:
    engine = rtx.build(variant(tmp_path))
    assert engine.device == "sm89" and "that of this machine's NVIDIA GeForce RTX 4090: sm89" in engine.notes[0]
    assert json.loads(Path(engine.path).read_bytes())["capabilities"] == ["SM89"]


def test_it_runs_and_every_context_finishes_its_kernels_first(rtx, tmp_path: Path) -> None:
    made = variant(tmp_path)
    with backend.open_runner(rtx.build(made, target="sm86,sm89"), None) as runner:
        assert runner.conditions()["first_run_seconds"] is None
        got = runner.infer(feeds(5))["y"]
        told = runner.conditions()
    np.testing.assert_array_equal(got, ReferenceEvaluator(made.path).run(None, feeds(5))[0])
    assert configs(rtx) == [("EAGER", "DISABLED")]
    assert told["kernel_specialization"] == "eager" and told["first_run_seconds"] > 0
    assert (told["runtime_cache_loaded_bytes"], told["runtime_notes"]) == (0, [])


def test_what_was_compiled_is_kept_beside_the_plan_and_taken_by_the_next(rtx, tmp_path: Path) -> None:
    engine = rtx.build(variant(tmp_path))
    with backend.open_runner(engine, None) as runner:
        runner.infer(feeds(2))
    assert cache_of(engine).read_bytes() == b"kernels"
    with backend.open_runner(engine, None) as runner:
        assert runner.conditions()["runtime_cache_loaded_bytes"] == len(b"kernels")
    assert sorted(path.name for path in Path(engine.path).parent.iterdir() if path.name.startswith(".")) == []


def test_a_cache_of_another_machine_is_made_anew_and_said(rtx, tmp_path: Path) -> None:
    engine = rtx.build(variant(tmp_path))
    cache_of(engine).write_bytes(b"of another driver")
    with backend.open_runner(engine, None) as runner:
        assert "does not fit this machine" in runner.conditions()["runtime_notes"][0]
    assert cache_of(engine).read_bytes() == b"kernels"


def test_a_cache_that_cannot_be_kept_or_taken_is_said(rtx, tmp_path: Path) -> None:
    engine = rtx.build(variant(tmp_path))
    rtx.world.refused = {"set_runtime_cache"}
    with backend.open_runner(engine, None) as runner:
        cache_of(engine).mkdir()  # nothing can be written there
        runner.infer(feeds(2))
        first, second = runner.conditions()["runtime_notes"]
    assert "took no runtime cache" in first and "could not be kept" in second


def test_a_stopwatch_with_graphs_lets_the_library_capture(rtx, tmp_path: Path) -> None:
    with backend.open_runner(rtx.build(variant(tmp_path)), None) as runner:
        runner.infer(feeds(2))
        watch = runner.stopwatch(feeds(4), "compute", cuda_graph=True)
        assert watch() > 0 and runner.conditions()["cuda_graph_refused"] is None
        runner.stopwatch(feeds(4), "compute", cuda_graph=True)  # the second needs no third context
    assert configs(rtx) == [("EAGER", "DISABLED"), ("EAGER", "WHOLE_GRAPH_CAPTURE")]
    assert rtx.trt.called("IExecutionContext.execute_async_v3")


@pytest.mark.parametrize(
    ("validity", "said"),
    [
        (("INVALID", 1 + 2), "UNSUPPORTED_CC, VERSION_MISMATCH"),
        (("INVALID", 4), "OLD_CUDA_DRIVER"),
        (("INVALID", 0), "no reason given"),
    ],
)
def test_a_plan_that_the_library_calls_invalid_is_not_loaded(rtx, tmp_path: Path, validity: tuple, said: str) -> None:
    engine = rtx.build(variant(tmp_path))
    rtx.world.validity = validity
    with pytest.raises(EngineError, match=said):
        backend.open_runner(engine, None)
    assert rtx.trt.called("Runtime.deserialize_cuda_engine") == []


def test_a_plan_that_runs_less_well_here_is_run_and_said(rtx, tmp_path: Path) -> None:
    engine = rtx.build(variant(tmp_path))
    rtx.world.validity = ("SUBOPTIMAL", 4)
    with backend.open_runner(engine, None) as runner:
        assert "suboptimal here: OLD_CUDA_DRIVER" in runner.conditions()["runtime_notes"][0]


@pytest.mark.parametrize(
    ("target", "capability", "runs"),
    [
        ("sm86,sm89", (8, 9), True),
        ("sm86,sm89", (12, 0), False),
        ("portable", (12, 0), True),
        ("portable", (7, 5), False),
    ],
)
def test_an_engine_runs_on_its_targets_alone(rtx, tmp_path: Path, target: str, capability: tuple, runs: bool) -> None:
    engine = rtx.build(variant(tmp_path), target=target)
    rtx.cuda.name, rtx.cuda.capability = "another", capability
    if runs:
        backend.open_runner(engine, None).close()
    else:
        with pytest.raises(EngineError, match=r"it was built for .*, this is another"):
            backend.open_runner(engine, None)


def test_an_engine_without_a_context_is_an_error(rtx, tmp_path: Path) -> None:
    rtx.world.context_fails = "no"
    with pytest.raises(EngineError, match=r"TensorRT for RTX 1\.7\.1\.\d+ built the engine but makes no execution"):
        backend.open_runner(rtx.build(variant(tmp_path)), None)


def test_the_toggles_of_what_the_gpu_lacks_are_greyed(rtx) -> None:
    assert refusals("tensorrt-rtx", None, None).keys() == {("threads", "count"), ("quantization", "int8-dynamic")}
    rtx.cuda.name, rtx.cuda.capability = "NVIDIA GeForce RTX 3090", (8, 6)
    assert "8.9; NVIDIA GeForce RTX 3090 has 8.6" in refusals("tensorrt-rtx", None, None)["quantization", "fp8"]


def test_tensorrt_proper_says_that_it_builds_for_the_gpu_here(machine, tmp_path: Path) -> None:
    assert "ignores target='sm89'" in machine.build(variant(tmp_path), target="sm89").notes[0]


def test_tensorrt_proper_cannot_build_where_there_is_no_gpu(machine) -> None:
    from workbench.engines.tensorrt import targets
    from workbench.engines.tensorrt.capabilities import Capabilities
    from workbench.records import BuildOptions

    with pytest.raises(BuildError, match=r"builds on a GPU, and there is none here. Use the backend 'tensorrt-rtx'"):
        targets.read(Capabilities(machine.trt), BuildOptions(), None)


def test_layers_are_timed_on_a_gpu_and_listed_from_the_log_without_feeds(rtx, tmp_path: Path) -> None:
    engine = rtx.build(variant(tmp_path))
    (layer,) = backend.layer_times(engine, feeds(2), 3)
    assert layer.seconds == 0.5e-3 and layer.nodes == ("/fc/MatMul", "/relu/Relu")
    Path(engine.folder, "build.log").write_text("[V] nothing of kernels\n")
    with pytest.raises(EngineError, match="lists no kernels"):
        backend.layer_table(engine)
