"""What each backend says that it cannot do, beside the toggle that is greyed for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from workbench import engines
from workbench.errors import BackendMissing, DataError, LoadError
from workbench.records import Model, Program
from workbench.study import offers
from workbench.study.offers import refusals

QUANTIZED = ("int8", "int8-dynamic", "int8-smooth", "fp8", "int8-weights", "int4-weights")


def greyed(found: offers.Reasons, toggle: str) -> set[str]:
    return {value for name, value in found if name == toggle}


def test_onnx_runtime_on_a_cpu_lacks_tf32_alone() -> None:
    found = refusals("onnxruntime-cpu")
    assert greyed(found, "precision") == {"tf32"} and not greyed(found, "quantization") | greyed(found, "fusion")


def test_openvino_has_no_dynamic_int8_and_one_way_to_fuse_and_speaks_of_itself() -> None:
    pytest.importorskip("openvino")
    found = refusals("openvino")
    assert greyed(found, "quantization") == {"int8-dynamic"} and greyed(found, "precision") == {"tf32"}
    assert greyed(found, "fusion") == {"off", "basic"}
    assert "OpenVINO" in found["quantization", "int8-dynamic"] and "TensorRT" not in " ".join(found.values()).replace(
        found["profile", "shapes"], ""
    )


@pytest.mark.parametrize("backend", ["torch", "torch-compile"])
def test_pytorch_changes_the_floating_point_type_alone(backend: str) -> None:
    if engines.missing_to_build(backend) is not None:
        pytest.skip(f"{backend} cannot be used here")
    found = refusals(backend)
    assert greyed(found, "quantization") == set(QUANTIZED) and greyed(found, "sparse") == {"True"}
    assert "before the recipe" in found["quantization", "int8"] and "before the recipe" in found["exclude", "layers"]
    assert greyed(found, "precision") <= {"tf32"}
    assert ("compile" in found["fusion", "off"]) and ("fusion", "all") not in found


def test_pytorch_cannot_run_what_was_loaded_from_a_file(model: Model) -> None:
    pytest.importorskip("torch")
    found = refusals("torch", model)
    assert "torch cannot run" in found["backend", "model"] and "workbench.load(module" in found["backend", "model"]
    lacking = offers.lacking({"torch": None, "onnxruntime-cpu": None}, model)
    assert "no PyTorch program" in lacking["torch"][""] and lacking["onnxruntime-cpu"] == {}


def test_pytorch_says_where_a_program_is_gone_and_runs_one_that_is_there(model: Model, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with_program = replace(model, program=Program(str(tmp_path / "net.pt2"), "", ("x",), ("y",)))
    assert "is gone" in offers.lacking({"torch": None}, with_program)["torch"][""]
    (tmp_path / "net.pt2").write_bytes(b"program")
    assert offers.lacking({"torch": None}, with_program) == {"torch": {}}
    assert ("backend", "model") not in refusals("torch", with_program)


def test_a_backend_that_is_not_here_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = engines.base.Missing("It is not installed.", "Install it.")
    monkeypatch.setattr(engines, "missing_to_build", lambda name: absent)
    assert refusals("openvino").keys() == {("profile", "shapes")}


def test_onnx_runtime_on_a_gpu_takes_static_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "missing_to_build", lambda name: None)
    found = refusals("onnxruntime-cuda")
    assert greyed(found, "quantization") == {"int8-dynamic"} and not greyed(found, "precision")


@pytest.mark.parametrize("backend", engines.MODULES)
def test_what_a_backend_refuses_is_what_recipes_ask_for(backend: str) -> None:
    if engines.missing_to_build(backend) is not None:
        pytest.skip(f"{backend} cannot build here")
    assert set(engines.backend(backend).refuses(backend)) <= set(offers._TOGGLES)


def test_every_backend_with_a_caveat_exists() -> None:
    assert set(offers._CAVEATS) <= set(engines.MODULES)
    assert offers.caveats("tensorrt") == () and "rehearsal" in " ".join(offers.caveats("openvino"))


def test_wrong_arguments_are_said() -> None:
    with pytest.raises(BackendMissing, match="no backend"):
        refusals("tensorflow")
    with pytest.raises(LoadError, match=r"workbench\.load"):
        refusals("onnxruntime-cpu", "net.onnx")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="datasets"):
        refusals("onnxruntime-cpu", None, [1])  # type: ignore[arg-type]
