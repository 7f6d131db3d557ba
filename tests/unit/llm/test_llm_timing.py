"""Measuring generation, what is derived from it, and the bytes that bound it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from workbench import codec
from workbench.errors import Cancelled, CompareError, DataError
from workbench.llm import eager, memory, rates, timing
from workbench.llm.loading import LanguageModel
from workbench.machine import turn
from workbench.machine.handle import Handle
from workbench.records import Engine, Measurement, Protocol, Round

QUICK = Protocol("end_to_end", 1, rounds=1, min_seconds=0.0, min_runs=2, warmup_seconds=0.0, warmup_runs=1)
WORKLOADS = [timing.Workload(5, 4, 1), timing.Workload(3, 2, 2)]


def measured(
    first: list[float], steps: list[float], name: str = "fp32", drift: float = 0.0, **conditions: object
) -> timing.GenerationMeasurement:
    """A made-up measurement of 10 + 5 x 2 with one round for each first token; steps get slower by `drift` a round."""

    def part(rounds: list[list[float]]) -> Measurement:
        items = tuple(
            Round(index, tuple(values), 0.0, float(index), 9_000_000, dict(conditions))
            for index, values in enumerate(rounds)
        )
        return Measurement(name, "sha", "onnxruntime-cpu", "cpu", QUICK, {}, items)

    workload = timing.Workload(10, 5, 2)
    return timing.GenerationMeasurement(
        workload,
        part([[value] for value in first]),
        part([[step * (1 + drift * index) for step in steps] for index in range(len(first))]),
        4_000_000,
        1000,
        5_000_000,
    )


def test_engines_and_eager_pytorch_are_measured_with_exactly_the_asked_tokens(
    language: LanguageModel, engine: Engine
) -> None:
    found = timing.measure_generation(language, [engine, eager.contestant(language)], WORKLOADS, QUICK)
    assert [(item.variant, item.workload) for item in found] == [
        (name, workload) for name in ("fp32", "transformers eager") for workload in WORKLOADS
    ]
    for item in found:
        (first,), (steps,) = item.first_token.rounds, item.step.rounds
        assert len(steps.latencies_seconds) == len(first.latencies_seconds) * (item.workload.output_tokens - 1)
        assert len(first.latencies_seconds) >= 2
        assert min(first.latencies_seconds + steps.latencies_seconds) > 0
    table = rates.table(found)
    assert list(table["Variant"]) == ["fp32", "fp32", "transformers eager", "transformers eager"]
    assert (table["Share of bound (%)"][:2] > 0).all()
    assert codec.from_json(timing.GenerationMeasurement, codec.to_json(found[0])) == found[0]


def test_rates_count_generated_tokens_over_the_whole_time() -> None:
    found = rates.speed(measured([0.1, 0.3], [0.02, 0.04, 0.02, 0.04]))
    assert found.output_token_seconds == pytest.approx(0.03)
    assert found.user_tokens_per_second == pytest.approx(1 / 0.03)
    # 2 sequences of 5 tokens in 0.22 s and in 0.42 s
    assert found.tokens_per_second == pytest.approx(10 / 0.32)
    assert found.first_token.median == pytest.approx(0.2)


def test_the_bound_is_bytes_of_weights_and_mean_cache_over_the_measured_bandwidth() -> None:
    rate = {"read_bandwidth_bytes_per_second": 1e9}
    found = rates.speed(measured([0.1], [0.01] * 4, **rate))
    assert found.bound_seconds == pytest.approx((4_000_000 + 2 * 12.5 * 1000) / 1e9)
    assert found.bound_share == pytest.approx(found.bound_seconds / 0.01)
    assert found.cache_bytes == 2 * 14 * 1000
    assert rates.speed(measured([0.1], [0.01] * 4)).bound_seconds is None


def test_activations_are_what_the_process_grew_by_beside_the_cache() -> None:
    seen = {"memory_open": {"process_bytes": 6_000_000}, "memory_after": {"process_bytes": 8_000_000}}
    found = rates.speed(measured([0.1], [0.01] * 4, **seen))
    assert found.activations_bytes == 9_000_000 - 6_000_000 - found.cache_bytes
    told = {"memory_open": {"device_bytes": 1}, "memory_after": {"activation_bytes": 77}}
    assert rates.speed(measured([0.1], [0.01] * 4, **told)).activations_bytes == 77
    assert rates.speed(measured([0.1], [0.01] * 4)).activations_bytes is None


def test_speed_ups_come_from_rounds_and_unlike_workloads_are_refused() -> None:
    slow, fast = measured([0.20, 0.21, 0.22], [0.02] * 4), measured([0.1, 0.104, 0.112], [0.005] * 4, "int8", 0.01)
    first, step = rates.faster(slow, fast)
    assert (first.value, step.value) == (pytest.approx(2, rel=0.02), pytest.approx(4, rel=0.02))  # the drifts
    with pytest.raises(CompareError, match=r"10 \+ 5 x 2 on cpu.*10 \+ 5 x 4"):
        rates.faster(slow, replace(fast, workload=timing.Workload(10, 5, 4)))


def test_embeddings_that_only_give_rows_are_not_read_whole_and_int4_counts_half_a_byte() -> None:
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["hidden"]),
        helper.make_node("Cast", ["half_table"], ["table_2"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["table_2", "ids"], ["other"]),
        helper.make_node("DequantizeLinear", ["packed", "scale"], ["weights"]),
        helper.make_node("MatMul", ["hidden", "weights"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(np.zeros((100, 6), np.float32), "table"),
        numpy_helper.from_array(np.zeros((100, 6), np.float16), "half_table"),
        helper.make_tensor("packed", TensorProto.INT4, [6, 8], bytes(24), raw=True),
        numpy_helper.from_array(np.ones((), np.float32), "scale"),
    ]
    proto = helper.make_model(helper.make_graph(nodes, "g", [], [], constants))
    assert memory.graph_read_bytes(proto) == 24 + 4
    proto.graph.node.append(helper.make_node("MatMul", ["hidden", "table"], ["tied"]))  # a head that shares the table
    assert memory.graph_read_bytes(proto) == 24 + 4 + 2400


def test_weights_read_by_a_step_are_those_of_the_engines_file(engine: Engine) -> None:
    assert 0.5 * engine.size_bytes < memory.weights_read_bytes(engine) < engine.size_bytes
    assert memory.weights_read_bytes(replace(engine, path="engine.plan")) == engine.size_bytes
    assert onnx.load(engine.path).graph.initializer


@pytest.mark.parametrize(
    ("options", "said"),
    [((0, 5, 1), "input_tokens is 0"), ((5, 1, 1), "output_tokens is 1"), ((5, 5, 0), "batch is 0")],
)
def test_workloads_without_a_decode_step_are_refused(options: tuple[int, int, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        timing.Workload(*options)


def test_what_cannot_be_measured_is_refused_before_anything_starts(language: LanguageModel, engine: Engine) -> None:
    with pytest.raises(DataError, match="0 engines and 2 workloads"):
        timing.measure_generation(language, [], WORKLOADS)
    with pytest.raises(DataError, match="Two engines are named 'fp32'"):
        timing.measure_generation(language, [engine, engine], WORKLOADS)
    with pytest.raises(DataError, match=r"100 \+ 40 x 1 needs 140 tokens a sequence; .* takes 128"):
        timing.measure_generation(language, [engine], [timing.Workload(100, 40)])
    with pytest.raises(Cancelled, match="before round 1"):
        timing.measure_generation(language, [engine], WORKLOADS, QUICK, handle=Handle(cancelled=lambda: True))


def test_generation_waits_for_another_measurement_and_says_so(language: LanguageModel, engine: Engine) -> None:
    told: list[str] = []
    with turn.measuring(), pytest.raises(Cancelled, match="another measurement"):
        timing.measure_generation(
            language,
            [engine],
            WORKLOADS,
            QUICK,
            progress=lambda step: told.append(step.message),
            handle=Handle(cancelled=lambda: bool(told)),
        )
    assert "waiting for another measurement" in told[0]


def test_whoever_keeps_the_error_of_a_stopped_measurement_does_not_keep_the_turn(
    language: LanguageModel, engine: Engine
) -> None:
    with pytest.raises(Cancelled) as kept:
        timing.measure_generation(language, [engine], WORKLOADS, QUICK, handle=Handle(cancelled=lambda: True))
    with turn.measuring(Handle(cancelled=lambda: True)):
        assert kept.value
