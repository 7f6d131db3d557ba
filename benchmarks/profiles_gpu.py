"""What an optimization profile costs: one network built for one batch, for a range, and for several ranges.

    python3.10 benchmarks/profiles_gpu.py [--model digits_resnet] [--recipe fp16] [--out RESULTS]

Each engine is timed in a CUDA graph at each batch that it takes, in turns. The last column of the table says how much longer
the engine takes than the one that was built for that batch alone. `--backend onnxruntime-cpu` rehearses it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent), str(ROOT / "data" / "training")]

from turns import rotated, settled_median  # noqa: E402

import workbench as wb  # noqa: E402
from workbench import engines  # noqa: E402
from workbench.errors import WorkbenchError  # noqa: E402
from workbench.machine import device  # noqa: E402
from workbench.records import ShapeProfile  # noqa: E402

BATCHES = (1, 8, 32, 128)
# Name -> the profiles of the engine: smallest, typical (which TensorRT tunes for) and largest batch of each.
RANGES = {
    **{f"batch {batch} alone": ((batch, batch, batch),) for batch in BATCHES},
    "1 to 128, tuned for 1": ((1, 1, 128),),
    "1 to 128, tuned for 32": ((1, 32, 128),),
    "1 to 128, tuned for 128": ((1, 128, 128),),
    "two: 1 to 8 and 8 to 128": ((1, 1, 8), (8, 128, 128)),
}
TURNS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits_resnet")
    parser.add_argument("--recipe", default="fp16")
    parser.add_argument("--backend", default="tensorrt")
    parser.add_argument("--launches", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("out/profiles"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept = options.out / f"{options.model}-{options.recipe}-profiles.json"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            found = measured(options.model, options.recipe, options.backend, options.launches, Path(folder))
        kept.write_text(json.dumps(found, indent=1) + "\n")
    show(json.loads(kept.read_text()))


def measured(name: str, recipe: str, backend: str, launches: int, folder: Path) -> dict:
    """Build an engine a range and time each at the batches that it takes."""
    store = wb.Store(folder / "store")
    model = wb.load(name, store=store)
    data = wb.datasets.digits().bound_to(model)
    variant = wb.transform(model, recipe, dialect=engines.backend(backend).dialect(backend), store=store)
    image = model.inputs[0]
    built: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for title, ranges in RANGES.items():
        shapes = [[(batch, *image.shape[1:]) for batch in sizes] for sizes in ranges]
        profiles = tuple({image.name: ShapeProfile(*sizes)} for sizes in shapes)
        began = time.perf_counter()
        try:
            engine = engines.build(variant, backend, wb.BuildOptions(profiles=profiles), store=store)
        except WorkbenchError as error:
            print(f"{title}: {type(error).__name__}: {error}", flush=True)
            continue
        built[title] = engine
        found[title] = {
            "build_seconds": time.perf_counter() - began,
            "turn_medians_seconds": {},
            "bytes": engine.size_bytes,
        }
    images = next(iter(data.evaluation.inputs.values()))
    for turn in range(TURNS):
        for batch in BATCHES:
            feeds = {image.name: np.ascontiguousarray(images[:batch])}
            takes = [key for key in built if any(low <= batch <= high for low, _, high in RANGES[key])]
            for title in rotated(takes, turn):
                with engines.open_runner(built[title]) as runner:
                    watch = runner.stopwatch(feeds, "compute", cuda_graph=backend == "tensorrt")
                    taken = settled_median(watch, launches)
                found[title]["turn_medians_seconds"].setdefault(str(batch), []).append(taken)
    return {"model": name, "recipe": recipe, "backend": backend, "device": device.describe(), "engines": found}


def show(found: dict) -> None:
    """Print a line an engine: milliseconds at each batch, and the loss against the engine for that batch alone."""
    rows = {title: {key: median(value) for key, value in entry["turn_medians_seconds"].items()}
            for title, entry in found["engines"].items()}  # fmt: skip
    print(f"{found['model']}, {found['recipe']}\n{'engine':28} {'build s':>8}" + "".join(f"{b:>18}" for b in BATCHES))
    for title, times in rows.items():
        words = ""
        for batch in map(str, BATCHES):
            alone = rows.get(f"batch {batch} alone", {}).get(batch)
            said = f"{times[batch] * 1e3:8.4f} ms" if batch in times else "-"
            words += f"{said + (f' {times[batch] / alone - 1:+5.0%}' if batch in times and alone else ''):>18}"
        print(f"{title:28} {found['engines'][title]['build_seconds']:8.1f}{words}")


if __name__ == "__main__":
    main()
