"""The shipped vision models on ONNX Runtime's CPU engine: what each recipe costs and gains here.

    python benchmarks/vision_cpu.py [--rounds 15] [--models digits_resnet,digits_vit]

Writes one recorded study a model to benchmarks/results/ and prints their tables. Run it on a quiet machine: it measures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import workbench as wb
from workbench.machine import device

RECIPES = ["fp32", "fp32-unfused", "fp32-basic", "fp16", "int8-max", "int8-kl", "int8-mse", "int8-dynamic"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", default="digits_resnet,digits_vit")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.models.split(","):
        protocol = wb.Protocol(batch=8, rounds=options.rounds)
        # With or without VNNI, INT8 runs in other kernels: never the same study.
        kind = "vnni" if "vnni" in " ".join(device.cpu_flags()) else "avx2"
        study = wb.run(wb.load(name), wb.datasets.digits(), RECIPES, protocol=protocol, name=f"{name}-cpu-{kind}")
        print(f"\n{name}\n{study.table().to_string(index=False)}")
        print("saved:", study.save(options.out / f"{name}-cpu-{kind}.json"))


if __name__ == "__main__":
    main()
