from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from releases import only_8, only_10
from tiny_variants import feeds, network, variant

from workbench.engines import jobs
from workbench.engines import tensorrt as backend
from workbench.engines.tensorrt import device_state
from workbench.errors import EngineError, OutOfMemory, RunError
from workbench.records import ShapeProfile


def answer(path: str, given: dict[str, np.ndarray]) -> np.ndarray:
    return ReferenceEvaluator(path).run(None, given)[0]


def test_outputs_are_right_whatever_batch_came_before(machine, tmp_path: Path) -> None:
    made = variant(tmp_path)
    with backend.open_runner(machine.build(made), None) as runner:
        for batch in (2, 32, 1, 32, 7):
            got = runner.infer(feeds(batch))["y"]
            np.testing.assert_array_equal(got, answer(made.path, feeds(batch)))


@pytest.mark.parametrize("limits", [(1, 1), (1, 4), (8, 8), (3, 5), (1, 32)])
def test_a_check_takes_the_batches_that_the_engine_was_built_for(machine, tmp_path: Path, limits) -> None:
    low, high = limits
    profile = {"x": ShapeProfile((low, 4), (high, 4), (high, 4))}
    made = variant(tmp_path)
    built = machine.build(made, profiles=(profile,))
    _, found = jobs.infer_job(jobs.InferJob(built, 8, None, {}), feeds(20))
    np.testing.assert_allclose(found["y"], answer(made.path, feeds(20)), rtol=1e-5)  # products of other sizes


def test_outputs_are_the_callers_own(machine, tmp_path: Path) -> None:
    with backend.open_runner(machine.build(variant(tmp_path)), None) as runner:
        first = runner.infer(feeds(4))["y"]
        kept = first.copy()
        runner.infer({"x": feeds(4)["x"] * 100})
        np.testing.assert_array_equal(first, kept)


def test_a_view_that_is_not_contiguous_is_fed_right(machine, tmp_path: Path) -> None:
    made = variant(tmp_path)
    strided = np.asfortranarray(feeds(6)["x"])[::2]
    with backend.open_runner(machine.build(made), None) as runner:
        got = runner.infer({"x": strided})["y"]
    np.testing.assert_array_equal(got, answer(made.path, {"x": np.ascontiguousarray(strided)}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, r"feeds name \[\], the engine's inputs are \['x'\]"),
        ({"x": np.zeros((2, 4), np.float32), "z": np.zeros(1)}, "inputs are"),
        ({"x": np.zeros((2, 4))}, r"float64, the model wants float32"),
        ({"x": np.zeros((2, 5), np.float32)}, r"shape \(2, 5\), the model wants \(None, 4\)"),
        ({"x": np.zeros(4, np.float32)}, "the model wants"),
        ({"x": np.zeros((33, 4), np.float32)}, "outside what the engine was built for"),
    ],
)
def test_feeds_that_do_not_fit_are_refused_and_the_runner_lives_on(
    machine, tmp_path: Path, given: dict, said: str
) -> None:
    with backend.open_runner(machine.build(variant(tmp_path)), None) as runner:
        with pytest.raises(RunError, match=said):
            runner.infer(given)
        assert runner.infer(feeds(2))["y"].shape == (2, 3)


def test_the_profile_that_holds_the_shape_is_chosen(machine, tmp_path: Path) -> None:
    profiles = tuple({"x": ShapeProfile((low, 4), (high, 4), (high, 4))} for low, high in ((1, 4), (5, 64)))
    with backend.open_runner(machine.build(variant(tmp_path), profiles=profiles), None) as runner:
        runner.infer(feeds(2))
        runner.infer(feeds(40))
        runner.infer(feeds(3))
    chosen = [index for index, _ in machine.trt.called("IExecutionContext.set_optimization_profile_async")]
    assert chosen == [1, 0]


def test_a_static_engine_is_asked_for_no_profile(machine, tmp_path: Path) -> None:
    with backend.open_runner(machine.build(variant(tmp_path, model=network(batch=2))), None) as runner:
        assert runner.infer(feeds(2))["y"].shape == (2, 3)
        with pytest.raises(RunError, match=r"the model wants \(2, 4\)"):
            runner.infer(feeds(3))
    assert machine.trt.called("ICudaEngine.get_tensor_profile_shape") == []


def test_addresses_are_told_once(machine, tmp_path: Path) -> None:
    with backend.open_runner(machine.build(variant(tmp_path)), None) as runner:
        for _ in range(3):
            runner.infer(feeds(2))
    assert len(machine.trt.called("IExecutionContext.set_tensor_address")) == 2  # x and y


def test_int64_becomes_int32_and_back_where_the_release_has_none(machine, tmp_path: Path) -> None:
    model = network(integer_input=True)
    with backend.open_runner(machine.build(variant(tmp_path, model=model)), None) as runner:
        given = {**feeds(2), "ids": np.array([[1, 2], [3, 4]])}
        got = runner.infer(given)["k"]
        assert got.dtype == np.int64
        inside = "int32" if machine.trt.__version__.startswith("8.") else "int64"
        assert runner.device_dtypes["ids"] == runner.device_dtypes["k"] == inside
        np.testing.assert_array_equal(got, given["ids"] + 1)


@only_8
def test_an_int64_value_that_int32_cannot_hold_is_refused(machine, tmp_path: Path) -> None:
    model = network(integer_input=True)
    with (
        backend.open_runner(machine.build(variant(tmp_path, model=model)), None) as runner,
        pytest.raises(RunError, match="engine has INT32"),
    ):
        runner.infer({**feeds(1), "ids": np.array([[2**40, 0]])})


def test_the_run_goes_to_a_stream_of_its_own(machine, tmp_path: Path) -> None:
    with backend.open_runner(machine.build(variant(tmp_path)), None) as runner:
        runner.infer(feeds(2))
        ((handle,),) = machine.trt.called("IExecutionContext.execute_async_v3")
        assert handle == runner.stream.handle != 0


def test_an_output_whose_shape_depends_on_data_is_allocated_on_demand(machine, tmp_path: Path) -> None:
    made = variant(tmp_path)
    engine = machine.build(made)
    machine.world.data_dependent = {"y"}
    with backend.open_runner(engine, None) as runner:
        for batch in (3, 20):
            np.testing.assert_array_equal(runner.infer(feeds(batch))["y"], answer(made.path, feeds(batch)))
        watch = runner.stopwatch(feeds(2), "compute", cuda_graph=True)
        assert watch() > 0
        assert "depends on data" in runner.conditions()["cuda_graph_refused"]


# Timing


def test_compute_is_the_devices_time_of_the_launch_alone(machine, tmp_path: Path) -> None:
    with backend.open_runner(machine.build(variant(tmp_path)), None) as runner:
        watch = runner.stopwatch(feeds(4), "compute")
        assert [watch() for _ in range(3)] == [pytest.approx(machine.cuda.kernel_ms / 1e3)] * 3  # no copies in it


def test_a_cuda_graph_is_launched_whole_and_captured_after_a_first_launch(machine, tmp_path: Path) -> None:
    with backend.open_runner(machine.build(variant(tmp_path)), None) as runner:
        watch = runner.stopwatch(feeds(4), "compute", cuda_graph=True)
        launched = len(machine.trt.called("IExecutionContext.execute_async_v3"))
        assert launched == 2  # one to set up, one to capture
        assert watch() == pytest.approx(machine.cuda.kernel_ms / 1e3)
        assert machine.cuda.launches == ["graph"]
        assert len(machine.trt.called("IExecutionContext.execute_async_v3")) == launched


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_a_stopwatch_is_right_after_the_runner_was_used_otherwise(machine, tmp_path: Path, cuda_graph: bool) -> None:
    made = variant(tmp_path)
    with backend.open_runner(machine.build(made), None) as runner:
        watch = runner.stopwatch(feeds(4), "end_to_end", cuda_graph)
        runner.infer(feeds(32))  # other shapes, other addresses
        assert watch() > 0
        assert runner.output_shapes() == {"y": (4, 3)}
        compute = runner.stopwatch(feeds(4), "compute", cuda_graph)
        runner.infer(feeds(16))
        assert compute() == pytest.approx(machine.cuda.kernel_ms / 1e3)


def test_an_engine_that_cannot_be_captured_is_launched_and_that_is_told(machine, tmp_path: Path) -> None:
    machine.cuda.capture_fails = True
    with backend.open_runner(machine.build(variant(tmp_path)), None) as runner:
        watch = runner.stopwatch(feeds(4), "compute", cuda_graph=True)
        assert watch() == pytest.approx(machine.cuda.kernel_ms / 1e3)
        assert machine.cuda.launches == []
        assert "could not run the engine" in runner.conditions()["cuda_graph_refused"]


def test_throughput_times_a_whole_query(machine, tmp_path: Path) -> None:
    with backend.open_runner(machine.build(variant(tmp_path)), None) as runner:
        before = machine.cuda.clock_ms
        runner.stopwatch(feeds(4), "throughput")()
        assert machine.cuda.clock_ms - before >= machine.cuda.kernel_ms + 2 * 0.25


def test_conditions_tell_memory_and_what_the_driver_says(machine, tmp_path: Path, monkeypatch) -> None:
    with backend.open_runner(machine.build(variant(tmp_path)), None) as runner:
        runner.infer(feeds(8))
        found = runner.conditions()
        assert found["activation_memory_bytes"] == 4096
        assert found["device_memory_peak_seen_bytes"] >= 8 * 4 * 4
        assert found["cuda_graph_refused"] is None


def test_what_the_driver_says_is_read_as_far_as_it_answers(monkeypatch) -> None:
    def refuse(handle):
        raise RuntimeError("not supported")

    library = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByPciBusId=lambda address: {"0000:3B:00.0": "ours"}[address],
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetClockInfo=lambda handle, kind: {"ours": (1980, 3201)}[handle][kind - 1],
        nvmlDeviceGetCurrentClocksThrottleReasons=refuse,
        nvmlDeviceGetTemperature=lambda handle, kind: 41,
        nvmlDeviceGetPowerUsage=lambda handle: 120_500,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert device_state.read("0000:3B:00.0") == {
        "sm_clock_megahertz": 1980, "memory_clock_megahertz": 3201, "temperature_celsius": 41, "power_watts": 120.5,
    }  # fmt: skip
    assert device_state.read("0000:5E:00.0") == {}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert device_state.read("0000:3B:00.0") == {}


def test_the_device_that_is_used_is_the_one_whose_state_is_told(machine, tmp_path: Path, monkeypatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(device_state, "read", lambda address: asked.append(address) or {"power_watts": 1.0})
    with backend.open_runner(machine.build(variant(tmp_path)), None) as runner:
        assert runner.conditions()["power_watts"] == 1.0
    assert asked == ["0000:3B:00.0"]


# What goes wrong


def test_a_run_that_tensorrt_refuses_is_a_run_error(machine, tmp_path: Path) -> None:
    with backend.open_runner(machine.build(variant(tmp_path)), None) as runner:
        machine.world.run_fails = True
        with pytest.raises(RunError, match="could not run the engine"):
            runner.infer(feeds(2))


@pytest.mark.parametrize(
    ("name", "result", "said"),
    [
        ("set_input_shape", False, "refuses the shape"),
        ("set_tensor_address", False, "refuses the address"),
        ("infer_shapes", ["x"], "cannot tell the shapes of x"),
    ],
)
def test_a_context_that_refuses_a_step_is_a_run_error(
    machine, tmp_path: Path, monkeypatch, name: str, result: object, said: str
) -> None:
    with backend.open_runner(machine.build(variant(tmp_path)), None) as runner:
        monkeypatch.setattr(machine.world, f"do_IExecutionContext_{name}", lambda *arguments: result)
        with pytest.raises(RunError, match=said):
            runner.infer(feeds(2))


def test_a_profile_that_cannot_be_changed_to_is_a_run_error(machine, tmp_path: Path, monkeypatch) -> None:
    profiles = tuple({"x": ShapeProfile((low, 4), (high, 4), (high, 4))} for low, high in ((1, 4), (5, 64)))
    monkeypatch.setattr(machine.world, "do_IExecutionContext_set_optimization_profile_async", lambda *arguments: False)
    with (
        backend.open_runner(machine.build(variant(tmp_path), profiles=profiles), None) as runner,
        pytest.raises(RunError, match="cannot change to profile 1"),
    ):
        runner.infer(feeds(40))


def test_a_context_without_memory_is_out_of_memory(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path))
    machine.world.context_fails = "2: [executionContext.cpp] Error Code 2: OutOfMemory (no further information)"
    with pytest.raises(OutOfMemory, match="needs 4,096 bytes"):
        backend.open_runner(engine, None)


def test_a_context_that_cannot_be_made_for_another_reason_is_not_called_out_of_memory(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path))
    machine.world.context_fails = (
        "1: Unexpected exception vector<bool>::_M_range_check: __n (which is 0) >= this->size()"
    )
    with pytest.raises(EngineError, match=r"makes no execution context.*_M_range_check") as caught:
        backend.open_runner(engine, None)
    assert not isinstance(caught.value, OutOfMemory)


def test_a_static_engine_gets_a_profile_without_which_8_6_runs_no_data_dependent_output(
    machine, tmp_path: Path
) -> None:
    made = variant(tmp_path, model=network(batch=2))
    engine = machine.build(made)
    machine.world.data_dependent = {"y"}
    with backend.open_runner(engine, None) as runner:
        np.testing.assert_array_equal(runner.infer(feeds(2))["y"], answer(made.path, feeds(2)))


def test_device_memory_that_is_full_is_out_of_memory_and_nothing_leaks(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path))
    machine.cuda.memory_limit_bytes = 100
    with backend.open_runner(engine, None) as runner, pytest.raises(OutOfMemory, match="cudaMalloc"):
        runner.infer(feeds(32))


@only_10
def test_an_engine_with_a_tensor_that_the_model_lacks_is_refused(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path))
    with pytest.raises(EngineError, match="'y', the model does not"):
        backend.open_runner(replace(engine, outputs=()), None)


@only_10
def test_a_tensor_of_a_type_without_numpy_name_is_refused(machine, tmp_path: Path, monkeypatch) -> None:
    engine = machine.build(variant(tmp_path))
    monkeypatch.setattr(machine.world, "do_ICudaEngine_get_tensor_dtype", lambda engine, name: machine.trt.DataType.FP4)
    with pytest.raises(EngineError, match="type FP4"):
        backend.open_runner(engine, None)
