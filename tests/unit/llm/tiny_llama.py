"""A tiny random LLaMA with grouped heads and tied embeddings, and how it becomes an engine."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from workbench import engines
from workbench.llm.loading import LanguageModel
from workbench.machine.store import Store
from workbench.recipes import Recipe, named
from workbench.records import Engine
from workbench.transformation.steps import transform

VOCABULARY = 61


def save_tiny_llama(folder: Path, **changes: object) -> Path:
    """Write a random LLaMA of 2 layers with a word tokenizer; `changes` go into its configuration."""
    torch.manual_seed(0)
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "tie_word_embeddings": True,
        # Random weights of the usual size give nearly the same logits for every token; larger ones tell tokens apart.
        "initializer_range": 0.3,
    }
    LlamaForCausalLM(LlamaConfig(**{**options, **changes})).save_pretrained(folder)
    words = {"<end>": 0, "<unknown>": 1} | {f"w{index}": index for index in range(2, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def build(language: LanguageModel, store: Store, recipe: Recipe | str = "fp32") -> Engine:
    return engines.build(transform(language.model, named(recipe), store=store), "onnxruntime-cpu", store=store)
