"""A decoder of TinyLlama's shape (1.1 B parameters, random weights) on an NVIDIA GPU with TensorRT 8.6 or later.

Run: python benchmarks/llm_h200.py [folder for the results]
Random weights say nothing of quality; speed, memory and serving do not depend on their values. Exporting takes a minute
and each build several; the plans stay in the store, so a second run only measures.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

import workbench as wb
from workbench import codec, llm
from workbench.errors import WorkbenchError
from workbench.llm.timing import engine_contestant
from workbench.machine import device

RECIPES = ("fp32", "fp16", "int8-max-fp16")
BATCHES = (1, 16, 64)
WORKLOADS = [llm.Workload(128, 128, batch) for batch in BATCHES] + [llm.Workload(1024, 64, 1)]
PROTOCOL = wb.Protocol("end_to_end", rounds=5, min_seconds=1.0, min_runs=3, warmup_seconds=0.5, warmup_runs=2)
TRAFFIC = llm.Traffic(662, llm.Lengths(128, 0.5, 16, 512), llm.Lengths(64, 0.5, 8, 256), seed=1)
POLICIES = [llm.NoBatching(), llm.DynamicBatching(16, longest_wait_seconds=0.05), llm.ContinuousBatching(32)]
CALIBRATION_WINDOWS, WINDOW_TOKENS = 8, 128
SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def main(folder: Path) -> None:
    pd.set_option("display.width", 250, "display.max_columns", 30, "display.max_colwidth", 70)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "environment.json").write_text(json.dumps(device.describe(), indent=1))
    # The older exporter at opset 17 is what TensorRT 8.6 is known to parse and build.
    language = llm.load(random_llama(folder / "model"), exporter="torchscript", name="tinyllama-shape")
    text = np.random.default_rng(0).integers(0, language.vocabulary, 1 << 16)
    engines = build_all(language, text)
    contestants = [engine_contestant(engine) for engine in engines.values()]
    for engine in engines.values():
        graph = engine_contestant(engine, cuda_graph=True)
        contestants.append(replace(graph, name=f"{graph.name}, CUDA graph"))
    measured = llm.measure_generation(language, contestants, WORKLOADS, PROTOCOL)
    (folder / "generation.json").write_text(json.dumps([codec.to_plain(item) for item in measured]))
    print(llm.speed_table(measured), "\n")
    serve(language, engines["fp16"], text, folder)


def random_llama(folder: Path) -> Path:
    """Write a random LLaMA in FP16; weights of the usual size, so that logits stay finite."""
    if not (folder / "config.json").exists():
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SHAPE)).half().save_pretrained(folder)
    return folder


def build_all(language: llm.LanguageModel, text: np.ndarray) -> dict:
    shapes = llm.profiles(
        language,
        largest_batch=max(BATCHES),
        largest_prompt=1024,
        largest_length=1152,
        typical_batch=16,
        typical_prompt=128,
    )
    # At the default level the builder had not ended after minutes on a decoder of this size; level 1 does.
    options = wb.BuildOptions(profiles=shapes, optimization_level=1)
    dialect = wb.engines.backend("tensorrt").dialect("tensorrt")
    table = None
    engines = {}
    for name in RECIPES:
        recipe = llm.recipe(language, lowered(name))
        if recipe.needs_calibration and table is None:
            windows = text[: CALIBRATION_WINDOWS * WINDOW_TOKENS].reshape(CALIBRATION_WINDOWS, WINDOW_TOKENS)
            data = llm.dataset(language, wb.datasets.arrays(windows, metric=None))
            table = wb.calibrate(language.model, data.bound_to(language.model).evaluation, recipe, dialect=dialect)
        started = time.perf_counter()
        try:
            variant = wb.transform(language.model, recipe, dialect=dialect, table=table)
            engines[name] = wb.build(variant, "tensorrt", options)
        except WorkbenchError as error:
            print(f"{name}: {type(error).__name__}: {error}")
            continue
        print(f"{name}: {engines[name].size_bytes / 1e9:.2f} GB after {time.perf_counter() - started:.0f} s")
    return engines


def lowered(name: str) -> wb.Recipe | str:
    if name != "int8-max-fp16":
        return name
    return wb.Recipe(name, (wb.Fuse("all"), wb.Quantize(calibrator="max"), wb.Precision("fp16")))


def serve(language: llm.LanguageModel, engine, text: np.ndarray, folder: Path) -> None:
    found = [llm.highest_rate(language, engine, policy, text, TRAFFIC, first_rate=4.0) for policy in POLICIES]
    (folder / "serving.json").write_text(json.dumps([codec.to_plain(item) for item in found]))
    for item in found:
        print(f"{item.policy:28} p99 under 500 ms up to {item.rate:.1f} requests/s, fails at {item.failed_rate}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("out/llm_h200"))
