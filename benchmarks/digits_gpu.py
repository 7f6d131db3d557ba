"""A recorded study of a shipped digits network on an NVIDIA GPU, small enough to be kept in data/studies/.

    python3.10 benchmarks/digits_gpu.py [--model digits_resnet] [--graph] --store FOLDER --out RESULTS

Run again with the same store, it goes on where it was stopped. `--backend onnxruntime-cpu` rehearses it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import workbench as wb  # noqa: E402
from workbench.judging import statistics  # noqa: E402

RECIPES = "fp32,tf32,fp16,int8-max,int8-kl,int8-kl-fp16,sparse-2:4-fp16,sparse-2:4-int8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits_resnet")
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--backend", default="tensorrt")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--graph", action="store_true", help="replay a CUDA graph")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"{options.model}-{options.backend}{'-graph' if options.graph else ''}"
    protocol = wb.Protocol(
        batch=options.batch, rounds=options.rounds, min_seconds=0.02, min_runs=100, warmup_seconds=0.2,
        cuda_graph=options.graph,
    )  # fmt: skip
    started = time.perf_counter()
    study = wb.run(
        wb.load(options.model), wb.datasets.digits(), options.recipes.split(","), backend=options.backend,
        protocol=protocol, name=name, store=wb.Store(options.store), progress=None,
    )  # fmt: skip
    study.save(options.out / f"{name}.json")
    print(f"{name}: {time.perf_counter() - started:.0f} s")
    print(json.dumps(study.failures, indent=1))
    for item in study.record.results:
        if item.measurement is None or item.engine is None:
            continue
        score = None if item.accuracy is None else statistics.score_interval(item.accuracy)
        print(
            f"{item.recipe.name:18} {statistics.summary(item.measurement).median * 1e3:8.4f} ms   "
            f"top-1 {'-' if score is None else f'{score.value:.4f}'}   build {item.engine.build_seconds:5.1f} s   "
            f"{item.engine.size_bytes / 1e6:.2f} MB"
        )


if __name__ == "__main__":
    main()
