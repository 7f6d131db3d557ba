"""Where our INT8 engine differs from the one that TensorRT calibrates itself: layer by layer, in one process.

    python3.12 benchmarks/h200.py export FOLDER --cases resnet50
    python3.10 benchmarks/int8_layers.py FOLDER --case resnet50 --batch 32 --out RESULTS

Builds FP16, ours and native (`--engines` for fewer) from one ONNX file, times each in a CUDA graph, profiles the layers in
runs of their own, and prints: medians, totals by kind of layer, and the layers side by side by the convolution or product
they hold. The engine's own JSON goes to the folder RESULTS too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).parent), str(ROOT / "data" / "training")]

import h200_cases as cases  # noqa: E402

import workbench as wb  # noqa: E402
from workbench import engines  # noqa: E402
from workbench.engines import tensorrt  # noqa: E402
from workbench.engines.tensorrt.layers import FILE_NAME, LayerInfo  # noqa: E402
from workbench.errors import WorkbenchError  # noqa: E402

FP16 = wb.Recipe("fp16", (wb.Fuse(), wb.Precision("fp16", auto_exclude=False)))
NATIVE = replace(FP16, name="int8-native")
OURS = "int8-kl-fp16"
ENGINES = {"fp16": (FP16, {}), "ours": (OURS, {}), "native": (NATIVE, {"native_calibrator": "entropy"})}
LAUNCHES = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--case", default="resnet50")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("out/int8_layers"))
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--engines", default="fp16,ours,native", help="which, in this order (default: %(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    case = next(item for item in cases.cases(options.size) if item.name == options.case)
    store = wb.Store(options.folder / "store")
    chosen = [ENGINES[name] for name in options.engines.split(",")]
    show(measured(options.folder, case, options.batch, store, options.out, chosen))


def measured(
    folder: Path, case: cases.Case, batch: int, store: wb.Store, out: Path, chosen: Sequence[tuple]
) -> dict[str, dict]:
    """Build, time and profile each engine; what fails is said and left out, and what is done is on disk at once."""
    model = wb.load(folder / "models" / f"{case.model}.onnx")
    data = case.data().bound_to(model)
    dialect = engines.backend("tensorrt").dialect("tensorrt")
    table = wb.calibrate(model, data.calibration, OURS, dialect=dialect)
    samples = folder / f"{case.name}-calibration.npz"
    np.savez(samples, **data.calibration.inputs)
    feeds = {name: np.ascontiguousarray(array[:batch]) for name, array in data.evaluation.inputs.items()}
    found = {}
    for recipe, extra in chosen:
        options = wb.BuildOptions(profiles=(case.profile(batch),), extra=extra)
        started = time.perf_counter()
        try:
            variant = wb.transform(model, recipe, dialect=dialect, table=table, store=store)
            engine = engines.build(variant, "tensorrt", options, store=store, calibration=samples if extra else None)
            entry = one(engine, feeds)
        except WorkbenchError as error:
            print(f"{recipe}: {type(error).__name__}: {error}", flush=True)
            continue
        shutil.copy(Path(engine.folder or "") / FILE_NAME, out / f"{case.name}-b{batch}-{engine.variant}-engine.json")
        found[engine.variant] = {**entry, "build_seconds": engine.build_seconds, "notes": list(engine.notes)}
        plain = {key: {**value, "layers": [asdict(row) for row in value["layers"]]} for key, value in found.items()}
        (out / f"{case.name}-b{batch}-layers.json").write_text(json.dumps(plain, indent=1))
        print(f"{engine.variant}: {time.perf_counter() - started:.0f} s", flush=True)
    return found


def one(engine: wb.records.Engine, feeds: dict[str, np.ndarray]) -> dict:
    """Return an engine's medians, launched and in a CUDA graph, and its layers with their times."""
    medians = {}
    for graph in (False, True):
        with engines.open_runner(engine) as runner:
            watch = runner.stopwatch(feeds, "compute", cuda_graph=graph)
            medians[graph] = median([watch() for _ in range(LAUNCHES)][LAUNCHES // 4 :])
    rows, memory = tensorrt.layer_table(engine, feeds, runs=30)
    return {
        "launched_seconds": medians[False], "graph_seconds": medians[True], "layers": rows,
        "activation_bytes": memory.planned_bytes, "plan_bytes": engine.size_bytes,
    }  # fmt: skip


def show(found: dict[str, dict]) -> None:
    """Print the tables."""
    print(f"\n{'engine':14} {'launched':>9} {'graph':>9} {'sum':>9} layers reformats   (ms)")
    for name, entry in found.items():
        rows = entry["layers"]
        total = sum(row.seconds or 0.0 for row in rows)
        reformats = [row for row in rows if row.is_reformat]
        print(
            f"{name:14} {entry['launched_seconds'] * 1e3:9.4f} {entry['graph_seconds'] * 1e3:9.4f} {total * 1e3:9.4f} "
            f"{len(rows):6d} {len(reformats):9d}"
        )
    for name, entry in found.items():
        print(f"\n{name}: milliseconds and layers by kind and type")
        for (kind, precision), rows in by_kind(entry["layers"]).items():
            print(f"  {kind:14} {precision or '?':6} {sum(row.seconds or 0 for row in rows) * 1e3:8.4f} {len(rows):4d}")
    if OURS in found and NATIVE.name in found:
        side_by_side(found[OURS]["layers"], found[NATIVE.name]["layers"])


def by_kind(rows: tuple[LayerInfo, ...]) -> dict[tuple[str, str | None], list[LayerInfo]]:
    """Group layers, the slowest group first."""
    groups = defaultdict(list)
    for row in rows:
        groups["reformat" if row.is_reformat else row.kind, row.precision].append(row)
    return dict(sorted(groups.items(), key=lambda item: -sum(row.seconds or 0 for row in item[1])))


def side_by_side(ours: tuple[LayerInfo, ...], theirs: tuple[LayerInfo, ...]) -> None:
    """Print pairs of layers that hold the same convolution or product, the largest difference first, then the rest."""
    first, second = ({anchor(row): row for row in rows if anchor(row)} for rows in (ours, theirs))
    pairs = sorted(first.keys() & second.keys(), key=lambda key: -abs(difference(first[key], second[key])))
    print(f"\n{len(pairs)} layers in both, ours minus native (microseconds); types in -> out")
    for key in pairs[:24]:
        mine, other = first[key], second[key]
        print(f"  {difference(mine, other) * 1e6:+8.1f} {types(mine):22} {types(other):22} {key}")
        if types(mine) != types(other) or mine.tactic != other.tactic:
            print(f"           ours   {mine.tactic}\n           native {other.tactic}")
    total = sum(difference(first[key], second[key]) for key in pairs)
    print(f"  {total * 1e6:+8.1f} in all of them")
    for title, rows, known in (("ours", ours, first), ("native", theirs, second)):
        shared = [known[key] for key in pairs]
        alone = [row for row in rows if row not in shared]
        print(f"\nonly {title}: {len(alone)} layers, {sum(row.seconds or 0 for row in alone) * 1e6:.1f} microseconds")
        for row in sorted(alone, key=lambda item: -(item.seconds or 0))[:16]:
            print(f"  {(row.seconds or 0) * 1e6:8.1f} {types(row):22} {row.layer_type:16} {row.name[:110]}")


def anchor(row: LayerInfo) -> str | None:
    """Return the node of a layer by which it is found in the other engine."""
    if row.is_reformat:
        return None
    return next(
        (node for node in row.nodes if node.rsplit("/", 1)[-1].split("_")[0] in ("Conv", "Gemm", "MatMul")), None
    )


def types(row: LayerInfo) -> str:
    """Return the types at a layer's border."""
    inside = ",".join(tensor.precision or "?" for tensor in row.inputs)
    return f"{inside}->{','.join(tensor.precision or '?' for tensor in row.outputs)}"


def difference(one_row: LayerInfo, other: LayerInfo) -> float:
    """Return how much longer the first takes."""
    return (one_row.seconds or 0.0) - (other.seconds or 0.0)


if __name__ == "__main__":
    main()
