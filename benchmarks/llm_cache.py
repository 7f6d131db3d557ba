"""What keeping keys and values in 8 bits costs the shipped LLaMA, and what it gains: quality and speed on ONNX Runtime's CPU.

Run: python benchmarks/llm_cache.py [folder for the results]
One core, some minutes; prints tables and writes raw values as JSON: a window of held-out text, read token by token through
the cache, each (`llm_cache_quality.json`), and rounds of decoding in turns (`llm_cache_speed.json.gz`; let nothing else run).
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import llm_cpu
import pandas as pd
from llm_cpu import ANSWER_TOKENS, PROMPT_TOKENS, PROMPTS, PROTOCOL

import workbench as wb
from workbench import codec, llm
from workbench.machine import device

# Name -> what the cache is kept in, and the recipe of the graphs.
CACHES = {
    "fp32": (None, "fp32"),
    "cache int8": ("int8", "fp32"),
    "cache fp8": ("fp8", "fp32"),
    "weights int8": (None, "int8-weights"),
    "cache int8, weights int8": ("int8", "int8-weights"),
}
WORKLOADS = [llm.Workload(128, 64, batch) for batch in (1, 8)]


def main(folder: Path) -> None:
    pd.set_option("display.width", 250, "display.max_columns", 30)
    folder.mkdir(parents=True, exist_ok=True)
    described = device.describe()
    print(described["cpu"], ", ".join(described["cpu_flags"]) or "no flags that matter here")
    windows = wb.datasets.stdlib_text()
    built = {}
    for name, (cache, recipe) in CACHES.items():
        samples = None if cache is None else windows.calibration.inputs[""]
        model = llm.load_slots("stdlib_llama", cache=cache, samples=samples)
        built[name] = model, llm.build_slots(model, recipe)
    kept = {"device": described, "speed": speed(built)}
    (folder / "llm_cache_speed.json.gz").write_bytes(gzip.compress(json.dumps(kept).encode(), mtime=0))
    kept = {"device": described, "quality": quality(built, windows)}
    (folder / "llm_cache_quality.json").write_text(json.dumps(kept))


def speed(built: dict) -> list:
    """Measure decoding with each cache in turns; the cache is read whole at every token."""
    contestants = [llm.slots_contestant(engines, name) for name, (_, engines) in built.items()]
    measured = llm.measure_generation(llm.load("stdlib_llama"), contestants, WORKLOADS, PROTOCOL, threads=1)
    print(llm.speed_table(measured).to_string(index=False), "\n")
    return [codec.to_plain(item) for item in measured]


def quality(built: dict, windows: wb.datasets.Dataset) -> list:
    """Read held-out text through each cache."""
    prompts = [row[:PROMPT_TOKENS].tolist() for row in windows.evaluation.inputs[""][:PROMPTS]]
    rows, kept = [], []
    parent = next(iter(built.values()))[1]
    for name, (model, engines) in built.items():
        found = llm.slots_quality(
            model, engines, parent, windows, prompts=prompts, new_tokens=ANSWER_TOKENS, slots=64, threads=1
        )
        kept.append({"name": name, "token_bytes": model.cache.token_bytes, **codec.to_plain(found)})
        rows.append({"Variant": name, "Bytes a token": model.cache.token_bytes, **llm_cpu.told(found)})
    print(pd.DataFrame(rows).to_string(index=False))
    return kept


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("out/llm_cache"))
