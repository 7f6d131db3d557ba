"""What one call of an eager PyTorch program costs, by operator: where a lower type is slower than FP32, this says why.

    python3.12 benchmarks/torch_calls.py FOLDER [--case resnet50] [--batch 1] [--out RESULTS]

FOLDER is that of `h200.py export`. For each precision: the median of the product's stopwatch, of the bare module (`half()`
where FP16), and the operators of one call with their counts and host times, from a profiled run of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent), str(ROOT / "data" / "training")]

import h200_cases as cases  # noqa: E402

import workbench as wb  # noqa: E402
from workbench import codec, engines  # noqa: E402

TURNS = 3
VARIANTS = (("fp32", None), ("fp16", None), ("fp16", False), ("fp16", True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--case", default="resnet50")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--out", type=Path, default=Path("out/torch_calls"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    case = next(item for item in cases.cases(options.size) if item.name == options.case)
    model = codec.from_json(
        wb.records.Model, (options.folder / "models" / f"{case.model}.model.json").read_text(encoding="utf-8")
    )
    store = wb.Store(options.folder / "store")
    feeds = case.batch(options.batch, 0)
    built = {}
    for recipe, channels_last in VARIANTS:
        extra = {} if channels_last is None else {"channels_last": channels_last}
        build = wb.BuildOptions(profiles=(case.profile(options.batch),), extra=extra)
        engine = engines.build(wb.transform(model, recipe, store=store), "torch", build, store=store)
        built[f"product {recipe} channels_last={channels_last}"] = engine
    # In turns: what the host costs drifts more than the variants differ.
    turns: dict[str, list[dict]] = {}
    for _ in range(TURNS):
        for what, engine in built.items():
            with engines.open_runner(engine) as runner:
                entry = of_call(runner.stopwatch(feeds, "compute"))
                turns.setdefault(what, []).append({**entry, "conditions": runner.conditions()})
        for recipe in ("fp32", "fp16"):
            turns.setdefault(f"bare module {recipe}", []).append(of_call(bare(case, feeds, recipe)))
    found = [
        {"what": what, "turns_seconds": [entry["median_seconds"] for entry in entries], **entries[-1],
         "median_seconds": median(entry["median_seconds"] for entry in entries)}
        for what, entries in turns.items()
    ]  # fmt: skip
    (options.out / f"{case.name}-b{options.batch}-torch-calls.json").write_text(json.dumps(found, indent=1))
    show(found)


def bare(case: cases.Case, feeds: dict[str, np.ndarray], recipe: str):  # type: ignore[no-untyped-def]
    """Return a stopwatch of the module as PyTorch's own users would run it."""
    on_gpu = torch.cuda.is_available()
    module, _, _ = cases.module(case.model, case.size)
    module = module.to("cuda" if on_gpu else "cpu")
    inputs = {name: torch.from_numpy(array).to("cuda" if on_gpu else "cpu") for name, array in feeds.items()}
    if recipe == "fp16":
        module = module.half().to(memory_format=torch.channels_last)
        inputs = {name: value.half() if value.is_floating_point() else value for name, value in inputs.items()}

    def call() -> float:
        with torch.inference_mode():
            if not on_gpu:
                started = time.perf_counter()
                module(**inputs)
                return time.perf_counter() - started
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            module(**inputs)
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3

    return call


def of_call(call) -> dict:  # type: ignore[no-untyped-def,type-arg]
    """Return the median of a stopwatch, and what one call of it does."""
    times = [call() for _ in range(150)][50:]
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        call()
    counts, host, device = Counter(), Counter(), Counter()
    for event in profile.key_averages():
        counts[event.key] += event.count
        host[event.key] += event.self_cpu_time_total / 1e6
        device[event.key] += getattr(event, "self_device_time_total", 0) / 1e6
    return {
        "median_seconds": median(times), "counts": dict(counts), "host_seconds": dict(host.most_common(40)),
        "device_seconds": dict(device.most_common(40)), "device_total_seconds": sum(device.values()),
        "host_total_seconds": sum(host.values()),
    }  # fmt: skip


def show(found: list[dict]) -> None:
    """Print a table, and the operators that take the host longest."""
    print(f"{'what':34} {'median ms':>9} {'device ms':>9} {'host ms':>9} casts copies launches")
    for entry in found:
        counts = entry["counts"]
        launches = sum(count for name, count in counts.items() if "LaunchKernel" in name)
        print(
            f"{entry['what']:34} {entry['median_seconds'] * 1e3:9.3f} {entry['device_total_seconds'] * 1e3:9.3f} "
            f"{entry['host_total_seconds'] * 1e3:9.3f} {counts.get('aten::_to_copy', 0):5d} "
            f"{counts.get('aten::copy_', 0):6d} {launches:8d}"
        )
    for entry in found:
        print(f"\n{entry['what']}: host, then device")
        for kind in ("host_seconds", "device_seconds"):
            for name, seconds in [item for item in entry[kind].items() if item[1]][:8]:
                print(f"  {seconds * 1e6:9.1f} us {entry['counts'].get(name, 0):5d}x {name[:90]}")


if __name__ == "__main__":
    main()
