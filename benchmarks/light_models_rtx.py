"""What NVIDIA's builder makes of models that are not ours: the light models of the onnx package, without a GPU. By hand:

    python benchmarks/light_models_rtx.py --output benchmarks/results/rtx_light_models.json

Each model is previewed as it is and in FP16, BF16 and INT8, for one target. A file that the parser or the builder
refuses, and a kernel that contradicts a step's report, are counted and end the script with status 1. Their weights are mostly
made by ConstantOfShape, and those layers are left out of INT8 with that reason. Times are of a shared machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import workbench as wb  # noqa: E402
from workbench.errors import WorkbenchError  # noqa: E402
from workbench.machine import device  # noqa: E402
from workbench.machine.store import Store  # noqa: E402

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
RECIPES = ("fp32", "fp16", "bf16", "int8-max")


def previewed(path: Path, recipe: str, target: str, store: Store) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        found = wb.preview(wb.load(path, store=store), recipe, target=target, store=store)
    except WorkbenchError as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    return {
        "computed": found.computed,
        "lowered": len(found.lowered),
        "skipped": len(found.skipped),
        "missed": found.missed,
        "unreported": found.unreported,
        "kernels": len(found.layers),
        "weight_bytes": found.weight_bytes,
        "build_seconds": round(found.build_seconds, 2),
        "seconds": round(time.perf_counter() - started, 2),
        "version": found.version,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="sm89")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        for path in sorted(LIGHT.glob("*.onnx")):
            for recipe in RECIPES:
                found = previewed(path, recipe, options.target, store)
                rows.append({"model": path.stem, "recipe": recipe, **found})
                words = found.get("refused") or f"{found['computed']}, {found['lowered']} lowered"
                print(f"{path.stem:24} {recipe:9} {words}", flush=True)
    wrong = [row for row in rows if "refused" in row or row["missed"] or row["unreported"]]
    print(f"{len(rows)} builds for {options.target} on {device.cpu_device()}; {len(wrong)} refused or contradicted")
    if options.output is not None:
        record = {"machine": device.cpu_device(), "target": options.target, "rows": rows}
        options.output.write_text(json.dumps(record, indent=1) + "\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
