"""The code of the page about custom operators, run as a reader without a GPU would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how_to" / "custom_operators.md"


def test_the_ways_out_that_need_no_gpu_give_the_same_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    blocks = [block.split("```")[0] for block in PAGE.read_text(encoding="utf-8").split("```python\n")[1:]]
    names: dict[str, object] = {}
    for block in blocks:
        if "import torch" not in block:  # the plugin in Python
            exec(compile(block, str(PAGE), "exec"), names)
    study, x, y = names["study"], names["x"], names["y"]
    assert [study[name].failure for name in ("fp32", "int8-max")] == [None, None]  # type: ignore[index]
    v, w = (np.frombuffer(one.raw_data, np.float32).reshape(8, 8) for one in names["weights"])  # type: ignore[attr-defined]
    h = x @ v
    # In FP32, with the order of eight sums unknown; values up to 60.
    np.testing.assert_allclose(y, (h + np.sin(0.75 * h) ** 2 / 0.75) @ w, atol=1e-4)
