"""The list of kernels in a build log, as text: what the builder of TensorRT for RTX 1.7.1 printed, shortened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_variants import variant

from workbench.engines.tensorrt import kernels
from workbench.errors import EngineError


def tensor(name: str, sizes: str, kind: str) -> str:
    return (
        f"{{ Name: {name}, Dimensions: [{sizes}], Strides: [1], StrideOrder: [0], Datatype: {kind}, Format: (Arbitrary) "
        f"Format with stride order = [1,0] }}"
    )


def kernel(name: str, kind: str, inputs: list[str], constants: list[str], outputs: list[str], *nodes: str) -> str:
    metadata = "".join(f"[ONNX Layer: {node}]" for node in nodes)
    lists = [f"[ {', '.join(items)}]" if items else "[]" for items in (inputs, constants, outputs)]
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: {lists[0]}, Constants: {lists[1]}, Outputs: {lists[2]}, "
        f"TacticName: t, StreamId: 0, Metadata: {metadata}"
    )


A, MASK = tensor("a, b", "-1,64", "Int8"), tensor("m", "1,8", "Bool")
HALF, BIAS, COLUMN = tensor("h", "-1,64", "Half"), tensor("b", "1,64,1,1", "Float"), tensor("c", "64,1", "Half")
WEIGHT, ALPHA = tensor("w", "64,32", "Int8"), tensor("alpha", "1", "Float")
LOG = [
    "[V] Layers:",
    "[V] something else",
    "[V] Layers:",
    kernel("__mye1_myl0_0", "shape_call", [], [], []),
    kernel("__myl_MoveCastTran_myl0_1", "kgen", [A], [], [A], "/t/Transpose"),
    kernel("__myl_MoveMul_myl0_2", "kgen", [A], [], [A], "/m/Mul"),
    kernel("_gemm_mha_v2_myl0_3", "kgen", [MASK, A, A, A], [], [A], "/s/Softmax", "/a/MatMul"),
    kernel("/fc/MatMul_myl0_4", "gemm", [A], [ALPHA, WEIGHT], [tensor("y", "-1,32", "Half")], "/fc/MatMul"),
    kernel(
        "/w/MatMul_myl0_5", "runtime_fusion", [tensor("h", "-1,64", "Half")], [tensor("v", "64,32", "Int4")], [], "w"
    ),
    kernel("/c/Conv_myl0_6", "correlation", [tensor("h", "-1,4", "Float")], [ALPHA], [], "/c/Conv"),
    kernel("__myl_CorrCastMulAdd_myl0_7", "runtime_fusion", [HALF, HALF], [BIAS], [HALF], "/made/Conv"),
    kernel("/one/MatMul_myl0_8", "gemm", [MASK, HALF], [ALPHA, COLUMN], [HALF], "/one/MatMul"),
    kernel("odd", "new_kind", [], [], []),
    "",
    "I/O Tensors:",
    "[I] Total Weights Memory: 2048 bytes",
]


def test_the_last_list_of_a_log_is_read_without_its_overhead() -> None:
    found = kernels.parse(LOG)
    assert [layer.kind for layer in found] == [
        "reformat", "fused region", "attention", "matmul", "matmul", "convolution", "convolution",
        "matmul", "other"
    ]  # fmt: skip
    assert [kernels.operands(layer) for layer in found[2:]] == [
        "int8 x int8", "int8 x int8", "fp16 x int4", "fp32 x fp32",
        "fp16 x fp16", "fp16 x fp16", "?"
    ]  # fmt: skip
    assert [kernels.quantized(layer) for layer in found] == [
        False, False, True, True, True, False, False, False, False
    ]  # fmt: skip
    assert found[2].nodes == ("/s/Softmax", "/a/MatMul")
    assert found[3].inputs[0].name == "a, b" and found[3].inputs[0].shape == (-1, 64)
    assert found[3].constants[1].size_bytes == 64 * 32 and found[4].constants[0].size_bytes == 64 * 32 // 2
    assert kernels.weight(found[5]) is None and kernels.weight(found[6]) is None  # a scalar, a bias
    assert kernels.weight(found[7]) == found[7].constants[1]


def test_a_log_without_a_list_is_empty_and_a_file_of_it_an_error(tmp_path: Path) -> None:
    assert kernels.parse(["[I] nothing", "[V] Layers: 3"]) == ()
    (tmp_path / "build.log").write_text("[I] nothing\n")
    with pytest.raises(EngineError, match="lists no kernels"):
        kernels.of_log(tmp_path / "build.log")
    (tmp_path / "whole.log").write_text("\n".join(LOG))
    assert kernels.of_log(tmp_path / "whole.log")[1] == {"weights": 2048}


def test_a_log_that_is_gone_or_too_large_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="Cannot read the build log"):
        kernels.of_log(tmp_path / "none.log")
    (tmp_path / "build.log").write_text("\n".join(LOG))
    monkeypatch.setattr(kernels, "_LARGEST_BYTES", 10)
    with pytest.raises(EngineError, match="larger than 10 bytes"):
        kernels.of_log(tmp_path / "build.log")


def test_an_engine_without_a_folder_has_no_log(rtx, tmp_path: Path) -> None:
    engine = rtx.build(variant(tmp_path))
    with pytest.raises(EngineError, match="left no build log"):
        kernels.of_engine(replace(engine, folder=None))
