"""What hardware and which versions are here, with peak rates or None where they are not known.

Imports no heavy library: versions come from package metadata, GPUs from NVIDIA's management library if present.
"""

from __future__ import annotations

import functools
import importlib
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")

PACKAGES = (
    "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu12-bindings", "torch",
    "transformers", "openvino", "cuda-python", "polygraphy", "ipywidgets", "jupyterlab", "matplotlib", "pandas",
)  # fmt: skip
# What decides how fast low precision is on a CPU: INT8 dot products, BF16, and the width of the vectors.
_CPU_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
)

# Dense peaks from NVIDIA's data sheets: FP16 tensor-core FLOP/s without sparsity, and memory bytes/s.
_GPU_PEAKS = {
    "H200": (989e12, 4.8e12),
    "H100 80GB HBM3": (989e12, 3.35e12),
    "A100-SXM4-80GB": (312e12, 2.039e12),
    "A100-SXM4-40GB": (312e12, 1.555e12),
    "L40S": (362e12, 0.864e12),
    "L4": (121e12, 0.3e12),
    "T4": (65e12, 0.32e12),
}


@dataclass(frozen=True)
class Peak:
    """The most a device can do: FP16 matrix FLOP/s and memory bytes/s; None where not known, never a guess."""

    flops_per_second: float | None
    bytes_per_second: float | None


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU, as its driver tells."""

    name: str
    memory_bytes: int
    driver: str
    compute_capability: str


def version(package: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@functools.cache
def cpu_flags() -> tuple[str, ...]:
    """Return those instruction sets of this CPU that matter to low precision; empty where the system does not tell."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return ()
    for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("flags", "Features")):
            present = set(line.split(":", 1)[1].split())
            return tuple(flag for flag in _CPU_FLAGS if flag in present)
    return ()


@dataclass(frozen=True)
class Int8:
    """How integer kernels multiply unsigned activations by signed weights on a CPU.

    Attributes:
        saturates: whether pairs of products are added in 16 bits, so that full 8-bit weights are cut off.
        reason: in a sentence, from what the system says of the CPU.
    """

    saturates: bool
    reason: str


# x86 instructions that add products of bytes in 32 bits at once. ONNX Runtime's kernels and oneDNN's, which OpenVINO
# uses, choose by these flags; with AVX2 or AVX-512 alone both use VPMADDUBSW, which adds pairs in 16 bits and saturates.
_EXACT_INT8_FLAGS = ("avx512_vnni", "avx_vnni", "amx_int8")
_X86 = ("x86_64", "amd64", "i386", "i686", "x86")


def int8(flags: tuple[str, ...] | None = None, machine: str | None = None) -> Int8:
    """Return how this CPU, or one of these flags and this machine type, multiplies unsigned by signed bytes.

    Where an x86 system does not tell its instruction sets the careful answer is given: what is written for
    saturating arithmetic is exact on every CPU. ARM's kernels add pairs of signed products in 16 bits where there is no
    dot product, which cannot overflow as long as no weight is -128; none is written.
    """
    flags = cpu_flags() if flags is None else flags
    machine = (platform.machine() if machine is None else machine).lower()
    if machine not in _X86:
        return Int8(False, f"{machine} CPUs do not saturate where no weight is -128")
    exact = [flag for flag in _EXACT_INT8_FLAGS if flag in flags]
    if exact:
        return Int8(False, f"this CPU has {' and '.join(exact)}, which add products of 8-bit numbers in 32 bits")
    what = "this x86 CPU has no VNNI" if flags else "whether this x86 CPU has VNNI is unknown, and none is assumed"
    return Int8(True, f"{what}, so its INT8 kernels add pairs of products in 16 bits and saturate")


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_device() -> str:
    """Return the CPU in words, such as `AMD EPYC (2 cores)`."""
    return f"{cpu_name()} ({cores()} cores)"


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs that this process may use; empty without a driver or without nvidia-ml-py.

    `CUDA_VISIBLE_DEVICES` hides and orders them, by numbers or by the beginnings of their UUIDs. Numbers are taken in the
    order of the PCI bus, which is CUDA's own where all devices are of one kind or `CUDA_DEVICE_ORDER` says so.
    """
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # noqa: BLE001 - any failure of the driver's library means: no GPU that we could use
        return ()
    found = []
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    for handle in _visible(handles, nvml.nvmlDeviceGetUUID, os.environ.get("CUDA_VISIBLE_DEVICES")):
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        found.append(
            Gpu(
                name=str(nvml.nvmlDeviceGetName(handle)),
                memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
                driver=str(nvml.nvmlSystemGetDriverVersion()),
                compute_capability=f"{major}.{minor}",
            )
        )
    return tuple(found)


def _visible(handles: list[_T], uuid: Callable[[_T], Any], chosen: str | None) -> list[_T]:
    """Return the devices that `CUDA_VISIBLE_DEVICES` leaves; as in CUDA, the first word that is none ends the list."""
    if chosen is None:
        return handles
    found = []
    for word in map(str.strip, chosen.split(",")):
        fitting = (
            handles[int(word) : int(word) + 1]
            if word.isdecimal()
            else [one for one in handles if word and str(uuid(one)).startswith(word)]
        )
        if len(fitting) != 1:
            break
        found += fitting
    return found


def gpu_peak(name: str) -> Peak:
    """Return the data-sheet peaks of a GPU by its name, None for each where this table does not know it."""
    for part, (flops, rate) in _GPU_PEAKS.items():
        if part in name:
            return Peak(flops, rate)
    return Peak(None, None)


def describe() -> dict[str, Any]:
    """Return the environment that every measurement is stored with: system, CPU, GPUs, memory, versions."""
    import psutil

    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": cpu_name(),
        "cores": cores(),
        "cpu_flags": list(cpu_flags()),
        "cpu_governor": _governor(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "gpus": [vars(gpu) for gpu in gpus()],
        "versions": {name: found for name in PACKAGES if (found := version(name))},
        "threads_environment": {
            key: os.environ[key] for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if key in os.environ
        },
        "executable": Path(sys.executable).name,
    }


def _governor() -> str | None:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return path.read_text(encoding="utf-8").strip() if path.exists() else None
