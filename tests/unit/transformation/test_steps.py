from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_nets import net

import workbench as wb
from workbench.errors import LoadError
from workbench.machine.store import Store


@pytest.mark.parametrize(
    "step", [wb.Precision("fp16", exclude=("nosuch", "fc$")), wb.Sparsify(exclude=("nosuch", "fc$"))]
)
def test_a_pattern_that_excludes_nothing_is_told(tmp_path: Path, step) -> None:
    model = wb.load("digits_resnet")
    variant = wb.transform(model, wb.Recipe("mine", (wb.Fuse(), step)), store=Store(tmp_path))
    (note,) = [note for note in variant.reports[-1].notes if "exclude" in note]
    assert "'nosuch' in exclude matches no node name" in note


def test_a_misspelt_pattern_is_told_with_what_is_similar(tmp_path: Path) -> None:
    model = wb.load("digits_resnet")
    recipe = wb.Recipe("mine", (wb.Fuse(), wb.Sparsify(exclude=("layr3.0.conv1",))))
    variant = wb.transform(model, recipe, store=Store(tmp_path))
    (note,) = [note for note in variant.reports[-1].notes if "exclude" in note]
    assert "layer3.0.conv1" in note.partition("Similar names: ")[2]


def test_a_module_that_fusion_folds_away_counts_as_matched(tmp_path: Path) -> None:
    model = wb.load("digits_resnet")
    variant = wb.transform(model, wb.Recipe("mine", (wb.Fuse(), wb.Sparsify(exclude=("bn1",)))), store=Store(tmp_path))
    assert not [note for note in variant.reports[-1].notes if "exclude" in note]


@pytest.mark.parametrize("recipe", ["fp32", "fp16", "int8-max", "int8-smooth", "sparse-2:4-fp16"])
def test_a_variant_is_written_in_the_dialect_that_was_calibrated_for(tmp_path, recipe: str) -> None:
    model, data = wb.load("digits_resnet"), wb.datasets.digits()
    for dialect in ("trt-8.6", "strong"):
        known = wb.calibrate(model, data, recipe, dialect=dialect, store=Store(tmp_path))
        assert known.dialect == wb.transform(model, recipe, table=known, store=Store(tmp_path)).dialect == dialect
    assert wb.transform(model, recipe, table=known, dialect="trt-8.6", store=Store(tmp_path)).dialect == "trt-8.6"


@pytest.mark.parametrize("beside", [False, True])
def test_a_file_that_was_changed_after_it_was_loaded_is_refused(tmp_path: Path, beside: bool) -> None:
    def save(**weights: np.ndarray) -> None:
        (tmp_path / "weights").unlink(missing_ok=True)
        model = net("(float[N,4] x) => (float[N,4] y) { y = MatMul (x, w) }", **weights)
        model.graph.node[0].name = "product"
        onnx.save(model, tmp_path / "net.onnx", save_as_external_data=beside, location="weights", size_threshold=0)

    store = Store(tmp_path / "store")
    save(w=np.eye(4, dtype=np.float32))
    model = wb.load(tmp_path / "net.onnx", store=store)
    save(w=2 * np.eye(4, dtype=np.float32))
    with pytest.raises(LoadError, match=r"net\.onnx\) is gone, or was changed since it was loaded. Load it again"):
        wb.transform(model, "fp32", store=store)
    wb.transform(wb.load(tmp_path / "net.onnx", store=store), "fp32", store=store)
