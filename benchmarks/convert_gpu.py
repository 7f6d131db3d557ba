"""`workbench.convert` on CUDA tensors beside the eager module: one call each, in turns, with PyTorch and TensorRT in one Python.

    python benchmarks/convert_gpu.py [--batches 1,32] [--out RESULTS]

ResNet-50 with random weights. A call is what a user writes, `net(x)`, from a CUDA tensor to a CUDA tensor, launches included;
the error is relative to the largest logit, against eager FP32 on the same card. `--device cpu --size tiny` rehearses it.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent), str(ROOT / "data" / "training")]

import h200_cases  # noqa: E402
from turns import rotated, settled_median  # noqa: E402

import workbench as wb  # noqa: E402
from workbench.machine import device as hardware  # noqa: E402
from workbench.records import ShapeProfile  # noqa: E402

TURNS, CALLS = 4, 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--precisions", default="fp32,fp16")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("out/convert_gpu"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    module, example, _ = h200_cases.module("resnet50", options.size)
    module = module.to(options.device)
    case = h200_cases.Case("resnet50", "resnet50", options.size)
    backend = "tensorrt" if options.device == "cuda" else "onnxruntime-cpu"
    rows = []
    for batch in map(int, options.batches.split(",")):
        x = torch.from_numpy(case.batch(batch, 1)["pixel_values"]).to(options.device)
        shape = tuple(x.shape)
        build = wb.BuildOptions(profiles=({"pixel_values": ShapeProfile((1, *shape[1:]), shape, shape)},))
        calls: dict[str, Any] = {"eager fp32": module}
        if options.device == "cuda":
            half, halved = copy.deepcopy(module).half(), x.half()
            calls["eager fp16"] = lambda _, half=half, halved=halved: half(halved)
        for precision in options.precisions.split(","):
            given = {name: tensor.to(options.device) for name, tensor in example.items()}
            made = wb.convert(
                module, given, precision, backend=backend, options=build if backend == "tensorrt" else None
            )
            calls[f"convert {precision}"] = made
        with torch.no_grad():
            want = module(x)
            for name, seconds in timed(calls, x, options.device).items():
                error = float((calls[name](x).float() - want).abs().max() / want.abs().max())
                rows.append({"batch": batch, "call": name, "turn_medians_seconds": seconds, "relative_error": error})
                print(f"batch {batch:3d}  {name:14} {median(seconds) * 1e3:8.3f} ms   error {error:.1e}", flush=True)
    found = {"device": hardware.describe(), "backend": backend, "rows": rows}
    (options.out / "resnet50-convert.json").write_text(json.dumps(found, indent=1) + "\n")


def timed(calls: dict[str, Any], x: torch.Tensor, place: str) -> dict[str, list[float]]:
    """Return the median seconds of each turn of each call, the wait for the device included."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(TURNS):
        for name in rotated(calls, turn):
            found[name].append(settled_median(partial(once, calls[name], x, place), CALLS if place == "cuda" else 5))
    return found


def once(call: Any, x: torch.Tensor, place: str) -> float:
    """Return the seconds of one call from and to a device that has nothing else to do."""
    if place == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    call(x)
    if place == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
