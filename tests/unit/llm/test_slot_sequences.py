"""Generation and serving with slots give what a growing cache gives."""

from __future__ import annotations

import numpy as np
import pytest

import workbench as wb
from workbench import llm
from workbench.engines.decoding import Decoder
from workbench.engines.slot_decoding import open_slots
from workbench.llm.loading import LanguageModel
from workbench.llm.requests import Lengths, Request, Traffic
from workbench.llm.sampling import Sampling
from workbench.llm.serving import ContinuousBatching, DynamicBatching, NoBatching, serve
from workbench.llm.slot_sequences import SlotSequences
from workbench.llm.timing import generate_timed
from workbench.records import Engine


def test_generation_is_the_same_greedy_or_drawn_and_with_early_ends(
    slot_model: llm.SlotModel, slot_engines: list[Engine], language: LanguageModel, decoder: Decoder
) -> None:
    prompts = [[3, 4, 5], [6], [7, 8, 9, 10, 11], [2]]
    with open_slots(slot_engines, slots=4, columns=(8, 32, 64), threads=1) as slots:
        for options in ({}, {"sampling": Sampling(0.8, seed=3)}, {"stop": [5, 9, 17]}):
            ours = llm.generate(slot_model, slots, prompts, new_tokens=20, **options)
            assert ours == llm.generate(language, decoder, prompts, new_tokens=20, **options)


@pytest.mark.parametrize("policy", [NoBatching(), DynamicBatching(4, 0.001), ContinuousBatching(3)])
def test_requests_get_the_same_answers_under_every_policy(slot_engines: list[Engine], decoder: Decoder, policy) -> None:
    generator = np.random.default_rng(0)
    requests = [
        Request(0.002 * index, tuple(generator.integers(1, 61, generator.integers(1, 9)).tolist()), int(answer))
        for index, answer in enumerate(generator.integers(1, 12, 9))
    ]
    with open_slots(slot_engines, slots=policy.most, columns=(8, 16, 32), threads=1) as slots:
        served = serve(slots, requests, policy)
        assert served.answers == serve(decoder, requests, policy).answers
        assert served.widest <= policy.most
        assert slots.free == slots.slots


def test_traffic_goes_to_a_prefill_and_a_step_in_one_process(slot_model: llm.SlotModel, slot_engines) -> None:
    text = np.random.default_rng(0).integers(1, 61, 500)
    traffic = Traffic(12, Lengths(6, 0.5, 2, 12), Lengths(4, 0.5, 1, 8))
    (run,) = llm.serve_traffic(
        slot_model, slot_engines, [ContinuousBatching(4)], [200.0], text, traffic=traffic, threads=1
    )
    assert not np.isnan(run.finished).any()
    assert run.variant == "fp32"
    assert run.widest_batch <= 4


def test_sequences_leave_and_the_last_closes_the_hole(slot_engines: list[Engine], decoder: Decoder) -> None:
    with open_slots(slot_engines, slots=3, columns=(16,), threads=1) as slots:
        rows = SlotSequences(slots)
        rows.add([[3], [4, 5], [6, 7, 8]])
        rows.accept(np.array([1, 2, 3]))
        assert rows.lengths.tolist() == [1, 2, 3]
        assert rows.step().shape == (3, 61)
        rows.keep([1, 2])  # the first one's slot is free now, and the last one moves there
        assert rows.lengths.tolist() == [3, 4]
        assert (len(rows), rows.columns, slots.free) == (2, 16, 1)
        rows.accept(np.array([9]), [1])
        after = rows.step()
        alone = llm.Sequences(decoder)
        alone.add([[6, 7, 8]])
        alone.accept(np.array([3]))
        alone.step()
        alone.accept(np.array([9]))
        np.testing.assert_allclose(after[1], alone.step()[0], rtol=0, atol=1e-4)  # FP32 sums in another order
        rows.keep([])
        assert (len(rows), slots.free) == (0, 3)


def test_timing_counts_a_prefill_and_steps(slot_engines: list[Engine]) -> None:
    with open_slots(slot_engines, slots=2, columns=(16,), threads=1) as slots:
        first, steps = generate_timed(slots, np.array([[1, 2], [3, 4]]), 5)
        assert first > 0
        assert len(steps) == 4
        assert slots.device.memory()["process_bytes"] > 0
        assert slots.device.read_bandwidth(1 << 20) > 0


def test_a_decoder_with_slots_is_measured_beside_one_whose_cache_grows(
    slot_model: llm.SlotModel, slot_engines: list[Engine], engine: Engine
) -> None:
    protocol = wb.Protocol("end_to_end", rounds=1, min_seconds=0.0, min_runs=1, warmup_seconds=0.0, warmup_runs=1)
    contestants = [engine, llm.slots_contestant(slot_engines, "slots")]
    workloads = [llm.Workload(5, 4), llm.Workload(5, 4, 3)]
    measured = llm.measure_generation(slot_model, contestants, workloads, protocol, threads=1)
    assert [(item.variant, item.workload.batch) for item in measured] == [
        ("fp32", 1),
        ("fp32", 3),
        ("slots", 1),
        ("slots", 3),
    ]
    assert measured[0].token_bytes == measured[2].token_bytes
    assert all(len(item.step.rounds[0].latencies_seconds) == 3 for item in measured)
