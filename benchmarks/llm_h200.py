"""A decoder of TinyLlama's shape (1.1 B parameters, random FP16 weights) with slots, on an NVIDIA GPU with TensorRT 8.6.

Two halves, because TensorRT 8.6 and a recent PyTorch want different Pythons. They meet in one folder, each goes on where
it was stopped, and each ends with a table of all that is there:

    python3.12 benchmarks/llm_h200.py export FOLDER     exports every depth, the smallest first
    python3.12 benchmarks/llm_h200.py torch  FOLDER     exports what is not there yet, times PyTorch
    python3.10 benchmarks/llm_h200.py engine FOLDER     builds and measures; waits for exports that are under way
    python     benchmarks/llm_h200.py table  FOLDER

`--seconds 480` stops in time; `--stages small,large,serve,int8` chooses, as do `--depths 22` and `--layouts plain` for exports;
stage `chat` is the shortest way to a chatbot of the deepest model, and `one` looks for the fastest step of one sequence and
prefills beyond level 0. `--out DIR` gets results.json and table.txt after
every result. `--rehearse` does all of it on a CPU at tiny sizes, ONNX Runtime in TensorRT's place.
Random weights say nothing of quality; speed, memory and serving do not depend on their values.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import llm_h200_engine as engine_half  # noqa: E402
import llm_h200_torch as torch_half  # noqa: E402
from llm_h200_cases import FULL, REHEARSAL, Case  # noqa: E402
from llm_h200_engine import CANDIDATES, PLAIN, Bench, Settings, Wanted  # noqa: E402

STAGES = ("small", "large", "serve", "int8")  # and, where they are asked for, "chat" and "one"


class Results:
    """One JSON file a result, written at once; failures are results."""

    def __init__(self, root: Path, out: Path | None, case: Case) -> None:
        self.folder, self.out, self.case = root / "results", out, case
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()

    def get(self, key: str) -> dict[str, Any] | None:
        file = self.folder / f"{key}.json"
        return json.loads(file.read_text()) if file.exists() else None

    def put(self, key: str, found: dict[str, Any]) -> None:
        with self._lock:
            scratch = self.folder / f".{key}.part"
            scratch.write_text(json.dumps(found, indent=1))
            scratch.rename(self.folder / f"{key}.json")
            short = {
                name: value for name, value in found.items() if name not in ("engine", "longest", "log_end", "tried")
            }
            print(f"{key}: {json.dumps(short)[:400]}", flush=True)
            if self.out is not None:
                self.out.mkdir(parents=True, exist_ok=True)
                (self.out / "llm_results.json").write_text(json.dumps(self.all(), indent=1))
                (self.out / "llm_table.txt").write_text(table(self))

    def all(self) -> dict[str, Any]:
        found = {file.stem: json.loads(file.read_text()) for file in sorted(self.folder.glob("[!.]*.json"))}
        for result in found.values():
            if "engine" in result:
                result["engine"] = {
                    name: result["engine"][name] for name in ("build_seconds", "size_bytes", "options", "notes")
                }
        return found


def run_chat(bench: Bench, prefill: Settings) -> None:
    """Build what a chatbot needs, measure both halves, and search its highest rate with and without company.

    Args:
        prefill: how the prefill is built; the step is built at level 1.
    """
    case, depth = bench.case, bench.case.depths[-1]
    if not bench.wait_for(depth, "plain"):
        return
    many = Wanted(depth, "plain", f"step-{case.slots}x{case.columns}", PLAIN, 400.0)
    several = Wanted(depth, "plain", f"prefill-{case.prompts_at_once}x{case.prompt}", prefill, 400.0)
    engine_half.build_all(bench, [many, several])
    measure(bench, many)
    measure_prompts(bench, several)
    verify(bench, [several, many])
    for together in (1, case.together):
        search_rate(bench, [several, many], f"serve-{depth}-plain-prefill_{prefill.name}-{together}_together", together)
    layers(bench, many)


def run_one(bench: Bench) -> None:
    """Build alone, one after the other, what did not end beside other builds: small steps, and prefills at level 1."""
    case, depth = bench.case, bench.case.depths[-1]
    if not bench.wait_for(depth, "plain"):
        return
    few = Wanted(depth, "plain", f"step-{case.few}x{case.columns}", PLAIN, 400.0)
    engine_half.build_all(bench, [few])
    measure(bench, few)
    layers(bench, few)
    run_chat(bench, PLAIN)
    long = Wanted(depth, "plain", f"prefill-1x{case.long_prompt}", PLAIN, 400.0)
    engine_half.build_all(bench, [long])
    measure_prompts(bench, long)
    one = Wanted(depth, "plain", f"step-1x{case.columns}", PLAIN, 400.0)
    engine_half.build_all(bench, [one])
    measure(bench, one)
    layers(bench, one)


def measure_prompts(bench: Bench, item: Wanted) -> None:
    """Time a prefill that was built."""
    key, engine = f"prefill-{item.key}", bench.engine(item.key)
    if engine is not None and not bench.results.get(key) and bench.left > 20:
        bench.results.put(key, engine_half.isolated(engine_half.measure_prefill, bench.backend, engine))


def search_rate(bench: Bench, items: list[Wanted], key: str, together: int) -> None:
    """Search the highest rate of a chatbot made of prefills and a step, the last one."""
    key = key.replace(" ", "_")
    engines = [found for found in (bench.engine(item.key) for item in items) if found is not None]
    if len(engines) < 2 or bench.engine(items[-1].key) is None or bench.results.get(key) or bench.left < 40:
        return
    seconds = min(120.0, bench.left - 25)
    bench.results.put(
        key, engine_half.isolated(engine_half.serve, bench.backend, engines, bench.case, seconds, together)
    )


def run_engine(bench: Bench, stages: list[str]) -> None:
    """Build and measure, small depths first."""
    case, results = bench.case, bench.results
    if "chat" in stages:
        run_chat(bench, CANDIDATES[0])
    if "one" in stages:
        run_one(bench)
    if not {*STAGES} & {*stages}:
        return
    small, *middle, large = case.depths
    if "small" in stages and bench.wait_for(small, "turned") and bench.wait_for(small, "plain"):
        many, one = f"step-{case.slots}x{case.columns}", f"step-1x{case.columns}"
        prefill = f"prefill-1x{case.prompt}"
        wanted = [Wanted(small, layout, many) for layout in ("turned", "plain")]
        wanted += [Wanted(small, "turned", prefill), Wanted(small, "turned", f"step-{case.few}x{case.columns}")]
        wanted += [Wanted(small, "turned", one, settings, 110.0) for settings in CANDIDATES[:2]]
        wanted += [Wanted(small, "turned", many, CANDIDATES[0]), Wanted(small, "plain", one)]
        wanted += [Wanted(small, "turned", one, settings, 110.0) for settings in CANDIDATES[2:]]
        for start in range(0, len(wanted), bench.parallel):  # what is measured early is safe
            part = wanted[start : start + bench.parallel]
            engine_half.build_all(bench, part)
            for item in part:
                if item.graph != prefill:
                    measure(bench, item)
        for item in wanted[:2]:
            layers(bench, item)
        verify(bench, [Wanted(small, "turned", prefill), Wanted(small, "turned", many)])
        verify(bench, [Wanted(small, "turned", prefill), Wanted(small, "turned", one)])
    layout = best_layout(bench)
    for depth in middle if "small" in stages else ():
        if bench.wait_for(depth, layout):
            wanted = deep(bench, depth, layout)[:2]
            engine_half.build_all(bench, wanted)
            for item in wanted:
                measure(bench, item)
    if {"large", "serve"} & set(stages) and bench.wait_for(large, layout):
        run_large(bench, large, layout, stages)
    if "int8" in stages:
        import llm_h200_int8

        llm_h200_int8.run(bench, layout, *best_one(bench))
    print(f"{bench.left:.0f} s were left.")
    results.put("ended", {"left_seconds": bench.left, "stages": stages, "layout": layout, "one": best_one(bench)[0]})


def run_large(bench: Bench, depth: int, layout: str, stages: list[str]) -> None:
    """Build the whole model and measure steps, prefill and traffic."""
    case = bench.case
    wanted = deep(bench, depth, layout)
    engine_half.build_all(bench, wanted)
    many, one, prompt, long, several = wanted
    for item in (many, one):
        measure(bench, item)
        verify(bench, [prompt, item])
    for item in (prompt, long, several):
        measure_prompts(bench, item)
    for together in (1, case.together) if "serve" in stages else ():
        search_rate(bench, [prompt, several, many], f"serve-{depth}-{layout}-{together}_together", together)
    for item in (many, one):
        layers(bench, item)


def deep(bench: Bench, depth: int, layout: str) -> list[Wanted]:
    """Return the engines of a deep model: steps of many slots and of one, and prefills."""
    case = bench.case
    limit = 40.0 + 20.0 * depth
    many = f"step-{case.slots}x{case.columns}"
    found = [Wanted(depth, layout, many, best_settings(bench, many), limit)]
    found += [Wanted(depth, layout, *best_one(bench), limit)]
    prompts = [(1, case.prompt), (1, case.long_prompt), (case.prompts_at_once, case.prompt)]
    # Keys of one layout need prefills of the same; the long prompt is measured by itself.
    return found + [Wanted(depth, layout, f"prefill-{batch}x{tokens}", PLAIN, limit) for batch, tokens in prompts]


def measure(bench: Bench, item: Wanted) -> None:
    """Time a step that was built."""
    key, engine = f"step-{item.key}", bench.engine(item.key)
    if engine is None or bench.results.get(key) or bench.left < 20:
        return
    bench.results.put(key, engine_half.isolated(engine_half.measure_step, bench.backend, engine, bench.case.columns))


def layers(bench: Bench, item: Wanted) -> None:
    """Keep a table of the engine's layers."""
    key, engine = f"layers-{item.key}", bench.engine(item.key)
    if engine is not None and not bench.results.get(key) and bench.left > 20:
        bench.results.put(key, engine_half.isolated(engine_half.measure_layers, engine, bench.case.columns))


def verify(bench: Bench, items: list[Wanted]) -> None:
    """Compare with PyTorch's logits."""
    engines = [bench.engine(item.key) for item in items]
    key = f"check-{items[-1].key}"
    if all(engines) and not bench.results.get(key) and bench.left > 20:
        folder = str(bench.case.folder(bench.root, items[0].depth, items[0].layout))
        bench.results.put(key, engine_half.isolated(engine_half.check, bench.backend, engines, bench.case, folder))


def best_layout(bench: Bench) -> str:
    """Return the layout of keys whose step was the faster at the smallest depth with many slots."""
    graph = f"step-{bench.case.slots}x{bench.case.columns}"
    times = {layout: step_seconds(bench, Wanted(bench.case.depths[0], layout, graph)) for layout in ("turned", "plain")}
    return min(times, key=lambda layout: times[layout])


def best_settings(bench: Bench, graph: str) -> Settings:
    """Return the settings whose step was the fastest at the smallest depth; the level that builds faster within 3 %."""

    def seconds(settings: Settings) -> float:
        return step_seconds(bench, Wanted(bench.case.depths[0], "turned", graph, settings))

    found = min(CANDIDATES, key=seconds)
    if seconds(found) == float("inf"):
        return PLAIN
    return next(item for item in CANDIDATES if seconds(item) <= 1.03 * seconds(found))


def best_one(bench: Bench) -> tuple[str, Settings]:
    """Return the graph for one sequence: of one slot, or of a few where that was faster or the other did not build."""
    graphs = [f"step-{slots}x{bench.case.columns}" for slots in (1, bench.case.few)]
    choices = [(graph, best_settings(bench, graph)) for graph in graphs]
    small = bench.case.depths[0]
    return min(choices, key=lambda choice: step_seconds(bench, Wanted(small, "turned", *choice)))


def step_seconds(bench: Bench, item: Wanted) -> float:
    found = bench.results.get(f"step-{item.key}") or {}
    return float(found.get("seconds", found.get("wall_seconds", float("inf"))))


def table(results: Results) -> str:
    """Return what was measured, and what was aimed at, in a few lines."""
    case, found = results.case, results.all()
    peaks = found.get("ceilings", {})
    bandwidth, rate = peaks.get("bytes_per_second"), peaks.get("flops_per_second")
    lines = [
        f"{peaks.get('device', 'no GPU')}: copy {(bandwidth or 0) / 1e12:.2f} TB/s, FP16 {(rate or 0) / 1e12:.0f} TFLOP/s"
    ]
    for key, item in found.items():
        kind, _, rest = key.partition("-")
        if "failed" in item:
            lines.append(f"{key:62} FAILED {item['failed'][:90]}")
        elif kind == "build":
            lines.append(f"{key:62} {item['seconds']:7.0f} s, {item['engine']['size_bytes'] / 1e6:.0f} MB")
        elif kind == "step":
            depth, slots = int(rest.split("-")[0]), int(rest.split("step-")[1].split("x")[0])
            bound = f", bound {case.step_bytes(depth, slots) / bandwidth * 1e3:.3f}" if bandwidth else ""
            device = f"{item['seconds'] * 1e3:.3f} ms in a graph, " if "seconds" in item else ""
            lines.append(f"{key:62} {device}{item['wall_seconds'] * 1e3:.3f} ms seen by the host{bound}")
        elif kind == "prefill":
            flops = case.prefill_flops(int(rest.split("-")[0]), item["tokens"]) * item["batch"] / item["wall_seconds"]
            share = f", {flops / rate:.0%} of the FP16 rate" if rate else ""
            lines.append(f"{key:62} {item['wall_seconds'] * 1e3:.2f} ms, {flops / 1e12:.0f} TFLOP/s{share}")
        elif kind == "layers":
            lines.append(
                f"{key:62} {item['layers']} layers {item['seconds'] * 1e3:.3f} ms, of them {item['reformats']} reformats "
                f"{item['reformat_seconds'] * 1e3:.3f}; longest {item['longest'][0][0][:40]} {item['longest'][0][2] * 1e3:.3f}"
            )
        elif key not in ("ceilings", "ended"):
            lines.append(f"{key:62} {json.dumps({name: item[name] for name in item if name != 'tried'})[:150]}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("half", choices=("export", "torch", "engine", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, help="folder for results.json and table.txt")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop in time")
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--depths", help="to export, such as 22; all where left out")
    parser.add_argument("--layouts", default="turned,plain", help="to export (default: %(default)s)")
    parser.add_argument("--parallel", type=int, default=1, help="builds at once; each slows the others")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on a CPU")
    options = parser.parse_args()
    case = REHEARSAL if options.rehearse else FULL
    results = Results(options.folder, options.out, case)
    if options.half in ("export", "torch"):
        depths = case.depths if options.depths is None else [int(word) for word in options.depths.split(",")]
        torch_half.export_all(options.folder, case, results.put, depths, options.layouts.split(","))
    if options.half == "torch":
        torch_half.measure_torch(case, results.put, lambda key: results.get(key) is not None, options.seconds)
    if options.half == "engine":
        backend = "onnxruntime-cpu" if options.rehearse else "tensorrt"
        deadline = time.monotonic() + options.seconds
        run_engine(Bench(options.folder, case, backend, results, deadline, options.parallel), options.stages.split(","))
    print(table(results))


if __name__ == "__main__":
    main()
