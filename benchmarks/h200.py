"""One NVIDIA GPU: TensorRT in FP32, TF32, FP16 and INT8 beside PyTorch eager, torch.compile and CUDA graphs.

Two halves, because TensorRT 8.6 and a recent PyTorch want different Pythons; they meet in one folder, each goes on where
it was stopped, and each ends with a table of all that is there:

    python3.12 benchmarks/h200.py export FOLDER      exports the models, no more
    python3.12 benchmarks/h200.py torch  FOLDER      exports what is not there yet, measures PyTorch
    python3.10 benchmarks/h200.py engine FOLDER      measures TensorRT on the exported files
    python benchmarks/h200.py table FOLDER

`--rehearse` does all of it on a CPU with tiny models (ONNX Runtime in TensorRT's place). ResNet-50, the BERT-sized
encoder and the LLaMA-architecture decoder have random weights: their accuracy means nothing; the digit models are trained.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent), str(ROOT / "data" / "training")]

import h200_cases as models  # noqa: E402

import workbench as wb  # noqa: E402
from workbench import codec, engines  # noqa: E402
from workbench.errors import WorkbenchError  # noqa: E402
from workbench.graph.cost import cost  # noqa: E402
from workbench.judging import statistics  # noqa: E402
from workbench.machine import device  # noqa: E402
from workbench.records import StudyRecord  # noqa: E402

FP16_ALL = wb.Recipe("fp16-all", (wb.Fuse(), wb.Precision("fp16", auto_exclude=False)))
NATIVE = replace(FP16_ALL, name="int8-native")  # TensorRT's own entropy calibrator on a graph without Q/DQ
ENGINE_RECIPES = ("fp32", "tf32", "fp16", "int8-kl-fp16")
# Dense peaks relative to FP16 tensor cores, from NVIDIA's H200 data sheet; FP32 is without tensor cores.
PEAK_SHARES = {"fp32": 67 / 989, "tf32": 0.5, "fp16": 1.0, "bf16": 1.0, "int8": 2.0}
PAIRS = 300


def run_study(
    folder: Path, case: models.Case, batch: int, label: str, recipes: Sequence[str | wb.Recipe], **how
) -> wb.Study | None:
    """Run one study and keep it as JSON; None where it was finished before, or failed, which is printed."""
    name = f"{case.name}-b{batch}-{label}"
    if (folder / f"{name}.json").exists():
        return None
    started = time.perf_counter()
    try:
        study = wb.run(
            data=case.data(), recipes=recipes, name=name, store=wb.Store(folder / "store"), progress=None, **how
        )
    except WorkbenchError as error:
        print(f"{name}: {type(error).__name__}: {error}", flush=True)
        return None
    study.save(folder / f"{name}.json")
    failed = "".join(f"; {key} failed: {why[:200]}" for key, why in study.failures.items())
    print(f"{name}: {time.perf_counter() - started:.0f} s{failed}", flush=True)
    return study


def protocol(batch: int, graph: bool, rehearse: bool) -> wb.Protocol:
    """Return how latency is measured."""
    if rehearse:
        return wb.Protocol(batch=batch, rounds=1, min_seconds=0.05, min_runs=5, warmup_seconds=0.0, warmup_runs=2)
    return wb.Protocol(batch=batch, rounds=3, min_seconds=0.2, min_runs=50, warmup_seconds=0.3, cuda_graph=graph)


def torch_half(folder: Path, chosen: list[models.Case], batches: list[int], rehearse: bool) -> None:
    """Export every model and measure PyTorch."""
    half, compiled = ("bf16", chosen[:1]) if rehearse else ("fp16", chosen)
    for case in chosen:
        model = exported(folder, case)
        for batch in batches:
            how = {"model": model, "protocol": protocol(batch, False, rehearse)}
            how["options"] = wb.BuildOptions(profiles=(case.profile(batch),))
            run_study(
                folder, case, batch, "torch", ["fp32", *(() if rehearse else ("tf32",)), half], backend="torch", **how
            )
            if case in compiled:
                how_once = {**how, "backend": "torch-compile", "baseline": half}
                run_study(folder, case, batch, "torch-compile", [half], **how_once)
            if engines.backends()["torch-cudagraph"] is None:
                run_study(
                    folder, case, batch, "torch-cudagraph", [half], backend="torch-cudagraph", baseline=half, **how
                )


def exported(folder: Path, case: models.Case) -> wb.records.Model:
    """Return the model with its PyTorch program, and leave `<model>.onnx` for the engine half."""
    kept, place = folder / "models" / f"{case.model}.model.json", folder / "models"
    if kept.exists():
        return codec.from_json(wb.records.Model, kept.read_text())
    module, example, free = models.module(case.model, case.size)
    model = wb.load(module, example, dynamic=free, folder=place / "program", name=case.model)
    try:  # what TensorRT 8.6 is known to parse
        wb.load(module, example, dynamic=free, folder=place, name=case.model, exporter="torchscript")
    except WorkbenchError as error:
        print(f"{case.model}: the file of the dynamo exporter is used, because {error}")
        wb.load(module, example, dynamic=free, folder=place, name=case.model)
    kept.write_text(codec.to_json(model))
    print(
        f"{case.model}: exported, {model.parameters:,} weights, program kept: {model.program is not None}", flush=True
    )
    return model


def engine_half(
    folder: Path, chosen: list[models.Case], batches: list[int], rehearse: bool, launched: bool, recipes: Sequence[str]
) -> None:
    """Measure TensorRT in a CUDA graph, launched as well where asked, and our runner beside a bare loop."""
    backend = "onnxruntime-cpu" if rehearse else "tensorrt"
    named = {FP16_ALL.name: FP16_ALL}
    recipes = ("fp32", "int8-kl") if rehearse else [named.get(name, name) for name in recipes]
    for case in chosen:
        path = folder / "models" / f"{case.model}.onnx"
        if not path.exists():
            print(f"{case.name}: {path} is not there; run the torch half first.")
            continue
        model = wb.load(path)
        for batch in batches:
            options = wb.BuildOptions(profiles=(case.profile(batch),))
            for graph in (False,) if rehearse else ((True, False) if launched else (True,)):
                label = f"{backend}{'-graph' if graph else ''}"
                how = {"model": model, "backend": backend, "protocol": protocol(batch, graph, rehearse)}
                study = run_study(folder, case, batch, label, recipes, options=options, **how)
                if study is not None and (graph or rehearse):
                    bare(folder, case, batch, study)
                if not rehearse:
                    native = replace(options, extra={"native_calibrator": "entropy"})
                    how |= {"options": native, "baseline": NATIVE.name}
                    run_study(folder, case, batch, f"{label}-native", [NATIVE], **how)


def bare(folder: Path, case: models.Case, batch: int, study: wb.Study) -> None:
    """Alternate our stopwatch with a loop that does nothing but launch the same engine; keep both medians.

    The study is one that was run here: a saved one keeps no places of this machine.
    """
    kept = folder / f"{case.name}-b{batch}-bare.txt"
    record = study.record
    engine = next(item.engine for item in record.results if item.engine is not None and item.failure is None)
    backend = record.backend
    inputs = case.data().bound_to(record.model).evaluation.inputs
    feeds = {name: np.ascontiguousarray(array[:batch]) for name, array in inputs.items()}
    with engines.open_runner(engine) as runner:
        watch = runner.stopwatch(feeds, "compute")
        launch = tensorrt_loop(runner) if backend == "tensorrt" else onnxruntime_loop(engine, feeds)
        ours, theirs = [], []
        for turn in range(PAIRS + 10):
            first, second = (watch, launch) if turn % 2 else (launch, watch)
            one, two = first(), second()
            if turn >= 10:
                ours.append(one if turn % 2 else two)
                theirs.append(two if turn % 2 else one)
    kept.write_text(f"{median(ours)!r} {median(theirs)!r}\n")


def tensorrt_loop(runner):  # type: ignore[no-untyped-def]
    """Return a launch timed with CUDA events through the bindings alone, on the inputs that are resident."""
    runtime, context, stream = runner.cuda.runtime, runner.context, runner.stream.raw
    (_, start), (_, end) = runtime.cudaEventCreate(), runtime.cudaEventCreate()

    def launch() -> float:
        runtime.cudaEventRecord(start, stream)
        context.execute_async_v3(int(stream))
        runtime.cudaEventRecord(end, stream)
        runtime.cudaEventSynchronize(end)
        return float(runtime.cudaEventElapsedTime(start, end)[1]) / 1e3

    return launch


def onnxruntime_loop(engine, feeds):  # type: ignore[no-untyped-def]
    """Return a bare call of ONNX Runtime, timed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = engine.options.threads or 1
    session = onnxruntime.InferenceSession(engine.path, options, providers=["CPUExecutionProvider"])

    def launch() -> float:
        started = time.perf_counter()
        session.run(None, feeds)
        return time.perf_counter() - started

    return launch


def table(folder: Path) -> None:
    """Print every median with its speed-up over eager FP32 and its share of the peak, then what was aimed at."""
    rows = sorted(row for file in folder.glob("*-b*-*.json") for row in rows_of(file, folder))
    eager = {row[:2]: row[4] for row in rows if row[2:4] == ("torch", "fp32")}
    print(
        f"\n{'case':14} {'batch':>5} {'backend':28} {'recipe':13} {'median ms':>10} {'vs eager':>8} {'of peak':>14} score"
    )
    for name, batch, backend, recipe, seconds, share, score in rows:
        faster = f"{eager[name, batch] / seconds:7.2f}x" if (name, batch) in eager else "       -"
        print(f"{name:14} {batch:5d} {backend:28} {recipe:13} {seconds * 1e3:10.3f} {faster} {share:>14} {score}")
    for file in sorted(folder.glob("*-bare.txt")):
        ours, theirs = (float(word) for word in file.read_text().split())
        print(f"{file.stem}: our stopwatch / bare loop = {ours / theirs:.4f} (aim: within 1 %)")
    for goal in goals(rows, eager):
        print(goal)


def rows_of(file: Path, folder: Path) -> list[tuple[str, int, str, str, float, str, str]]:
    """Return case, batch, backend, recipe, median seconds, share of the peak and score of each variant of a study."""
    record = codec.from_json(StudyRecord, file.read_text(encoding="utf-8"))
    name, _, rest = file.stem.partition("-b")
    batch, _, label = rest.partition("-")
    found = []
    for item in record.results:
        if item.measurement is None:
            continue
        seconds = statistics.summary(item.measurement).median
        score = ""
        if item.accuracy is not None and item.accuracy.scores:
            score = f"{np.mean(item.accuracy.scores):.4f}"
        share = peak_share(record, item.recipe.name, item.measurement, item.variant, seconds, folder)
        found.append((name, int(batch), label, item.recipe.name, seconds, share, score))
    return found


def peak_share(record, recipe, measurement, variant, seconds, folder) -> str:  # type: ignore[no-untyped-def]
    """Return the larger of two shares: of the FLOP/s of the type, of the bytes/s for reading the weights once."""
    peak = device.gpu_peak(measurement.device)
    if peak.flops_per_second is None or peak.bytes_per_second is None or variant is None:
        return "peak unknown"
    kind = next((key for key in PEAK_SHARES if recipe.startswith(key)), "fp32")
    path = folder / "models" / f"{record.model.name}.onnx"
    counted = cost(onnx.load(str(path)), measurement.shapes).flops
    flops = 0.0 if counted is None else counted / seconds / (peak.flops_per_second * PEAK_SHARES[kind])
    width = {"fp32": 4, "tf32": 4, "int8": 1}.get(kind, 2)
    reading = record.model.parameters * width / seconds / peak.bytes_per_second
    return f"{flops:.1%} FLOP/s" if flops >= reading else f"{reading:.1%} bytes/s"


def goals(rows, eager) -> list[str]:  # type: ignore[no-untyped-def]
    """Say which aims are reached, for each case and batch; nothing is said of what was not measured."""
    said = []
    for name, batch in sorted({row[:2] for row in rows}):
        times, scores = {}, {}
        for row in rows:
            if row[:2] == (name, batch) and not row[2].startswith("torch"):
                times[row[3]], scores[row[3]] = min(row[4], times.get(row[3], np.inf)), row[6]
        ours, fastest = times.get("int8-kl-fp16"), min(times.values(), default=None)
        for other in ("int8-native", "fp16", "fp16-all"):
            if ours is not None and other in times:
                said.append(f"{name} b{batch}: INT8-KL / {other} = {ours / times[other]:.3f} (aim: at most 1)")
        if scores.get("int8-kl-fp16") and scores.get("int8-native"):
            said.append(
                f"{name} b{batch}: score KL {scores['int8-kl-fp16']}, native {scores['int8-native']} (aim: no lower)"
            )
        if fastest is not None and (name, batch) in eager:
            said.append(f"{name} b{batch}: fastest is {eager[name, batch] / fastest:.2f}x eager FP32 (aim: at least 3)")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("half", choices=("export", "torch", "engine", "table"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rehearse", action="store_true", help="tiny models on a CPU")
    parser.add_argument("--cases", help="such as resnet50,bert; all where left out")
    parser.add_argument("--batches", help="such as 1,32")
    parser.add_argument("--recipes", default=",".join(ENGINE_RECIPES), help="of TensorRT (default: %(default)s)")
    parser.add_argument("--launched", action="store_true", help="TensorRT without CUDA graph too")
    options = parser.parse_args()
    (options.folder / "models").mkdir(parents=True, exist_ok=True)
    known = models.cases("tiny" if options.rehearse else "full")
    chosen = [case for case in known if options.cases is None or case.name in options.cases.split(",")]
    batches = [int(word) for word in (options.batches or ("1,4" if options.rehearse else "1,32")).split(",")]
    if options.half == "export":
        for case in chosen:
            exported(options.folder, case)
        return
    if options.half == "torch":
        torch_half(options.folder, chosen, batches, options.rehearse)
    if options.half == "engine":
        recipes = options.recipes.split(",")
        engine_half(options.folder, chosen, batches, options.rehearse, options.launched, recipes)
    table(options.folder)


if __name__ == "__main__":
    main()
