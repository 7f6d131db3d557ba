"""Models that were quantized, or FP16, before they were loaded: no row of a study calls them FP32 and exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import workbench as wb
from workbench import datasets
from workbench.machine.store import Store
from workbench.records import Protocol
from workbench.reports.rows import main_table

QUICK = Protocol(batch=4, rounds=1, min_seconds=0.001, min_runs=2, warmup_seconds=0.0, warmup_runs=1)
X = np.random.default_rng(5).normal(size=(64, 16))


def saved(folder: Path, kind: int) -> Path:
    rng = np.random.default_rng(0)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = {"w": rng.normal(size=(16, 32)), "w2": rng.normal(size=(32, 5))}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", kind, ["N", 16])],
        [helper.make_tensor_value_info("y", kind, ["N", 5])],
        [numpy_helper.from_array(value.astype(dtype), name) for name, value in weights.items()],
    )  # fmt: skip
    path = folder / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def variant_and_sqnr(study: wb.Study) -> tuple[str, str]:
    table = main_table(study.record, None)
    names = [column.heading for column in table.columns]
    row = next(row for row in table.rows if row.cells[0].text.startswith("fp32"))
    return row.cells[0].text, row.cells[names.index("SQNR")].text


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_a_file_of_another_float_is_named(tmp_path: Path, kind: int) -> None:
    model = wb.load(saved(tmp_path, kind))
    name = {TensorProto.FLOAT16: "fp16", TensorProto.DOUBLE: "fp64"}[kind]
    assert model.stored_as == name and model.quantized_by is None and model.parameters == 16 * 32 + 32 * 5
    assert any(name.upper() in note and "does not make it FP32" in note for note in model.origin.notes)
    data = datasets.arrays(X.astype(helper.tensor_dtype_to_np_dtype(kind)))
    study = wb.run(model, data, ["fp32"], protocol=QUICK, store=Store(tmp_path / "s"), progress=None)
    assert variant_and_sqnr(study) == (f"fp32 (file: {name})", "reference")


def test_our_own_quantized_file_is_told_as_ours(tmp_path: Path) -> None:
    parent = wb.load(saved(tmp_path, TensorProto.FLOAT))
    assert parent.lowered_before is None and parent.stored_as == "fp32"
    assert not any("FP32" in note for note in parent.origin.notes)
    store = Store(tmp_path / "s")
    for recipe in ("int8-max", "int8-dynamic"):
        data = datasets.arrays(X.astype(np.float32)).split_off(calibration=32)
        table = wb.calibrate(parent, data.bound_to(parent).calibration, "int8-max")
        model = wb.load(wb.transform(parent, recipe, table=table, store=store).path)
        assert model.quantized_by == "workbench" and model.lowered_before == "int8, by workbench"
        assert any("quantized before" in note and "workbench" in note for note in model.origin.notes)
        study = wb.run(model, data, ["fp32"], protocol=QUICK, store=store, progress=None)
        assert variant_and_sqnr(study) == ("fp32 (file: int8, by workbench)", "reference")
        assert any("quantized before" in note for note in study.record.model.origin.notes)
    plain = wb.run(parent, data, ["fp32"], protocol=QUICK, store=store, progress=None)
    assert variant_and_sqnr(plain) == ("fp32", "exact")
