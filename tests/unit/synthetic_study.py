"""A made-up study with the structure of a real one, for tests of what is drawn and written.

Latencies come from a seeded generator with what real ones have: rounds that differ by a percent, a drift,
neighbours that resemble each other, a tail. Nothing here is a measured number.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from workbench.recipes import NAMED
from workbench.records import (
    Accuracy,
    Engine,
    Failure,
    Measurement,
    Model,
    Origin,
    Protocol,
    Round,
    Skipped,
    StepReport,
    StudyRecord,
    TensorSpec,
    Variant,
    VariantResult,
)

MODEL_SHA256 = "a3" * 32
DATA_SHA256 = "d1" * 32
DEVICE = "Example CPU (2 cores)"
INPUTS = (TensorSpec("image", "float32", (None, 1, 8, 8)),)
OUTPUTS = (TensorSpec("logits", "float32", (None, 10)),)
ENVIRONMENT = {
    "python": "3.11.2",
    "system": "Linux 6.1",
    "cpu": "Example CPU",
    "cores": 2,
    "cpu_flags": ["avx2", "avx512f", "avx512_vnni"],
    "cpu_governor": "performance",
    "memory_bytes": 8 * 1024**3,
    "gpus": [],
    "versions": {"numpy": "2.3.0", "onnx": "1.19.0", "onnxruntime": "1.23.0"},
    "threads_environment": {"OMP_NUM_THREADS": "1"},
}
REHEARSAL = (
    "FP16 on this CPU is storage only: the arithmetic stays FP32, so the accuracy is a rehearsal, the speed is not."
)

# recipe -> relative latency, share of answers that flip, SQNR, relative size
_SHAPES: dict[str, tuple[float, float, float | None, float]] = {
    "fp32": (1.0, 0.0, None, 1.0),
    "fp16": (1.34, 0.0, 62.4, 0.51),
    "int8-kl": (0.455, 0.011, 24.8, 0.27),
    "int8-max": (0.457, 0.006, 27.3, 0.27),
    "int8-dynamic": (0.71, 0.004, 30.1, 0.27),
    "int8-mse": (0.46, 0.008, 26.3, 0.27),
    "bf16": (1.31, 0.002, 45.0, 0.51),
    "fp32-basic": (1.004, 0.0, 110.0, 1.0),
    "fp32-unfused": (1.62, 0.0, 120.0, 1.02),
}


def study(
    recipes: tuple[str, ...] = ("fp32", "fp16", "int8-kl", "int8-max", "int8-smooth"),
    *,
    protocol: Protocol | None = None,
    labels: bool = True,
    samples: int = 540,
    **changes: Any,
) -> StudyRecord:
    """Return a study of those recipes; `int8-smooth` is one that failed. Without labels there is no task metric."""
    protocol = protocol or Protocol(rounds=5)
    record = StudyRecord(
        name="digits_resnet on digits",
        created_at=1_780_000_000.0,
        model=_model(),
        backend="onnxruntime-cpu",
        backend_reason="no NVIDIA GPU here; ONNX Runtime on the CPU works on every machine",
        protocol=protocol,
        baseline="fp32",
        results=tuple(
            failed(name) if name == "int8-smooth" else result(name, protocol, labels, samples) for name in recipes
        ),
        data={
            "name": "digits",
            "kind": "shipped",
            "evaluation_samples": samples,
            "calibration_samples": 256,
            "sha256": DATA_SHA256,
        },
        environment=ENVIRONMENT,
        samples=_samples() if labels else {},
        notes=("Another process used 12 % of the CPU during round 3.",),
    )
    return dataclasses.replace(record, **changes)


def result(name: str, protocol: Protocol, labels: bool = True, samples: int = 540) -> VariantResult:
    """Return the result of a recipe that got through."""
    return VariantResult(
        NAMED[name],
        variant=_variant(name),
        engine=_engine(name),
        measurement=_measurement(name, protocol),
        accuracy=_accuracy(name, labels, samples),
    )


def failed(name: str, message: str = "The builder ran out of memory after 3.1 GiB.", log: str = "") -> VariantResult:
    """Return a result that ended at the build."""
    log = log or "[W] skipped tactic 0x3e9\n[E] could not allocate 3221225472 bytes"
    return VariantResult(NAMED[name], failure=Failure(name, "build", "OutOfMemory", message, log))


def _model() -> Model:
    return Model(
        name="digits_resnet",
        path="data/models/digits_resnet.onnx",
        sha256=MODEL_SHA256,
        size_bytes=1_270_000,
        opset=18,
        inputs=INPUTS,
        outputs=OUTPUTS,
        origin=Origin("shipped", "digits_resnet", None),
        parameters=316_000,
        operators={"Conv": 20, "Relu": 17, "Add": 8, "Gemm": 1, "GlobalAveragePool": 1},
    )


def _variant(name: str) -> Variant:
    steps = tuple(_report(step.kind) for step in NAMED[name].steps)
    return Variant(
        recipe=NAMED[name],
        model_sha256=MODEL_SHA256,
        path=f"store/{name}.onnx",
        sha256=_sha(name),
        size_bytes=int(1_270_000 * _SHAPES[name][3]),
        opset=18,
        inputs=INPUTS,
        outputs=OUTPUTS,
        dialect="ort-cpu",
        reports=steps,
        calibration_sha256="c4" * 32 if NAMED[name].needs_calibration else None,
        calibration_seconds=1.84 if NAMED[name].needs_calibration else None,
    )


def _report(kind: str) -> StepReport:
    if kind == "quantize":
        skipped = (Skipped("/head/Softmax", "Softmax stays in floating point"),)
        nodes = tuple(f"/layer{i}/conv{j}" for i in range(4) for j in (1, 2))
        return StepReport(kind, 0.21, nodes, skipped, details={"activations": 21, "weights": 21})
    notes = (REHEARSAL,) if kind == "precision" else ()
    return StepReport(kind, 0.05, ("/stem/conv",), notes=notes)


def _engine(name: str) -> Engine:
    return Engine(
        variant=name,
        variant_sha256=_sha(name),
        fusion="all",
        backend="onnxruntime-cpu",
        backend_version="1.23.0",
        device=DEVICE,
        path=f"store/{name}.onnx",
        inputs=INPUTS,
        outputs=OUTPUTS,
        build_seconds=0.4 + 0.3 * _SHAPES[name][3],
        size_bytes=int(1_270_000 * _SHAPES[name][3]),
        notes=("workspace_bytes has no meaning for ONNX Runtime and was ignored.",) if name == "int8-kl" else (),
    )


def _measurement(name: str, protocol: Protocol) -> Measurement:
    generator = np.random.default_rng(list(name.encode()))
    base = 2.4e-3 * _SHAPES[name][0]
    rounds = []
    for index in range(protocol.rounds):
        count = max(protocol.min_runs, int(protocol.min_seconds / base))
        level = base * (1 + 0.008 * generator.standard_normal() + 0.003 * index)
        noise = np.convolve(generator.standard_normal(count + 4), np.ones(5) / 5, mode="valid") * 0.02
        tail = np.where(generator.random(count) < 0.03, generator.exponential(0.25, count), 0.0)
        values = tuple(float(value) for value in level * (1 + noise + tail))
        memory = int(90e6 + 40e6 * _SHAPES[name][3] + 1e6 * index)
        rounds.append(Round(index, values, 0.03, 1_780_000_000.0 + 12 * index, memory, {"load_average": 0.9}))
    shapes = {"image": (protocol.batch, 1, 8, 8)}
    environment = {**ENVIRONMENT, "threads": 1}
    return Measurement(name, _sha(name), "onnxruntime-cpu", DEVICE, protocol, shapes, tuple(rounds), environment)


def _accuracy(name: str, labels: bool, samples: int) -> Accuracy:
    truth = np.random.default_rng(7).integers(0, 10, samples)
    parent = _flip(truth, 0.017, seed=8)
    answers = _flip(parent, _SHAPES[name][1], seed=9)
    sqnr = _SHAPES[name][2]
    return Accuracy(
        variant=name,
        variant_sha256=_sha(name),
        backend="onnxruntime-cpu",
        samples=samples,
        data_name="digits",
        data_kind="shipped" if labels else "random",
        data_sha256=DATA_SHA256,
        metric="top-1" if labels else None,
        higher_is_better=True,
        unit="share" if labels else "",
        scores=tuple((answers == truth).astype(float).tolist()) if labels else (),
        parent_scores=tuple((parent == truth).astype(float).tolist()) if labels else (),
        predictions=tuple(answers.tolist()),
        parent_predictions=tuple(parent.tolist()),
        sqnr_db={"logits": sqnr},
        cosine={"logits": 1.0 if sqnr is None else 1 - 10 ** (-sqnr / 10) / 2},
        largest_error={"logits": 0.0 if sqnr is None else 12 * 10 ** (-sqnr / 20)},
        notes=() if labels else ("Random inputs: no accuracy is claimed.",),
    )


def _flip(values: np.ndarray, share: float, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    flips = generator.random(values.size) < share
    return np.where(flips, (values + generator.integers(1, 10, values.size)) % 10, values)


def _samples() -> dict[str, Any]:
    """Show the first evaluation samples on which some variant answers otherwise than the parent."""
    truth = np.random.default_rng(7).integers(0, 10, 540)
    parent = _flip(truth, 0.017, seed=8)
    differs = np.flatnonzero(_flip(parent, 0.011, seed=9) != parent)[:6]
    picture = np.random.default_rng(3)
    return {
        str(index): {
            "kind": "image",
            "value": picture.integers(0, 256, (8, 8), dtype=np.uint8).tolist(),
            "label": int(truth[index]),
        }
        for index in differs
    }


def _sha(name: str) -> str:
    return (name.encode().hex() * 64)[:64]
