from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import tensorrt_stand_in
from cuda_stand_in import Runtime, cudaError_t
from tiny_variants import network, variant
from world import World

from workbench.engines import tensorrt as backend
from workbench.engines.tensorrt import capabilities, cuda
from workbench.engines.tensorrt.capabilities import Capabilities, Device
from workbench.errors import BackendMissing, BuildError, OutOfMemory, RunError

HOPPER, TURING, PASCAL = Device("NVIDIA H200", (9, 0)), Device("NVIDIA T4", (7, 5)), Device("NVIDIA P4", (6, 1))


def of(version: str) -> Capabilities:
    return Capabilities(tensorrt_stand_in.make(version, World(Runtime())))


@pytest.mark.parametrize(
    ("version", "facts"),
    [
        ("8.6.0", {"needs_explicit_batch": True, "strongly_typed": False, "weakly_typed": True, "dialect": "trt-8.6",
                   "progress_monitor": False, "calibrators": True, "layer_precision": True, "parser_refitter": False,
                   "native_fp8": False}),
        ("10.16.1", {"needs_explicit_batch": False, "strongly_typed": True, "weakly_typed": True, "dialect": "strong",
                     "progress_monitor": True, "calibrators": True, "layer_precision": True, "parser_refitter": True,
                     "native_fp8": True}),
        ("11.4.0", {"needs_explicit_batch": False, "strongly_typed": True, "weakly_typed": False, "dialect": "strong",
                    "progress_monitor": True, "calibrators": False, "layer_precision": False, "parser_refitter": True,
                    "native_fp8": True}),
    ],
)  # fmt: skip
def test_each_release_is_known_by_its_names(version: str, facts: dict) -> None:
    caps = of(version)
    assert {name: getattr(caps, name) for name in facts} == facts


def test_releases_before_strong_typing_is_advised_get_the_older_dialect() -> None:
    caps = of("10.16.1")
    caps.release = (10, 3)
    assert caps.dialect == "trt-8.6"


@pytest.mark.parametrize(
    ("version", "device", "precision", "said"),
    [
        ("8.6.0", HOPPER, "bf16", "TensorRT 10"),
        ("8.6.0", HOPPER, "fp8", "10.12"),
        ("8.6.0", HOPPER, "int4", "10.12"),
        ("11.4.0", TURING, "bf16", "8.0"),
        ("11.4.0", TURING, "fp8", "8.9"),
        ("11.4.0", TURING, "tf32", "8.0"),
        ("8.6.0", Device("NVIDIA M4", (5, 2)), "int8", "6.1"),
    ],
)
def test_what_release_or_device_lack_is_said(version: str, device: Device, precision: str, said: str) -> None:
    assert said in (of(version).refuses(precision, device) or "")


def test_what_is_there_is_not_refused() -> None:
    assert [of("11.4.0").refuses(name, HOPPER) for name in ("fp32", "tf32", "fp16", "bf16", "int8", "fp8", "int4")] == [
        None
    ] * 7
    assert of("8.6.0").refuses("int8", PASCAL) is None


def test_the_backend_tells_version_device_and_dialect(machine) -> None:
    assert backend.missing("tensorrt") is None
    assert backend.version("tensorrt") == machine.trt.__version__
    assert backend.device("tensorrt") == "NVIDIA H200"
    assert backend.dialect("tensorrt") == machine.dialect


def test_missing_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # makes the import fail
    absent = backend.missing("tensorrt")
    assert absent is not None
    assert 'pip install "trt-workbench[gpu]"' in absent.remedy
    assert "not installed" in absent.reason


def test_missing_tells_a_foreign_module_of_that_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    assert "is not TensorRT" in str(backend.missing("tensorrt"))


def test_missing_tells_a_library_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libcublas.so.12: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert "libcublas.so.12" in str(backend.missing("tensorrt"))
    with pytest.raises(BackendMissing, match="cannot be loaded"):
        capabilities.library()


def test_missing_tells_that_cuda_python_is_not_there(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.cudart", None)
    assert "cuda-python" in str(backend.missing("tensorrt"))


@pytest.mark.parametrize("code", [cudaError_t.cudaErrorInsufficientDriver, cudaError_t.cudaErrorNoDevice])
def test_missing_tells_that_there_is_no_device(machine, monkeypatch: pytest.MonkeyPatch, code: cudaError_t) -> None:
    monkeypatch.setattr(machine.cuda, "cudaGetDeviceCount", lambda: (code, None))
    assert "CUDA finds no device" in str(backend.missing("tensorrt"))
    monkeypatch.setattr(machine.cuda, "cudaGetDeviceCount", lambda: (cudaError_t.cudaSuccess, 0))
    assert "no CUDA device" in str(backend.missing("tensorrt"))


def test_the_older_name_of_the_cuda_module_is_taken(machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.cudart", machine.cuda)
    assert cuda.load().device().capability == "9.0"


def test_cuda_errors_name_function_and_code(machine) -> None:
    runtime = cuda.load()
    with pytest.raises(OutOfMemory, match="cudaMalloc of 2,147,483,648 bytes"):
        cuda.DeviceMemory(runtime, 2**31)
    with pytest.raises(RunError, match="cudaFree failed: cudaErrorInvalidValue"):
        runtime.call("cudaFree", 1)


def test_memory_grows_and_never_shrinks(machine) -> None:
    memory = cuda.DeviceMemory(cuda.load(), 10)
    first = memory.address
    assert not memory.grow(5) and memory.address == first
    assert memory.grow(20) and memory.size_bytes == 20
    memory.free()
    memory.free()  # a second time is no error


def test_lacks_is_empty_where_all_is_known(machine, tmp_path: Path) -> None:
    assert backend.lacks("tensorrt", Path(variant(tmp_path).path)) == {}


def test_lacks_names_operator_and_reason(machine, tmp_path: Path) -> None:
    machine.world.unsupported = {"Relu"}
    assert backend.lacks("tensorrt", Path(variant(tmp_path).path)) == {"Relu": "TensorRT has no importer for it"}


def test_lacks_takes_the_parsers_own_words(machine, tmp_path: Path) -> None:
    machine.world.unsupported = {"Relu"}
    machine.world.parser_errors = [("UNSUPPORTED_NODE", 2, "No such thing.")]
    found = backend.lacks("tensorrt", Path(variant(tmp_path).path))
    assert "No such thing." in found["Relu"]


def test_lacks_refuses_a_file_that_is_no_onnx(machine, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(BuildError, match=r"Cannot read the variant's ONNX file"):
        backend.lacks("tensorrt", tmp_path / "bad.onnx")


def test_a_builder_that_cannot_start_is_a_build_error(machine, tmp_path: Path) -> None:
    machine.world.builder_fails = True
    with pytest.raises(BuildError, match="cannot start on this machine"):
        machine.build(variant(tmp_path, model=network()))
