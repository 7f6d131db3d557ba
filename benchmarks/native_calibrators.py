"""Our calibration beside TensorRT's own calibrators: same network, same samples, one table; and each other's thresholds.

    python3.10 benchmarks/native_calibrators.py [--models digits_resnet,digits_vit] [--batch 32] [--out RESULTS]

Ours writes Q/DQ nodes; TensorRT's entropy and MinMax calibrators run on the plain file; `native, our KL thresholds` is
TensorRT's builder with a calibration cache made of our thresholds. FP16 is allowed beside INT8 everywhere. Each engine is
timed in a CUDA graph, inputs resident, in turns; accuracy is top-1 on the evaluation digits, of which calibration saw
none. `--backend onnxruntime-cpu` rehearses it with ours alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from turns import rotated, settled_median  # noqa: E402

import workbench as wb  # noqa: E402
from workbench import engines  # noqa: E402
from workbench.engines.tensorrt import calibration_cache  # noqa: E402
from workbench.errors import WorkbenchError  # noqa: E402
from workbench.machine import device  # noqa: E402
from workbench.records import ShapeProfile  # noqa: E402

FP16 = wb.Recipe("fp16", (wb.Fuse(), wb.Precision("fp16", auto_exclude=False)))
KL = wb.recipes.named("int8-kl-fp16")
MAX = wb.Recipe(
    "int8-max-fp16", tuple(replace(step, calibrator="max") if step.kind == "quantize" else step for step in KL.steps)
)
OURS = (MAX, KL)
TURNS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="digits_resnet,digits_vit")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--backend", default="tensorrt")
    parser.add_argument("--launches", type=int, default=400, help="timed in a turn (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("out/native_calibrators"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.models.split(","):
        kept = options.out / f"{name}-native-calibrators.json"
        if not kept.exists():
            with tempfile.TemporaryDirectory() as folder:
                found = measured(name, options.batch, options.backend, options.launches, Path(folder))
            kept.write_text(json.dumps(found, indent=1) + "\n")
        show(name, json.loads(kept.read_text()))


def measured(name: str, batch: int, backend: str, launches: int, folder: Path) -> dict:
    """Build everything, time it in turns, and count right answers."""
    store = wb.Store(folder / "store")
    model = wb.load(name, store=store)
    data = wb.datasets.digits().bound_to(model)
    dialect = engines.backend(backend).dialect(backend)
    image = model.inputs[0]
    largest = (batch, *image.shape[1:])
    build = wb.BuildOptions(profiles=({image.name: ShapeProfile((1, *image.shape[1:]), largest, largest)},))
    np.savez(folder / "feeds.npz", **data.calibration.inputs)
    native = backend == "tensorrt"
    built, rows, thresholds = {}, {}, {}

    def add(
        title: str, variant: wb.records.Variant, options: wb.BuildOptions, feeds: Path | None, seconds: float
    ) -> None:
        began = time.perf_counter()
        try:
            engine = engines.build(variant, backend, options, store=store, calibration=feeds)
        except WorkbenchError as error:
            print(f"{name}, {title}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            return
        built[title] = engine
        rows[title] = {
            "calibrate_seconds": seconds,
            "build_seconds": time.perf_counter() - began,
            "notes": engine.notes,
        }

    plain = wb.transform(model, FP16, dialect=dialect, store=store)
    add("fp16", plain, build, None, 0.0)
    for recipe in OURS:
        began = time.perf_counter()
        table = wb.calibrate(model, data.calibration, recipe, dialect=dialect)
        variant = wb.transform(model, recipe, dialect=dialect, table=table, store=store)
        report = next(item for item in variant.reports if item.kind == "quantize")
        thresholds[recipe.name] = {key: value["threshold"] for key, value in report.details["thresholds"].items()}
        add(f"ours, {recipe.name}", variant, build, None, time.perf_counter() - began)
    for kind in ("entropy", "minmax") if native else ():
        # What calibrating costs is inside the build: the builder runs the network in FP32 on all samples.
        options = replace(build, extra={"native_calibrator": kind})
        add(f"native, {kind}", plain, options, folder / "feeds.npz", 0.0)
        if f"native, {kind}" in built:
            cache = calibration_cache.read(Path(built[f"native, {kind}"].folder) / "calibration.cache")
            thresholds[kind] = cache.thresholds
    if native:
        version = engines.backend(backend).version(backend)
        cache = calibration_cache.from_thresholds(thresholds[KL.name], version)
        (folder / "ours.cache").write_bytes(calibration_cache.render(cache))
        options = replace(
            build, extra={"native_calibrator": "entropy", "calibration_cache": str(folder / "ours.cache")}
        )
        add("native, our KL thresholds", plain, options, None, 0.0)
    feeds = {key: np.ascontiguousarray(array[:batch]) for key, array in data.evaluation.inputs.items()}
    for title, seconds in timed(built, feeds, native, launches).items():
        rows[title] |= {"turn_medians_seconds": seconds, "median_seconds": median(seconds)}
    for title, engine in built.items():
        rows[title] |= {"top1": top1(engine, data, batch), "samples": len(data.evaluation)}
    return {"device": device.describe(), "backend": backend, "batch": batch, "rows": rows, "thresholds": thresholds}


def timed(built: dict, feeds: dict, graph: bool, launches: int) -> dict[str, list[float]]:
    """Return the median of each turn of each engine; a turn opens the engine anew."""
    found: dict[str, list[float]] = {title: [] for title in built}
    for turn in range(TURNS):
        for title in rotated(built, turn):
            with engines.open_runner(built[title]) as runner:
                watch = runner.stopwatch(feeds, "compute", cuda_graph=graph)
                found[title].append(settled_median(watch, launches))
    return found


def top1(engine: wb.records.Engine, data: wb.datasets.Dataset, batch: int) -> float:
    """Return the share of evaluation images that an engine answers right."""
    images, answers = data.evaluation.inputs[engine.inputs[0].name], []
    with engines.open_runner(engine) as runner:
        for start in range(0, len(images), batch):
            answers.append(next(iter(runner.infer({engine.inputs[0].name: images[start : start + batch]}).values())))
    return float(np.mean(np.concatenate(answers).argmax(1) == data.evaluation.labels))


def show(name: str, found: dict) -> None:
    """Print the table, and how thresholds differ."""
    print(f"\n{name}, batch {found['batch']}\n{'engine':28} {'ms':>8} {'top-1':>7} {'calibrate s':>11} {'build s':>8}")
    for title, row in found["rows"].items():
        print(
            f"{title:28} {row['median_seconds'] * 1e3:8.4f} {row['top1']:7.4f} {row['calibrate_seconds']:11.1f} "
            f"{row['build_seconds']:8.1f}"
        )
    ours = found["thresholds"]["int8-kl-fp16"]
    for kind in ("entropy", "minmax"):
        theirs = found["thresholds"].get(kind, {})
        ratios = sorted(theirs[key] / ours[key] for key in ours.keys() & theirs.keys() if ours[key] > 0)
        if ratios:
            low, middle, high = (ratios[int(share * (len(ratios) - 1))] for share in (0.0, 0.5, 1.0))
            print(
                f"thresholds of {kind} / our KL's, {len(ratios)} tensors: {low:.2f} to {high:.2f}, median {middle:.2f}"
            )


if __name__ == "__main__":
    main()
