"""Judge FP16 and BF16 files in their own arithmetic where the engine has none: on CPUs, which compute them in FP32.

What overflows FP16 between two operators is finite in FP32, so that a CPU would pass a file that fails on a GPU.
"""

from __future__ import annotations

from dataclasses import replace

import onnx

from workbench.graph.half import half_type, rounded_form
from workbench.machine import device, disk
from workbench.machine.store import Store
from workbench.records import Engine

_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")


def judged(engine: Engine, store: Store) -> tuple[Engine, str | None]:
    """Return the engine whose answers stand for this one's accuracy, and a sentence where it is another one.

    Args:
        store: keeps the file that rounds after each operator.
    """
    if not _computes_in_fp32(engine):
        return engine, None
    model = onnx.load(engine.path)
    kind = half_type(model)
    if kind is None or (kind == "bf16" and engine.backend == "openvino" and _has_bf16()):
        return engine, None
    rounded = rounded_form(model)
    label = kind.upper()
    if rounded is None:
        return engine, (
            f"Accuracy is that of this CPU, which computes {label} in FP32 and may hide what overflows: the file holds "
            f"subgraphs or functions, so it could not be judged in {label} arithmetic."
        )
    with store.scratch() as scratch:
        path = scratch / "rounded" / "model.onnx"
        disk.folder(path.parent)
        onnx.save(rounded, str(path))
        sha256, place = store.add(path.parent)
    stand_in = replace(
        engine, backend="onnxruntime-cpu", fusion="off", path=str(place / path.name), variant_sha256=sha256
    )
    return stand_in, (
        f"Accuracy is judged in {label}'s own arithmetic, each operator's result rounded to {label}: this CPU computes "
        f"{label} files in FP32, and would hide what overflows."
    )


def _computes_in_fp32(engine: Engine) -> bool:
    return engine.backend in ("onnxruntime-cpu", "openvino") and engine.path.endswith(".onnx")


def _has_bf16() -> bool:
    return any(flag in device.cpu_flags() for flag in _BF16_FLAGS)
