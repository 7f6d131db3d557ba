"""The cache of a decoder on TensorRT: what is launched, copied and given back, on the stand-ins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from counting_decoder import counting_decoder
from device_copies import teach_device_copies
from tiny_variants import variant

from workbench.engines.decoding import Decoder, open_decoder
from workbench.errors import RunError
from workbench.records import Engine, ShapeProfile

LIMITS = {
    "input_ids": ((1, 1), (2, 4), (4, 8)),
    "attention_mask": ((1, 1), (2, 80), (4, 400)),
    "position_ids": ((1, 1), (2, 4), (4, 8)),
    "past_key_values.0.key": ((1, 1, 0, 1), (2, 1, 64, 1), (4, 1, 392, 1)),
    "past_key_values.0.value": ((1, 1, 0, 1), (2, 1, 64, 1), (4, 1, 392, 1)),
}


@pytest.fixture
def copying(machine, monkeypatch: pytest.MonkeyPatch):
    return teach_device_copies(machine, monkeypatch)


def engine(machine, folder: Path) -> Engine:
    folder.mkdir()
    made = variant(folder, dialect=machine.dialect, model=onnx.load(counting_decoder(folder / "counting.onnx")))
    profile = {name: ShapeProfile(*shapes) for name, shapes in LIMITS.items()}
    return machine.build(made, profiles=(profile,))


def fed(decoder: Decoder, rows: Sequence[Sequence[int]], cache: object, mask: np.ndarray) -> tuple[list, object]:
    tokens = np.array(rows)
    new = np.arange(mask.shape[1] - tokens.shape[1], mask.shape[1])
    logits, grown = decoder.step(tokens, mask, np.broadcast_to(new, tokens.shape), cache)
    return logits[:, 0].tolist(), grown


def ones(batch: int, columns: int) -> np.ndarray:
    return np.ones((batch, columns), np.int64)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_the_cache_grows_step_by_step_and_only_logits_come_to_the_host(copying, tmp_path: Path, cuda_graph) -> None:
    with open_decoder(engine(copying, tmp_path / "made"), cuda_graph=cuda_graph) as decoder:
        sums, cache = fed(decoder, [[1, 2, 3], [4, 5, 6]], decoder.empty(2), ones(2, 3))
        assert sums == [6, 15]
        total = np.array([6, 15])
        for step in range(70):  # beyond the 64 columns of room
            sums, cache = fed(decoder, [[step], [1]], cache, ones(2, 4 + step))
            total += [step, 1]
            assert sums == total.tolist()
        assert cache.length == 73
        assert cache.size_bytes == 2 * 73 * decoder.layout.token_bytes
    launches = copying.cuda.launches.count("graph")
    # Three shapes need a first launch: room for 64, which ends after 61 steps, and room for 128.
    assert launches == (68 if cuda_graph else 0)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_sequences_join_and_leave_on_the_device(copying, tmp_path: Path, cuda_graph) -> None:
    with open_decoder(engine(copying, tmp_path / "made"), cuda_graph=cuda_graph) as decoder:
        _, long = fed(decoder, [[1, 2, 3]], decoder.empty(1), ones(1, 3))
        _, long = fed(decoder, [[4]], long, ones(1, 4))
        _, short = fed(decoder, [[7], [8]], decoder.empty(2), ones(2, 1))
        joined = decoder.join(long, short)
        assert (joined.batch, joined.length) == (3, 4)
        sums, joined = fed(decoder, [[10], [10], [10]], joined, ones(3, 5))  # the padding is zero
        assert sums == [20, 17, 18]
        kept = decoder.keep(joined, [2, 0], 2)
        sums, kept = fed(decoder, [[0], [0]], kept, ones(2, 3))
        assert sums == [8 + 10, 4 + 10]
        hidden = np.array([[0, 1, 1, 1], [1, 1, 1, 1]])
        sums, _ = fed(decoder, [[1], [1]], kept, hidden)
        assert sums == [11, 15]


def test_feeds_that_do_not_fit_are_refused_and_everything_is_given_back(copying, tmp_path: Path) -> None:
    with open_decoder(engine(copying, tmp_path / "made")) as decoder:
        with pytest.raises(RunError, match=r"the mask must be \(1, 1\)"):
            fed(decoder, [[1]], decoder.empty(1), ones(1, 2))
        with pytest.raises(RunError, match="outside what the engine was built for"):
            fed(decoder, [[1] * 9], decoder.empty(1), ones(1, 9))


def test_memory_and_bandwidth_come_from_the_device(copying, tmp_path: Path) -> None:
    with open_decoder(engine(copying, tmp_path / "made")) as decoder:
        assert decoder.memory()["activation_bytes"] == 4096
        assert decoder.memory()["device_bytes"] > 0
        assert decoder.read_bandwidth(1_000_000) == pytest.approx(2e9)  # the stand-in's copy takes a millisecond
