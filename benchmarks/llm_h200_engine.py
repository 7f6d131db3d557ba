"""The TensorRT half of `llm_h200.py`: builds with a time limit each, and measures what was built. Needs no PyTorch."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from llm_h200_cases import CHECKED_STEPS, Case
from llm_h200_torch import KEPT_MODELS

import workbench as wb
from workbench import codec, llm
from workbench.engines.jobs import layer_times
from workbench.engines.onnxruntime_slots import open_device as open_onnxruntime
from workbench.engines.slot_decoding import SlotDecoder
from workbench.engines.tensorrt_slots import open_device as open_tensorrt
from workbench.errors import Cancelled, WorkbenchError
from workbench.llm.scenario import HighestRate, lasting, run_once, search
from workbench.machine.handle import Handle
from workbench.records import Engine, Model, Variant

LIMIT_SECONDS, QUANTILE = 0.5, 0.99
_REPEATS, _SHOWN_LAYERS = 200, 60


@dataclass(frozen=True)
class Settings:
    """How an engine is built; candidates for what makes a build at batch 1 end."""

    name: str
    level: int = 1
    extra: dict[str, Any] = field(default_factory=dict)
    hold_norms: bool = False

    def options(self) -> wb.BuildOptions:
        return wb.BuildOptions(optimization_level=self.level, extra=self.extra)


PLAIN = Settings("level 1")
# Shortest first, as far as that can be guessed.
CANDIDATES = (
    Settings("level 0", 0),
    PLAIN,
    Settings("level 1, no BLAS", 1, {"tactic_sources": ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]}),
    Settings("level 1, BLAS only", 1, {"tactic_sources": ["CUBLAS", "CUBLAS_LT"]}),
    Settings("level 1, norms in FP32", 1, {}, True),
    Settings("level 2", 2),
    Settings("level 3", 3),
)


@dataclass
class Bench:
    """One run of this half: where things lie, what is known, and until when."""

    root: Path
    case: Case
    backend: str
    results: Any  # llm_h200.Results
    deadline: float
    parallel: int

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.deadline - time.monotonic()

    def models(self, depth: int, layout: str) -> dict[str, Model] | None:
        """Return name -> model of an exported depth, or None where the export has not got there."""
        file = self.case.folder(self.root, depth, layout) / KEPT_MODELS
        if not file.exists():
            return None
        read = json.loads(file.read_text())
        found = [codec.from_plain(Model, plain) for plain in (*read["prefills"], *read["steps"])]
        return {model.name: model for model in found}

    def wait_for(self, depth: int, layout: str) -> bool:
        """Wait until a depth is exported, as long as there is time."""
        while self.models(depth, layout) is None:
            if self.left < 60:
                return False
            time.sleep(2)
        return True

    def engine(self, key: str) -> Engine | None:
        """Return an engine that was built, now or earlier."""
        found = self.results.get(f"build-{key}") or {}
        return codec.from_plain(Engine, found["engine"]) if "engine" in found else None


@dataclass(frozen=True)
class Wanted:
    """One engine to build."""

    depth: int
    layout: str
    graph: str
    settings: Settings = PLAIN
    limit: float = 150.0
    file: str | None = None

    @property
    def key(self) -> str:
        return f"{self.depth}-{self.layout}-{self.graph}-{self.settings.name}".replace(" ", "_").replace(",", "")


def build_all(bench: Bench, wanted: Sequence[Wanted]) -> None:
    """Build what was not tried yet, several at a time; a build that does not end in time is a result too."""
    waiting = [item for item in wanted if not bench.results.get(f"build-{item.key}")]
    with ThreadPoolExecutor(bench.parallel) as pool:
        for _ in pool.map(lambda item: build_one(bench, item), waiting):
            pass


def build_one(bench: Bench, item: Wanted) -> None:
    """Build one engine in a child process that is ended at the limit."""
    model = (bench.models(item.depth, item.layout) or {}).get(item.graph)
    if model is None or bench.left < 20:
        return
    started, limit = time.monotonic(), min(item.limit, bench.left - 10)
    variant = as_variant(model, bench.backend, item)
    handle = Handle(cancelled=lambda: time.monotonic() - started > limit)
    try:
        options = item.settings.options() if bench.backend == "tensorrt" else wb.BuildOptions(threads=1)
        engine = wb.build(variant, bench.backend, options, store=wb.Store(bench.root / "store"), handle=handle)
        found = {"engine": codec.to_plain(replace(engine, log="")), "log_end": engine.log[-1500:]}
    except Cancelled:
        if limit < item.limit:
            print(f"  {item.key}: no time left for it, stopped after {limit:.0f} s", flush=True)
            return
        found = {"failed": f"had not ended after {limit:.0f} s"}
    except WorkbenchError as error:
        found = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"}
    found["seconds"] = time.monotonic() - started
    bench.results.put(f"build-{item.key}", found)


def as_variant(model: Model, backend: str, item: Wanted) -> Variant:
    """Return the exported file as it is: its weights are FP16 already, so the recipe only sets the builder's flag."""
    steps: tuple[Any, ...] = (wb.Precision("fp16", auto_exclude=False),) if backend == "tensorrt" else ()
    path = model.path if item.file is None else item.file
    if item.file is not None:
        steps = (wb.Quantize(calibrator="max"), *steps)  # the builder's flag for INT8; the file holds the Q/DQ already
    if item.settings.hold_norms:
        recipe = wb.Recipe("fp16", (wb.Precision("fp16"),))
        return wb.transform(model, recipe, dialect="trt-8.6")
    return Variant(
        recipe=wb.Recipe("fp16" if item.file is None else Path(item.file).stem, steps),
        model_sha256=model.sha256,
        path=path,
        sha256=model.sha256,
        size_bytes=model.size_bytes,
        opset=model.opset,
        inputs=model.inputs,
        outputs=model.outputs,
        dialect="trt-8.6" if backend == "tensorrt" else "ort-cpu",
    )


def isolated(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run in a fresh process: a CUDA error sticks, and memory comes back."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except Exception as error:  # noqa: BLE001 - a measurement that fails is a result
            return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"}


def open_decoder(backend: str, engines: Sequence[Engine]) -> SlotDecoder:
    """Open engines, also steps without a prefill."""
    prefills = [engine for engine in engines if "mask" not in {spec.name for spec in engine.inputs}]
    steps = [engine for engine in engines if engine not in prefills]
    opened = open_tensorrt if backend == "tensorrt" else open_onnxruntime
    return SlotDecoder(opened(prefills, steps, slots=None, columns=None, threads=None))


def measure_step(backend: str, engine: Engine, columns: int) -> dict[str, Any]:
    """Time a step: the captured graph with its writes on the device's clock, and as the host sees a greedy step."""
    with open_decoder(backend, [engine]) as decoder:
        device = decoder.device
        device.resize(columns, [])
        for slot in range(decoder.slots):
            device.show(slot, np.arange(columns) < columns - 1)
        positions = np.full(decoder.slots, columns - 1, np.int32)
        tokens = np.arange(decoder.slots, dtype=np.int32)
        device.step(tokens, positions, 0, logits=True)
        walls = []
        for number in range(_REPEATS + 20):
            started = time.perf_counter()
            device.step(None, positions, number % columns, logits=False)
            walls.append(time.perf_counter() - started)
        found = {"wall_seconds": float(np.median(walls[20:])), "memory": device.memory()}
        if hasattr(device, "launch"):
            found["seconds"] = device_seconds(device, device.launch)
            found["copy_bytes_per_second"] = device.read_bandwidth(1_000_000_000)
        return found


def device_seconds(device: Any, launch: Callable[[], None]) -> float:
    """Return the median of a launch on the device's own clock."""
    from workbench.engines.tensorrt.cuda import Event

    start, end = Event(device._cuda), Event(device._cuda)
    taken = []
    for _ in range(_REPEATS + 20):
        start.record(device.stream.raw)
        launch()
        end.record(device.stream.raw)
        end.synchronize()
        taken.append(end.seconds_since(start))
    start.free()
    end.free()
    return float(np.median(taken[20:]))


def measure_layers(engine: Engine, columns: int) -> dict[str, Any]:
    """Return what the engine's layers take, the longest first, and what of it is reformatting."""
    generator = np.random.default_rng(0)
    feeds = {}
    for spec in engine.inputs:
        shape = tuple(size or columns for size in spec.shape)
        kind = np.dtype(spec.dtype)
        feeds[spec.name] = generator.standard_normal(shape).astype(kind) if kind.kind == "f" else np.ones(shape, kind)
    found = sorted(layer_times(engine, feeds, runs=20), key=lambda layer: -layer.seconds)
    reformats = [layer for layer in found if "reformat" in layer.name.lower() or "reformat" in layer.operator.lower()]
    return {
        "layers": len(found),
        "seconds": sum(layer.seconds for layer in found),
        "reformats": len(reformats),
        "reformat_seconds": sum(layer.seconds for layer in reformats),
        "longest": [[layer.name[:160], layer.operator, layer.seconds] for layer in found[:_SHOWN_LAYERS]],
    }


def check(backend: str, engines: Sequence[Engine], case: Case, folder: str) -> dict[str, Any]:
    """Run prefill and steps on the checked tokens beside PyTorch's logits: relative error after the prompt and in steps."""
    wanted = np.load(Path(folder) / "checked.npz")["logits"]
    tokens = case.checked_tokens()
    with open_decoder(backend, engines) as decoder:
        count = min(decoder.slots, len(tokens))
        slots, logits = decoder.add([row[: case.prompt].tolist() for row in tokens[:count]])
        errors = [relative(logits, wanted[:count, 0])]
        for step in range(CHECKED_STEPS - 1):
            fed = {slot: int(tokens[row, case.prompt + step]) for row, slot in enumerate(slots)}
            errors.append(relative(decoder.step(fed)[slots], wanted[:count, step + 1]))
    return {"prefill_error": errors[0], "step_error": max(errors[1:]), "sequences": count}


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def measure_prefill(backend: str, engine: Engine) -> dict[str, Any]:
    """Time a prefill as the host sees it: tokens up, logits of the last token down."""
    device = (open_tensorrt if backend == "tensorrt" else open_onnxruntime)(
        [engine], [engine], slots=None, columns=None, threads=None
    )
    try:
        batch, columns = device.prompt_sizes[0]
        tokens, lengths = np.ones((batch, columns), np.int32), np.full(batch, columns, np.int32)
        taken = []
        for _ in range(25):
            started = time.perf_counter()
            device.prefill(tokens, lengths)
            taken.append(time.perf_counter() - started)
        return {"wall_seconds": float(np.median(taken[5:])), "batch": batch, "tokens": columns}
    finally:
        device.close()


def serve(backend: str, engines: Sequence[Engine], case: Case, seconds: float, together: int) -> dict[str, Any]:
    """Search the highest Poisson rate whose 99th percentile of whole answers stays under 500 ms; continuous batching.

    Args:
        together: newcomers that wait for each other while others run; 1 starts each as it comes.
    """
    generator = np.random.default_rng(0)
    text = generator.integers(0, int(str(case.config["vocab_size"])), 1 << 16)
    lengths = (llm.Lengths(case.prompt, 0.0, 1, case.prompt), llm.Lengths(case.answer, 0.0, 1, case.answer))
    traffic = llm.Traffic(case.requests, *lengths, seed=1)
    until = time.monotonic() + seconds
    with open_decoder(backend, engines) as decoder:
        policy = llm.ContinuousBatching(decoder.slots, together, case.wait_seconds if together > 1 else 0.0)
        step = next(engine for engine in engines if "mask" in {spec.name for spec in engine.inputs})
        late = (LIMIT_SECONDS, QUANTILE, "answer")
        run_once(decoder, step, policy, 1e6, llm_draw(replace(traffic, requests=20), 1e6, text))

        def probe(rate: float) -> llm.ServingRun:
            if time.monotonic() > until:
                raise TimeoutError
            requests = llm_draw(lasting(traffic, rate, LIMIT_SECONDS), rate, text)
            return run_once(decoder, step, policy, rate, requests, late=late)

        def keeps(run: llm.ServingRun) -> bool:
            found = run.percentile(QUANTILE)
            return not run.abandoned and found is not None and found <= LIMIT_SECONDS

        probes: list[llm.ServingRun] = []

        def noted(rate: float) -> llm.ServingRun:
            probes.append(probe(rate))
            return probes[-1]

        failed = None
        try:
            passed, failed, _ = search(noted, keeps, 100.0)
        except TimeoutError:
            passed = max((run.rate for run in probes if keeps(run)), default=0.0)
            failed = min((run.rate for run in probes if not keeps(run)), default=None)
        best = next((run for run in probes if run.rate == passed), None)
        record = HighestRate(policy.label, QUANTILE, LIMIT_SECONDS, "answer", passed, failed, tuple(probes))
    return {
        "policy": policy.label,
        "requests_per_second": passed,
        "fails_at": failed,
        "p99_seconds": None if best is None else best.percentile(QUANTILE),
        "p50_seconds": None if best is None else best.percentile(0.5),
        "mean_batch": None if best is None else best.mean_batch,
        "tokens_per_second": None if best is None else best.tokens_per_second,
        "tried": [[run.rate, run.percentile(QUANTILE), run.abandoned] for run in record.probes],
    }


def llm_draw(traffic: llm.Traffic, rate: float, text: np.ndarray):  # type: ignore[no-untyped-def]
    from workbench.llm.requests import draw

    return draw(traffic, rate, text)
