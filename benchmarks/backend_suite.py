"""The recipe `fp32` on every model of ONNX's backend suite, against the file itself in plain ONNX Runtime. Measures no time.

python benchmarks/backend_suite.py --out benchmarks/results/backend_suite.json
python benchmarks/backend_suite.py --dialect trt-8.6 --out benchmarks/results/backend_suite_trt_8.6.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "unit"))

import backend_suite
import onnx
import onnxruntime

import workbench as wb
from workbench.machine import device


def main() -> None:
    """Count, print what is not equal, and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1, help="take each n-th model")
    parser.add_argument("--dialect", help="another engine's, such as trt-8.6, which needs opset 17 or older")
    arguments = parser.parse_args()
    counts: Counter[str] = Counter()
    others: dict[str, dict[str, str]] = {"differs": {}, "refused": {}, "crashed": {}, "not comparable": {}}
    with tempfile.TemporaryDirectory() as folder:
        store = wb.Store(Path(folder) / "store")
        for case in list(backend_suite.cases())[:: arguments.every]:  # type: ignore[attr-defined]
            what, why = backend_suite.outcome(case, Path(folder), store, arguments.dialect)  # type: ignore[attr-defined]
            counts[what] += 1
            if what != "equal":
                others[what][case.name] = why
            if what in ("differs", "refused", "crashed"):
                print(f"{what}: {case.name}: {why}", flush=True)
    versions = {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    found = {
        "dialect": arguments.dialect,
        "counts": dict(counts),
        **others,
        "versions": versions,
        "device": device.describe(),
    }
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(dict(counts))


if __name__ == "__main__":
    main()
