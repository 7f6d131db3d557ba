"""A cache in 8 bits: the graphs against transformers' eager, whose own cache is rounded here between its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
import transformers
from test_slot_export import SHAPE, TOLERANCE, VOCABULARY, network, opened

from workbench import llm
from workbench.errors import CalibrationError, TransformError
from workbench.graph.quantized_by import quantized_by
from workbench.llm import GraphSize
from workbench.llm.slot_loading import open_slot_folder, write_slots
from workbench.machine.store import Store
from workbench.transformation.steps import transform

SIZES = [GraphSize("prefill"), GraphSize("step")]
SAMPLES = np.random.default_rng(7).integers(0, VOCABULARY, (20, 12))
# Seen: 2e-6 of the largest logit, as without rounding. A key that lies between two codes may go to the other one after
# sums in another order, which costs more; an unrounded cache is off by 2e-2 and more (asserted below).
ROUNDED = 1e-3


def coded(tensor: torch.Tensor, largest: torch.Tensor, to: str) -> torch.Tensor:
    """Round keys or values (1, H, S, D) to codes of a channel's scale and back; written without a look at the package."""
    if to == "int8":
        scale = largest / 127
        return torch.clamp(torch.round(tensor / scale), -128, 127) * scale
    scale = largest / 448
    within = torch.clamp(tensor / scale, -448, 448).numpy()
    return torch.from_numpy(within.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)) * scale


def largest_of(net: Any, samples: np.ndarray) -> list[list[torch.Tensor]]:
    """Of each layer's keys and values, the largest magnitude of each channel, (H, 1, D)."""
    with torch.no_grad():
        cache = net(torch.from_numpy(samples), use_cache=True).past_key_values
    return [[kind.abs().amax(dim=(0, 2))[:, None] for kind in (layer.keys, layer.values)] for layer in cache.layers]


def eager_logits(net: Any, row: np.ndarray, prompt: int, to: str | None, largest: list) -> list[np.ndarray]:
    """Logits after the prompt and after each further token; what is stored is rounded, what is at hand is exact."""
    found, cache, start = [], transformers.DynamicCache(config=net.config), 0
    for stop in (prompt, *range(prompt + 1, len(row) + 1)):
        with torch.no_grad():
            tokens = torch.from_numpy(row[None, start:stop])
            found.append(net(tokens, past_key_values=cache, use_cache=True).logits[0, -1].numpy())
        for layer, (keys, values) in zip(cache.layers, largest, strict=True):
            if to is not None:
                layer.keys[:, :, start:stop] = coded(layer.keys[:, :, start:stop], keys, to)
                layer.values[:, :, start:stop] = coded(layer.values[:, :, start:stop], values, to)
        start = stop
    return found


def decoded(decoder: Any, rows: list[np.ndarray], prompts: list[int]) -> list[list[np.ndarray]]:
    """The same of a decoder with slots, all rows together."""
    slots, logits = decoder.add([row[:prompt].tolist() for row, prompt in zip(rows, prompts, strict=True)])
    found = [[one] for one in logits]
    for step in range(len(rows[0]) - prompts[0]):
        logits = decoder.step({slot: int(rows[i][prompts[i] + step]) for i, slot in enumerate(slots)})[slots]
        for mine, one in zip(found, logits, strict=True):
            mine.append(one)
    return found


@pytest.mark.parametrize(
    ("kind", "to", "keys_transposed"),
    [("Llama", "int8", True), ("Llama", "int8", False), ("Llama", "fp8", True), ("Qwen3", "int8", True),
     ("Gemma2", "int8", True)],
)  # fmt: skip
def test_prefill_and_steps_equal_eager_with_a_rounded_cache(
    kind: str, to: Any, keys_transposed, tmp_path: Path
) -> None:
    net = network(kind)
    options = {"keys_transposed": keys_transposed, "cache": to, "samples": SAMPLES}
    write_slots(net, SIZES, tmp_path / "slots", **options)
    model = open_slot_folder(tmp_path / "slots")
    generator = np.random.default_rng(1)
    prompts = [9, 4, 7]
    rows = [generator.integers(0, VOCABULARY, prompt + 24) for prompt in prompts]
    largest = largest_of(net, SAMPLES)
    with opened(model, Store(tmp_path / "store"), slots=3, columns=(16, 64)) as decoder:
        assert decoder.layout.dtype == {"int8": "int8", "fp8": "float8_e4m3fn"}[to]
        assert decoder.layout.token_bytes == 2 * 2 * decoder.layout.heads * decoder.layout.width
        found = decoded(decoder, rows, prompts)
    unlike = []
    for row, prompt, ours in zip(rows, prompts, found, strict=True):
        wanted, plain = (eager_logits(net, row, prompt, form, largest) for form in (to, None))
        scale = np.abs(wanted).max()
        assert np.abs(ours[0] - wanted[0]).max() <= TOLERANCE * scale  # a prompt reads its own keys, which are exact
        assert np.abs(np.array(ours) - np.array(wanted)).max() <= ROUNDED * scale
        unlike.append(np.abs(np.array(plain) - np.array(wanted)).max() / scale)
    assert min(unlike) > 10 * ROUNDED


def test_values_beyond_the_samples_are_clipped_and_silent_channels_stay_finite(tmp_path: Path) -> None:
    net = network("Llama")
    with torch.no_grad():
        net.model.layers[0].self_attn.v_proj.weight[3] = 0
    samples = SAMPLES[:1, :2]  # hardly anything seen: most keys are beyond
    write_slots(net, SIZES, tmp_path / "slots", cache="int8", samples=samples)
    row = np.random.default_rng(2).integers(0, VOCABULARY, 20)
    largest = largest_of(net, samples)
    largest[0][1][largest[0][1] == 0] = 127.0
    with opened(open_slot_folder(tmp_path / "slots"), Store(tmp_path / "store"), slots=1, columns=(32,)) as decoder:
        (found,) = decoded(decoder, [row], [6])
    wanted = eager_logits(net, row, 6, "int8", largest)
    assert np.abs(np.array(found) - np.array(wanted)).max() <= ROUNDED * np.abs(wanted).max()


@pytest.mark.parametrize(("to", "opset"), [("int8", 17), ("fp8", 19)])
def test_half_precision_graphs_take_and_give_codes_alone(to: Any, opset: int, tmp_path: Path) -> None:
    net = network("Llama").half()
    write_slots(net, [GraphSize("prefill", 1, 8), GraphSize("step", 2, 16)], tmp_path, cache=to, samples=SAMPLES)
    for name in ("prefill-1x8.onnx", "step-2x16.onnx"):
        proto = onnx.load(str(tmp_path / name))
        onnx.checker.check_model(proto, full_check=True)
        assert next(entry.version for entry in proto.opset_import if not entry.domain) == opset
        kinds = {value.name: value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)}
        element = {"int8": onnx.TensorProto.INT8, "fp8": onnx.TensorProto.FLOAT8E4M3FN}[to]
        cache = {kind for name, kind in kinds.items() if "keys" in name or "values" in name}
        assert cache == {element} and kinds["logits"] == onnx.TensorProto.FLOAT16
        # Nothing between is lowered, so that other recipes may lower it.
        assert quantized_by(proto) is None
    assert open_slot_folder(tmp_path).cache.scores == "float16"


def test_a_cache_in_8_bits_goes_with_weights_in_8_bits_and_is_written_of_a_source(folder, store, slot_model) -> None:
    samples = SAMPLES % 50
    model = llm.load_slots(folder, cache="int8", samples=samples, store=store)
    assert "Keys and values are kept in int8." in model.model.origin.notes
    assert 4 * model.cache.token_bytes == slot_model.cache.token_bytes
    engines = llm.build_slots(model, "int8-weights", store=store)
    lowered = transform(model.steps[0], "int8-weights", store=store)
    assert quantized_by(onnx.load(lowered.path)) is not None  # Q/DQ of weights count as ever
    with llm.open_slots(engines, slots=2, threads=1) as decoder:
        found = llm.generate(model, decoder, [(2, 3, 4), (5, 6)], new_tokens=5, stop=())
    assert [len(answer) for answer in found.tokens] == [5, 5]


def test_a_cache_in_fp8_is_refused_for_tensorrt_8_6_and_one_in_int8_is_not(folder, store) -> None:
    for cache in ("int8", "fp8"):
        model = llm.load_slots(folder, cache=cache, samples=SAMPLES, store=store)  # type: ignore[arg-type]
        if cache == "fp8":
            with pytest.raises(TransformError, match="opset 19 to 17: DataType"):
                transform(model.steps[0], "fp32", dialect="trt-8.6", store=store)
        else:
            made = onnx.load(transform(model.steps[0], "fp32", dialect="trt-8.6", store=store).path)
            assert [entry.version for entry in made.opset_import] == [17]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache": "int4", "samples": SAMPLES}, "cache is 'int4'; a cache can be kept in int8 or fp8"),
        ({"cache": "int8"}, r"token ids \(N, T\), got \(0,\)"),
        ({"cache": "int8", "samples": SAMPLES[0]}, r"token ids \(N, T\), got \(12,\)"),
        ({"cache": "int8", "samples": SAMPLES + 60}, "from 0 to 60; got int64, 6"),
        ({"cache": "int8", "samples": SAMPLES / 2}, "got float64"),
    ],
)
def test_samples_and_formats_that_do_not_fit_are_named(options: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=words):
        write_slots(network("Llama"), SIZES, tmp_path, **options)


def test_keys_that_are_not_finite_are_named(tmp_path: Path) -> None:
    net = network("Llama", **SHAPE)
    with torch.no_grad():
        net.model.layers[1].self_attn.k_proj.weight[0] = torch.inf
    with pytest.raises(CalibrationError, match="are not finite in this type"):
        write_slots(net, SIZES, tmp_path, cache="int8", samples=SAMPLES)
