"""A decoder with slots on TensorRT: what is launched, copied and given back, on the stand-ins."""

from __future__ import annotations

from pathlib import Path

import pytest
from counting_slots import MODULUS, counting_graph
from device_copies import teach_device_copies
from tiny_variants import variant

from workbench.engines.slot_decoding import SlotDecoder, open_slots
from workbench.errors import EngineError, RunError
from workbench.records import Engine


@pytest.fixture
def copying(machine, monkeypatch: pytest.MonkeyPatch):
    return teach_device_copies(machine, monkeypatch)


def engines(machine, folder: Path, slots: int = 3, *, keys_transposed: bool = True) -> list[Engine]:
    folder.mkdir()
    sizes = [("prefill", 1, 4), ("prefill", 2, 8), ("step", slots, 8), ("step", slots, 16)]
    graphs = [counting_graph(*size, keys_transposed=keys_transposed) for size in sizes]
    return [machine.build(variant(folder, dialect=machine.dialect, model=graph)) for graph in graphs]


def sums(decoder: SlotDecoder, tokens: dict[int, int]) -> list[float]:
    """Feed tokens; returns the sums of keys of the slots that were fed."""
    found = decoder.step(tokens)
    return [float(found[slot, 0]) for slot in tokens]


@pytest.mark.parametrize("keys_transposed", [False, True])
def test_sequences_join_leave_and_outgrow_their_cache(copying, tmp_path: Path, keys_transposed) -> None:
    made = engines(copying, tmp_path / "made", keys_transposed=keys_transposed)
    with open_slots(made) as decoder:
        assert (decoder.slots, decoder.largest_length) == (3, 16)
        slots, logits = decoder.add([[1, 2, 3], [10]])
        assert slots == [0, 1]
        assert logits.tolist() == [[6, 3], [10, 0]]
        totals = {0: 6, 1: 10}
        for token in range(4):  # the column goes round
            totals = {slot: total + token for slot, total in totals.items()}
            assert sums(decoder, {0: token, 1: token}) == list(totals.values())
        decoder.release([0])
        slots, _ = decoder.add([[5] * 6])  # across the end of the ring
        assert slots == [0]
        assert decoder.columns == 8
        totals = {0: 30, 1: totals[1]}
        for token in range(5):  # from the third on the longer cache is needed
            totals = {slot: total + token for slot, total in totals.items()}
            assert sums(decoder, {0: token, 1: token}) == list(totals.values())
        assert decoder.columns == 16
        decoder.release([0, 1])
        decoder.add([[2]])
        assert decoder.columns == 8  # nobody is left that needs the longer one
        assert sums(decoder, {0: 3}) == [5]


def test_greedy_tokens_are_fed_back_on_the_device_and_steps_are_launched_as_graphs(copying, tmp_path: Path) -> None:
    with open_slots(engines(copying, tmp_path / "made")) as decoder:
        decoder.add([[1, 2], [4]])
        tokens, totals = {0: 3, 1: 4}, {0: 3, 1: 4}
        for _ in range(5):
            totals = {slot: totals[slot] + token for slot, token in tokens.items()}
            found = decoder.step(tokens, logits=False)
            tokens = {slot: int(found[slot]) for slot in tokens}
            assert tokens == {slot: total % MODULUS for slot, total in totals.items()}
        assert copying.cuda.launches.count("graph") == 5
        other = {0: (tokens[0] + 1) % MODULUS, 1: tokens[1]}  # somebody chose another token
        totals = {slot: totals[slot] + token for slot, token in other.items()}
        assert sums(decoder, other) == list(totals.values())


def test_what_does_not_fit_is_refused_with_the_sizes(copying, tmp_path: Path) -> None:
    made = engines(copying, tmp_path / "made")
    with open_slots(made) as decoder:
        with pytest.raises(RunError, match="A prompt has 9 tokens; the longest prefill takes 8"):
            decoder.add([[1] * 9])
        with pytest.raises(RunError, match="4 prompts need a slot each, and 3 of 3 are free"):
            decoder.add([[1]] * 4)
        with pytest.raises(RunError, match="some of them empty"):
            decoder.add([[]])
        decoder.add([[1] * 8])
        with pytest.raises(RunError, match=r"Tokens came for the slots \[1\]; taken are \[0\]"):
            decoder.step({1: 1})
        for _ in range(8):
            decoder.step({0: 1})
        with pytest.raises(RunError, match="needs 17 columns of the cache; the longest has 16"):
            decoder.step({0: 1})
    with pytest.raises(EngineError, match="at least one prefill and one step; got 2 and 0"):
        open_slots(made[:2])
    (tmp_path / "free").mkdir()
    free = copying.build(
        variant(tmp_path / "free", dialect=copying.dialect, model=counting_graph("step", "n", 8, keys_transposed=True))
    )
    with pytest.raises(EngineError, match="takes engines of fixed sizes"):
        open_slots([made[0], free])
    wide = engines(copying, tmp_path / "wide", slots=5)[2]
    with pytest.raises(EngineError, match="different numbers of slots"):
        open_slots([*made, wide])
    other = engines(copying, tmp_path / "other", keys_transposed=False)[2]
    with pytest.raises(EngineError, match="keeps another cache than"):
        open_slots([*made, other])


def test_memory_and_bandwidth_come_from_the_device(copying, tmp_path: Path) -> None:
    with open_slots(engines(copying, tmp_path / "made")) as decoder:
        assert decoder.device.memory()["activation_bytes"] == 4 * 4096
        assert decoder.device.memory()["device_bytes"] > 0
        assert decoder.device.read_bandwidth(1_000_000) == pytest.approx(2e9)  # the stand-in's copy takes a millisecond


def test_tensorrt_for_rtx_decodes_with_slots_too(rtx, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copying = teach_device_copies(rtx, monkeypatch)
    made = engines(copying, tmp_path / "made")
    assert {engine.backend for engine in made} == {"tensorrt-rtx"}
    with open_slots(made) as decoder:
        decoder.add([[1, 2], [4]])
        assert sums(decoder, {0: 3, 1: 4}) == [6, 8]
        assert sums(decoder, {0: 1, 1: 2}) == [7, 10]
        assert copying.cuda.launches.count("graph") == 2
