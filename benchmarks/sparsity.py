"""What 2:4 pruning costs in accuracy on the shipped networks: by magnitude, and corrected on calibration samples.

    python benchmarks/sparsity.py [--out benchmarks/results/sparsity.json]

Top-1 on the evaluation digits, of which calibration saw none; FP32 and INT8 are computed by ONNX Runtime with its optimizer
off, INT8 in TensorRT's form of Q/DQ. Prints as it goes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import workbench as wb  # noqa: E402
from workbench.engines.onnxruntime import open_file  # noqa: E402
from workbench.machine import device  # noqa: E402
from workbench.recipes import Fuse, Quantize, Recipe, Sparsify  # noqa: E402

DIALECT = "trt-8.6"
MAGNITUDE = Sparsify(method="magnitude")
RECIPES = (
    "fp32",
    Recipe("magnitude-2:4", (Fuse(), MAGNITUDE)),
    "sparse-2:4",
    "int8-kl",
    Recipe("magnitude-2:4-int8", (Fuse(), MAGNITUDE, Quantize(calibrator="kl"))),
    "sparse-2:4-int8",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="digits_resnet,digits_vit")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "sparsity.json")
    options = parser.parse_args()
    found = {"device": device.cpu_device(), "onnxruntime": device.version("onnxruntime"), "models": {}}
    for name in options.models.split(","):
        found["models"][name] = rows(name)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")


def rows(name: str) -> list[dict[str, object]]:
    """Return one row a recipe."""
    made = []
    with tempfile.TemporaryDirectory() as folder:
        store = wb.Store(Path(folder) / "store")
        model = wb.load(name, store=store)
        data = wb.datasets.digits().bound_to(model)
        for recipe in RECIPES:
            chosen = wb.recipes.named(recipe)
            began = time.perf_counter()
            needed = chosen.needs_calibration or chosen.uses_samples
            known = wb.calibrate(model, data, chosen, dialect=DIALECT, store=store) if needed else None
            seconds = time.perf_counter() - began
            variant = wb.transform(model, chosen, dialect=DIALECT, table=known, store=store)
            report = next((item for item in variant.reports if item.kind == "sparsify"), None)
            row = {
                "recipe": chosen.name, "top1": top1(variant.path, data), "samples": len(data.evaluation),
                "calibrate_seconds": seconds, "layers_pruned": 0 if report is None else len(report.changed),
                "energy_removed": None if report is None else report.details["energy_removed"],
            }  # fmt: skip
            made.append(row)
            print(f"{name:14} {chosen.name:20} top-1 {row['top1']:.4f}   calibrating {seconds:5.1f} s", flush=True)
    return made


def top1(path: str, data: wb.datasets.Dataset) -> float:
    """Return the share of evaluation images that a file answers right."""
    with open_file(path, "off") as runner:
        (logits,) = runner.infer(data.evaluation.inputs).values()
    return float(np.mean(logits.argmax(axis=1) == data.evaluation.labels))


if __name__ == "__main__":
    main()
