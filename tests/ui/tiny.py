"""What the tests of the app share: a tiny real network, data for it, and a study that runs without measuring."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import synthetic_study
from onnx import TensorProto, helper, numpy_helper

import workbench as wb
from workbench import codec, datasets
from workbench.datasets import Dataset
from workbench.errors import Cancelled
from workbench.machine.store import Store
from workbench.recipes import Recipe, named
from workbench.records import Model, Progress, Protocol, StudyRecord, VariantResult
from workbench.study import Study
from workbench.ui.jobs import DRAWING, STUDIES
from workbench.ui.state import State

SOON = 20.0
QUICK = Protocol(batch=4, rounds=2, min_seconds=0.001, min_runs=5, warmup_seconds=0.0, warmup_runs=1)


def classifier(folder: Path) -> Model:
    """(N, 8) -> Gemm -> Relu -> Gemm -> logits (N, 3), with fixed random weights."""
    generator = np.random.default_rng(0)
    weights = {"w1": generator.normal(size=(8, 16)), "w2": generator.normal(size=(16, 3))}
    nodes = [
        helper.make_node("Gemm", ["x", "w1"], ["h"], name="/first/Gemm"),
        helper.make_node("Relu", ["h"], ["r"], name="/relu/Relu"),
        helper.make_node("Gemm", ["r", "w2"], ["logits"], name="/head/Gemm"),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    path = folder / "classifier.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return wb.load(path)


def samples() -> Dataset:
    generator = np.random.default_rng(1)
    x = generator.normal(size=(60, 8)).astype(np.float32)
    return datasets.arrays(x, generator.integers(0, 3, 60), name="points").split_off(calibration=20)


class FakeRun:
    """Stands for `workbench.run`: walks through the stages of made-up results, stopping where the test wants it to.

    A run with real engines takes seconds and cannot be held at a stage. It behaves as the real one does: the record
    grows, finished variants are kept in the store, a failed one does not stop the others, `cancel` is asked.
    """

    def __init__(self, failing: Sequence[str] = ()) -> None:
        self.failing = failing
        self.calls: list[dict[str, Any]] = []
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def hold(self) -> None:
        self.reached.clear()
        self.go_on.clear()

    def __call__(
        self, model: Model, data: Dataset | None, recipes: Sequence[str | Recipe], *, store: Store, **options: Any
    ) -> Study:
        self.calls.append({"model": model, "data": data, "recipes": tuple(recipes), **options})
        wanted = [named("fp32"), *(recipe for recipe in map(named, recipes) if recipe.name != "fp32")]
        kept = store.get("fake", "done") or ""
        record = dataclasses.replace(
            synthetic_study.study(("fp32",), protocol=QUICK),
            name="fake study",
            model=model,
            results=tuple(VariantResult(recipe) for recipe in wanted),
        )
        for place, recipe in enumerate(wanted):
            options["progress"](Progress("measure", recipe.name, place / len(wanted), f"round {place + 1}"))
            if recipe.name not in kept:
                self.reached.set()
                while not self.go_on.wait(0.005):
                    if options["cancel"]():
                        store.put("study", record.name, codec.to_json(record))
                        raise Cancelled("Stopped as asked.")
            kept += f" {recipe.name}"
            store.put("fake", "done", kept)
            record = self._add(record, recipe)
            options["watch"](record)
            options["on_line"](f"built {recipe.name}")
        store.put("study", record.name, codec.to_json(record))
        options["progress"](Progress("finished", "", 1.0))
        return Study(record)

    def _add(self, record: StudyRecord, recipe: Recipe) -> StudyRecord:
        failed = recipe.name in self.failing
        made = synthetic_study.failed(recipe.name) if failed else synthetic_study.result(recipe.name, QUICK)
        results = tuple(made if item.recipe == recipe else item for item in record.results)
        return dataclasses.replace(record, results=results)


def settle() -> None:
    """Wait until nothing is being done or drawn in the background."""
    STUDIES.settle(SOON)
    DRAWING.settle(SOON)


def attempt(state: State, command: object, *arguments: object) -> str:
    """Do as a button does, and return the error that it shows."""
    state.session.attempt(command, *arguments)  # type: ignore[arg-type]
    settle()
    return state.error
