"""What this machine has and lacks for the workbench, and the line that mends each lack. Prints nothing."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from typing import Literal

from workbench import engines, zoo
from workbench.errors import StoreError, WorkbenchError
from workbench.graph.dialects import dialect, of_this_cpu
from workbench.machine import device, network
from workbench.machine.store import Store
from workbench.tuning import machine_ceilings

OLDEST_PYTHON = (3, 10)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        state: `ok`; `note` where something optional is absent; `wrong` where the workbench cannot do its job.
        remedy: what to type, or empty.
    """

    topic: str
    state: Literal["ok", "note", "wrong"]
    text: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at Python, hardware, runtimes, backends, packages, the shipped models and the store."""
    return [
        _python(),
        _cpu(),
        _gpu(),
        *_runtimes(),
        *_backends(),
        _children(),
        *_ceilings(),
        *_packages(),
        _shipped(),
        _store(),
    ]


def _python() -> Finding:
    text = f"Python {sys.version.split()[0]}"
    if sys.version_info < OLDEST_PYTHON:
        return Finding(
            "python", "wrong", f"{text} is too old; 3.10 is the oldest that works.", "Use: python3.11 -m venv .venv"
        )
    return Finding("python", "ok", text)


def _cpu() -> Finding:
    flags = device.cpu_flags()
    fast = [flag for flag in flags if "vnni" in flag or flag in ("amx_int8", "asimddp", "i8mm")]
    text = f"{device.cpu_device()}, {' '.join(flags) or 'instruction sets unknown'}"
    if fast:
        return Finding("cpu", "ok", f"{text}: INT8 dot products in hardware")
    arithmetic = device.int8()
    if arithmetic.saturates:
        written = dialect(of_this_cpu())
        return Finding(
            "cpu",
            "note",
            f"{text}: {arithmetic.reason}. INT8 files made here have weights of 7 bits, which do not (dialect "
            f"{written.name}). Without dot products INT8 may be no faster than FP32 here.",
        )
    return Finding("cpu", "note", f"{text}: no INT8 dot products, so INT8 may be no faster than FP32 here.")


def _gpu() -> Finding:
    found = device.gpus()
    if found:
        return Finding("gpu", "ok", ", ".join(f"{gpu.name} (driver {gpu.driver})" for gpu in found))
    if importlib.util.find_spec("pynvml") is None:
        remedy = _without_clash('pip install "trt-workbench[gpu]"')
        return Finding("gpu", "note", "No GPU seen: nvidia-ml-py is not installed.", f"{remedy}   (with an NVIDIA GPU)")
    return Finding("gpu", "note", "No NVIDIA GPU or driver here; everything runs on the CPU.")


def _runtimes() -> list[Finding]:
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if device.version(name)]
    if len(both) == 2:
        return [
            Finding(
                "onnxruntime",
                "wrong",
                "onnxruntime and onnxruntime-gpu are both installed; they overwrite each other's files, and which one "
                "is left is chance.",
                "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime   (or onnxruntime-gpu)",
            )
        ]
    return []


def _backends() -> list[Finding]:
    findings = []
    usable = 0
    for name, absent in engines.backends().items():
        if absent is None:
            usable += 1
            findings.append(Finding(name, "ok", f"version {engines.backend(name).version(name)}, ready"))
        else:
            # Of one that builds here without being able to run, the reason says both.
            findings.append(Finding(name, "note", absent.reason, _without_clash(absent.remedy.removeprefix("Run: "))))
    if not usable:
        findings.append(Finding("backends", "wrong", "No backend can be used.", 'pip install "trt-workbench[cpu]"'))
    return findings


def _children() -> Finding:
    if network.can_close():
        return Finding("children", "ok", "The processes that run models have no network.")
    return Finding(
        "children",
        "note",
        "The processes that run models keep their network; it is refused to them on Linux without an NVIDIA driver.",
    )


def _ceilings() -> list[Finding]:
    """What was measured of this machine: shown for every backend that has it, missed for the one that `auto` takes."""
    usable = [name for name, absent in engines.backends().items() if absent is None]
    try:
        found = {name: machine_ceilings.kept(name) for name in usable}
    except StoreError:
        return []  # what is wrong with the store is a finding of its own
    told = [Finding("ceilings", "ok", f"{name}: {kept.words()}") for name, kept in found.items() if kept is not None]
    if usable and not told:
        words = "What this machine can do at most was not measured yet; explanations need it, and measure it then."
        return [Finding("ceilings", "note", words, "python -m workbench doctor --measure   (a minute on a CPU)")]
    return told


def _without_clash(remedy: str) -> str:
    """The extra `gpu` brings onnxruntime-gpu, which must not lie over onnxruntime."""
    if "[gpu]" in remedy and device.version("onnxruntime"):
        return f"pip uninstall -y onnxruntime && {remedy}"
    return remedy


def _packages() -> list[Finding]:
    optional = {
        "torch": ("load PyTorch modules, convert()", 'pip install "trt-workbench[torch]"'),
        "transformers": ("load transformers folders and ids", 'pip install "trt-workbench[torch]"'),
        "anywidget": ("show the app's table and front", "pip install anywidget"),
        "plotly": ("draw the app's front", "pip install plotly"),
        "graphviz-anywidget": ("draw networks in the app", "pip install graphviz-anywidget"),
        "jupyterlab": ("work in notebooks", 'pip install "trt-workbench[lab]"'),
        "polygraphy": ("inspect TensorRT engines from the shell", "pip install polygraphy"),
    }
    findings = []
    for name, (purpose, remedy) in optional.items():
        found = device.version(name)
        if found:
            findings.append(Finding(name, "ok", found))
        else:
            findings.append(Finding(name, "note", f"not installed; needed to {purpose}", remedy))
    return findings


def _shipped() -> Finding:
    try:
        names = sorted(zoo.models())
    except WorkbenchError as error:
        return Finding("shipped models", "wrong", str(error))
    return Finding("shipped models", "ok", ", ".join(names))


def _store() -> Finding:
    try:
        return Finding("store", "ok", str(Store().root))
    except WorkbenchError as error:
        return Finding("store", "wrong", str(error), "export WORKBENCH_HOME=<a folder that can be written>")
