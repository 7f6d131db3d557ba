"""A LLaMA-style decoder as files for TensorRT-LLM: checkpoint, configuration, and the commands that serve and benchmark it.

Two forms of the same weights, after NVIDIA's public descriptions for TensorRT-LLM 1.x: `huggingface/`, a transformers folder
with `hf_quant_config.json` as ModelOpt writes it, for `trtllm-serve`, `trtllm-bench` and the LLM API; and `checkpoint/`,
TensorRT-LLM's own form (docs/source/architecture/checkpoint.md there), from which `trtllm-build` makes an engine.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import DataError, LoadError, nearest
from workbench.llm.loading import LanguageModel, causal
from workbench.machine import disk
from workbench.machine.store import write_text
from workbench.models import sources
from workbench.version import __version__

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp16", "bf16", "fp8")
# Both forms of attention and MLP are LLaMA's; others have norms, biases or windows that this mapping would drop.
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
_LARGEST_E4M3 = 448.0
# Linear layers that read one tensor and are one kernel there: they share their scales.
_TOGETHER = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))
_ALONE = (("self_attn.o_proj",), ("mlp.down_proj",))
# TensorRT-LLM calls what is activated `fc`, and what it is multiplied by `gate`.
_NAMES = {"self_attn.o_proj": "attention.dense", "mlp.gate_proj": "mlp.fc", "mlp.up_proj": "mlp.gate",
          "mlp.down_proj": "mlp.proj"}  # fmt: skip


@dataclass(frozen=True)
class TensorRTLLMFiles:
    """What was written.

    Attributes:
        folder: with `huggingface/`, `checkpoint/`, `requests.jsonl` and `commands.sh`.
        notes: what whoever serves it must know, one sentence each.
        commands: as they stand in `commands.sh`, by what they do: `serve`, `benchmark`, `build`, `benchmark engine`.
    """

    folder: str
    precision: str
    notes: tuple[str, ...]
    commands: dict[str, str]


def to_tensorrt_llm(
    language: LanguageModel,
    folder: str | Path,
    precision: str = "fp16",
    *,
    samples: Sequence[Sequence[int]] | None = None,
    prompt_tokens: int = 128,
    new_tokens: int = 32,
    requests: int = 256,
) -> TensorRTLLMFiles:
    """Write a decoder for TensorRT-LLM, whole or not at all. Nothing of TensorRT-LLM is run, and nothing of it is needed.

    Args:
        folder: is made; must not exist.
        precision: `fp16`, `bf16`, or `fp8`: weights and inputs of the linear layers in e4m3 with one scale each, the largest
            magnitude over 448; embeddings, norms and the head stay in FP16.
        samples: token ids of calibration texts, one sequence each; `fp8` needs them for the scales of inputs.
        prompt_tokens, new_tokens, requests: of the requests to benchmark with.

    Raises:
        LoadError: another architecture than LLaMA's or Mistral's, or a sliding window.
        DataError: no such precision, no samples for `fp8`, ids outside the vocabulary, requests longer than the model takes.
        StoreError: the folder exists or cannot be written.
    """
    target = Path(folder)
    if precision not in PRECISIONS:
        raise DataError(
            f"TensorRT-LLM files are written in {', '.join(PRECISIONS)}. {nearest(str(precision), PRECISIONS)}"
        )
    disk.refuse_existing(target)
    if min(prompt_tokens, new_tokens, requests) < 1 or prompt_tokens + new_tokens > language.largest_length:
        raise DataError(
            f"{requests} requests of {prompt_tokens} + {new_tokens} tokens were asked for; the model takes 1 to "
            f"{language.largest_length} tokens, prompt and answer together."
        )
    source = Path(language.folder)
    network = causal(sources.transformers_folder(source), source).eval()
    _check(network)
    largest = _largest_inputs(network, _checked(samples, language)) if precision == "fp8" else {}
    with disk.whole_folder(target) as made:
        _write(made, network, source, precision, largest)
        write_text(made / "requests.jsonl", _requests(language, prompt_tokens, new_tokens, requests))
        commands = _commands(language, precision, prompt_tokens + new_tokens)
        lines = [f"# {what}\n{command}\n" for what, command in commands.items()]
        write_text(made / "commands.sh", "\n".join(["#!/usr/bin/env bash", "set -e", *lines]))
    notes = ["Written after TensorRT-LLM's public formats; not run here."]
    if precision == "fp8":
        notes.append(
            "FP8 needs compute capability 8.9 or newer. Its quality is that of the recipe fp8: judge it first."
        )
    return TensorRTLLMFiles(str(target), precision, tuple(notes), commands)


def _check(network: Any) -> None:
    kind, config = type(network).__name__, network.config
    if kind not in ARCHITECTURES:
        raise LoadError(
            f"A {kind} cannot be written for TensorRT-LLM here: only {' and '.join(ARCHITECTURES)} are known weight by weight. "
            f"Its own tools convert others."
        )
    if getattr(config, "sliding_window", None):
        raise LoadError("The model attends within a sliding window, which the checkpoint written here would not say.")
    if _rope(config).get("rope_type", "default") != "default":
        raise LoadError(
            f"Rotary embeddings of type {_rope(config)['rope_type']!r} are not written here: only plain ones."
        )


def _rope(config: Any) -> dict[str, Any]:
    found = getattr(config, "rope_parameters", None) or {"rope_theta": getattr(config, "rope_theta", 10000.0)}
    return dict(found)


def _checked(samples: Sequence[Sequence[int]] | None, language: LanguageModel) -> list[list[int]]:
    if samples is None or len(samples) == 0:
        raise DataError(
            "FP8 needs scales of the layers' inputs: pass samples=, token ids of a few dozen typical texts."
        )
    found = [[int(token) for token in sample] for sample in samples]
    for place, sample in enumerate(found):
        if not sample or min(sample) < 0 or max(sample) >= language.vocabulary or len(sample) > language.largest_length:
            raise DataError(
                f"Sample {place} is no sequence of 1 to {language.largest_length} token ids below {language.vocabulary}."
            )
    return found


def _groups(network: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the prefix of each layer with the linear layers in it that share their scales."""
    for place in range(network.config.num_hidden_layers):
        for group in (*_TOGETHER, *_ALONE):
            yield f"model.layers.{place}.", group


def _largest_inputs(network: Any, samples: list[list[int]]) -> dict[str, float]:
    """Return the largest magnitude that each linear layer reads, by its name."""
    import torch

    found: dict[str, float] = {}
    modules = dict(network.named_modules())

    def watch(name: str) -> Any:
        def seen(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            found[name] = max(found.get(name, 0.0), float(inputs[0].abs().max()))

        return modules[name].register_forward_pre_hook(seen)

    watching = [watch(prefix + name) for prefix, group in _groups(network) for name in group]
    try:
        with torch.no_grad():
            for sample in samples:
                network(input_ids=torch.tensor([sample]), use_cache=False)
    finally:
        for handle in watching:
            handle.remove()
    return found


def _write(made: Path, network: Any, source: Path, precision: str, largest: dict[str, float]) -> None:
    import torch
    from safetensors.torch import save_file

    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    weights = {name: value.detach().to(dtype).contiguous() for name, value in network.state_dict().items()}
    for name, value in weights.items():
        if not torch.isfinite(value).all():
            raise DataError(f"{name} has values that are not finite in {precision}; take bf16.")
    scales: dict[str, torch.Tensor] = {}
    if precision == "fp8":
        scales = _lower(weights, network, largest)
    huggingface, checkpoint = made / "huggingface", made / "checkpoint"
    huggingface.mkdir()
    checkpoint.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, huggingface / name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["dtype"] = config["torch_dtype"] = str(dtype).removeprefix("torch.")
    write_text(huggingface / "config.json", json.dumps(config, indent=2))
    if precision == "fp8":
        quantization = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
        producer = {"name": "workbench", "version": __version__}
        text = json.dumps({"producer": producer, "quantization": quantization}, indent=2)
        write_text(huggingface / "hf_quant_config.json", text)
    tied = bool(network.config.tie_word_embeddings)
    plain = {name: value for name, value in weights.items() if not (tied and name == "lm_head.weight")}
    save_file(plain | scales, huggingface / "model.safetensors", metadata={"format": "pt"})
    save_file(_own_form(weights, scales, network.config), checkpoint / "rank0.safetensors")
    write_text(checkpoint / "config.json", json.dumps(_own_config(network, precision, dtype), indent=2))


def _lower(weights: dict[str, torch.Tensor], network: Any, largest: dict[str, float]) -> dict[str, torch.Tensor]:
    """Put e4m3 weights in place of the linear layers', and return the scales under ModelOpt's names."""
    import torch

    scales = {}
    for prefix, group in _groups(network):
        scale = max(float(weights[f"{prefix}{name}.weight"].abs().max()) for name in group) / _LARGEST_E4M3
        read = max(largest[prefix + name] for name in group) / _LARGEST_E4M3
        for name in group:
            full = weights[f"{prefix}{name}.weight"].float() / (scale or 1.0)
            codes = full.clamp(-_LARGEST_E4M3, _LARGEST_E4M3).to(torch.float8_e4m3fn)
            weights[f"{prefix}{name}.weight"] = codes
            scales[f"{prefix}{name}.weight_scale"] = torch.tensor(scale or 1.0)
            scales[f"{prefix}{name}.input_scale"] = torch.tensor(read or 1.0)
    return scales


def _own_form(
    weights: dict[str, torch.Tensor], scales: dict[str, torch.Tensor], config: Any
) -> dict[str, torch.Tensor]:
    """Return the weights under TensorRT-LLM's names, with queries, keys and values in one."""
    import torch

    found = {
        "transformer.vocab_embedding.weight": weights["model.embed_tokens.weight"],
        "transformer.ln_f.weight": weights["model.norm.weight"],
        "lm_head.weight": weights["lm_head.weight"].clone(),
    }

    def put(name: str, first: str, parts: Sequence[str]) -> None:
        for kind in ("weight", "bias"):
            there = [weights[f"{part}.{kind}"] for part in parts if f"{part}.{kind}" in weights]
            if there:
                found[f"{name}.{kind}"] = torch.cat(there) if len(there) > 1 else there[0]
        if f"{first}.weight_scale" in scales:
            found[f"{name}.weights_scaling_factor"] = scales[f"{first}.weight_scale"].reshape(1)
            found[f"{name}.activation_scaling_factor"] = scales[f"{first}.input_scale"].reshape(1)

    for place in range(config.num_hidden_layers):
        old, new = f"model.layers.{place}.", f"transformer.layers.{place}."
        put(f"{new}attention.qkv", f"{old}{_TOGETHER[0][0]}", [old + name for name in _TOGETHER[0]])
        for name, there in _NAMES.items():
            put(new + there, old + name, [old + name])
        found[f"{new}input_layernorm.weight"] = weights[f"{old}input_layernorm.weight"]
        found[f"{new}post_layernorm.weight"] = weights[f"{old}post_attention_layernorm.weight"]
    return {name: value.contiguous() for name, value in found.items()}


def _own_config(network: Any, precision: str, dtype: torch.dtype) -> dict[str, Any]:
    config = network.config
    return {
        "architecture": type(network).__name__,
        "dtype": str(dtype).removeprefix("torch."),
        "logits_dtype": "float32",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_size": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "hidden_act": config.hidden_act,
        "intermediate_size": config.intermediate_size,
        "norm_epsilon": config.rms_norm_eps,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": float(_rope(config).get("rope_theta", 10000.0)),
        "rotary_scaling": None,
        "attn_bias": bool(getattr(config, "attention_bias", False)),
        "mlp_bias": bool(getattr(config, "mlp_bias", False)),
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
        "quantization": {
            "quant_algo": "FP8" if precision == "fp8" else None,
            "kv_cache_quant_algo": None,
            "exclude_modules": ["lm_head"] if precision == "fp8" else None,
        },
    }


def _requests(language: LanguageModel, prompt_tokens: int, new_tokens: int, count: int) -> str:
    """Return requests in the form that trtllm-bench reads, of random ids: lengths decide, not words."""
    ids = np.random.default_rng(0).integers(0, language.vocabulary, (count, prompt_tokens))
    lines = [json.dumps({"task_id": place, "input_ids": row.tolist(), "output_tokens": new_tokens})
             for place, row in enumerate(ids)]  # fmt: skip
    return "\n".join(lines) + "\n"


def _commands(language: LanguageModel, precision: str, length: int) -> dict[str, str]:
    name = Path(language.folder).name
    bench = f"trtllm-bench --model {name} --model_path huggingface throughput --dataset requests.jsonl --streaming"
    plugin = "bfloat16" if precision == "bf16" else "float16"
    return {
        "serve": "trtllm-serve huggingface --host 127.0.0.1 --port 8000",
        "benchmark": f"{bench} --report_json benchmark.json",
        "build": (
            f"trtllm-build --checkpoint_dir checkpoint --output_dir engine --gemm_plugin "
            f"{'disable' if precision == 'fp8' else plugin} --max_batch_size 64 --max_seq_len {length}"
        ),
        "benchmark engine": f"{bench} --backend tensorrt --engine_dir engine --report_json benchmark_engine.json",
    }
