"""Why INT8 is no faster than it is on the shipped vision transformer: the explanation that the README quotes.

    python benchmarks/why_cpu.py [--rounds 5] [--out benchmarks/results/why_cpu.json]

Writes the sentences, what this machine can do, and the profiled layers. Run it on a quiet machine: it measures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import workbench as wb
from workbench import codec
from workbench.machine import device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "why_cpu.json")
    options = parser.parse_args()
    protocol = wb.Protocol(batch=8, rounds=options.rounds)
    study = wb.run(wb.load("digits_vit"), wb.datasets.digits(), ["fp32", "int8-max"], protocol=protocol, name="why-cpu")
    why = wb.explain(study, "int8-max")
    found = {
        "sentences": list(why.sentences),
        "ceilings": codec.to_plain(wb.ceilings("onnxruntime-cpu")),
        "layers": json.loads(study.layers().to_json(orient="records")),
        "device": device.describe(),
    }
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(*why.sentences, found["ceilings"], sep="\n")


if __name__ == "__main__":
    main()
