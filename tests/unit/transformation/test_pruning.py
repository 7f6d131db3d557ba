"""Pruning on calibration samples, through the public verbs, on shipped networks and real digits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_nets import shipped

import workbench as wb
from workbench.engines.onnxruntime import open_file
from workbench.errors import CalibrationError
from workbench.graph import sparsity
from workbench.graph.editing import Context
from workbench.machine.store import Store
from workbench.recipes import Fuse, Recipe, Sparsify
from workbench.transformation import pruning


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def model() -> wb.records.Model:
    return wb.load("digits_vit")


@pytest.fixture(scope="module")
def data(model) -> wb.datasets.Dataset:
    return wb.datasets.digits().bound_to(model)


def top1(path: str, data: wb.datasets.Dataset) -> float:
    with open_file(path, "off") as runner:
        (logits,) = runner.infer(data.evaluation.inputs).values()
    return float(np.mean(logits.argmax(axis=1) == data.evaluation.labels))


def test_weights_corrected_on_samples_keep_what_magnitudes_lose(model, data, store: Store) -> None:
    found = wb.calibrate(model, data, "sparse-2:4")
    assert len(found.pruned) == 25 and found.table is None
    corrected = wb.transform(model, "sparse-2:4", table=found, store=store)
    bare = wb.transform(model, "sparse-2:4", store=store)
    by_magnitude = Recipe("magnitude", (Fuse(), Sparsify(method="magnitude")))
    asked = wb.transform(model, by_magnitude, table=found, store=store)
    dense = top1(model.path, data)
    assert top1(corrected.path, data) >= dense - 0.02
    assert top1(bare.path, data) <= dense - 0.03
    assert asked.sha256 == bare.sha256
    assert "25 layers were pruned in one shot" in " ".join(corrected.reports[-1].notes)
    assert "25 layers were pruned by magnitude" in " ".join(bare.reports[-1].notes)
    errors = [layer["output_error"] for layer in corrected.reports[-1].details["layers"].values()]
    assert all(0 < error < 0.05 for error in errors)


def test_what_is_excluded_stays_dense_and_pruned_layers_are_calibrated_as_they_run(model, data, store: Store) -> None:
    recipe = wb.recipes.NAMED["sparse-2:4-int8"].excluding("head")
    found = wb.calibrate(model, data, recipe, dialect="trt-8.6", store=store)
    variant = wb.transform(model, recipe, dialect="trt-8.6", table=found, store=store)
    pruned = next(report for report in variant.reports if report.kind == "sparsify")
    assert len(pruned.changed) == 24 and not any("head" in name for name in pruned.changed)
    dense = wb.calibrate(model, data, "int8-kl", dialect="trt-8.6", store=store)
    assert found.table is not None and dense.table is not None and found.table.sha256 != dense.table.sha256
    assert top1(variant.path, data) >= top1(model.path, data) - 0.03


def test_layers_are_taken_in_groups_that_fit_into_memory(model, data, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = shipped("digits_vit")
    layers = sparsity.reconstructible(proto, Sparsify(), Context())
    few = {name: array[:16] for name, array in data.calibration.inputs.items()}
    whole = pruning.reconstruct(proto, layers, few)
    monkeypatch.setattr(pruning, "_LARGEST_HELD_BYTES", 200_000)
    parts = pruning.reconstruct(proto, layers, few)
    assert whole.keys() == parts.keys()
    for name, one in whole.items():
        np.testing.assert_allclose(parts[name].weight, one.weight, rtol=1e-3, atol=1e-4)


def test_without_samples_there_is_nothing_to_correct_with(model, data) -> None:
    with pytest.raises(CalibrationError):
        wb.calibrate(model, replace(data, calibration=None), "sparse-2:4")
