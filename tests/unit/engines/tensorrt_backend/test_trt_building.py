from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from releases import only_8, only_10
from tiny_variants import feeds, network, variant

from workbench import codec
from workbench.engines import tensorrt as backend
from workbench.engines.base import BuildRequest
from workbench.engines.tensorrt import calibration_cache, plan, progress, timing_cache
from workbench.engines.tensorrt.capabilities import Capabilities, Device
from workbench.errors import BuildError, CalibrationError, Cancelled, OutOfMemory, UnsupportedOperator
from workbench.records import BuildOptions, Engine, ShapeProfile


def profiles_of(engine: Engine) -> list[dict]:
    return json.loads(Path(engine.path).read_bytes())["profiles"]


def test_a_build_leaves_plan_sidecar_layers_and_log(machine, tmp_path: Path) -> None:
    machine.world.build_lines = [("INFO", "building"), ("VERBOSE", "ConvReluFusion: Fusing /a with /b")]
    said: list[str] = []
    engine = machine.build(variant(tmp_path), said.append)
    assert {path.name for path in Path(engine.folder or "").iterdir()} == {
        "model.plan", "model.plan.json", "layers.json", "build.log",
    }  # fmt: skip
    assert engine.size_bytes == Path(engine.path).stat().st_size
    assert engine.backend_version == machine.trt.__version__
    assert (engine.device, engine.backend, engine.variant) == ("NVIDIA H200", "tensorrt", "fp32")
    assert "[I] building" in said and "[I] building" in engine.log
    assert "fusions: 1" in engine.log
    assert not any("ConvReluFusion" in line for line in said)
    assert codec.from_plain(Engine, codec.to_plain(engine)) == engine


def test_a_dynamic_batch_gets_a_default_profile(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path))
    assert profiles_of(engine) == [{"x": [[1, 4], [8, 4], [32, 4]]}]
    engine = machine.build(variant(tmp_path), extra={"batch": [2, 4, 6]})
    assert profiles_of(engine) == [{"x": [[2, 4], [4, 4], [6, 4]]}]


def test_a_static_model_gets_a_profile_of_its_one_shape(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path, model=network(batch=2)))
    assert profiles_of(engine) == [{"x": [[2, 4], [2, 4], [2, 4]]}]


def test_profiles_of_the_options_are_taken_in_order(machine, tmp_path: Path) -> None:
    small, large = ({"x": ShapeProfile((1, 4), (size, 4), (size, 4))} for size in (2, 64))
    engine = machine.build(variant(tmp_path), profiles=(small, large))
    assert [profile["x"][2] for profile in profiles_of(engine)] == [[2, 4], [64, 4]]


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({"y": ShapeProfile((1, 4), (1, 4), (1, 4))}, "names y; the inputs are x"),
        ({}, "lacks the dynamic inputs x"),
        ({"x": ShapeProfile((1,), (1,), (1,))}, "must all have 2 axes"),
        ({"x": ShapeProfile((1, 5), (1, 5), (1, 5))}, "axis 1 is 4 in the model"),
        ({"x": ShapeProfile((4, 4), (2, 4), (8, 4))}, "axis 0 must rise"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused(machine, tmp_path: Path, profile: dict, said: str) -> None:
    with pytest.raises(BuildError, match=said):
        machine.build(variant(tmp_path), profiles=(profile,))


def test_a_second_dynamic_axis_needs_a_profile(machine, tmp_path: Path) -> None:
    made = variant(tmp_path)
    longer = replace(made, inputs=(replace(made.inputs[0], shape=(None, None)),))
    with pytest.raises(BuildError, match=r"ShapeProfile\(smallest="):
        machine.build(longer)


def test_a_profile_that_tensorrt_refuses_is_a_build_error(machine, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(machine.world, "do_IBuilderConfig_add_optimization_profile", lambda config, made: -1)
    with pytest.raises(BuildError, match="TensorRT refuses profile 0"):
        machine.build(variant(tmp_path))

    def refuse(profile, name, low, typical, high) -> None:
        raise ValueError("Cannot set")

    monkeypatch.setattr(machine.world, "do_IOptimizationProfile_set_shape", refuse)
    with pytest.raises(BuildError, match="refuses the shapes"):
        machine.build(variant(tmp_path))


def test_an_input_that_decides_shapes_is_refused(machine, tmp_path: Path, monkeypatch) -> None:
    def shape_tensor(network, index):
        dtype = machine.trt.DataType.INT32
        return machine.world.new("ITensor", name="sizes", dtype=dtype, is_shape_tensor=True)

    monkeypatch.setattr(machine.world, "do_INetworkDefinition_get_input", shape_tensor)
    with pytest.raises(BuildError, match="a shape tensor"):
        machine.build(variant(tmp_path))


def test_options_reach_the_config(machine, tmp_path: Path) -> None:
    extra = {
        "verbosity": "names", "auxiliary_streams": 0, "timing_iterations": 4, "hardware_compatibility": "ampere+",
        "tactic_sources": ["JIT_CONVOLUTIONS"], "refit": True, "version_compatible": True, "sparse": True,
    }  # fmt: skip
    machine.build(variant(tmp_path), workspace_bytes=2**20, optimization_level=2, extra=extra)
    called = machine.trt.called
    assert called("IBuilderConfig.set_memory_pool_limit") == [(machine.trt.MemoryPoolType.WORKSPACE, 2**20)]
    assert called("IBuilderConfig.builder_optimization_level=") == [(2,)]
    assert called("IBuilderConfig.profiling_verbosity=") == [(machine.trt.ProfilingVerbosity.LAYER_NAMES_ONLY,)]
    assert called("IBuilderConfig.max_aux_streams=") == [(0,)]
    assert called("IBuilderConfig.avg_timing_iterations=") == [(4,)]
    assert called("IBuilderConfig.set_tactic_sources") == [(1 << int(machine.trt.TacticSource.JIT_CONVOLUTIONS),)]
    flags = {flag.name for (flag,) in called("IBuilderConfig.set_flag")}
    assert flags == {"REFIT", "VERSION_COMPATIBLE", "SPARSE_WEIGHTS"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"extra": {"batch": [4, 2, 8]}}, "it must rise"),
        ({"extra": {"batch": "8"}}, "three whole numbers"),
        ({"extra": {"batch": [1, 2, True]}}, "whole number"),
        ({"extra": {"refit": "yes"}}, "True or False"),
        ({"extra": {"verbosity": "loud"}}, "none, names, detailed"),
        ({"extra": {"native_calibrator": "legacy"}}, "entropy, minmax"),
        ({"extra": {"tactic_sources": "CUDNN"}}, "list of names"),
        ({"extra": {"calibration_cache": 3}}, "path as text"),
        ({"extra": {"auxiliary_streams": -1}}, "at least 0"),
        ({"extra": {"tactic_sources": ["CUTLASS"]}}, "no tactic source 'CUTLASS'"),
        ({"optimization_level": 6}, "0 to 5"),
        ({"workspace_bytes": -1}, "cannot be negative"),
    ],
)
def test_an_option_with_a_wrong_value_is_refused(machine, tmp_path: Path, given: dict, said: str) -> None:
    with pytest.raises(BuildError, match=said):
        machine.build(variant(tmp_path), **given)


@only_8
def test_hardware_compatibility_that_a_release_lacks_is_refused(machine, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no hardware compatibility"):
        machine.build(variant(tmp_path), extra={"hardware_compatibility": "same-compute-capability"})


def test_options_without_effect_are_noted(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path), threads=4, extra={"batchsize": 3})
    assert any("threads=4" in note for note in engine.notes)
    assert any("'batchsize'" in note and "Did you mean 'batch'" in note for note in engine.notes)


# What the parser and the builder complain about


@only_8
def test_8_6_names_node_and_operator_by_the_index_it_gives(machine, tmp_path: Path) -> None:
    model = network()
    model.graph.node[1].metadata_props.add(key="namespace", value="model.layers.0.fc")
    machine.world.parser_errors = [("UNSUPPORTED_NODE", 1, "No importer registered for op: Add. Attempting plugin")]
    with pytest.raises(UnsupportedOperator, match=r"Add \(node '/fc/Add' in model\.layers\.0\.fc\)"):
        machine.build(variant(tmp_path, model=model))


@only_10
def test_later_releases_name_node_and_operator_themselves(machine, tmp_path: Path) -> None:
    machine.world.parser_errors = [("UNSUPPORTED_NODE_ATTR", -1, "mode is not supported")]
    with pytest.raises(UnsupportedOperator, match=r"Special \(node '/custom/Special'\): mode is not supported"):
        machine.build(variant(tmp_path))


def test_another_parser_error_names_file_and_opset(machine, tmp_path: Path) -> None:
    machine.world.parser_errors = [("INVALID_NODE", 0, "GEMM must have 2D inputs!")]
    with pytest.raises(BuildError, match=r"opset 17.*GEMM must have 2D inputs!") as caught:
        machine.build(variant(tmp_path))
    assert not isinstance(caught.value, UnsupportedOperator)


def test_a_parser_that_says_nothing_is_still_an_error(machine, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(machine.world, "do_OnnxParser_parse_from_file", lambda parser, path: False)
    with pytest.raises(BuildError, match="says nothing"):
        machine.build(variant(tmp_path))


def test_skipped_tactics_for_memory_and_no_implementation_is_out_of_memory(machine, tmp_path: Path) -> None:
    machine.world.build_fails = True
    machine.world.build_lines = [
        ("VERBOSE", "--------------- Timing Runner: /conv/Conv (CaskConvolution[0x80000009])"),
        ("WARNING", "Tactic Device request: 448MB Available: 425MB. Device memory is insufficient to use tactic."),
        ("WARNING", "UNSUPPORTED_STATESkipping tactic 3 due to insufficient memory on requested size of 448 detected"),
        ("ERROR", "10: Could not find any implementation for node /conv/Conv."),
    ]
    with pytest.raises(OutOfMemory, match=r"while building for /conv/Conv: 1 tactics.*workspace_bytes") as caught:
        machine.build(variant(tmp_path))
    assert "Could not find any implementation" in caught.value.log


def test_no_implementation_without_skipped_tactics_is_no_memory_problem(machine, tmp_path: Path) -> None:
    machine.world.build_fails = True
    machine.world.build_lines = [("ERROR", "10: Could not find any implementation for node /conv/Conv.")]
    with pytest.raises(BuildError, match="no implementation for /conv/Conv") as caught:
        machine.build(variant(tmp_path))
    assert not isinstance(caught.value, OutOfMemory)


def test_a_build_that_fails_otherwise_says_what_tensorrt_said(machine, tmp_path: Path) -> None:
    machine.world.build_fails = True
    machine.world.build_lines = [("INTERNAL_ERROR", "Assertion failed")]
    with pytest.raises(BuildError, match="Assertion failed"):
        machine.build(variant(tmp_path))


def test_tactics_skipped_in_a_build_that_went_well_are_noted(machine, tmp_path: Path) -> None:
    machine.world.build_lines = [("WARNING", "Skipping tactic 3 due to insufficient memory on requested size of 9")]
    assert any("lack of workspace" in note for note in machine.build(variant(tmp_path)).notes)


def test_a_log_reader_that_fails_does_not_end_the_build(machine, tmp_path: Path) -> None:
    machine.world.build_lines = [("INFO", "building")]

    def fail(line: str) -> None:
        raise ValueError("reader broke")

    assert "reader broke" in machine.build(variant(tmp_path), fail).log


def test_layers_that_cannot_be_read_are_noted(machine, tmp_path: Path) -> None:
    machine.world.refuses_plan = True
    assert any("could not be read" in note for note in machine.build(variant(tmp_path)).notes)


# Progress and cancelling


@pytest.mark.parametrize("machine", ["10.16.1", "11.4.0"], indirect=True)
def test_progress_is_told_and_a_reader_that_cancels_ends_the_build(machine, tmp_path: Path) -> None:
    machine.world.steps = 4
    told: list[str] = []
    machine.build(variant(tmp_path), told.append)
    assert machine.world.monitor_answers == [True] * 4
    assert any(line.startswith("progress 0.25 Building") for line in told)

    def cancel(line: str) -> None:
        if line.startswith("progress"):
            raise Cancelled("enough")

    machine.world.monitor_answers = []
    with pytest.raises(Cancelled):
        machine.build(variant(tmp_path), cancel)
    assert machine.world.monitor_answers == [False]


@only_8
def test_8_6_has_no_monitor_and_cancels_at_the_end(machine, tmp_path: Path) -> None:
    machine.world.build_lines = [("INFO", "building")]

    def cancel(line: str) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        machine.build(variant(tmp_path), cancel)


def test_nested_phases_become_one_share_that_never_falls() -> None:
    tracker = progress.Tracker()
    tracker.start("outer", None, 2)
    tracker.start("inner", "outer", 4)
    tracker.step("inner", 1)
    assert tracker.fraction() == 0.25
    tracker.finish("inner")
    assert tracker.fraction() == 0.25  # though the outer phase has no step done yet
    tracker.step("outer", 1)
    assert tracker.fraction() == 1.0
    tracker.step("unknown", 3)


@pytest.mark.parametrize("machine", ["10.16.1"], indirect=True)
def test_the_monitor_lets_no_exception_out(machine) -> None:
    def broken() -> bool:
        raise RuntimeError("broken")

    monitor = progress.monitor(machine.trt, lambda line: broken(), broken)
    monitor.phase_start("a", None, "not a number")  # type: ignore[arg-type]
    assert monitor.step_complete("a", 0) is True
    monitor.phase_finish("a")


# Timing caches


H200 = Device("NVIDIA H200", (9, 0))


def test_timings_are_kept_for_version_and_device(machine, tmp_path: Path) -> None:
    cache = tmp_path / "caches"
    cache.mkdir()
    first, second = variant(tmp_path, "fp32"), variant(tmp_path, "tf32", machine.dialect)
    machine.build(first, cache=cache)
    machine.build(second, cache=cache)
    path = timing_cache.place(cache, Capabilities(machine.trt), H200)
    assert machine.trt.__version__ in path.name and "H200" in path.name
    assert path.read_text().split("\n") == sorted(f"tactic of {Path(made.path).name}" for made in (first, second))


def test_timings_written_meanwhile_by_another_process_are_merged(machine, tmp_path: Path, monkeypatch) -> None:
    path = timing_cache.place(tmp_path, Capabilities(machine.trt), H200)
    real = machine.world.do_Builder_build_serialized_network

    def other_process_writes(*arguments):
        path.write_text("tactic of another")
        return real(*arguments)

    monkeypatch.setattr(machine.world, "do_Builder_build_serialized_network", other_process_writes)
    machine.build(variant(tmp_path), cache=tmp_path)
    assert "tactic of another" in path.read_text() and "tactic of fp32" in path.read_text()


def test_timings_that_do_not_fit_are_started_anew_and_noted(machine, tmp_path: Path) -> None:
    timing_cache.place(tmp_path, Capabilities(machine.trt), H200).write_text("foreign")
    machine.world.cache_fits = False
    engine = machine.build(variant(tmp_path), cache=tmp_path)
    assert any("started anew" in note for note in engine.notes)


def test_timings_that_cannot_be_merged_are_replaced_and_noted(machine, tmp_path: Path, monkeypatch) -> None:
    machine.build(variant(tmp_path), cache=tmp_path)
    monkeypatch.setattr(machine.world, "do_ITimingCache_combine", lambda cache, other, mismatch: False)
    assert any("replaced" in note for note in machine.build(variant(tmp_path), cache=tmp_path).notes)


def test_no_timings_are_kept_where_that_is_switched_off(machine, tmp_path: Path) -> None:
    machine.build(variant(tmp_path), cache=tmp_path, extra={"timing_cache": False})
    assert machine.trt.called("IBuilderConfig.create_timing_cache") == []


def test_the_lock_lets_one_in_at_a_time(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(50):
            with timing_cache.locked(tmp_path / "cache"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert most[0] == 1


# The native calibrator


def calibration(tmp_path: Path, samples: int = 10, **more: np.ndarray) -> Path:
    arrays = {"x": np.arange(samples * 4, dtype=np.float32).reshape(samples, 4), **more}
    np.savez(tmp_path / "feeds.npz", **arrays)
    return tmp_path / "feeds.npz"


NATIVE = pytest.mark.parametrize("machine", ["8.6.0", "10.16.1"], indirect=True)


@NATIVE
def test_the_native_calibrator_is_fed_all_full_batches(machine, tmp_path: Path) -> None:
    engine = machine.build(
        variant(tmp_path), extra={"native_calibrator": "entropy", "batch": [1, 4, 8]}, calibration=calibration(tmp_path)
    )
    assert machine.world.batches == [0.0, 16.0]  # first values of samples 0 and 4
    assert any("2 calibration samples were left out" in note for note in engine.notes)
    ((profile,),) = machine.trt.called("IBuilderConfig.set_calibration_profile")
    assert profile.state.shapes == {"x": ((4, 4), (4, 4), (4, 4))}
    written = calibration_cache.read(Path(engine.folder or "") / "calibration.cache")
    assert written.algorithm == "EntropyCalibration2" and set(written.scales) == {"x"}


@NATIVE
def test_a_calibration_cache_takes_the_place_of_samples(machine, tmp_path: Path) -> None:
    cache = tmp_path / "old.cache"
    cache.write_bytes(b"TRT-8600-EntropyCalibration2\nx: 3c010a14\n")
    machine.build(variant(tmp_path), extra={"native_calibrator": "minmax", "calibration_cache": str(cache)})
    assert machine.world.batches == []


@NATIVE
@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (None, "needs calibration samples"),
        ({"samples": 3}, "at least 4 samples"),
        ({"samples": 0}, "same number > 0"),
    ],
)
def test_calibration_that_cannot_work_is_refused(machine, tmp_path: Path, arrays: dict | None, said: str) -> None:
    made = variant(tmp_path, model=network(batch=4))
    given = {} if arrays is None else {"calibration": calibration(tmp_path, **arrays)}
    with pytest.raises(CalibrationError, match=said):
        machine.build(made, extra={"native_calibrator": "entropy"}, **given)


@NATIVE
def test_calibration_feeds_that_are_damaged_or_lack_an_input_are_refused(machine, tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(CalibrationError, match="Cannot read the calibration feeds"):
        machine.build(variant(tmp_path), extra={"native_calibrator": "entropy"}, calibration=tmp_path / "bad.npz")
    np.savez(tmp_path / "other.npz", z=np.zeros((4, 4), np.float32))
    with pytest.raises(CalibrationError, match="lack the inputs x; they hold z"):
        machine.build(variant(tmp_path), extra={"native_calibrator": "entropy"}, calibration=tmp_path / "other.npz")


@NATIVE
def test_a_batch_that_cannot_be_fed_is_raised_after_the_build(machine, tmp_path: Path, monkeypatch) -> None:
    machine.world.build_fails = True
    monkeypatch.setattr(
        machine.cuda, "cudaMemcpyAsync", lambda *arguments: (machine.cuda.cudaError_t.cudaErrorInvalidValue,)
    )
    with pytest.raises(CalibrationError, match="could not be fed"):
        machine.build(variant(tmp_path), extra={"native_calibrator": "entropy"}, calibration=calibration(tmp_path))


@only_8
def test_int64_inputs_are_noted_where_the_release_has_none(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path, model=network(integer_input=True)))
    assert any("has no INT64: the input 'ids'" in note for note in engine.notes)


def test_the_request_survives_the_way_to_a_child_process(machine, tmp_path: Path) -> None:
    given = BuildOptions(extra={"batch": (1, 2, 4), "refit": True})
    plain = codec.from_plain(BuildOptions, json.loads(codec.to_json(given)))
    request = BuildRequest(variant(tmp_path), "tensorrt", plain, str(machine.new_folder()))
    assert profiles_of(backend.build(request, lambda line: None))[0]["x"][2] == [4, 4]


def test_the_opset_is_read_from_the_file(machine, tmp_path: Path) -> None:
    model = network()
    model.opset_import[0].CopyFrom(helper.make_opsetid("", 20))
    machine.world.parser_errors = [("INVALID_GRAPH", -1, "no")]
    with pytest.raises(BuildError, match="opset 20"):
        machine.build(variant(tmp_path, model=model))


def test_built_engines_run(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path))
    assert plan.read_sidecar(Path(engine.path)).tensorrt == machine.trt.__version__
    with backend.open_runner(engine, 4) as runner:
        assert runner.infer(feeds(3))["y"].shape == (3, 3)


@NATIVE
def test_what_the_config_answers_with_false_is_an_error(machine, tmp_path: Path) -> None:
    machine.world.refused = {"set_calibration_profile", "set_tactic_sources"}
    native = {"native_calibrator": "entropy", "batch": [1, 4, 8]}
    with pytest.raises(CalibrationError, match="as the shapes to calibrate with"):
        machine.build(variant(tmp_path), extra=native, calibration=calibration(tmp_path))
    with pytest.raises(BuildError, match="refuses the tactic sources"):
        machine.build(variant(tmp_path), extra={"tactic_sources": ["JIT_CONVOLUTIONS"]})
