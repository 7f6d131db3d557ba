"""INT8 calibration, ours against others: 256 samples of 3x64x64 through a 31-node residual CNN, on two cores.

    python benchmarks/calibration.py [--modelopt PYTHON] [--out benchmarks/results/calibration.json]

Every contender calibrates and quantizes in a process of its own, so that its peak memory is its own; the quantized files
are then judged by one process on 64 samples that nobody calibrated on. PYTHON is an interpreter that can import
modelopt.onnx (nvidia-modelopt, installed with --no-deps beside torch 2.13 and onnxruntime 1.24); left out, it is skipped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES, JUDGED, SIDE = 256, 64, 64
OURS = ("max", "percentile-99.9", "percentile-99.99", "percentile-99.999", "kl", "mse", "auto")


def network(path: Path) -> None:
    """Six residual blocks with BatchNorm folded by the exporter, random weights: 31 nodes."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))
            self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
            same = stride == 1 and inputs == outputs
            self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride)

        def forward(self, x: Any) -> Any:
            return torch.relu(self.second(torch.relu(self.first(x))) + self.skip(x))

    torch.manual_seed(0)
    blocks = [Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1), Block(32, 64, 2)]
    stem = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU()
    )
    net = nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    with torch.no_grad():  # statistics that are not the trivial ones
        net.train()
        for _ in range(5):
            net(torch.randn(16, 3, SIDE, SIDE))
    net.eval()
    torch.onnx.export(
        net, (torch.randn(1, 3, SIDE, SIDE),), str(path), opset_version=17, dynamo=False, input_names=["x"],
        output_names=["y"], dynamic_axes={"x": {0: "N"}, "y": {0: "N"}},
    )  # fmt: skip


def images(count: int, seed: int) -> np.ndarray:
    """Gaussian images, each with a gain of its own (log-normal): a stress test for thresholds."""
    rng = np.random.default_rng(seed)
    # In place and in float32, so that making the data does not raise the peak that calibration is judged by.
    x = rng.standard_normal((count, 3, SIDE, SIDE), dtype=np.float32)
    x *= rng.lognormal(0.0, 0.5, (count, 1, 1, 1)).astype(np.float32)
    return x


def sqnr_db(parent: np.ndarray, lowered: np.ndarray) -> float:
    noise = np.square(parent.astype(np.float64) - lowered).sum()
    return float(10 * np.log10(np.square(parent.astype(np.float64)).sum() / noise))


def peak_mb() -> float:
    """Return this program's own peak; getrusage would hand down the peak of the process that started it."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    return float(line.split()[1]) / 1024


# Each of these runs in a process of its own: `calibration.py --child NAME FOLDER`.


def collect(folder: Path, count: int, batch: int = 8, order: int | None = None) -> dict[str, Any]:
    """Ours: collect the table, find the thresholds of all calibrators."""
    import workbench as wb
    from workbench.calibration.table import Provenance
    from workbench.calibration.thresholds import METHODS, threshold
    from workbench.engines.onnxruntime import open_file
    from workbench.transformation.intermediate_outputs import Observation, batches
    from workbench.transformation.observing import calibrate_proto
    from workbench.transformation.steps import observed_graph

    model = wb.load(folder / "net.onnx", store=wb.Store(folder / "store"))
    graph = observed_graph(model, "int8-max")
    x = images(count, 1)
    x = x if order is None else x[np.random.default_rng(order).permutation(count)]
    open_file(graph.SerializeToString()).infer({"x": x[:1]})
    how = Observation(batch=batch)
    before = peak_mb()
    started = time.perf_counter()
    table = calibrate_proto(graph, {"x": x}, Provenance("", "", ""), how)
    collecting = time.perf_counter() - started
    started = time.perf_counter()
    for histogram in table.values():
        for method in METHODS:
            threshold(histogram, method)
    searching = time.perf_counter() - started
    after = peak_mb()
    started = time.perf_counter()
    for _ in batches(graph, list(table), {"x": x}, how):
        pass
    plain = time.perf_counter() - started
    return {
        "tensors": len(table), "nodes": len(graph.graph.node), "collect_seconds": collecting, "pass_seconds": plain,
        "search_seconds": searching, "peak_mb": after, "over_imports_mb": after - before, "sha256": table.sha256,
        "thresholds": {name: threshold(table[name], "percentile-99.99") for name in table},
    }  # fmt: skip


def ours(folder: Path, detail: str) -> dict[str, Any]:
    calibrator, _, left_out = detail.partition(",")
    import workbench as wb
    from workbench.datasets import Split
    from workbench.recipes import NAMED

    store = wb.Store(folder / "store")
    model = wb.load(folder / "net.onnx", store=store)
    split, recipe = Split({"x": images(SAMPLES, 1)}), NAMED[f"int8-{calibrator}"]
    recipe = recipe.excluding(left_out) if left_out else recipe
    started = time.perf_counter()
    found = {}
    for dialect in ("ort-cpu", "strong"):
        table = wb.calibrate(model, split, recipe, dialect=dialect)
        found[dialect] = wb.transform(model, recipe, table=table, store=store).path
    return {"seconds": (time.perf_counter() - started) / 2, "peak_mb": peak_mb(), "files": found}


def onnxruntime_static(folder: Path, method: str) -> dict[str, Any]:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(images(SAMPLES, 1))

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self.rows, None)
            return None if row is None else {"x": row[None]}

    target = folder / f"ort-{method}.onnx"
    started = time.perf_counter()
    quantize_static(
        str(folder / "net.onnx"), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod[method],
        extra_options={"ActivationSymmetric": True},
    )  # fmt: skip
    return {"seconds": time.perf_counter() - started, "peak_mb": peak_mb(), "files": {"symmetric": str(target)}}


def modelopt(folder: Path, method: str) -> dict[str, Any]:
    from modelopt.onnx.quantization import quantize

    target = folder / f"modelopt-{method}.onnx"
    started = time.perf_counter()
    quantize(
        str(folder / "net.onnx"), quantize_mode="int8", calibration_data={"x": images(SAMPLES, 1)},
        calibration_method=method, calibration_eps=["cpu"], output_path=str(target), high_precision_dtype="fp32",
    )  # fmt: skip
    return {"seconds": time.perf_counter() - started, "peak_mb": peak_mb(), "files": {"symmetric": str(target)}}


def child(name: str, folder: Path) -> dict[str, Any]:
    kind, _, detail = name.partition(":")
    if kind == "collect":
        count, batch, order = (int(part) for part in detail.split(","))
        return collect(folder, count, batch, None if order < 0 else order)
    return {"ours": ours, "ort": onnxruntime_static, "modelopt": modelopt}[kind](folder, detail)


def run(name: str, folder: Path, python: str = sys.executable) -> dict[str, Any]:
    command = [python, __file__, "--child", name, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}"
        if name.partition(":")[0] in ("collect", "ours"):  # others may be missing here; ours may not
            raise SystemExit(f"{name} failed: {why}")
        return {"failed": why}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def judged(folder: Path, found: dict[str, dict[str, Any]]) -> None:
    """Add the SQNR of every file, Q/DQ run as it stands: ONNX Runtime's optimizer is off."""
    from workbench.engines.onnxruntime import open_file

    x = images(JUDGED, 2)
    parent = open_file(folder / "net.onnx", "off").infer({"x": x})["y"]
    for result in found.values():
        result["sqnr_db"] = {
            kind: sqnr_db(parent, next(iter(open_file(path, "off").infer({"x": x}).values())))
            for kind, path in result.get("files", {}).items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--child", nargs=2)
    parser.add_argument("--modelopt", help="an interpreter that can import modelopt.onnx")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "calibration.json")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child[0], Path(options.child[1]))))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        network(folder / "net.onnx")
        passes = {key: run(f"collect:{key}", folder) for key in ("256,8,-1", "4000,8,-1", "256,8,7", "256,7,-1")}
        found = {f"ours {method}": run(f"ours:{method}", folder) for method in OURS}
        # ModelOpt leaves the last layer, a product with 10 outputs, in FP32: the same layers make a fair comparison.
        for method in ("max", "percentile-99.999", "kl"):
            found[f"ours {method}, last layer FP32"] = run(f"ours:{method},Gemm$", folder)
        found |= {
            f"onnxruntime {method}": run(f"ort:{method}", folder) for method in ("MinMax", "Entropy", "Percentile")
        }
        if options.modelopt:
            for method in ("max", "entropy"):
                found[f"modelopt {method}"] = run(f"modelopt:{method}", folder, options.modelopt)
        judged(folder, found)
    first = passes["256,8,-1"]
    thresholds = [passes[key]["thresholds"] for key in ("256,8,-1", "256,7,-1")]
    summary = {
        "collect_over_pass": first["collect_seconds"] / first["pass_seconds"],
        "search_seconds_for_50_tensors": first["search_seconds"] / first["tensors"] * 50,
        "over_imports_mb": {key: passes[key]["over_imports_mb"] for key in ("256,8,-1", "4000,8,-1")},
        "same_bytes_in_another_order_and_batch": {
            key: passes[key]["sha256"] == first["sha256"] for key in ("256,8,7", "256,7,-1")
        },
        "largest_change_of_a_threshold_by_batch": max(
            abs(thresholds[1][name] / value - 1) for name, value in thresholds[0].items()
        ),
    }
    for result in (*passes.values(), *found.values()):
        result.pop("files", None)
        result.pop("thresholds", None)
    options.out.parent.mkdir(exist_ok=True)
    from workbench.machine import device  # here: ModelOpt's interpreter reads this file too, without the package

    kept = {"device": device.describe(), "summary": summary, "passes": passes, "contenders": found}
    options.out.write_text(json.dumps(kept, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    for label, result in found.items():
        print(f"{label:28}", result.get("failed") or {k: v for k, v in result.items() if k != "failed"})


if __name__ == "__main__":
    main()
