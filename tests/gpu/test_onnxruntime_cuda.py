"""ONNX Runtime's CUDA provider on a real GPU. Skipped, with the reason, where onnxruntime-gpu or the GPU is missing.

The right answer is the FP32 file on ONNX Runtime's CPU provider. Tolerances are stated where they are used.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import workbench as wb
from workbench import datasets, engines
from workbench.engines import onnxruntime as backend
from workbench.errors import EngineError
from workbench.machine.store import Store
from workbench.records import BuildOptions, Engine, Model

NAME = "onnxruntime-cuda"
ABSENT = backend.missing(NAME)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(ABSENT is not None, reason=f"no CUDA provider here: {ABSENT}")]
# Relative to the largest logit, through about ten layers: FP32 differs by the order of sums; TF32 and FP16 keep 10 bits.
TOLERANCE = {"fp32": 1e-4, "tf32": 2e-2, "fp16": 2e-2}


@pytest.fixture(scope="session")
def built(model: Model, data: datasets.Dataset, store: Store) -> Callable[[str], Engine]:
    made: dict[str, Engine] = {}

    def make(recipe: str) -> Engine:
        if recipe not in made:
            table = (
                wb.calibrate(model, data.calibration, recipe, dialect=backend.dialect(NAME))
                if "int8" in recipe
                else None
            )
            variant = wb.transform(model, recipe, dialect=backend.dialect(NAME), table=table, store=store)
            made[recipe] = engines.build(variant, NAME, BuildOptions(), store=store)
        return made[recipe]

    return make


@pytest.mark.parametrize("recipe", TOLERANCE)
def test_answers_agree_with_the_cpu(built, model: Model, feeds, recipe: str) -> None:
    with backend.open_file(model.path) as runner:
        want = runner.infer(feeds)["logits"]
    with engines.open_runner(built(recipe)) as runner:
        got = runner.infer(feeds)["logits"]
    assert np.abs(got - want).max() <= TOLERANCE[recipe] * np.abs(want).max()


def test_int8_keeps_the_answers(built, data: datasets.Dataset) -> None:
    def right(recipe: str) -> float:
        with engines.open_runner(built(recipe)) as runner:
            return float(np.mean(runner.infer(data.evaluation.inputs)["logits"].argmax(1) == data.evaluation.labels))

    assert right("int8-max") >= right("fp32") - 0.02  # 539 images: 2 points is 11 of them


def test_the_engine_names_the_gpu_and_runs_all_nodes_there(built) -> None:
    engine = built("fp32")
    assert "NVIDIA" in engine.device
    assert not any("run on the CPU" in note for note in engine.notes)


@pytest.mark.parametrize("boundary", ["compute", "end_to_end"])
def test_stopwatches_tell_a_time(built, feeds, boundary) -> None:
    with engines.open_runner(built("fp16")) as runner:
        watch = runner.stopwatch(feeds, boundary)
        assert min(watch() for _ in range(20)) > 0


def test_layer_times_are_refused_as_they_would_be_the_hosts(built, feeds) -> None:
    with pytest.raises(EngineError, match="only where they run on its CPU provider"):
        backend.layer_times(built("fp32"), feeds, 5)


def test_a_whole_study_runs(store: Store) -> None:
    protocol = wb.Protocol(batch=8, rounds=3, min_seconds=0.02, min_runs=20, warmup_seconds=0.05)
    study = wb.run(
        "digits_resnet",
        datasets.digits(),
        ["fp32", "fp16"],
        backend=NAME,
        protocol=protocol,
        store=store,
        progress=None,
    )
    assert study.failures == {}
    assert study.best().best is not None or study.comparison().rows
