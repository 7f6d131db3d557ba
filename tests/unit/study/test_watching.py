"""What a caller sees of a study while it runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import workbench as wb
from workbench.machine.store import Store
from workbench.records import Protocol, StudyRecord

QUICK = Protocol(batch=4, rounds=2, min_seconds=0.001, min_runs=5, warmup_seconds=0.0, warmup_runs=1)


def test_the_record_is_handed_on_as_it_grows_and_each_line_of_a_build_too(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    seen: list[StudyRecord] = []
    lines: list[str] = []
    study = wb.run(
        wb.load(tmp_path / "m.onnx"),
        recipes=["fp32"],
        protocol=QUICK,
        store=Store(tmp_path / "store"),
        progress=None,
        watch=seen.append,
        on_line=lines.append,
    )
    steps = [
        (
            record.results[0].engine is not None,
            record.results[0].accuracy is not None,
            0 if record.results[0].measurement is None else len(record.results[0].measurement.rounds),
        )
        for record in seen
    ]
    assert steps == [(True, False, 0), (True, True, 0), (True, True, 1), (True, True, 2)]
    assert seen[-1].results == study.record.results
    assert any("m.onnx" in line or "opening" in line for line in lines)
