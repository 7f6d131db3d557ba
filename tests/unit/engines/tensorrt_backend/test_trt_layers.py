from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from tiny_variants import feeds, variant

from workbench.engines import jobs
from workbench.engines import tensorrt as backend
from workbench.engines.tensorrt import layers
from workbench.errors import EngineError
from workbench.explaining.profiles import explain_profiles
from workbench.machine import ranges

# The shapes of the JSON are those of public dumps of 8.6, 10 and the migration notes of 11.
OLD = """{"Layers": [{
  "Name": "Reformatting CopyNode for Input Tensor 0 to /conv1/Conv + /relu/Relu", "LayerType": "Reformat",
  "Inputs": [{"Name": "data", "Location": "Device", "Dimensions": [1,3,224,224], "Format/Datatype": "Row major linear FP32"}],
  "Outputs": [{"Name": "r", "Location": "Device", "Dimensions": [1,3,224,224],
               "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
  "ParameterType": "Reformat", "Origin": "REFORMAT", "TacticValue": "0x00000000000003e8", "StreamId": 0, "Metadata": ""
},{
  "Name": "/conv1/Conv + /relu/Relu", "LayerType": "CaskConvolution",
  "Inputs": [{"Name": "r", "Dimensions": [1,3,224,224],
              "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
  "Outputs": [{"Name": "c", "Dimensions": [1,64,112,112], "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}],
  "ParameterType": "Convolution", "TacticName": "sm90_xmma_fprop_implicit_gemm_i8",
  "Kernel": [7,7], "OutMaps": 64, "Groups": 1, "Weights": {"Type": "Int8", "Count": 9408}, "Bias": {"Type": "Float", "Count": 64},
  "Metadata": "[ONNX Layer: /conv1/Conv]\x1e[ONNX Layer: /relu/Relu]"
},{
  "Name": "PWN(/sig/Sigmoid, /mul/Mul)", "LayerType": "PointWiseV2", "Inputs": [], "Outputs":
  [{"Name": "p", "Dimensions": [1,64], "Format/Datatype": "N/A due to dynamic shapes"}], "ParameterType": "PointWise"
},{
  "Name": "{ForeignNode[/attn/MatMul.../attn/Softmax]}", "LayerType": "Myelin",
  "Inputs": [], "Outputs": [], "ParameterType": "Myelin"
}], "Bindings": ["data", "y"]}"""

NEW = {
    "Layers": [
        {
            "Name": "__myl_Fc_myl0_1", "LayerType": "kgen", "TacticName": "__myl_mha_fused",
            "Inputs": [{"Name": "x", "Dimensions": [8, 128], "Format": "Linear", "DataType": "Half"}],
            "Outputs": [{"Name": "y", "Dimensions": [8, 128], "Format": "Linear", "DataType": "BFloat16"}],
            "Metadata": "[ONNX Layer: /q/MatMul]\x1f[ONNX Layer: /k/MatMul]",
        },
        {
            "Name": "gemm", "LayerType": "gemm",
            "Outputs": [{"Name": "z", "Dimensions": [3], "Format": "Linear", "DataType": "FP8"}],
        },
    ],
    "I/O Tensors": [{"Name": "x", "IOMode": "Input", "DataType": "Half"}],
}  # fmt: skip


def test_8_6_is_read_with_its_raw_control_characters() -> None:
    reformat, conv, pointwise, myelin = layers.parse(OLD)
    assert reformat.is_reformat and reformat.kind == "reformat" and reformat.nodes == ()
    assert [tensor.precision for tensor in (*reformat.inputs, *reformat.outputs)] == ["fp32", "int8"]
    assert (conv.kind, conv.precision, conv.nodes) == ("convolution", "int8", ("/conv1/Conv", "/relu/Relu"))
    assert conv.outputs[0].precision == "fp16"
    assert conv.outputs[0].size_bytes == 64 * 112 * 112 * 2
    assert (pointwise.kind, pointwise.nodes) == ("pointwise", ("/sig/Sigmoid", "/mul/Mul"))
    assert pointwise.outputs[0].size_bytes is None
    assert myelin.kind == "fused region"


def test_weights_are_told_with_their_type_and_shape() -> None:
    _, conv, pointwise, _ = layers.parse(OLD)
    assert [(one.precision, one.shape) for one in conv.constants] == [("int8", (64, 3, 7, 7)), ("fp32", (64,))]
    assert pointwise.constants == ()


@pytest.mark.parametrize(
    ("told", "shape"),
    [
        ({"Weights": {"Type": "Half", "Count": 10}, "OutMaps": 4, "Kernel": [3, 3]}, (10,)),
        ({"Weights": {"Type": "Half", "Count": 36}, "OutMaps": 0, "Kernel": [3, 3]}, (36,)),
        ({"Weights": {"Type": "Half", "Count": 36}, "OutMaps": 4, "Kernel": [3, "3"]}, (36,)),
        ({"Weights": {"Type": "Half", "Count": 0}}, None),
        ({"Weights": {"Type": "Half", "Count": "many"}}, None),
        ({"Weights": [1, 2]}, None),
    ],
)
def test_weights_that_do_not_fit_their_kernel_are_counted_only(told: dict, shape: tuple | None) -> None:
    (layer,) = layers.parse(json.dumps({"Layers": [{"Name": "c", "LayerType": "CaskConvolution", **told}]}))
    assert [one.shape for one in layer.constants] == ([] if shape is None else [shape])


def test_11_is_read_with_its_separate_types() -> None:
    attention, gemm = layers.parse(json.dumps(NEW))
    assert (attention.kind, attention.precision) == ("attention", "fp16")
    assert attention.outputs[0].precision == "bf16" and attention.outputs[0].layout == "Linear"
    assert attention.nodes == ("/q/MatMul", "/k/MatMul")
    assert (gemm.kind, gemm.outputs[0].precision, gemm.outputs[0].size_bytes) == ("matmul", "fp8", 3)


@pytest.mark.parametrize(
    ("stated", "precision"),
    [("Float", "fp32"), ("Half", "fp16"), ("BF16", "bf16"), ("E4M3", "fp8"), ("Int64", "int64"), ("Bool", "bool"), ("?", None),
     ("UInt8", "uint8"), ("INT4", "int4"), ("Int32", "int32")],
)  # fmt: skip
def test_types_are_known_in_each_spelling(stated: str, precision: str | None) -> None:
    (layer,) = layers.parse(json.dumps([{"Name": "l", "Outputs": [{"Name": "t", "Format/Datatype": stated}]}]))
    assert layer.outputs[0].precision == precision


def test_names_alone_are_read_too() -> None:
    reformat, fused = layers.parse('{"Layers": ["Reformatting CopyNode for Output", "/fc/Gemm + /act/Relu"]}')
    assert reformat.is_reformat
    assert fused.nodes == ("/fc/Gemm", "/act/Relu") and fused.kind == "matmul"
    (tensors,) = layers.parse('[{"Name": "x", "Inputs": ["a", 3], "Outputs": null}]')
    assert [tensor.name for tensor in tensors.inputs] == ["a"] and tensors.precision is None


@pytest.mark.parametrize(("text", "said"), [("{", "no JSON"), ("{}", "no list of layers"), ("3", "no list of layers")])
def test_information_that_is_none_is_refused(text: str, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        layers.parse(text)


def test_layers_that_a_build_left_are_read_from_its_folder(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path))
    (layer,) = layers.read(Path(engine.folder or "") / layers.FILE_NAME)
    assert layer.nodes == ("/fc/MatMul", "/relu/Relu")
    with pytest.raises(EngineError, match="Cannot read the layers"):
        layers.read(tmp_path / "absent.json")
    with (tmp_path / "huge.json").open("wb") as stream:
        stream.truncate(2**30)
    with pytest.raises(EngineError, match="no layer information"):
        layers.read(tmp_path / "huge.json")


def test_types_are_told_for_dynamic_shapes_too(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path))
    assert engine.inputs[0].shape == (None, 4)
    tables = [layers.read(Path(engine.folder or "") / layers.FILE_NAME)]
    tables += [backend.layer_table(engine, given)[0] for given in (None, feeds(2))]
    assert [table[0].precision for table in tables] == ["fp32"] * 3


def test_modules_are_found_through_the_nodes() -> None:
    found = layers.with_modules(layers.parse(OLD), {"/conv1/Conv": "stem.conv", "/relu/Relu": "stem.relu"})
    assert found[1].modules == ("stem.conv", "stem.relu") and found[0].modules == ()


def test_times_are_merged_and_none_is_lost() -> None:
    found = layers.with_times(layers.parse(OLD), {"/conv1/Conv + /relu/Relu": 2e-3, "/extra/Softmax": 1e-3})
    assert found[1].seconds == 2e-3 and found[0].seconds is None
    assert (found[-1].name, found[-1].kind, found[-1].seconds) == ("/extra/Softmax", "softmax", 1e-3)


def test_planned_memory_is_compared_with_the_sum() -> None:
    memory = layers.activation_memory(layers.parse(OLD), 500_000)
    assert memory.sum_bytes == 3 * 224 * 224 + 64 * 112 * 112 * 2
    assert memory.unknown_tensors == 1
    assert memory.share == pytest.approx(500_000 / memory.sum_bytes)
    assert layers.ActivationMemory(5, 0, 0).share is None


def test_the_table_of_an_engine_has_times_from_runs_of_their_own(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path))
    (row,), memory = backend.layer_table(engine, feeds(2), {"/fc/MatMul": "fc"}, runs=5)
    assert (row.seconds, row.modules) == (pytest.approx(0.5e-3), ("fc",))
    assert memory.planned_bytes == 4096
    (timed,) = backend.layer_times(engine, feeds(2), 5)
    assert [(spec.name, spec.dtype) for spec in timed.reads] == [
        (tensor.name, {"fp32": "float32", None: ""}[tensor.precision]) for tensor in row.inputs
    ]
    (plain,), _ = backend.layer_table(engine)
    assert plain.seconds is None


def test_an_engine_that_reports_no_times_is_an_error(machine, tmp_path: Path) -> None:
    engine = machine.build(variant(tmp_path))
    machine.world.layer_times = {}
    with pytest.raises(EngineError, match="no layer times"):
        backend.layer_table(engine, feeds(2))


def test_an_engine_is_explained_from_its_own_layers(machine, tmp_path: Path, monkeypatch) -> None:
    """By contract: where there is no GPU, the stand-in's engine is profiled, taken apart and judged."""
    opened: list[str] = []
    monkeypatch.setattr(ranges, "opened", lambda name: opened.append(name) or contextlib.nullcontext())
    engine = machine.build(variant(tmp_path))
    profile, _ = jobs.profile_job(jobs.ProfileJob(engine, 3), feeds(2))
    assert opened == [f"profile {engine.variant}", *["profiled call"] * 3], "each call has a range for profilers"
    assert profile.call_seconds is None and profile.plain_seconds is not None, (
        "TensorRT times layers, not profiled calls"
    )
    found = explain_profiles(profile, profile, "int8", backend="tensorrt")
    (layer,) = found.evidence.variant.layers
    assert (layer.kind, layer.seconds) == ("compute", pytest.approx(0.5e-3))
    assert "which no layer accounts for" in found.sentences[0]
