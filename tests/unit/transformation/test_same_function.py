"""What must not change a model's function is compared with the file it was made from, and refused where it does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import workbench as wb
from workbench.errors import TransformError
from workbench.graph import fusion
from workbench.transformation.same_function import compared

RNG = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def file(folder: Path, nodes, shape, output, constants, opset: int = 17, ir: int = 8) -> Path:
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    path = folder / "made.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir), str(path))
    return path


def answers(path: str | Path, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


def norm(channels: int) -> dict[str, np.ndarray]:
    return {
        "s": weights(channels), "b": weights(channels), "m": weights(channels), "v": np.abs(weights(channels)) + 0.5,
    }  # fmt: skip


@pytest.mark.parametrize("bias", [(12, 1), (12,), (1, 12), (1,), (1, 1), ()])
def test_a_gemm_with_any_bias_and_a_norm_behind_it_keeps_its_function(tmp_path: Path, bias: tuple[int, ...]) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w", "c"], ["g"], name="gemm"),
        helper.make_node("BatchNormalization", ["g", "s", "b", "m", "v"], ["y"], name="norm"),
    ]
    path = file(tmp_path, nodes, [12, 16], [12, 12], {"w": weights(16, 12), "c": weights(*bias), **norm(12)})
    variant = wb.transform(wb.load(path), "fp32", store=wb.Store(tmp_path / "store"))
    x = weights(12, 16)
    np.testing.assert_allclose(answers(variant.path, x), answers(path, x), atol=1e-4)
    folded = "norm" in variant.reports[0].changed
    assert folded == (bias != (12, 1))


def test_a_norm_with_a_value_for_each_place_stays(tmp_path: Path) -> None:
    places = {key: np.broadcast_to(value[:, None, None], (4, 4, 4)).copy() for key, value in norm(4).items()}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"], spatial=0, name="norm"),
    ]
    path = file(tmp_path, nodes, ["N", 1, 6, 6], ["N", 4, 4, 4], {"w": weights(4, 1, 3, 3), **places}, opset=8, ir=4)
    variant = wb.transform(wb.load(path), "fp32", store=wb.Store(tmp_path / "store"))
    assert any("each place" in item.reason for item in variant.reports[0].skipped)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("dialect", ["ort-cpu", "trt-8.6", "strong"])
def test_an_upsample_of_opset_9_keeps_its_function_into_later_opsets(tmp_path: Path, mode: str, dialect: str) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], name="c1"),
        helper.make_node("Upsample", ["c", "k"], ["u"], mode=mode, name="up"),
        helper.make_node("Conv", ["u", "w2"], ["y"], name="c2"),
    ]
    constants = {"w": weights(32, 16, 3, 3), "w2": weights(4, 32, 3, 3), "k": np.array([1, 1, 2, 2], np.float32)}
    path = file(tmp_path, nodes, ["N", 16, 6, 6], ["N", 4, 10, 10], constants, opset=9, ir=4)
    model, store = wb.load(path), wb.Store(tmp_path / "store")
    known = wb.calibrate(model, wb.datasets.Split({"x": weights(8, 16, 6, 6)}), "int8-max", dialect=dialect)
    variant = wb.transform(model, "int8-max", table=known, store=store)
    x = weights(4, 16, 6, 6)
    right, found = answers(path, x), answers(variant.path, x)
    assert 10 * np.log10((right**2).sum() / ((right - found) ** 2).sum()) > 25
    assert "keeps the function" in variant.reports[0].details["compared"]


def test_a_hardmax_over_the_last_axis_is_converted_and_another_is_refused(tmp_path: Path) -> None:
    def transformed(axis: int) -> wb.records.Variant:
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
            helper.make_node("Hardmax", ["a"], ["y"], axis=axis, name="hard"),
        ]
        path = file(tmp_path, nodes, [2, 3, 4], [2, 3, 5], {"w": weights(4, 5)}, opset=11, ir=6)
        return wb.transform(wb.load(path), "int8-dynamic", store=wb.Store(tmp_path / "store"))

    assert "product" in transformed(2).reports[-1].changed
    with pytest.raises(TransformError, match="hard is a Hardmax over axis 1"):
        transformed(1)


def test_a_graph_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch) -> None:
    nodes = [helper.make_node("Mul", ["x", "k"], ["y"], name="scale")]
    model = wb.load(file(tmp_path, nodes, ["N", 3], ["N", 3], {"k": np.float32([2.0])}))
    wrong = onnx.load(model.path)
    wrong.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32([2.1]), "k"))
    with pytest.raises(TransformError, match="Fusion changes what made computes"):
        compared(model, wrong, "Fusion")
    wrong.graph.node[0].op_type = "Frobnicate"
    with pytest.raises(TransformError, match="does not run, though the file does"):
        compared(model, wrong, "Fusion")

    def breaking(proto, step, context):
        report = fusion.apply(proto, step, context)
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32([2.1]), "k"))
        return report

    monkeypatch.setitem(wb.transform.__globals__["STEPS"], "fuse", breaking)
    with pytest.raises(TransformError, match="changes what made computes"):
        wb.transform(model, "fp32", store=wb.Store(tmp_path / "store"))


def test_a_class_that_rounding_decides_here_and_there_is_no_other_function_and_more_of_them_are(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Sub", ["x", "k"], ["d"], name="shift"),
        helper.make_node("Concat", ["d", "zero"], ["scores"], axis=0, name="join"),
        helper.make_node("ArgMax", ["scores"], ["y"], axis=0, name="highest"),
    ]
    constants = {"k": np.zeros(1, np.float32), "zero": np.zeros((1, 128, 128), np.float32)}
    path = file(tmp_path, nodes, [1, 128, 128], [1, 128, 128], constants)
    proto = onnx.load(path)
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(proto, path)
    model = wb.load(path)

    def shifted(by: float) -> onnx.ModelProto:
        changed = onnx.load(model.path)
        changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32([by]), "k"))
        return changed

    # Of 16384 normal numbers about 0.4 * 16384 * shift lie between zero and a shift.
    assert 0 < compared(model, shifted(1e-3), "Fusion").relative_error <= 1e-3
    with pytest.raises(TransformError, match="changes what made computes"):
        compared(model, shifted(0.1), "Fusion")


def test_what_cannot_be_run_is_said_and_not_compared(tmp_path: Path) -> None:
    nodes = [helper.make_node("Frobnicate", ["x"], ["y"], domain="my.own", name="strange")]
    graph = helper.make_graph(
        nodes, "made",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my.own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), str(tmp_path / "made.onnx"))
    variant = wb.transform(wb.load(tmp_path / "made.onnx"), "fp32", store=wb.Store(tmp_path / "store"))
    assert any("was not compared with the file" in note for note in variant.notes)
