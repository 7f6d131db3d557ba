from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest

from workbench.machine import device


def test_the_environment_is_plain_data_and_names_the_machine() -> None:
    found = device.describe()
    assert json.loads(json.dumps(found)) == found
    assert found["cpu"] and found["cores"] >= 1 and found["memory_bytes"] > 0
    assert "numpy" in found["versions"]


def test_an_unknown_package_has_no_version() -> None:
    assert device.version("no-such-distribution") is None


def test_peaks_are_known_by_name_or_not_at_all() -> None:
    assert device.gpu_peak("NVIDIA H200").bytes_per_second == 4.8e12
    assert device.gpu_peak("NVIDIA L4") != device.gpu_peak("NVIDIA L40S")
    unknown = device.gpu_peak("Someone's accelerator")
    assert unknown.flops_per_second is None and unknown.bytes_per_second is None


def test_gpus_are_read_from_the_drivers_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", drivers_library("NVIDIA H200"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    device.gpus.cache_clear()
    try:
        assert device.gpus() == (device.Gpu("NVIDIA H200", 150_754_820_096, "580.159.04", "9.0"),)
    finally:
        device.gpus.cache_clear()


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ("1", ["B"]), ("1,0", ["B", "A"]), ("GPU-0001", ["B"]), (" 0 ,1", ["A", "B"]), ("", []), ("-1", []), ("0,7,1", ["A"]),
        ("GPU-000", []),
    ],
)  # fmt: skip
def test_gpus_that_this_process_may_not_use_are_not_told(
    monkeypatch: pytest.MonkeyPatch, chosen: str, names: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", drivers_library("A", "B"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    device.gpus.cache_clear()
    try:
        assert [gpu.name for gpu in device.gpus()] == names
    finally:
        device.gpus.cache_clear()


def drivers_library(*names: str) -> ModuleType:
    """A stand-in for NVIDIA's management library, which needs a driver: answers as the real one gives them."""

    class Memory:
        total = 150_754_820_096

    library = ModuleType("pynvml")
    library.nvmlInit = lambda: None
    library.nvmlDeviceGetCount = lambda: len(names)
    library.nvmlDeviceGetHandleByIndex = lambda index: index
    library.nvmlDeviceGetCudaComputeCapability = lambda handle: (9, 0)
    library.nvmlDeviceGetName = lambda handle: names[handle]
    library.nvmlDeviceGetUUID = lambda handle: f"GPU-000{handle}-4bfa"
    library.nvmlDeviceGetMemoryInfo = lambda handle: Memory()
    library.nvmlSystemGetDriverVersion = lambda: "580.159.04"
    return library


def test_without_the_library_or_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    device.gpus.cache_clear()
    try:
        assert device.gpus() == ()
    finally:
        device.gpus.cache_clear()


def test_the_peak_of_the_longest_matching_name_is_taken() -> None:
    assert device.gpu_peak("NVIDIA L40S").flops_per_second == 362e12
