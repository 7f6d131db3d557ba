"""Hundreds of conversions and studies in one process: memory, Python objects, descriptors, threads and children stay flat.

python benchmarks/soak.py --cycles 300 --out benchmarks/results/soak.json
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import torch

import workbench as wb
from workbench.machine import device

QUICK = wb.Protocol(batch=4, rounds=1, min_seconds=0.001, min_runs=3, warmup_seconds=0.0, warmup_runs=1)


def network() -> torch.nn.Module:
    """A small network."""
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))


def converted(folder: Path, cycle: int) -> None:
    """Convert a module, call it, drop it."""
    module, x = network(), torch.randn(4, 8)
    fast = wb.convert(module, [x], store=wb.Store(folder / "store"))
    torch.testing.assert_close(fast(x), module(x).detach(), rtol=1e-3, atol=1e-4)


def studied(folder: Path, cycle: int) -> None:
    """Run a study with a name of its own, so that all is done anew, and render its report."""
    rng = np.random.default_rng(cycle)
    data = wb.datasets.arrays(rng.normal(size=(40, 8)).astype(np.float32), rng.integers(0, 3, 40)).split_off(
        calibration=16
    )
    model = wb.load(network(), torch.randn(4, 8), store=wb.Store(folder / "store"))
    study = wb.run(
        model, data, ["fp32", "int8-max"], protocol=QUICK, store=wb.Store(folder / "store"), name=f"s{cycle}"
    )
    study.report(folder / "report.html")


CYCLES = {"convert": converted, "run": studied}


def counted() -> dict[str, int]:
    """Return what must not grow."""
    gc.collect()
    process = psutil.Process()
    return {
        "rss_bytes": process.memory_info().rss,
        "objects": len(gc.get_objects()),
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "children": len(process.children(recursive=True)),
    }


def grown(before: Counter[str]) -> list[tuple[str, int]]:
    """Return the types of which there are more objects now."""
    return (Counter(type(item).__name__ for item in gc.get_objects()) - before).most_common(8)


def main() -> None:
    """Run each kind of cycle, print what grew, and write all counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=3600.0, help="that each kind may take; then it ends early")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=sorted(CYCLES), help="one kind of cycle; default: both")
    arguments = parser.parse_args()
    found = {}
    for kind, cycle in CYCLES.items():
        if arguments.only not in (None, kind):
            continue
        with tempfile.TemporaryDirectory() as folder:
            counts, started, done, full = [], time.perf_counter(), 0, 0
            before: Counter[str] = Counter()
            while (share := max(done / arguments.cycles, (time.perf_counter() - started) / arguments.seconds)) < 1:
                if not full and share >= 1 / 3:  # caches are full by now
                    gc.collect()
                    before, full = Counter(type(item).__name__ for item in gc.get_objects()), done
                cycle(Path(folder), done)
                done += 1
                counts.append({"cycle": done, **counted()})
            gc.collect()
            rest = max(done - full, 1)
            found[kind] = {
                "seconds": time.perf_counter() - started,
                "cycles": done,
                "counts": counts,
                "grown_objects_a_cycle": {name: count / rest for name, count in grown(before)},
            }
        if not counts:
            print(kind, f"made {found[kind]['cycles']} cycles in {arguments.seconds:g} s: too few to count anything")
            continue
        first, last = counts[len(counts) // 3], counts[-1]
        print(
            kind, {name: f"{first[name]:,} -> {last[name]:,}" for name in first}, found[kind]["grown_objects_a_cycle"]
        )
    arguments.out.write_text(json.dumps({**found, "device": device.describe()}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
