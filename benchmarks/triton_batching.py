"""What dynamic batching buys on a Triton server: requests a second at a p99 of at most 500 ms, with and without it.

    python benchmarks/triton_batching.py [--model digits_resnet] [--recipe int8-max] [--seconds 4] [--out results.json]

The server of the package nvidia-pytriton serves a variant through its python backend on loopback. Callers of one image
each ask again as soon as they are answered, more and more of them at once; for either configuration the highest rate
that keeps to the p99 counts. Configurations take turns. Callers and server share this machine, so that the rates are
those of both together.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "unit" / "handoff")]

from triton_server import MISSING, WHY, serving  # noqa: E402

import workbench as wb  # noqa: E402
from workbench.machine import device  # noqa: E402

CALLERS = (1, 2, 4, 8, 16, 32, 64)
ALLOWED_SECONDS = 0.5
BATCHES = (8, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits_resnet")
    parser.add_argument("--recipe", default="int8-max")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("out/triton_batching.json"))
    options = parser.parse_args()
    if MISSING:
        sys.exit(WHY)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options, Path(folder))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    for name, best in found["best"].items():
        print(f"{name}: {best['rate']:.0f} requests/s with {best['callers']} callers (p99 {best['p99'] * 1e3:.0f} ms)")
    print(found["batching"], found["machine"])


def measured(options: argparse.Namespace, folder: Path) -> dict:
    store = wb.Store(folder / "store")
    model = wb.load(options.model)
    data = wb.datasets.digits()
    studies = [
        wb.run(model, data, ["fp32", options.recipe], protocol=wb.Protocol(batch=batch), store=store, progress=None)
        for batch in BATCHES
    ]
    made = studies[0].deploy(
        options.recipe, folder / "repository", at_most_seconds=ALLOWED_SECONDS, backend="python", beside=studies[1],
        name="served",
    )  # fmt: skip
    config = folder / "repository" / "served" / "config.pbtxt"
    texts = {"with dynamic batching": config.read_text()}
    texts["without"] = re.sub(r"dynamic_batching \{.*?\n\}\n", "", texts["with dynamic batching"], flags=re.S)
    assert texts["without"] != texts["with dynamic batching"]
    image = next(iter(data.bound_to(model).evaluation.inputs.values()))[:1]
    runs: list[dict] = []
    for _ in range(options.turns):
        for name, text in texts.items():
            config.write_text(text)
            with serving(folder / "repository", folder) as host:
                for callers in CALLERS:
                    runs.append(
                        {"name": name, "callers": callers, **load(host, model, image, callers, options.seconds)}
                    )
    best = {name: _best([run for run in runs if run["name"] == name]) for name in texts}
    return {
        "machine": device.cpu_device(), "model": options.model, "recipe": options.recipe,
        "batching": [made.batching.largest, made.batching.preferred, made.batching.delay_microseconds],
        "reasons": made.batching.reasons, "best": best, "runs": runs,
    }  # fmt: skip


def _best(runs: list[dict]) -> dict:
    """The number of callers with the highest median rate over the turns, of those whose median p99 is allowed."""
    found = []
    for callers in CALLERS:
        ours = [run for run in runs if run["callers"] == callers]
        p99 = float(np.median([run["p99"] for run in ours]))
        rates = [run["rate"] for run in ours]
        if p99 <= ALLOWED_SECONDS:
            found.append({"callers": callers, "rate": float(np.median(rates)), "p99": p99, "rates": rates})
    return max(found, key=lambda one: one["rate"])


def load(host: str, model: wb.records.Model, image: np.ndarray, callers: int, seconds: float) -> dict:
    import tritonclient.http as http

    taken: list[list[float]] = [[] for _ in range(callers)]
    ends = time.perf_counter() + seconds

    def call(mine: list[float]) -> None:
        with http.InferenceServerClient(host) as client:
            sent = http.InferInput(model.inputs[0].name, list(image.shape), "FP32")
            sent.set_data_from_numpy(image)
            while time.perf_counter() < ends:
                started = time.perf_counter()
                client.infer("served", [sent])
                mine.append(time.perf_counter() - started)

    threads = [threading.Thread(target=call, args=(mine,)) for mine in taken]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    latencies = np.concatenate([np.array(mine) for mine in taken])
    return {
        "rate": len(latencies) / (time.perf_counter() - started),
        "p50": float(np.quantile(latencies, 0.5)), "p99": float(np.quantile(latencies, 0.99)), "requests": len(latencies),
    }  # fmt: skip


if __name__ == "__main__":
    main()
