"""`fp32` equals the loaded file on ONNX's own models: here on a part of them, in `benchmarks/backend_suite.py` on all."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import backend_suite
import numpy as np
import pytest
from onnx import TensorProto, helper

import workbench as wb


@pytest.mark.parametrize("start", range(3))
def test_folding_fusing_and_converting_keep_what_a_file_computes(start: int, tmp_path: Path) -> None:
    store, counts, wrong = wb.Store(tmp_path / "store"), Counter(), {}
    for case in list(backend_suite.cases())[start::36]:
        what, why = backend_suite.outcome(case, tmp_path, store)
        counts[what] += 1
        if what in ("differs", "crashed") or (what == "refused" and "only tensors can be fed" not in why):
            wrong[case.name] = f"{what}: {why}"
    assert wrong == {}
    assert counts["equal"] > 0.7 * counts.total(), counts


def test_a_difference_would_be_seen() -> None:
    one = np.ones(3, np.float32)
    assert backend_suite.difference(one, one) == 0
    assert backend_suite.difference(one + np.float32(0.01), one) == pytest.approx(0.01, rel=1e-3)
    for other in (one.astype(np.float64), np.ones(4, np.float32), np.array([1, np.nan, 1], np.float32)):
        assert backend_suite.difference(other, one) == np.inf


def test_a_file_of_classic_operators_alone_can_be_transformed(tmp_path: Path) -> None:
    node = helper.make_node("Binarizer", ["x"], ["y"], domain="ai.onnx.ml", threshold=0.5)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "xy")
    model = helper.make_model(
        helper.make_graph([node], "g", [x], [y]), opset_imports=[helper.make_opsetid("ai.onnx.ml", 1)], ir_version=8
    )
    case = backend_suite.Case("classic", model, {"x": np.array([[0.2, 0.5, 0.9]], np.float32)})
    assert backend_suite.outcome(case, tmp_path, wb.Store(tmp_path / "store")) == ("equal", "")
