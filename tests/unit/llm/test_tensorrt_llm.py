"""What is written for TensorRT-LLM is the model: its checkpoint, computed by plain numpy, gives the answers of transformers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workbench import llm
from workbench.errors import DataError, LoadError, StoreError
from workbench.llm.loading import LanguageModel

SAMPLES = [[1, 5, 9, 2, 7, 3], [4, 4, 8, 1]]


def read(path: Path) -> dict[str, np.ndarray]:
    from safetensors.torch import load_file

    return {name: value.float().numpy() for name, value in load_file(path).items()}


def rotated(x: np.ndarray, base: float) -> np.ndarray:
    """Rotary embeddings as GPT-NeoX has them: the halves of a head are the two parts of each pair."""
    length, half = x.shape[0], x.shape[-1] // 2
    angles = np.arange(length)[:, None] / base ** (np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.concatenate([x[..., :half] * cos - x[..., half:] * sin, x[..., half:] * cos + x[..., :half] * sin], -1)


def logits_of(checkpoint: Path, ids: list[int]) -> np.ndarray:
    """Compute a checkpoint in TensorRT-LLM's form, by the meaning that its documents give the names."""
    config, raw = json.loads((checkpoint / "config.json").read_text()), read(checkpoint / "rank0.safetensors")
    heads, pairs, size = config["num_attention_heads"], config["num_key_value_heads"], config["head_size"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + config["norm_epsilon"]) * raw[f"{name}.weight"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ (raw[f"{name}.weight"] * raw.get(f"{name}.weights_scaling_factor", np.ones(1))).T

    x = raw["transformer.vocab_embedding.weight"][ids]
    for place in range(config["num_hidden_layers"]):
        prefix = f"transformer.layers.{place}."
        qkv = linear(norm(x, f"{prefix}input_layernorm"), f"{prefix}attention.qkv")
        q, k, v = np.split(qkv, [heads * size, (heads + pairs) * size], -1)
        q = rotated(q.reshape(-1, heads, size), config["rotary_base"])
        k = rotated(k.reshape(-1, pairs, size), config["rotary_base"]).repeat(heads // pairs, 1)
        v = v.reshape(-1, pairs, size).repeat(heads // pairs, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(size)
        scores = np.where(np.tri(len(ids))[None] > 0, scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + linear(np.einsum("hqk,khd->qhd", shares, v).reshape(len(ids), -1), f"{prefix}attention.dense")
        y = norm(x, f"{prefix}post_layernorm")
        active = linear(y, f"{prefix}mlp.fc")
        x = x + linear(active / (1 + np.exp(-active)) * linear(y, f"{prefix}mlp.gate"), f"{prefix}mlp.proj")
    return linear(norm(x, "transformer.ln_f"), "lm_head")


def eager(folder: Path, ids: list[int]) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return network(input_ids=torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 5e-3), ("bf16", 4e-2)])
def test_the_checkpoint_computes_what_transformers_computes(
    language: LanguageModel, tmp_path: Path, precision: str, tolerance: float
) -> None:
    made = llm.to_tensorrt_llm(language, tmp_path / "out", precision, prompt_tokens=4, new_tokens=4, requests=3)
    wanted = eager(Path(language.folder), SAMPLES[0])
    found = logits_of(Path(made.folder) / "checkpoint", SAMPLES[0])
    assert np.abs(found - wanted).max() < tolerance * np.abs(wanted).max()
    assert (
        np.abs(eager(Path(made.folder) / "huggingface", SAMPLES[0]) - wanted).max() < tolerance * np.abs(wanted).max()
    )
    requests = [json.loads(line) for line in (tmp_path / "out" / "requests.jsonl").read_text().splitlines()]
    assert [len(each["input_ids"]) for each in requests] == [4, 4, 4] and requests[2]["output_tokens"] == 4
    subprocess.run(["bash", "-n", tmp_path / "out" / "commands.sh"], check=True)
    assert "trtllm-serve huggingface" in made.commands["serve"]


def test_fp8_has_codes_shared_scales_and_inputs_as_large_as_they_were(language: LanguageModel, tmp_path: Path) -> None:
    made = llm.to_tensorrt_llm(language, tmp_path / "out", "fp8", samples=SAMPLES, prompt_tokens=4, new_tokens=4)
    from safetensors.torch import load_file

    codes = load_file(Path(made.folder) / "huggingface" / "model.safetensors")
    first = "model.layers.0.self_attn."
    assert codes[f"{first}q_proj.weight"].dtype == torch.float8_e4m3fn
    assert len({float(codes[f"{first}{each}_proj.weight_scale"]) for each in "qkv"}) == 1
    before = read(Path(language.folder) / "model.safetensors")
    largest = max(np.abs(before[f"{first}{each}_proj.weight"]).max() for each in "qkv")
    assert float(codes[f"{first}q_proj.weight_scale"]) == pytest.approx(largest / 448, rel=1e-3)
    wanted = eager(Path(language.folder), SAMPLES[0])
    found = logits_of(Path(made.folder) / "checkpoint", SAMPLES[0])
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert 1e-4 < error < 0.1, "three bits of mantissa"
    # The input of the first layer is its normalized embedding: computed apart.
    raw = read(Path(made.folder) / "checkpoint" / "rank0.safetensors")
    config = json.loads((Path(made.folder) / "checkpoint" / "config.json").read_text())
    seen = 0.0
    for sample in SAMPLES:
        x = before["model.embed_tokens.weight"][sample]
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config["norm_epsilon"])
        seen = max(seen, float(np.abs(x * before["model.layers.0.input_layernorm.weight"]).max()))
    scale = raw["transformer.layers.0.attention.qkv.activation_scaling_factor"]
    assert scale.shape == (1,) and float(scale[0]) == pytest.approx(seen / 448, rel=1e-4)
    assert config["quantization"]["quant_algo"] == "FP8"
    told = json.loads((Path(made.folder) / "huggingface" / "hf_quant_config.json").read_text())
    assert told["quantization"]["exclude_modules"] == ["lm_head"]


def test_what_cannot_be_written_is_said_and_leaves_nothing(language: LanguageModel, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with pytest.raises(DataError, match="fp16, bf16, fp8"):
        llm.to_tensorrt_llm(language, folder, "int8")
    with pytest.raises(DataError, match="pass samples="):
        llm.to_tensorrt_llm(language, folder, "fp8", prompt_tokens=4, new_tokens=4)
    with pytest.raises(DataError, match="Sample 1 is no sequence"):
        llm.to_tensorrt_llm(language, folder, "fp8", samples=[[1], [10**6]], prompt_tokens=4, new_tokens=4)
    with pytest.raises(DataError, match="prompt and answer together"):
        llm.to_tensorrt_llm(language, folder, prompt_tokens=10**6)
    assert not list(tmp_path.iterdir())
    folder.mkdir()
    with pytest.raises(StoreError, match="exists already"):
        llm.to_tensorrt_llm(language, folder, prompt_tokens=4, new_tokens=4)


def test_other_architectures_and_windows_are_refused() -> None:
    from workbench.llm import tensorrt_llm

    network = LlamaForCausalLM(
        LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    tensorrt_llm._check(network)
    network.config.sliding_window = 16
    with pytest.raises(LoadError, match="sliding window"):
        tensorrt_llm._check(network)
    network.config.sliding_window = None
    network.config.rope_parameters = {"rope_type": "llama3", "rope_theta": 1e4}
    with pytest.raises(LoadError, match="llama3"):
        tensorrt_llm._check(network)
    network.config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4}
    network.__class__ = type("GPTForCausalLM", (type(network),), {})
    with pytest.raises(LoadError, match="weight by weight"):
        tensorrt_llm._check(network)
