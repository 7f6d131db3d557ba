"""The cache of a decoder on ONNX Runtime: layout, joining, keeping, and what does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from counting_decoder import counting_decoder
from onnx import TensorProto

from workbench.engines.decoding import Decoder, cache_layout, open_decoder
from workbench.errors import EngineError, RunError
from workbench.machine.store import Store
from workbench.models import load
from workbench.recipes import named
from workbench.records import Engine, TensorSpec
from workbench.transformation.steps import transform


def built(path: Path, store: Store) -> Engine:
    from workbench import engines

    return engines.build(transform(load(str(path)), named("fp32"), store=store), "onnxruntime-cpu", store=store)


@pytest.fixture(params=[TensorProto.FLOAT, TensorProto.FLOAT16], ids=["fp32 cache", "fp16 cache"])
def decoder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Decoder]:
    engine = built(counting_decoder(tmp_path / "counting.onnx", request.param), Store(tmp_path / "store"))
    with open_decoder(engine, 1) as opened:
        yield opened


def prefill(decoder: Decoder, rows: list[list[int]]) -> tuple[np.ndarray, object]:
    tokens = np.array(rows)
    positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    return decoder.step(tokens, np.ones_like(tokens), positions, decoder.empty(len(tokens)))


def test_the_cache_grows_by_the_tokens_that_are_fed(decoder: Decoder) -> None:
    logits, cache = prefill(decoder, [[1, 2, 3], [4, 5, 6]])
    assert logits.tolist() == [[6, 3], [15, 3]]
    assert (cache.batch, cache.length) == (2, 3)  # type: ignore[attr-defined]
    assert cache.size_bytes == 2 * 3 * decoder.layout.token_bytes  # type: ignore[attr-defined]
    logits, cache = decoder.step(np.array([[10], [20]]), np.ones((2, 4), np.int64), np.array([[3], [3]]), cache)
    assert logits.tolist() == [[16, 6], [35, 6]]
    assert logits.dtype == np.float32


@pytest.mark.parametrize("swapped", [False, True])
def test_joined_caches_are_padded_at_the_front_to_the_longer_one(decoder: Decoder, swapped: bool) -> None:
    long, short = prefill(decoder, [[1, 2, 3]])[1], prefill(decoder, [[7], [8]])[1]
    joined = decoder.join(short, long) if swapped else decoder.join(long, short)
    assert (joined.batch, joined.length) == (3, 3)
    mask = np.ones((3, 4), np.int64)
    new, positions = np.full((3, 1), 10), np.full((3, 1), 3)
    wanted = [17, 18, 16] if swapped else [16, 17, 18]  # the padding is zero, so even an open mask adds nothing
    assert decoder.step(new, mask, positions, joined)[0][:, 0].tolist() == wanted


def test_kept_sequences_come_in_the_asked_order_with_their_last_columns(decoder: Decoder) -> None:
    cache = prefill(decoder, [[1, 2, 3], [4, 5, 6], [7, 8, 9]])[1]
    kept = decoder.keep(cache, [2, 0], 2)
    assert (kept.batch, kept.length) == (2, 2)
    logits, _ = decoder.step(np.zeros((2, 1), np.int64), np.ones((2, 3), np.int64), np.zeros((2, 1), np.int64), kept)
    assert logits[:, 0].tolist() == [8 + 9, 2 + 3]


def test_feeds_that_do_not_fit_the_cache_are_refused(decoder: Decoder) -> None:
    one = np.ones((1, 1), np.int64)
    with pytest.raises(RunError, match=r"the mask must be \(1, 1\)"):
        decoder.step(one, np.ones((1, 2), np.int64), one, decoder.empty(1))
    with pytest.raises(RunError, match="2 sequences"):
        decoder.step(one, one, one, decoder.empty(2))


def test_memory_and_bandwidth_are_measured_here_and_now(decoder: Decoder) -> None:
    assert decoder.memory()["process_bytes"] > 10_000_000
    assert decoder.read_bandwidth(1_000_000) > 1e8  # any machine reads 0.1 GB/s


def test_a_model_without_a_cache_is_no_decoder() -> None:
    tokens = TensorSpec("input_ids", "int64", (None, None))
    with pytest.raises(EngineError, match="it lacks attention_mask, position_ids"):
        cache_layout([tokens], [TensorSpec("logits", "float32", (None, None, 7))])


def test_a_cache_of_unknown_width_is_refused() -> None:
    names = ("input_ids", "attention_mask", "position_ids")
    inputs = [TensorSpec(name, "int64", (None, None)) for name in names]
    past = TensorSpec("past_key_values.0.key", "float32", (None, 2, None, None))
    outputs = [TensorSpec("logits", "float32", (None, None, 7)), TensorSpec("present.0.key", "float32", past.shape)]
    with pytest.raises(EngineError, match="heads, head width and vocabulary must be fixed"):
        cache_layout([*inputs, past], outputs)


def test_an_engine_whose_file_is_gone_or_whose_backend_has_no_decoder_is_refused(tmp_path: Path) -> None:
    engine = built(counting_decoder(tmp_path / "counting.onnx"), Store(tmp_path / "store"))
    with pytest.raises(EngineError, match="is gone"):
        open_decoder(replace(engine, path=str(tmp_path / "nowhere.onnx")))
    with pytest.raises(EngineError, match="'openvino' cannot keep a cache"):
        open_decoder(replace(engine, backend="openvino"))
