"""Arrays in a file come back under their names and in their types."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from workbench.machine.arrays import load, save

NAMES = ("file", "allow_pickle", "a/b:0", "x", "x.npy", "", "../up", "größe")


def test_any_name_is_kept(tmp_path: Path) -> None:
    arrays = {name: np.full((2, 3), place, np.float32) for place, name in enumerate(NAMES)}
    save(tmp_path / "a.npz", arrays)
    found = load(tmp_path / "a.npz")
    assert list(found) == list(NAMES)
    assert all(np.array_equal(found[name], arrays[name]) for name in NAMES)


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float16, np.bool_, np.int64])
def test_any_type_is_kept(tmp_path: Path, kind: type) -> None:
    save(tmp_path / "a.npz", {"y": np.array([[0, 1], [0, 1]]).astype(kind), "scalar": np.array(1).astype(kind)})
    found = load(tmp_path / "a.npz")
    assert found["y"].dtype == kind and found["y"].astype(float).tolist() == [[0, 1], [0, 1]]
    assert found["scalar"].shape == () and float(found["scalar"].astype(float)) == 1


def test_text_is_kept_and_numpy_reads_the_file_too(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", {"words": np.array(["a", "bc"]), "x": np.arange(3)})
    assert load(tmp_path / "a.npz")["words"].tolist() == ["a", "bc"]
    with np.load(tmp_path / "a.npz") as stored:
        assert stored["x"].tolist() == [0, 1, 2]


def test_objects_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="allow_pickle=False"):
        save(tmp_path / "a.npz", {"x": np.array([{}], dtype=object)})
