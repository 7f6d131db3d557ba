"""Which nodes became which runtime layer, on graphs that ONNX Runtime really writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import workbench as wb
from workbench import datasets, zoo
from workbench.graph.fused_layers import FusionMap, fusion_map
from workbench.transformation.steps import transform


def optimized(path: Path, folder: Path, level: str = "ORT_ENABLE_ALL") -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


def once(found: FusionMap) -> bool:
    """Whether every source node stands in one layer only (dequantizations of shared tensors aside)."""
    names = [name for layer in found.layers for name in layer.sources if "DequantizeLinear" not in name]
    return len(names) == len(set(names))


@pytest.fixture(scope="module")
def resnet() -> onnx.ModelProto:
    return onnx.load(str(zoo.path("digits_resnet")))


def test_a_graph_that_was_not_optimized_maps_node_by_node(resnet: onnx.ModelProto) -> None:
    found = fusion_map(resnet, resnet)
    assert [layer.sources for layer in found.layers] == [(node.name,) for node in resnet.graph.node]
    assert found.folded == ()


def test_convolutions_take_in_their_activation_and_the_sum_of_a_residual_block(tmp_path: Path) -> None:
    model = wb.load("digits_resnet", store=wb.Store(tmp_path / "store"))
    variant = transform(model, "fp32", store=wb.Store(tmp_path / "store"))
    before = onnx.load(variant.path)
    found = fusion_map(before, optimized(Path(variant.path), tmp_path))
    assert once(found)
    kinds = {node.name: node.op_type for node in before.graph.node}
    groups = [sorted(kinds[name] for name in layer.sources) for layer in found.layers]
    assert sum("Conv" in group for group in groups) == list(kinds.values()).count("Conv")
    # What a processor's kernels absorb differs (NCHWc blocks or not); nothing may be lost either way.
    assert {name for layer in found.layers for name in layer.sources} | set(found.folded) == set(kinds)
    assert any(group == ["Conv", "Relu"] for group in groups)


def test_quantized_layers_take_in_their_quantization(tmp_path: Path) -> None:
    store = wb.Store(tmp_path / "store")
    model, data = wb.load("digits_resnet", store=store), datasets.digits()
    table = wb.calibrate(model, data.bound_to(model).calibration.take(range(16)))
    variant = transform(model, "int8-max", table=table, store=store)
    before = onnx.load(variant.path)
    found = fusion_map(before, optimized(Path(variant.path), tmp_path))
    integer = [layer for layer in found.layers if layer.operator.endswith("QLinearConv")]
    assert integer, "this ONNX Runtime has integer convolutions"
    for layer in integer:
        assert any(name.endswith("/Conv") for name in layer.sources), layer
        assert any("DequantizeLinear" in name for name in layer.sources), layer
    assert once(found)


def test_what_is_computed_once_before_the_run_is_named_as_folded(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], name="turn", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "wt"], ["y"], name="product"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [weight],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    found = fusion_map(onnx.load(path), optimized(path, tmp_path))
    assert [layer.sources for layer in found.layers if "product" in layer.sources]
    assert "turn" in found.folded or any("turn" in layer.sources for layer in found.layers)
