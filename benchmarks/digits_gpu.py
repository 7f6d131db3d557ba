"""A recorded study of a shipped digits network on an NVIDIA GPU, small enough to be kept in data/studies/.

    python3.10 benchmarks/digits_gpu.py [--model digits_resnet] [--graph] [--why int8-kl-fp16] --store FOLDER --out RESULTS

With `--why` it explains that variant, ranks the layers by what they cost, and searches for a mix, all on the same device.
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
from workbench import codec  # noqa: E402
from workbench.judging import statistics  # noqa: E402
from workbench.machine import device  # noqa: E402
from workbench.records import ShapeProfile  # noqa: E402

RECIPES = "fp32,tf32,fp16,int8-max,int8-kl,int8-kl-fp16,sparse-2:4-fp16,sparse-2:4-int8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits_resnet")
    parser.add_argument("--recipes", default=RECIPES)
    parser.add_argument("--backend", default="tensorrt")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--graph", action="store_true", help="replay a CUDA graph")
    parser.add_argument("--why", help="a recipe to explain, to rank the layers of, and to mix with FP32")
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"{options.model}-b{options.batch}-{options.backend}{'-graph' if options.graph else ''}"
    protocol = wb.Protocol(
        batch=options.batch, rounds=options.rounds, min_seconds=0.02, min_runs=100, warmup_seconds=0.2,
        cuda_graph=options.graph,
    )  # fmt: skip
    started = time.perf_counter()
    store, model, data = wb.Store(options.store), wb.load(options.model), wb.datasets.digits()
    image = model.inputs[0]
    largest = (options.batch, *image.shape[1:])
    build = wb.BuildOptions(profiles=({image.name: ShapeProfile((1, *image.shape[1:]), largest, largest)},))
    if options.backend != "tensorrt":
        build = wb.BuildOptions()
    how = {"backend": options.backend, "protocol": protocol, "options": build, "store": store, "progress": None}
    study = wb.run(model, data, options.recipes.split(","), name=name, **how)
    study.save(options.out / f"{name}.json")
    print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
    show(study)
    if options.why:
        explained(study, options.why, options.out / f"{name}-why")
        ranked(model, data, options.why, how, options.out / f"{name}-layer-costs.json")
        searched(model, data, options.why, how, options.out / f"{name}-optimize.json")


def show(study: wb.Study) -> None:
    """Print a line a variant."""
    print(json.dumps(study.failures, indent=1))
    for item in study.record.results:
        if item.measurement is None or item.engine is None:
            continue
        score = None if item.accuracy is None else statistics.score_interval(item.accuracy)
        print(
            f"{item.recipe.name:18} {statistics.summary(item.measurement).median * 1e3:8.4f} ms   "
            f"top-1 {'-' if score is None else f'{score.value:.4f}'}   build {item.engine.build_seconds:5.1f} s   "
            f"{item.engine.size_bytes / 1e6:.2f} MB",
            flush=True,
        )


def explained(study: wb.Study, variant: str, kept: Path) -> None:
    """Write and print why a variant takes the time that it takes; the study with the explanation in it, and a report."""
    started = time.perf_counter()
    why = wb.explain(study, variant)
    study.save(kept.with_name(kept.name.removesuffix("-why")).with_suffix(".json"))
    study.report(kept.with_suffix(".html"), [why])
    found = {
        "sentences": list(why.sentences),
        "ceilings": codec.to_plain(wb.ceilings(study.record.backend)),
        "layers": json.loads(study.layers().to_json(orient="records")),
        "device": device.describe(),
    }
    kept.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"\nwhy {variant}, {time.perf_counter() - started:.0f} s", *why.sentences, sep="\n", flush=True)


def ranked(model: wb.records.Model, data: wb.datasets.Dataset, recipe: str, how: dict, kept: Path) -> None:
    """Write and print what each layer costs in accuracy and gives in time."""
    started = time.perf_counter()
    costs = wb.layer_costs(model, data, recipe, backend=how["backend"], store=how["store"], options=how["options"])
    table = costs.table()
    kept.write_text(table.to_json(orient="records", indent=1) + "\n", encoding="utf-8")
    print(f"\nlayers of {recipe}, {time.perf_counter() - started:.0f} s\n{table.to_string()}", flush=True)


def searched(model: wb.records.Model, data: wb.datasets.Dataset, recipe: str, how: dict, kept: Path) -> None:
    """Write and print the fastest mix that loses at most a tenth of a point."""
    started = time.perf_counter()
    found = wb.optimize(model, data, at_most_lost=0.1, candidates=[recipe], **how)
    found.study.save(kept)
    print(f"\noptimize, {time.perf_counter() - started:.0f} s: {found}", flush=True)


if __name__ == "__main__":
    main()
