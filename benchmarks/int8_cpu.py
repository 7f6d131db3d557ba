"""INT8 on this CPU, in every form of weights and activations: how right, and how fast.

    python benchmarks/int8_cpu.py [--rounds 15] [--models digits_resnet,digits_vit] [--out benchmarks/results/int8_cpu_avx2.json]

For each shipped model the INT8 file is written with full 8-bit, 7-bit and unsigned weights, with unsigned and signed
activations, static and dynamic, and run by ONNX Runtime and OpenVINO with one thread. Latencies are taken in turns in
one process, so that drift meets all forms alike. Two signal-to-noise ratios against FP32 belong to each form: of the
engine as it runs, and of the same file in exact arithmetic (`workbench.graph.exact`, on fewer samples). Where they
differ the engine computes something else than the file says.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

import workbench as wb
from workbench.engines.onnxruntime import open_file
from workbench.graph.exact import exact_form
from workbench.machine import device
from workbench.machine.store import Store
from workbench.recipes import Fuse, Quantize, Recipe

BATCH, JUDGED, EXACT = 8, 256, 32
FORMS = {
    # name: (dialect, static or dynamic, symmetric activations, unsigned weights)
    "u8 x s8, 8 bits": ("ort-cpu", "static", None, False),
    "u8 x s8, 7 bits": ("ort-cpu-7bit", "static", None, False),
    "u8 x u8": ("ort-cpu", "static", None, True),
    "s8 x s8, 8 bits": ("ort-cpu", "static", True, False),
    "s8 x s8, 7 bits": ("ort-cpu-7bit", "static", True, False),
    "dynamic u8 x s8, 8 bits": ("ort-cpu", "dynamic", None, False),
    "dynamic u8 x s8, 7 bits": ("ort-cpu-7bit", "dynamic", None, False),
    "dynamic u8 x u8": ("ort-cpu", "dynamic", None, True),
    "pairs s8 x s8, 8 bits": ("strong", "static", None, False),
    "pairs s8 x s8, 7 bits": ("openvino-7bit", "static", None, False),
}
Run = Callable[[dict[str, np.ndarray]], np.ndarray]


def unsigned_weights(path: str, to: Path) -> None:
    """Shift the codes of all int8 weights, and their zero points, by 128: the same numbers as uint8."""
    model = onnx.load(path)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for tensor in constants.values():
        if tensor.data_type == onnx.TensorProto.INT8:
            codes = numpy_helper.to_array(tensor).astype(np.int16) + 128
            tensor.CopyFrom(numpy_helper.from_array(codes.astype(np.uint8), tensor.name))
    onnx.checker.check_model(model)
    onnx.save(model, to)


def with_onnxruntime(path: str) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda feeds: np.asarray(session.run(None, feeds)[0])


def in_exact_arithmetic(path: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    exact = exact_form(onnx.load(path))
    assert exact is not None
    with open_file(exact.SerializeToString(), "off", 1) as runner:
        return next(iter(runner.infer(feeds).values()))


def with_openvino(path: str) -> Run:
    import openvino

    settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return lambda feeds: np.array(compiled(feeds)[0])


ENGINES = {"onnxruntime": with_onnxruntime, "openvino": with_openvino}


def sqnr_db(right: np.ndarray, have: np.ndarray) -> float:
    right = right.astype(np.float64)
    return float(10 * np.log10((right**2).sum() / ((have - right) ** 2).sum()))


def files(model: wb.Model, data: wb.Dataset, folder: Path) -> dict[str, str]:
    """Return form -> ONNX file, FP32 among them."""
    store = Store(folder / "store")
    found = {"fp32": wb.transform(model, "fp32", store=store).path}
    table = wb.calibrate(model, data.calibration, "int8-max")
    for name, (dialect, activations, symmetric, unsigned) in FORMS.items():
        step = Quantize(calibrator="max", activations=activations, symmetric=symmetric)
        recipe = Recipe(name, (Fuse("all"), step))
        try:
            path = wb.transform(model, recipe, dialect=dialect, table=table, store=store).path
        except wb.errors.TransformError as error:
            print(f"{name}: {error}")
            continue
        if unsigned:
            place = folder / f"{len(found)}.onnx"
            unsigned_weights(path, place)
            path = str(place)
        found[name] = path
    return found


def compared(model: wb.Model, data: wb.Dataset, rounds: int, folder: Path) -> dict[str, Any]:
    paths = files(model, data, folder)
    name = model.inputs[0].name
    images = data.evaluation.inputs[name][:JUDGED]
    batch = {name: np.ascontiguousarray(images[:BATCH])}
    opened: dict[tuple[str, str], Run] = {}
    rows: dict[str, dict[str, Any]] = {form: {} for form in paths}
    right = with_onnxruntime(paths["fp32"])({name: images})
    for form, path in paths.items():
        if form != "fp32":
            exact = in_exact_arithmetic(path, {name: images[:EXACT]})
            rows[form]["exact_sqnr_db"] = sqnr_db(right[:EXACT], exact)
        for engine, open_engine in ENGINES.items():
            try:
                run = open_engine(path)
                answers = run({name: images})
            except Exception as error:  # noqa: BLE001 - an engine that refuses a form is a result
                rows[form][engine] = {"refused": str(error).splitlines()[0][:200]}
                continue
            opened[form, engine] = run
            rows[form][engine] = {
                "sqnr_db": None if form == "fp32" else sqnr_db(right, answers),
                "sqnr_db_of_the_exact_samples": None if form == "fp32" else sqnr_db(right[:EXACT], answers[:EXACT]),
                "milliseconds": [],
            }
    for (form, engine), milliseconds in _in_turns(opened, batch, rounds).items():
        rows[form][engine]["milliseconds"] = milliseconds
    for form, row in rows.items():
        for engine in ENGINES:
            if (form, engine) in opened and ("fp32", engine) in opened:
                # Neighbours in time: the ratio of each round, and their median.
                pairs = zip(rows["fp32"][engine]["milliseconds"], row[engine]["milliseconds"], strict=True)
                row[engine]["times_fp32_speed"] = statistics.median(one / two for one, two in pairs)
    return rows


def _in_turns(
    opened: dict[tuple[str, str], Run], batch: dict[str, np.ndarray], rounds: int
) -> dict[tuple[str, str], list[float]]:
    """Return the median latency of every round of every engine, the engines in another random order each round."""
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in opened}
    rng = np.random.default_rng(0)
    for _ in range(rounds):
        for place in rng.permutation(len(opened)):
            key = list(opened)[place]
            samples = []
            for call in range(15):
                started = time.perf_counter()
                opened[key](batch)
                if call >= 3:
                    samples.append(1e3 * (time.perf_counter() - started))
            taken[key].append(statistics.median(samples))
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--models", default="digits_resnet,digits_vit")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "int8_cpu_avx2.json")
    options = parser.parse_args()
    data = wb.datasets.digits()
    result: dict[str, Any] = {"environment": device.describe(), "int8": vars(device.int8()), "batch": BATCH}
    for name in options.models.split(","):
        model = wb.load(name)
        with tempfile.TemporaryDirectory() as folder:
            rows = compared(model, data.bound_to(model), options.rounds, Path(folder))
        result[name] = rows
        print(f"\n{name}, batch {BATCH}, one thread")
        for form, row in rows.items():
            cells = [f"{form:26}", f"exact {row.get('exact_sqnr_db', float('inf')):5.1f} dB"]
            for engine in ENGINES:
                one = row[engine]
                if "refused" in one:
                    cells.append(f"{engine} refuses")
                else:
                    cells.append(f"{engine} {one['sqnr_db'] or float('inf'):5.1f} dB {one['times_fp32_speed']:5.2f}x")
            print("  ".join(cells))
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
