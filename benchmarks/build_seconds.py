"""Where the seconds of TensorRT builds go: starting up, building, and what a timing cache and a shared process save.

    python3.10 benchmarks/build_seconds.py [--model digits_resnet] [--recipes fp32,fp16,int8-kl] [--out RESULTS]

Four passes over the same recipes: in this process without timings, in this process with the timings of the pass before,
each in a fresh process as `workbench.build` does it, and the same once more. A last table has the start-up in parts. Every
figure is written down as it comes; run again with the same --out, passes that are there are not made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import workbench as wb  # noqa: E402
from workbench import engines  # noqa: E402
from workbench.engines import jobs  # noqa: E402
from workbench.errors import WorkbenchError  # noqa: E402

STARTING = """
import time; started = time.perf_counter(); marks = []
def mark(what): marks.append((what, time.perf_counter() - started))
import numpy, onnx, workbench; mark("numpy, onnx, workbench")
import tensorrt as trt; mark("import tensorrt")
from workbench.engines.tensorrt import cuda; cuda.load().device(); mark("cuda-python, device")
cuda.load().used_bytes(); mark("CUDA context")
logger = trt.Logger(trt.Logger.ERROR); trt.init_libnvinfer_plugins(logger, ""); mark("plugins")
builder = trt.Builder(logger); mark("builder")
import json; print(json.dumps(marks))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits_resnet")
    parser.add_argument("--recipes", default="fp32,fp16,int8-kl")
    parser.add_argument("--backend", default="tensorrt")
    parser.add_argument("--out", type=Path, default=Path("out/build_seconds"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        kept = options.out / f"{options.model}-build-seconds.json"
        found = measured(options.model, options.recipes.split(","), options.backend, Path(folder), kept)
    if options.backend == "tensorrt":
        for turn in ("first", "second"):
            found[f"start-up, {turn}"] = started()
    (options.out / f"{options.model}-build-seconds.json").write_text(json.dumps(found, indent=1))
    for name, seconds in found.items():
        words = "  ".join(f"{key} {value:.2f}" for key, value in seconds.items())
        print(f"{name:26} {sum(seconds.values()) if 'start-up' not in name else 0:7.2f} s   {words}", flush=True)


def measured(name: str, recipes: list[str], backend: str, folder: Path, kept: Path) -> dict[str, dict[str, float]]:
    """Return pass -> recipe -> seconds."""
    store = wb.Store(folder / "store")
    model = wb.load(name)
    data = wb.datasets.digits().bound_to(model)
    dialect = engines.backend(backend).dialect(backend)
    table = wb.calibrate(model, data.calibration, "int8-kl", dialect=dialect)
    variants = [wb.transform(model, recipe, dialect=dialect, table=table, store=store) for recipe in recipes]
    passes = {"in this process": engines.build, "with timings": engines.build, "fresh processes": jobs.build}
    found: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
    for title, build in {**passes, "fresh, again": jobs.build}.items():
        found.setdefault(title, {})
        for variant in (item for item in variants if item.name not in found[title]):
            began = time.perf_counter()
            try:
                build(variant, backend, wb.BuildOptions(), store=store)
            except WorkbenchError as error:
                print(f"{title}, {variant.name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
                continue
            found[title][variant.name] = time.perf_counter() - began
            kept.write_text(json.dumps(found, indent=1))
            print(f"{title}, {variant.name}: {found[title][variant.name]:.1f} s", flush=True)
        print(f"{title}: {found[title]}", flush=True)
    return found


def started() -> dict[str, float]:
    """Return the seconds after which each part of the start-up is done, in a fresh process."""
    answer = subprocess.run([sys.executable, "-c", STARTING], cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode:
        print(answer.stderr[-2000:])
        return {}
    return {str(what): float(seconds) for what, seconds in json.loads(answer.stdout.splitlines()[-1])}


if __name__ == "__main__":
    main()
