from __future__ import annotations

from pathlib import Path

import pytest

import workbench as wb
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
