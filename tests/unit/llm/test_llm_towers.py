"""Two towers through the same path, one calibration table a tower."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from workbench.datasets import Split
from workbench.errors import DataError
from workbench.llm import towers
from workbench.machine.store import Store
from workbench.records import Protocol

QUICK = Protocol(batch=4, rounds=1, min_seconds=0.0, min_runs=3, warmup_seconds=0.0, warmup_runs=1)


@pytest.fixture(scope="module")
def studies(store: Store) -> towers.TowerStudies:
    shipped = towers.digits_captions(store)
    return towers.run_towers(shipped, ["fp32", "int8-max"], backend="onnxruntime-cpu", protocol=QUICK, store=store)


def test_the_shipped_towers_find_the_right_caption_as_their_card_says(studies: towers.TowerStudies) -> None:
    right = sum(studies.joint["fp32"].scores)
    assert (right, studies.joint["fp32"].samples) == (536, 539)  # measured by the training script, on other code


def test_lowered_towers_stay_within_a_point_and_each_had_a_calibration_table_of_its_own(
    studies: towers.TowerStudies,
) -> None:
    assert abs(np.mean(studies.joint["int8-max"].scores) - np.mean(studies.joint["fp32"].scores)) <= 0.01
    variants = [study["int8-max"].variant for study in (studies.image_study, studies.text_study)]
    tables = {variant.calibration_sha256 for variant in variants if variant is not None}
    assert len(tables) == 2
    assert None not in tables


def test_the_table_has_a_row_a_recipe_with_both_towers_tables_sizes_and_latencies(
    studies: towers.TowerStudies,
) -> None:
    table = studies.table().set_index("Recipe")
    assert list(table.index) == ["fp32", "int8-max"]
    assert table.loc["fp32", "Calibration table (image)"] == "-"
    assert table.loc["int8-max", "Calibration table (image)"] != table.loc["int8-max", "Calibration table (text)"]
    assert table.loc["int8-max", "Size (image, MB)"] < table.loc["fp32", "Size (image, MB)"]
    assert (table["Latency (text, ms)"] > 0).all()


def test_an_image_gets_the_similarity_of_the_nearest_text_of_each_class() -> None:
    images = np.array([[1.0, 0.0], [0.0, 1.0]])
    texts = np.array([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]])
    scores = towers.class_scores(images, texts, np.array([0, 0, 2]), 3)
    assert scores.tolist() == [[1.0, -np.inf, 0.0], [0.8, -np.inf, 1.0]]
    with pytest.raises(DataError, match="different widths"):
        towers.class_scores(images, texts[:, :1], np.array([0, 0, 2]), 3)


def test_towers_without_labels_are_refused(store: Store) -> None:
    shipped = towers.digits_captions(store)
    bare = replace(shipped.text_data, evaluation=Split(shipped.text_data.evaluation.inputs))
    with pytest.raises(DataError, match="captions has no labels"):
        towers.run_towers(replace(shipped, text_data=bare), store=store)
