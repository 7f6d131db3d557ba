"""What keeping keys and values in 8 bits costs the shipped LLaMA: held-out text read token by token through the cache.

Run: python benchmarks/llm_cache.py [file for the results]
One core, some minutes; prints a table and writes raw values a window as JSON. Says nothing of speed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llm_cpu
import pandas as pd
from llm_cpu import ANSWER_TOKENS, PROMPT_TOKENS, PROMPTS

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


def main(file: Path) -> None:
    pd.set_option("display.width", 250, "display.max_columns", 30)
    windows = wb.datasets.stdlib_text()
    prompts = [row[:PROMPT_TOKENS].tolist() for row in windows.evaluation.inputs[""][:PROMPTS]]
    rows, kept, parent = [], [], []
    for name, (cache, recipe) in CACHES.items():
        samples = None if cache is None else windows.calibration.inputs[""]
        model = llm.load_slots("stdlib_llama", cache=cache, samples=samples)
        engines = llm.build_slots(model, recipe)
        parent = parent or engines
        found = llm.slots_quality(
            model, engines, parent, windows, prompts=prompts, new_tokens=ANSWER_TOKENS, slots=64, threads=1
        )
        kept.append({"name": name, "token_bytes": model.cache.token_bytes, **codec.to_plain(found)})
        rows.append({"Variant": name, "Bytes a token": model.cache.token_bytes, **llm_cpu.told(found)})
    described = device.describe()
    print(described["cpu"], ", ".join(described["cpu_flags"]) or "no flags that matter here")
    print(pd.DataFrame(rows).to_string(index=False))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"device": described, "quality": kept}))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("out/llm_cache_quality.json"))
