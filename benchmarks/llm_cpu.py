"""The shipped LLaMA on this CPU: decoding against transformers' eager generate, quality, and what batching buys.

Run: python benchmarks/llm_cpu.py [folder for the results]
One core. About ten minutes on an idle machine; prints tables and writes raw measurements as JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd

import workbench as wb
from workbench import codec, llm
from workbench.machine import device

RECIPES = ("fp32", "int8-max", "int8-kl", "int8-dynamic", "int8-weights", "int4-weights")
WORKLOADS = [
    llm.Workload(input_tokens, output_tokens, batch)
    for input_tokens, output_tokens in ((32, 64), (128, 64))
    for batch in (1, 8)
]
PROTOCOL = wb.Protocol("end_to_end", rounds=7, min_seconds=0.5, min_runs=3, warmup_seconds=0.1, warmup_runs=2)
TRAFFIC = llm.Traffic(662, llm.Lengths(24, 0.4, 4, 64), llm.Lengths(24, 0.4, 4, 48), seed=1)
POLICIES = [llm.NoBatching(), llm.DynamicBatching(8, longest_wait_seconds=0.02), llm.ContinuousBatching(8)]
SERVED = ("fp32", "int8-dynamic")
PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 32, 32, 64


def main(folder: Path) -> None:
    pd.set_option("display.width", 250, "display.max_columns", 30, "display.max_colwidth", 70)
    folder.mkdir(parents=True, exist_ok=True)
    language = llm.load("stdlib_llama")
    windows = wb.datasets.stdlib_text()
    data = llm.dataset(language, windows)
    recipes = [llm.recipe(language, name) for name in RECIPES]
    study = wb.run(language.model, data, recipes, backend="onnxruntime-cpu", protocol=wb.Protocol(batch=4, rounds=7))
    study.report(folder / "study.html")
    print(study.table(), "\n")
    engines = {name: study[name].engine for name in RECIPES if study[name].engine is not None}
    with llm.open_decoder(engines["fp32"]) as decoder:
        print(llm.verify(language, decoder), "\n")
    print(fidelity(language, engines, data, windows, folder), "\n")
    print(speed(language, engines, folder), "\n")
    text = windows.evaluation.inputs[""].ravel()
    for name in SERVED:
        print(name, serving(language, engines[name], text, folder / f"serving-{name}.json"), "\n", sep="\n")


def fidelity(
    language: llm.LanguageModel,
    engines: dict,
    data: wb.datasets.Dataset,
    windows: wb.datasets.Dataset,
    folder: Path,
):
    prompts = [row[:PROMPT_TOKENS].tolist() for row in windows.evaluation.inputs[""][:PROMPTS]]
    rows, kept = [], []
    for engine in engines.values():
        found = llm.quality(language, engine, engines["fp32"], data, prompts=prompts, new_tokens=ANSWER_TOKENS, batch=8)
        kept.append(codec.to_plain(found))
        rows.append({"Variant": found.variant, **told(found)})
    (folder / "quality.json").write_text(json.dumps({"device": device.describe(), "quality": kept}))
    return pd.DataFrame(rows)


def told(found: llm.Quality) -> dict:
    """Return the columns of a table of quality."""
    return {
        "Perplexity": f"{found.perplexity.value:.3f} [{found.perplexity.low:.2f}, {found.perplexity.high:.2f}]",
        "Ratio": round(found.perplexity_ratio, 5),
        "Change": found.perplexity_change.words,
        "Agreement (%)": round(100 * found.next_token_agreement.value, 2),
        "KL (nats)": round(found.kl_divergence.value, 6),
        f"Match (of {found.match_tokens})": round(found.match_length.value, 1),
    }


def speed(language: llm.LanguageModel, engines: dict, folder: Path):
    slots = llm.load_slots("stdlib_llama")
    built = [wb.build(wb.transform(model, "fp32"), "onnxruntime-cpu") for model in (*slots.prefills, *slots.steps)]
    merged = wb.Recipe("merged", (wb.Fuse("all", products=True),))
    wide = [wb.build(wb.transform(model, merged), "onnxruntime-cpu") for model in (*slots.prefills, *slots.steps)]
    contestants = [*engines.values(), llm.slots_contestant(built, "fp32, slots")]
    contestants += [llm.slots_contestant(wide, "fp32, slots, merged"), llm.transformers_eager(language, threads=1)]
    measured = llm.measure_generation(language, contestants, WORKLOADS, PROTOCOL, threads=1)
    (folder / "generation.json").write_text(json.dumps([codec.to_plain(item) for item in measured]))
    return llm.speed_table(measured, baseline="transformers eager")


def serving(language: llm.LanguageModel, engine, text, file: Path):
    """The highest rate under each policy that keeps the 99th percentile of whole answers under 500 ms."""
    rows, kept = [], []
    for policy in POLICIES:
        found = llm.highest_rate(language, engine, policy, text, TRAFFIC, first_rate=40.0, threads=1)
        kept.append(codec.to_plain(found))
        best = next((run for run in found.probes if run.rate == found.rate), None)
        shown = {} if best is None else llm.serving_table([replace(best, policy="")]).iloc[0].to_dict()
        rows.append({**shown, "Policy": found.policy, "Highest rate": found.rate, "Fails at": found.failed_rate})
    file.write_text(json.dumps(kept))
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("out/llm_cpu"))
