"""Does the workbench see differences that are there, and none that are not? A/A comparisons and a planted slowdown.

Each trial measures three variants of one real ONNX Runtime engine (the shipped digits network, batch 8) in interleaved
rounds, each round in a fresh process: the baseline, the same again, and the same with a child that spins for a
planted share of each call's time after it. Both are then compared with the baseline, as a study would. By hand:

    python benchmarks/aa_test.py --trials 100 --output aa_test.json

On a machine of many cores several can run at once, each on cores of its own (`taskset`, WORKBENCH_TURN_FILE) and with trials
of its own (`--first 25`); `--merge a.json b.json` joins what they wrote.

Goals: the same is "not distinguishable" in at least 95 of 100, 5 % slower is found in at least 90 of 100, with at most
60 seconds of measuring a variant. The output holds every round's median, so that other statistics can be tried on it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from workbench import codec, engines  # noqa: E402
from workbench.judging import intervals, statistics  # noqa: E402
from workbench.machine import child, device  # noqa: E402
from workbench.measuring import latency as measurement  # noqa: E402
from workbench.records import Boundary, BuildOptions, Engine, Failure, Measurement, Protocol, Round, TensorSpec  # noqa: E402

MODEL = ROOT / "data" / "models" / "digits_resnet.onnx"
BACKEND = "onnxruntime-cpu"
BASELINE, SAME, SLOWER = "baseline", "same", "slower"


class SpinningRunner:
    """A runner whose calls are followed by a spin of a share of their own time, within the timed region."""

    def __init__(self, runner: Any, share: float) -> None:
        self._runner, self._share = runner, share
        self.inputs, self.outputs = runner.inputs, runner.outputs

    def __enter__(self) -> SpinningRunner:
        self._runner.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._runner.__exit__(*exception)

    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._runner.infer(feeds)  # type: ignore[no-any-return]

    def stopwatch(self, feeds: Any, boundary: Boundary, cuda_graph: bool = False) -> Callable[[], float]:
        watch, share = self._runner.stopwatch(feeds, boundary, cuda_graph), self._share

        def once() -> float:
            took: float = watch()
            started = time.perf_counter()
            while (spun := time.perf_counter() - started) < took * share:
                pass
            return took + spun

        return once

    def conditions(self) -> dict[str, Any]:
        return self._runner.conditions()  # type: ignore[no-any-return]


def child_main(folder: Path) -> None:
    """Take one round in this process; the planted slowdown is the only thing that `workbench.measuring.latency` does not do."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    with np.load(folder / "feeds.npz", allow_pickle=False) as stored:
        feeds = {name: stored[name] for name in stored.files}
    built = codec.from_plain(Engine, job["engine"])

    def open_runner() -> Any:
        runner = engines.open_runner(built, job["threads"])
        return SpinningRunner(runner, job["slowdown"]) if built.variant == SLOWER else runner

    item = measurement.round_here(open_runner, feeds, codec.from_plain(Protocol, job["protocol"]), job["index"])
    (folder / "round.json").write_text(codec.to_json(item), encoding="utf-8")


def caller(slowdown: float) -> Callable[..., child.Answer]:
    """Return what stands in for `workbench.machine.child.call`: the same fresh process a round, running `child_main`."""

    def call(target: str, job: measurement.RoundJob, arrays: Any, *, returns: type, handle: Any) -> child.Answer:
        with tempfile.TemporaryDirectory(prefix="aa-test-") as name:
            folder = Path(name)
            (folder / "job.json").write_text(
                json.dumps({**codec.to_plain(job), "slowdown": slowdown}), encoding="utf-8"
            )
            np.savez(folder / "feeds.npz", **arrays)
            subprocess.run([sys.executable, __file__, "--child", name], check=True)
            return child.Answer(codec.from_json(returns, (folder / "round.json").read_text(encoding="utf-8")))

    return call


def engine(variant: str) -> Engine:
    with engines.backend(BACKEND).open_runner(_bare(variant, (), ()), 1) as runner:
        return _bare(variant, runner.inputs, runner.outputs)


def _bare(variant: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Engine:
    backend = engines.backend(BACKEND)
    return Engine(
        variant=variant,
        variant_sha256="",
        fusion="all",
        backend=BACKEND,
        backend_version=backend.version(BACKEND),
        device=backend.device(BACKEND),
        path=str(MODEL),
        inputs=inputs,
        outputs=outputs,
        build_seconds=0.0,
        size_bytes=MODEL.stat().st_size,
        options=BuildOptions(threads=1),
    )


def trial(protocol: Protocol, slowdown: float) -> dict[str, Any]:
    """Measure the three variants once and return both verdicts with the rounds that they come from."""
    first = engine(BASELINE)
    built = [first, replace(first, variant=SAME), replace(first, variant=SLOWER)]
    shape = [protocol.batch if size is None else size for size in first.inputs[0].shape]
    values = np.random.default_rng(protocol.seed).random(shape, dtype=np.float32)
    started = time.perf_counter()
    found = measurement.measure(built, {first.inputs[0].name: values}, protocol, call=caller(slowdown))
    seconds = (time.perf_counter() - started) / len(built)
    records: dict[str, Measurement] = {}
    for name, record in found.items():
        if isinstance(record, Failure):
            raise SystemExit(f"{name} failed: {record.message}\n{record.log}")
        records[name] = record
    ratios = {name: asdict(statistics.ratio(records[BASELINE], records[name])) for name in (SAME, SLOWER)}
    return {
        "seconds_per_variant": seconds,
        "ratios": ratios,
        "rounds": {name: [_short(item) for item in record.rounds] for name, record in records.items()},
    }


def _short(item: Round) -> dict[str, Any]:
    kept = ("load_average", "steal_share", "involuntary_switches", "cpu_megahertz")
    return {
        "index": item.index,
        "started_at": item.started_at,
        "calls": len(item.latencies_seconds),
        "median_seconds": float(np.median(item.latencies_seconds)),
        **{name: item.conditions[name] for name in kept if name in item.conditions},
    }


def totals(trials: list[dict[str, Any]], slowdown: float) -> dict[str, Any]:
    """Return how often each verdict was right, with Wilson's 95 % interval, and how long measuring took."""
    verdicts = {name: [one["ratios"][name]["verdict"] for one in trials] for name in (SAME, SLOWER)}
    right = {SAME: verdicts[SAME].count("not distinguishable"), SLOWER: verdicts[SLOWER].count("slower")}
    truth = 1 / (1 + slowdown)
    held = sum(one["ratios"][SLOWER]["low"] <= truth <= one["ratios"][SLOWER]["high"] for one in trials)
    widths = [one["ratios"][SAME]["high"] / one["ratios"][SAME]["low"] for one in trials]
    return {
        "trials": len(trials),
        "same_not_distinguishable": right[SAME],
        "same_interval": intervals.wilson(right[SAME], len(trials)),
        "slower_found": right[SLOWER],
        "slower_interval": intervals.wilson(right[SLOWER], len(trials)),
        "truth_within_interval": held,
        "median_interval_width_ratio": float(np.median(widths)),
        "seconds_per_variant_median": float(np.median([one["seconds_per_variant"] for one in trials])),
        "seconds_per_variant_most": max(one["seconds_per_variant"] for one in trials),
    }


def show(found: dict[str, Any], slowdown: float) -> None:
    n = found["trials"]
    lines = [
        ("the same, not distinguishable", found["same_not_distinguishable"], found["same_interval"]),
        (f"{100 * slowdown:g} % slower, found", found["slower_found"], found["slower_interval"]),
    ]
    print(f"{'':32}{'right':>9}   Wilson 95 %")
    for label, right, (low, high) in lines:
        print(f"{label:32}{f'{right}/{n}':>9}   {low:.3f} to {high:.3f}")
    print(f"{'true ratio within its interval':32}{found['truth_within_interval']}/{n}".rstrip())
    print(f"interval width of the same: {100 * (found['median_interval_width_ratio'] - 1):.1f} % (median)")
    print(
        f"measuring: {found['seconds_per_variant_median']:.1f} s a variant (median), "
        f"{found['seconds_per_variant_most']:.1f} s (most)"
    )


def merge(files: list[Path], output: Path) -> None:
    """Join the trials of several runs of one protocol into one file, and print its totals."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    first = found[0]
    if any((one["slowdown"], one["protocol"]) != (first["slowdown"], first["protocol"]) for one in found):
        raise SystemExit("These runs had different protocols; their trials are not joined.")
    trials = [trial for one in found for trial in one["trials"]]
    joined = {**first, "totals": totals(trials, first["slowdown"]), "runs_at_once": len(found), "trials": trials}
    output.write_text(json.dumps(joined, indent=1), encoding="utf-8")
    show(joined["totals"], first["slowdown"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, which seeds it")
    parser.add_argument("--merge", type=Path, nargs="+", help="join the trials of these files instead of measuring")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=0.4, help="timed seconds a round")
    parser.add_argument("--slowdown", type=float, default=0.05)
    parser.add_argument("--output", type=Path, default=Path("aa_test.json"))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        child_main(options.child)
        return
    if options.merge is not None:
        merge(options.merge, options.output)
        return
    trials: list[dict[str, Any]] = []
    for seed in range(options.first, options.first + options.trials):
        protocol = Protocol(rounds=options.rounds, min_seconds=options.seconds, warmup_seconds=0.2, seed=seed)
        trials.append(trial(protocol, options.slowdown))
        found = totals(trials, options.slowdown)
        result = {
            "slowdown": options.slowdown,
            "protocol": codec.to_plain(replace(protocol, seed=0)),
            "environment": device.describe(),
            "totals": found,
            "trials": trials,
        }
        options.output.write_text(json.dumps(result, indent=1), encoding="utf-8")
        words = "; ".join(f"{name}: {one['words']}" for name, one in trials[-1]["ratios"].items())
        print(f"{seed + 1:4d}  {trials[-1]['seconds_per_variant']:.1f} s a variant  {words}", flush=True)
    show(totals(trials, options.slowdown), options.slowdown)


if __name__ == "__main__":
    main()
