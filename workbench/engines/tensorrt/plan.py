"""The plan on disk and its sidecar: what it was built with, and whether it may be loaded here.

A plan is native code. It is only handed to TensorRT when its bytes have the sha256 that its sidecar names, and when
version and device are those it was built for. The bytes that were hashed are the bytes that are loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from workbench.engines.tensorrt import just_in_time, plugins
from workbench.engines.tensorrt.capabilities import Capabilities, Device
from workbench.errors import EngineError
from workbench.machine import store

PLAN_NAME = "model.plan"
_LARGEST_SIDECAR_BYTES = 64 * 1024
_KINDS = {"str": str, "bool": bool, "dict[str, str]": dict}


@dataclass(frozen=True)
class Sidecar:
    """What a plan was built with.

    Attributes:
        structure_sha256: of the ONNX graph without its weights; a refit needs the same.
        hardware_compatibility: `none`, `ampere+`, `same-compute-capability`, or `listed` where `compute_capability` names
            every one that it was compiled for.
        plugins: path of each shared library that its plugins are in -> the sha256 of its content.
    """

    tensorrt: str
    device: str
    compute_capability: str
    sha256: str
    structure_sha256: str
    version_compatible: bool = False
    hardware_compatibility: str = "none"
    refittable: bool = False
    plugins: dict[str, str] = field(default_factory=dict)


def sidecar_path(plan: Path) -> Path:
    """Return where the sidecar of a plan lies."""
    return plan.with_name(plan.name + ".json")


def write(plan: Path, data: Any, **built_with: Any) -> Sidecar:
    """Write a plan and its sidecar.

    Args:
        data: the serialized engine, anything with the buffer protocol.
        built_with: the fields of Sidecar but sha256.
    """
    view = memoryview(data)
    plan.write_bytes(view)
    sidecar = Sidecar(sha256=hashlib.sha256(view).hexdigest(), **built_with)
    store.write_text(sidecar_path(plan), json.dumps(asdict(sidecar), indent=1))
    return sidecar


def read_sidecar(plan: Path) -> Sidecar:
    """Read the sidecar of a plan.

    Raises:
        EngineError: it is missing, too large, or not what `write` wrote.
    """
    path = sidecar_path(plan)
    try:
        size = path.stat().st_size
        found = json.loads(path.read_text(encoding="utf-8")) if size <= _LARGEST_SIDECAR_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(f"Cannot read {path}, which says what the plan was built with: {error}. Rebuild.") from error
    kinds = {item.name: _KINDS[str(item.type)] for item in fields(Sidecar)}
    if isinstance(found, dict):
        found.setdefault("plugins", {})  # earlier ones had none
    if not isinstance(found, dict) or set(found) != set(kinds):
        raise EngineError(
            f"{path} does not say what the plan was built with. Was it written by something else? Rebuild."
        )
    for name, kind in kinds.items():
        if not isinstance(found[name], kind):
            raise EngineError(f"{path}: {name} is {found[name]!r}, expected {kind.__name__}. Rebuild the engine.")
    if not all(isinstance(sha256, str) for sha256 in found["plugins"].values()):
        raise EngineError(f"{path}: plugins is {found['plugins']!r}, expected paths and hashes. Rebuild the engine.")
    return Sidecar(**found)


def read(plan: Path, caps: Capabilities, device: Device) -> tuple[bytes, Sidecar]:
    """Read a plan that may be loaded here.

    Raises:
        EngineError: it is missing, damaged, or was built for another version or device.
    """
    sidecar = read_sidecar(plan)
    reason = _mismatch(sidecar, caps, device)
    if reason is not None:
        raise EngineError(f"{plan.name} cannot run here: {reason}. Rebuild the engine on this machine.")
    try:
        data = plan.read_bytes()
    except OSError as error:
        raise EngineError(f"Cannot read the plan {plan}: {error}. Rebuild the engine.") from error
    found = hashlib.sha256(data).hexdigest()
    if found != sidecar.sha256:
        raise EngineError(
            f"The plan {plan} is damaged: its sha256 is {found[:12]}..., expected {sidecar.sha256[:12]}.... It is native "
            f"code and is not loaded. Rebuild the engine."
        )
    return data, sidecar


def _mismatch(sidecar: Sidecar, caps: Capabilities, device: Device) -> str | None:
    if sidecar.tensorrt != caps.version:
        if not sidecar.version_compatible:
            return f"it was built by TensorRT {sidecar.tensorrt}, this is {caps.name}"
        if _numbers(sidecar.tensorrt) > _numbers(caps.version):
            return f"it was built by the later TensorRT {sidecar.tensorrt}, this is {caps.name}"
    same_capability = sidecar.compute_capability == device.capability
    if sidecar.hardware_compatibility == "ampere+" and device.compute_capability >= (8, 0):
        return None
    if sidecar.hardware_compatibility == "same-compute-capability" and same_capability:
        return None
    if sidecar.hardware_compatibility == "listed" and device.capability in sidecar.compute_capability.split(", "):
        return None
    if sidecar.device != device.name or not same_capability:
        built_for = f"{sidecar.device} (compute capability {sidecar.compute_capability})"
        return f"it was built for {built_for}, this is {device.name} ({device.capability})"
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def deserialize(
    caps: Capabilities, logger: Any, data: Any, *, version_compatible: bool, libraries: Mapping[str, str]
) -> tuple[Any, Any]:
    """Return a runtime and the engine made from a plan's bytes; the runtime must outlive the engine.

    Args:
        libraries: of its plugins; see `Sidecar.plugins`.

    Raises:
        EngineError: TensorRT refuses the plan, or a library is missing or changed.
    """
    plugins.load(caps, logger, libraries)
    try:
        runtime = caps.trt.Runtime(logger)
        if version_compatible:
            runtime.engine_host_code_allowed = True  # such a plan carries a runtime of its own
        if caps.ahead_of_time:
            just_in_time.doubt(caps, runtime, data)  # asked first, because it has reasons
        engine = runtime.deserialize_cuda_engine(data)
    except (TypeError, RuntimeError) as error:
        raise EngineError(f"TensorRT cannot load the plan: {error}. Rebuild the engine.") from error
    if engine is None:
        raise EngineError(
            "TensorRT refuses the plan although its sidecar fits; the log says why. Rebuild the engine, and see with "
            "nvidia-smi whether memory of the GPU is free."
        )
    return runtime, engine
