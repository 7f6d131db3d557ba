"""Loading a language model: what is exported equals PyTorch, and what is unsafe or unfit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_llama import build, save_tiny_llama
from transformers import BertConfig, BertForMaskedLM, LlamaModel

from workbench import llm
from workbench.engines.decoding import Decoder, open_decoder
from workbench.errors import DataError, LoadError
from workbench.graph import files
from workbench.llm.loading import LanguageModel
from workbench.machine.store import Store


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / "model"))


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_exported_logits_equal_eager_ones_in_prefill_and_32_decode_steps(
    language: LanguageModel, decoder: Decoder
) -> None:
    assert (language.model.origin.exporter, language.model.opset) == ("torchscript", 17)
    found = llm.verify(language, decoder, batch=3, input_tokens=11, steps=32)  # exported with a batch of 2 and 5 tokens
    assert found.passed, found
    assert found.largest_logit > 1  # differences of nothing would be small too


def test_the_newer_exporter_writes_the_same_decoder(tmp_path: Path, store: Store) -> None:
    one_layer = save_tiny_llama(tmp_path / "one-layer", num_hidden_layers=1)
    language = llm.load(one_layer, store=store)
    assert (language.model.origin.exporter, language.model.opset) == ("dynamo", 17)
    with open_decoder(build(language, store), 1) as decoder:
        assert llm.verify(language, decoder, steps=4).passed


def test_the_cache_has_the_key_value_heads_of_the_configuration_not_those_of_the_queries(
    language: LanguageModel,
) -> None:
    assert (language.layout.heads, language.layout.width, len(language.layout.past)) == (2, 8, 4)
    assert language.layout.token_bytes == 4 * 2 * 8 * 4
    assert all(spec.shape[0] is None and spec.shape[2] is None for spec in language.model.inputs if "past" in spec.name)


def test_untying_a_head_with_weights_of_its_own_changes_nothing_and_says_so(tmp_path: Path, store: Store) -> None:
    own = save_tiny_llama(tmp_path / "own-head", tie_word_embeddings=False)
    language = llm.load(own, store=store, exporter="torchscript", untie_head=True)
    assert "changed nothing" in language.model.origin.notes[-1]


def test_weights_beyond_the_limit_of_protobuf_go_to_a_file_beside_the_graph(
    folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "INLINE_LIMIT_BYTES", 1000)  # stands for 2 GB
    language = llm.load(folder, store=store, exporter="torchscript", name="large")
    assert [file.name for file in Path(language.model.path).parent.glob("*.data")] == ["large.onnx.data"]
    with open_decoder(build(language, store), 1) as decoder:
        assert llm.verify(language, decoder, steps=2).passed


def test_a_tokenizer_turns_text_into_ids_and_back(language: LanguageModel) -> None:
    assert language.encode("w5 w7 nonsense") == (5, 7, 1)
    assert language.decode([5, 7]) == "w5 w7"
    assert language.end_ids == (0,)


def test_stop_tokens_come_from_the_generation_config(folder: Path, tmp_path: Path, store: Store) -> None:
    changed = copied(folder, tmp_path)
    (changed / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert llm.load(changed, store=store, exporter="torchscript").end_ids == (3, 4)
    (changed / "generation_config.json").unlink()
    edit_config(changed, eos_token_id=None)
    assert llm.load(changed, store=store, exporter="torchscript").end_ids == ()


def test_without_a_tokenizer_prompts_are_token_ids_and_the_model_says_so(
    folder: Path, tmp_path: Path, store: Store
) -> None:
    bare = copied(folder, tmp_path)
    (bare / "tokenizer.json").unlink()
    language = llm.load(bare, store=store, exporter="torchscript")
    assert "token ids" in language.model.origin.notes[-1]
    with pytest.raises(DataError, match="came without a tokenizer"):
        language.encode("w5")


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path: Path) -> None:
    small = save_tiny_llama(tmp_path / "small", vocab_size=40)
    with pytest.raises(LoadError, match=r"gives token ids up to 60, the model has 40"):
        llm.load(small)


def test_a_damaged_or_missing_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{")
    with pytest.raises(LoadError, match="Cannot read the tokenizer"):
        llm.load(folder, tokenizer=broken)
    with pytest.raises(LoadError, match="no tokenizer at"):
        llm.load(folder, tokenizer=tmp_path / "nowhere.json")


def test_a_model_without_a_causal_head_is_refused(tmp_path: Path, folder: Path) -> None:
    LlamaModel.from_pretrained(folder).save_pretrained(tmp_path / "headless")
    with pytest.raises(LoadError, match=r"LlamaModel, which has no causal language modelling head"):
        llm.load(tmp_path / "headless")
    tiny = BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertForMaskedLM(tiny).save_pretrained(tmp_path / "masked")
    with pytest.raises(LoadError, match=r"BertForMaskedLM, which has no causal"):
        llm.load(tmp_path / "masked")


def test_a_config_that_needs_remote_code_is_refused(folder: Path, tmp_path: Path) -> None:
    remote = copied(folder, tmp_path)
    edit_config(remote, model_type="own_llama", auto_map={"AutoModelForCausalLM": "modeling.Own"})
    (remote / "modeling.py").write_text("raise SystemExit('remote code was run')")
    with pytest.raises(LoadError, match="Code from a model folder is never run"):
        llm.load(remote)


def test_pickled_weights_are_refused(folder: Path, tmp_path: Path) -> None:
    pickled = copied(folder, tmp_path)
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(LoadError, match="only pickled weights"):
        llm.load(pickled)


def test_a_name_that_is_no_language_model_is_refused() -> None:
    with pytest.raises(LoadError, match="no such folder"):
        llm.load("stdlib_lama")
    with pytest.raises(LoadError, match="no language model but an ONNX file"):
        llm.load("digits_resnet")
