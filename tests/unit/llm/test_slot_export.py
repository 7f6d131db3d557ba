"""Decoders exported as a prefill and a step say what transformers' eager says, padded on either side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers

from workbench import engines, llm
from workbench.engines.slot_decoding import SlotDecoder, open_slots
from workbench.errors import DataError, ExportError, LoadError
from workbench.llm import GraphSize, two_pieces
from workbench.llm.slot_export import cache_shape, export_graphs
from workbench.llm.slot_loading import MANIFEST, SlotModel, load_slots, open_slot_folder, write_slots
from workbench.machine.store import Store
from workbench.recipes import named
from workbench.transformation.steps import transform

VOCABULARY, STEPS = 61, 32
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    # Random weights of the usual size give nearly the same logits for every token; larger ones tell tokens apart.
    "initializer_range": 0.3,
}
# FP32 sums in another order: seen up to 2e-6 of the largest logit; a wrong column or position gives 1e-1.
TOLERANCE = 2e-5


def network(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    extra = {"Llama": {"tie_word_embeddings": True}, "Mistral": {"sliding_window": None}}
    extra |= {"Qwen3": {"head_dim": 16}, "Gemma": {"head_dim": 16}}
    extra["Gemma2"] = {
        "head_dim": 16,
        "sliding_window": 64,
        "query_pre_attn_scalar": 16,
        "final_logit_softcapping": 5.0,
    }
    config = getattr(transformers, f"{kind}Config")(**{**SHAPE, **extra.get(kind, {}), **changes})
    config._attn_implementation = "eager"
    return getattr(transformers, f"{kind}ForCausalLM")(config).eval()


def opened(model: SlotModel, store: Store, **options: Any) -> SlotDecoder:
    variants = [transform(item, named("fp32"), store=store) for item in (*model.prefills, *model.steps)]
    built = [engines.build(variant, "onnxruntime-cpu", store=store) for variant in variants]
    return open_slots(built, threads=1, **options)


def padded(network: Any, rows: list[np.ndarray], *, left: bool) -> list[np.ndarray]:
    """Return eager's logits of each row's own tokens, run in one batch padded on one side."""
    longest = max(map(len, rows))
    tokens, mask = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), np.int64)
    places = [slice(longest - len(row), longest) if left else slice(len(row)) for row in rows]
    for index, (row, place) in enumerate(zip(rows, places, strict=True)):
        tokens[index, place], mask[index, place] = row, 1
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    with torch.no_grad():
        logits = network(
            input_ids=torch.from_numpy(tokens),
            attention_mask=torch.from_numpy(mask),
            position_ids=torch.from_numpy(positions),
            use_cache=False,
        ).logits.numpy()
    return [logits[index, place] for index, place in enumerate(places)]


def check_against_eager(decoder: SlotDecoder, network: Any, vocabulary: int, lengths: list[int]) -> None:
    generator = np.random.default_rng(1)
    rows = [generator.integers(0, vocabulary, length + STEPS) for length in lengths]
    for left in (True, False):
        wanted = padded(network, rows, left=left)
        scale = max(float(np.abs(logits).max()) for logits in wanted)
        slots, found = decoder.add([row[:length].tolist() for row, length in zip(rows, lengths, strict=True)])
        before = decoder.columns
        places = [length - 1 for length in lengths]
        for step in range(STEPS + 1):
            expected = np.stack([logits[place + step] for logits, place in zip(wanted, places, strict=True)])
            assert np.abs(found - expected).max() <= TOLERANCE * scale
            if step < STEPS:
                fed = {slot: int(rows[index][lengths[index] + step]) for index, slot in enumerate(slots)}
                found = decoder.step(fed)[slots]
        assert decoder.columns > before  # a longer cache was needed on the way
        decoder.release(slots)


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2"])
def test_prefill_and_steps_equal_eager_across_a_longer_cache(kind: str, tmp_path: Path) -> None:
    net = network(kind)
    write_slots(net, [GraphSize("prefill"), GraphSize("step")], tmp_path / "slots")
    assert net.config._attn_implementation == "eager"  # given back as it came
    with opened(open_slot_folder(tmp_path / "slots"), Store(tmp_path / "store"), slots=3, columns=(16, 64)) as decoder:
        check_against_eager(decoder, net, VOCABULARY, [9, 4, 7])


@pytest.mark.parametrize("keys_transposed", [False, True])
def test_graphs_of_fixed_sizes_equal_eager_in_either_layout_of_the_keys(keys_transposed: bool, tmp_path: Path) -> None:
    net = network("Llama")
    sizes = [
        GraphSize("prefill", 1, 8),
        GraphSize("prefill", 2, 12),
        GraphSize("step", 4, 16),
        GraphSize("step", 4, 48),
    ]
    write_slots(net, sizes, tmp_path / "slots", keys_transposed=keys_transposed)
    model = open_slot_folder(tmp_path / "slots")
    assert [item.name for item in model.steps] == ["step-4x16", "step-4x48"]
    with opened(model, Store(tmp_path / "store")) as decoder:
        assert (decoder.slots, decoder.device.columns) == (4, (16, 48))
        check_against_eager(decoder, net, VOCABULARY, [9, 4, 7])


def test_the_shipped_model_equals_eager_and_generates_what_its_growing_cache_does(tmp_path: Path) -> None:
    store = Store(tmp_path)
    model = load_slots("stdlib_llama", store=store, largest_length=128)
    growing = llm.load("stdlib_llama", store=store, exporter="torchscript")
    engine = engines.build(transform(growing.model, named("fp32"), store=store), "onnxruntime-cpu", store=store)
    prompts = ["import os\n", "def parse(text):\n    return", "class"]
    with opened(model, store, columns=(32, 128)) as decoder, llm.open_decoder(engine, 1) as other:
        from workbench.llm.loading import causal
        from workbench.models import sources

        net = causal(sources.transformers_folder(Path(model.folder)), Path(model.folder))
        check_against_eager(decoder, net, model.vocabulary, [9, 4, 7])
        ours = llm.generate(model, decoder, prompts, new_tokens=24)
        assert ours == llm.generate(growing, other, prompts, new_tokens=24)
        with pytest.raises(DataError, match="takes 128 at most"):
            llm.generate(model, decoder, [[1] * 120], new_tokens=24)


def test_all_graphs_share_one_file_of_weights_and_fp16_stays_fp16(tmp_path: Path) -> None:
    net = network("Llama").half()
    sizes = [GraphSize("prefill", 1, 8), *(GraphSize("step", 2, columns) for columns in (16, 32, 64))]
    files = export_graphs(net, sizes, tmp_path, largest_length=64)
    weights = sum(parameter.nbytes for parameter in net.parameters())
    # The head shares the embeddings' weights, and is stored apart; the rest is padding between tensors.
    assert (tmp_path / "weights.bin").stat().st_size < 1.2 * weights + 40 * 4096
    assert all(file.stat().st_size < 100_000 for file in files)
    model = onnx.load(str(files[1]), load_external_data=False)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    assert kinds["mask"] == kinds["keys_transposed.0"] == kinds["values.1"] == onnx.TensorProto.FLOAT16
    assert {entry.version for entry in model.opset_import} == {17}


def test_what_a_cache_of_fixed_length_cannot_do_is_named(tmp_path: Path) -> None:
    sizes = [GraphSize("prefill"), GraphSize("step")]
    with pytest.raises(ExportError, match=r"attends to the last 16 tokens only \(sliding_window\)"):
        export_graphs(network("Mistral", sliding_window=16), sizes, tmp_path, largest_length=64)
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(ExportError, match="depend on the length so far"):
        export_graphs(network("Llama", rope_parameters=dynamic), sizes, tmp_path, largest_length=64)
    plain = transformers.GPTJForCausalLM(
        transformers.GPTJConfig(vocab_size=61, n_embd=32, n_layer=1, n_head=2, rotary_dim=8, n_positions=64)
    ).eval()
    with pytest.raises(ExportError, match=r"GPTJForCausalLM.*workbench.llm.load"):
        export_graphs(plain, sizes, tmp_path, largest_length=64)
    with pytest.raises(LoadError, match="takes a prefill and a step"):
        write_slots(network("Llama"), sizes[:1], tmp_path / "one")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "else.txt").write_text("")
    with pytest.raises(LoadError, match="is not empty"):
        write_slots(network("Llama"), sizes, tmp_path / "full")
    with pytest.raises(ValueError, match="at least 1"):
        GraphSize("step", 0)


def test_attention_that_adds_sinks_or_drops_the_cache_is_named() -> None:
    class Attention(torch.nn.Module):
        layer_idx = 0

    tensors = [torch.zeros(1, 2, 3, 4)] * 3
    with pytest.raises(ExportError, match="drops the keyword arguments"):
        two_pieces._attend(Attention(), *tensors, None)
    past = two_pieces.Past(False)
    with pytest.raises(ExportError, match="attention sinks"):
        two_pieces._attend(Attention(), *tensors, None, s_aux=torch.zeros(2), workbench_past=past)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Return a function that copies a small written folder to a place."""
    import shutil

    source = tmp_path_factory.mktemp("written") / "slots"
    write_slots(network("Llama"), [GraphSize("prefill", 1, 8), GraphSize("step", 2, 16)], source)
    return lambda target: Path(shutil.copytree(source, target))


@pytest.mark.parametrize("name", ["weights.bin", "step-2x16.onnx"])
def test_a_folder_whose_files_were_changed_is_refused(
    written: Callable[[Path], Path], name: str, tmp_path: Path
) -> None:
    folder = written(tmp_path / "copy")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(LoadError, match=f"{name} is missing or not what slots.json says"):
        open_slot_folder(folder)
    (folder / name).unlink()
    with pytest.raises(LoadError, match=f"{name} is missing or not what slots.json says"):
        open_slot_folder(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "{", "is damaged"),
        (lambda text: text.replace('"schema_version": 1', '"schema_version": 9'), "schema version 9"),
        (lambda text: text.replace('"vocabulary": 61', '"vocabulary": 62'), "lists it under prefills with 62"),
        (lambda text: text.replace('"vocabulary": 61', '"vocabulary": "61"'), "a field of another type"),
        (lambda text: text.replace('"weights.bin"', '"../weights.bin"'), "is missing or not what"),
        (
            lambda text: text.replace('"steps": [\n  "step-2x16.onnx"', '"steps": [\n  "prefill-1x8.onnx"'),
            "lists it under steps",
        ),
        (
            lambda text: text.replace('"steps": [\n  "step-2x16.onnx"', '"steps": [\n  "other.onnx"'),
            "files without a hash",
        ),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    written: Callable[[Path], Path], change: Callable[[str], str], message: str, tmp_path: Path
) -> None:
    folder = written(tmp_path / "copy")
    text = (folder / MANIFEST).read_text()
    assert change(text) != text
    (folder / MANIFEST).write_text(change(text))
    with pytest.raises(LoadError, match=message):
        open_slot_folder(folder)


def test_a_folder_without_a_manifest_is_no_export(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"There is no slots.json"):
        open_slot_folder(tmp_path)


def test_weights_and_configurations_that_cannot_be_written_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [GraphSize("prefill", 1, 4), GraphSize("step", 1, 8)]
    with pytest.raises(ExportError, match=r"is torch.float64; load the model in float32"):
        export_graphs(network("Llama").double(), sizes, tmp_path, largest_length=64)
    headless = torch.nn.Linear(1, 1)
    headless.config = SimpleNamespace()  # type: ignore[assignment]
    with pytest.raises(DataError, match="The configuration of Linear names no attention heads"):
        cache_shape(headless)

    def fails(*arguments: object, **options: object) -> None:
        raise RuntimeError("no symbolic for aten::dreams")

    monkeypatch.setattr(torch.onnx, "export", fails)
    net = network("Llama")
    before = net.model.embed_tokens.weight
    with pytest.raises(ExportError, match="cannot write the prefill of LlamaForCausalLM: RuntimeError: no symbolic"):
        export_graphs(net, sizes, tmp_path, largest_length=64)
    assert net.model.embed_tokens.weight is before  # given back all the same
