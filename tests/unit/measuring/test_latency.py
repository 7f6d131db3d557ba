from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from workbench import codec
from workbench.errors import Cancelled, ChildKilled, DataError, EngineError, RunError
from workbench.machine import child
from workbench.machine.handle import Handle
from workbench.measuring import latency as measurement
from workbench.measuring.latency import RoundJob
from workbench.records import (
    Boundary,
    BuildOptions,
    Engine,
    Failure,
    Measurement,
    Progress,
    Protocol,
    Round,
    TensorSpec,
)

FEEDS = {"x": np.zeros((8, 4), dtype=np.float32)}
SHORT = Protocol(rounds=3, min_seconds=0.0, min_runs=3, warmup_seconds=0.0, warmup_runs=1)


class ScriptedClock:
    """Time that moves only when something is said to take time, so that loops over seconds can be tested exactly."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeRunner:
    """A runner whose calls take scripted seconds of a scripted clock."""

    inputs = (TensorSpec("x", "float32", (None, 4)),)
    outputs = (TensorSpec("y", "float32", (None, 4)),)

    def __init__(self, clock: ScriptedClock, seconds: Callable[[int], float] = lambda call: 0.01) -> None:
        self.clock, self.seconds = clock, seconds
        self.calls = 0
        self.collecting: list[bool] = []
        self.boundaries: list[str] = []
        self.closed = False

    def __enter__(self) -> FakeRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.closed = True

    def infer(self, feeds: Any) -> dict[str, np.ndarray]:
        return {"y": feeds["x"]}

    def stopwatch(self, feeds: Any, boundary: Boundary, cuda_graph: bool = False) -> Callable[[], float]:
        self.boundaries.append(boundary)

        def once() -> float:
            took = self.seconds(self.calls)
            self.calls += 1
            self.clock.now += took
            self.collecting.append(gc.isenabled())
            return took

        return once

    def conditions(self) -> dict[str, Any]:
        return {"sm_megahertz": 1980}


def engine(variant: str, **changes: Any) -> Engine:
    spec = (TensorSpec("x", "float32", (None, 4)),)
    plain = Engine(
        variant, variant, "all", "fake", "1.0", "Fake device", f"{variant}.onnx", spec, spec, 0.1, 10, log="a long log"
    )
    return replace(plain, **{"options": BuildOptions(threads=1), **changes})


class FakeChildren:
    """Child processes that answer from a script: which jobs came in which order, which variant dies and when."""

    def __init__(self, deaths: dict[tuple[str, int], Exception] | None = None) -> None:
        self.deaths = deaths or {}
        self.jobs: list[tuple[str, int]] = []
        self.threads: list[int | None] = []

    def __call__(self, target: str, job: RoundJob, arrays: Any, *, returns: type, handle: Handle) -> child.Answer:
        assert target == "workbench.measuring.latency:measure_job" and returns is Round
        key = (job.engine.variant, job.index)
        assert job.engine.log == "", "a child has no use for the log"
        self.jobs.append(key)
        self.threads.append(job.threads)
        if key in self.deaths:
            raise self.deaths[key]
        item = Round(job.index, (1e-3,) * 3, 0.1, float(len(self.jobs)))
        return child.Answer(item)


def test_warm_up_is_left_out_and_lasts_until_both_limits_are_reached() -> None:
    clock = ScriptedClock()
    # Binary fractions, so that sums of them are exact.
    runner = FakeRunner(clock, lambda call: 0.0625 if call < 4 else 0.015625)
    protocol = Protocol(min_seconds=0.125, min_runs=5, warmup_seconds=0.25, warmup_runs=2)
    latencies, found = measurement.sample([runner], FEEDS, protocol, clock)
    assert found["warmup_runs"] == 4  # reach 0.25 s; two runs would not
    assert latencies == (0.015625,) * 8  # reach 0.125 s; five runs would not


def test_the_least_number_of_runs_holds_where_calls_are_slow() -> None:
    clock = ScriptedClock()
    protocol = Protocol(min_seconds=0.5, min_runs=7, warmup_seconds=0.5, warmup_runs=3)
    latencies, found = measurement.sample([FakeRunner(clock, lambda call: 1.0)], FEEDS, protocol, clock)
    assert (len(latencies), found["warmup_runs"]) == (7, 3)


def test_garbage_is_not_collected_while_timing_and_is_again_afterwards() -> None:
    runner = FakeRunner(ScriptedClock())
    measurement.sample([runner], FEEDS, SHORT, runner.clock)
    assert runner.collecting and not any(runner.collecting)
    assert gc.isenabled()


def test_garbage_collection_comes_back_after_a_failure() -> None:
    def fail(call: int) -> float:
        raise RunError("the device is gone")

    runner = FakeRunner(ScriptedClock(), fail)
    with pytest.raises(RunError):
        measurement.sample([runner], FEEDS, SHORT, runner.clock)
    assert gc.isenabled()


def test_the_boundary_reaches_the_runner_and_its_conditions_come_back() -> None:
    runner = FakeRunner(ScriptedClock())
    _, found = measurement.sample([runner], FEEDS, Protocol(boundary="end_to_end"), runner.clock)
    assert runner.boundaries == ["end_to_end"]
    assert found["device"] == {"sm_megahertz": 1980} and "queries_per_second" not in found


def test_throughput_counts_calls_from_the_first_start_to_the_last_end() -> None:
    clock = ScriptedClock()
    runner = FakeRunner(clock, lambda call: 0.125)
    protocol = Protocol(boundary="throughput", min_seconds=1.0, warmup_seconds=0.0, warmup_runs=1)
    _, found = measurement.sample([runner], FEEDS, protocol, clock)
    assert found["queries_per_second"] == pytest.approx(8.0)


def test_streams_run_at_once_each_with_its_own_runner() -> None:
    meeting = threading.Barrier(3)

    def meet(call: int) -> float:
        meeting.wait(timeout=10)  # passes only if all three streams are in a call at the same time
        return 0.01

    runners = [FakeRunner(ScriptedClock(), meet) for _ in range(3)]
    protocol = Protocol(
        boundary="throughput", streams=3, min_seconds=0.0, min_runs=4, warmup_seconds=0.0, warmup_runs=2
    )
    latencies, found = measurement.sample(runners, FEEDS, protocol)
    assert len(latencies) == 12 and found["warmup_runs"] == 6 and found["queries_per_second"] > 0
    assert [runner.calls for runner in runners] == [6, 6, 6]


def test_a_stream_that_fails_while_warming_up_ends_the_others_and_its_error_is_the_one_shown() -> None:
    def fail(call: int) -> float:
        raise RunError("stream 2 ran out of memory")

    clock = ScriptedClock()
    runners = [FakeRunner(clock), FakeRunner(clock, fail)]
    protocol = Protocol(boundary="throughput", streams=2, min_seconds=0.0, warmup_seconds=0.0)
    with pytest.raises(RunError, match="stream 2 ran out of memory"):
        measurement.sample(runners, FEEDS, protocol, clock)


def test_a_round_opens_one_runner_a_stream_and_closes_them() -> None:
    clock = ScriptedClock()
    opened: list[FakeRunner] = []

    def open_runner() -> FakeRunner:
        clock.now += 0.25
        opened.append(FakeRunner(clock))
        return opened[-1]

    item = measurement.round_here(open_runner, FEEDS, SHORT, index=2, clock=clock)
    assert item.index == 2 and item.open_seconds == pytest.approx(0.25)
    assert len(opened) == 1 and opened[0].closed
    assert codec.from_json(Round, codec.to_json(item)) == item


def test_variants_take_turns_in_an_order_drawn_anew_and_the_same_for_a_seed() -> None:
    engines = [engine(name) for name in ("a", "b", "c")]
    protocol = Protocol(rounds=12)
    first, again, other = FakeChildren(), FakeChildren(), FakeChildren()
    measurement.measure(engines, FEEDS, protocol, call=first)
    measurement.measure(engines, FEEDS, protocol, call=again)
    measurement.measure(engines, FEEDS, Protocol(rounds=12, seed=1), call=other)
    assert [index for _, index in first.jobs] == [index for index in range(12) for _ in range(3)]
    orders = {tuple(name for name, index in first.jobs if index == turn) for turn in range(12)}
    assert len(orders) > 1 and all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert first.jobs == again.jobs != other.jobs


def test_finished_rounds_are_not_measured_again_and_what_lacks_is_measured_beside_the_first() -> None:
    engines = [engine(name) for name in ("a", "b", "c")]
    whole, rest = FakeChildren(), FakeChildren()
    stored: dict[str, list[Round]] = {}
    measurement.measure(
        engines,
        FEEDS,
        SHORT,
        call=whole,
        on_round=lambda built, item: stored.setdefault(built.variant, []).append(item),
    )
    finished = {"a": stored["a"], "b": stored["b"][:2], "c": stored["c"]}
    found = measurement.measure(engines, FEEDS, SHORT, call=rest, finished=finished)
    assert sorted(rest.jobs) == [("a", 3), ("b", 3)]
    assert {name: [item.index for item in record.rounds] for name, record in found.items()} == {
        "a": [0, 1, 2, 3],
        "b": [0, 1, 3],
        "c": [0, 1, 2],
    }


def test_a_variant_whose_child_dies_fails_with_its_log_while_the_others_go_on() -> None:
    children = FakeChildren({("b", 1): ChildKilled("was ended by SIGKILL", log="last words")})
    found = measurement.measure([engine("a"), engine("b")], FEEDS, SHORT, call=children)
    assert found["b"] == Failure("b", "measure", "ChildKilled", "was ended by SIGKILL", "last words")
    assert isinstance(found["a"], Measurement) and len(found["a"].rounds) == 3
    assert ("b", 2) not in children.jobs


def test_cancel_stops_between_rounds_and_finished_rounds_were_handed_over() -> None:
    kept: list[Round] = []
    with pytest.raises(Cancelled, match="Finished rounds are kept"):
        measurement.measure(
            [engine("a"), engine("b")],
            FEEDS,
            SHORT,
            call=FakeChildren(),
            handle=Handle(cancelled=lambda: len(kept) == 3),
            on_round=lambda built, item: kept.append(item),
        )
    assert len(kept) == 3


def test_cancel_inside_a_child_is_no_failure_of_the_variant() -> None:
    with pytest.raises(Cancelled, match="Stopped as asked"):
        measurement.measure([engine("a")], FEEDS, SHORT, call=FakeChildren({("a", 0): Cancelled("Stopped as asked.")}))


def test_progress_goes_from_zero_to_one() -> None:
    steps: list[Progress] = []
    measurement.measure([engine("a"), engine("b")], FEEDS, SHORT, call=FakeChildren(), progress=steps.append)
    fractions = [step.fraction for step in steps]
    assert fractions[0] == 0.0 and fractions[-1] == 1.0 and fractions == sorted(fractions)


def test_a_measurement_says_what_was_fed_and_with_how_many_threads() -> None:
    children = FakeChildren()
    found = measurement.measure([engine("a")], FEEDS, SHORT, threads=2, call=children)["a"]
    assert isinstance(found, Measurement)
    assert found.shapes == {"x": (8, 4)} and found.environment["threads"] == 2 and set(children.threads) == {2}
    assert found.environment["backend_version"] == "1.0" and found.protocol == SHORT


@pytest.mark.parametrize(
    ("engines", "feeds", "protocol", "words"),
    [
        ([], FEEDS, SHORT, "no engine to measure"),
        ([engine("a"), engine("a")], FEEDS, SHORT, "Two engines are named 'a'"),
        ([engine("a")], {"x": np.zeros((3, 4), np.float32)}, SHORT, r"was fed \(3, 4\), but the protocol says 8"),
    ],
)
def test_measure_refuses_what_makes_no_sense(engines: Any, feeds: Any, protocol: Protocol, words: str) -> None:
    with pytest.raises(DataError, match=words):
        measurement.measure(engines, feeds, protocol, call=FakeChildren())


def test_several_streams_need_the_boundary_throughput() -> None:
    with pytest.raises(ValueError, match="2 streams at once"):
        Protocol(streams=2)


def test_an_input_without_a_batch_axis_is_fed_as_it_is() -> None:
    fixed = engine("a", inputs=(TensorSpec("x", "float32", (None, 4)), TensorSpec("scale", "float32", ())))
    feeds = {**FEEDS, "scale": np.float32(1.0).reshape(())}
    assert isinstance(measurement.measure([fixed], feeds, SHORT, call=FakeChildren())["a"], Measurement)


@contextmanager
def tiny_model(folder: Path) -> Iterator[Path]:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    graph = helper.make_graph(
        nodes,
        "relu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
    )
    path = folder / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    yield path


def test_a_real_engine_is_measured_in_a_fresh_process(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    with tiny_model(tmp_path) as path:
        built = engine("fp32", backend="onnxruntime-cpu", path=str(path))
        item = measurement.take_round(built, FEEDS, SHORT, 4)
    assert item.index == 4 and len(item.latencies_seconds) >= 3 and min(item.latencies_seconds) > 0
    assert item.peak_memory_bytes and item.open_seconds > 0 and item.conditions["timed_seconds"] > 0


def test_an_engine_whose_file_is_gone_is_an_engine_error(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    gone = engine("fp32", backend="onnxruntime-cpu", path=str(tmp_path / "gone.onnx"))
    with pytest.raises(EngineError, match="is gone"):
        measurement.take_round(gone, FEEDS, SHORT, 0)
