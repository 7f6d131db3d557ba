"""Slots on ONNX Runtime: the ring of columns, closing holes, growing, and engines that do not belong together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from counting_slots import MODULUS, counting_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import engines
from workbench.engines.slot_decoding import SlotDecoder, open_slots
from workbench.engines.slots import slot_layout
from workbench.errors import EngineError, RunError
from workbench.machine.store import Store
from workbench.models import onnx_file
from workbench.recipes import named
from workbench.records import Engine
from workbench.transformation.steps import transform


def built(folder: Path, *sizes: tuple, keys_transposed: bool = False) -> list[Engine]:
    found = []
    for number, size in enumerate(sizes):
        path = folder / f"{number}.onnx"
        onnx.save(counting_graph(*size, keys_transposed=keys_transposed), str(path))
        store = Store(folder / "store")
        variant = transform(onnx_file.read(path), named("fp32-unfused"), store=store)
        found.append(engines.build(variant, "onnxruntime-cpu", store=store))
    return found


@pytest.fixture(scope="module", params=[False, True], ids=["keys as they are", "keys transposed"])
def free(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Engine]:
    folder = tmp_path_factory.mktemp("free")
    return built(folder, ("prefill", "n", "t"), ("step", "n", "l"), keys_transposed=request.param)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("asr"), st.integers(0, 5)), min_size=5, max_size=40))
def test_whoever_joins_and_leaves_every_slot_sums_its_own_tokens(free: list[Engine], moves: list) -> None:
    """`a` adds a prompt, `s` steps, `r` releases one: the sums of the cache are those of a list a sequence."""
    with open_slots(free, slots=3, columns=(4, 8, 32), threads=1) as decoder:
        kept: dict[int, list[int]] = {}
        for move, number in moves:
            longest = max(map(len, kept.values()), default=0)
            if move == "a" and decoder.free:
                prompt = [number + 1] * (number + 1)
                (slot,), logits = decoder.add([prompt])
                kept[slot] = list(prompt)
                assert logits[0].tolist() == [sum(prompt), sum(range(len(prompt)))]
            elif move == "s" and kept and longest < 32:
                fed = {slot: number + slot for slot in kept}
                found = decoder.step(fed)
                for slot, token in fed.items():
                    kept[slot].append(token)
                    assert found[slot].tolist() == [sum(kept[slot]), sum(range(len(kept[slot])))]
            elif move == "r" and kept:
                slot = sorted(kept)[number % len(kept)]
                del kept[slot]
                moved = decoder.release([slot])
                kept = {moved.get(slot, slot): tokens for slot, tokens in kept.items()}
                assert sorted(kept) == list(range(len(kept)))  # no holes
            assert {slot: len(tokens) for slot, tokens in kept.items()} == {
                slot: int(length) for slot, length in enumerate(decoder.lengths) if length
            }


def greedy(decoder: SlotDecoder, steps: int) -> list[int]:
    (slot,), logits = decoder.add([[3, 5]])
    tokens, total = [int(logits[0, 0]) % MODULUS], 8
    for _ in range(steps):
        total += tokens[-1]
        tokens.append(int(decoder.step({slot: tokens[-1]}, logits=False)[slot]))
        assert tokens[-1] == total % MODULUS
    return tokens


def test_greedy_tokens_come_without_logits(free: list[Engine]) -> None:
    with open_slots(free, slots=2, columns=(4, 16), threads=1) as decoder:
        assert len(greedy(decoder, 12)) == 13


def test_engines_that_do_not_belong_together_are_refused(free: list[Engine], tmp_path: Path) -> None:
    prefill, step = free
    with pytest.raises(EngineError, match="at least one prefill and one step; got 0 and 1"):
        open_slots([step])
    with pytest.raises(EngineError, match=r"several backends \(onnxruntime-cpu, openvino\)"):
        open_slots([prefill, replace(step, backend="openvino")])
    with pytest.raises(EngineError, match="'openvino' has no decoder with slots"):
        open_slots([replace(engine, backend="openvino") for engine in free])
    with pytest.raises(EngineError, match=r"is gone. Build the variant 'fp32-unfused' again"):
        open_slots([prefill, replace(step, path=str(tmp_path / "no.onnx"))])


def test_graphs_that_are_no_decoder_with_slots_are_refused(free: list[Engine]) -> None:
    prefill, step = free
    with pytest.raises(EngineError, match=r"it lacks values.1"):
        slot_layout(step.inputs[:-1], step.outputs)
    with pytest.raises(EngineError, match="it lacks logits"):
        slot_layout(prefill.inputs, prefill.outputs[1:])
    with pytest.raises(EngineError, match="it lacks new_"):
        slot_layout(prefill.inputs, prefill.outputs[:2])
    loose = [replace(spec, shape=(None,) * len(spec.shape)) for spec in prefill.outputs]
    with pytest.raises(EngineError, match="must be fixed"):
        slot_layout(prefill.inputs, loose)


def test_what_the_runtime_refuses_is_a_run_error(free: list[Engine]) -> None:
    with open_slots(free, slots=1, columns=(4,), threads=1) as decoder:
        with pytest.raises(RunError):
            decoder.device.prefill(np.zeros((1, 2), np.float32), np.ones(1, np.int32))
        decoder.add([[1]])
        decoder.device._values = decoder.device._values[:, :, :1]  # one head too few
        with pytest.raises(RunError):
            decoder.step({0: 1})
