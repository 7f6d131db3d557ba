"""What the installed TensorRT can do, asked by name.

Enum members are renumbered and removed between releases, so nothing here or in the modules beside it uses a
number. Knows nothing of recipes or engines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from workbench.errors import BackendMissing

INSTALL = 'Run: pip install "trt-workbench[gpu]"'
# From this release on NVIDIA advises strongly typed networks; the precision flags are deprecated since.
_STRONG_SINCE = (10, 12)


@dataclass(frozen=True)
class Device:
    """A CUDA device: its name and compute capability, such as (9, 0)."""

    name: str
    compute_capability: tuple[int, int]

    @property
    def capability(self) -> str:
        """The compute capability in words, such as `9.0`."""
        return f"{self.compute_capability[0]}.{self.compute_capability[1]}"


def library() -> Any:
    """Import and return the tensorrt module.

    Raises:
        BackendMissing: it is not installed, or one of its libraries cannot be loaded.
    """
    try:
        import tensorrt
    except ModuleNotFoundError as error:
        raise BackendMissing(f"TensorRT is not installed ({error}). {INSTALL}") from error
    except (ImportError, OSError) as error:
        raise BackendMissing(f"TensorRT is installed but cannot be loaded: {error}. {INSTALL}") from error
    if not hasattr(tensorrt, "Builder"):  # any folder of that name on the path can be imported
        raise BackendMissing(f"What Python imports as tensorrt is not TensorRT: {tensorrt}. Rename it. {INSTALL}")
    return tensorrt


def name_of(member: Any) -> str:
    """Return the name of an enum member: in 8.6 the `name` of a parser's ErrorCode is a function, not a string."""
    name = getattr(member, "name", None)
    if isinstance(name, str):
        return name
    known = getattr(type(member), "__members__", {})
    return next((key for key, value in known.items() if value == member), str(member).rpartition(".")[2])


class Capabilities:
    """What one tensorrt module offers."""

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.version = str(trt.__version__)
        numbers = [int(number) for number in re.findall(r"\d+", self.version)[:2]]
        self.release = (numbers[0], numbers[1] if len(numbers) > 1 else 0)

    def member(self, enum: str, name: str) -> Any | None:
        """Return an enum member by name, or None where this release has no such enum or member."""
        return getattr(getattr(self.trt, enum, None), name, None)

    def has(self, kind: str, member: str) -> bool:
        """Return whether this release has the class and the class has the member."""
        return hasattr(getattr(self.trt, kind, None), member)

    @property
    def needs_explicit_batch(self) -> bool:
        """Whether a network must be created with EXPLICIT_BATCH (8.6: yes; 10: ignored; 11: gone)."""
        return self.member("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH") is not None and self.release < (10, 0)

    @property
    def strongly_typed(self) -> bool:
        """Whether a network can take its types from the graph alone."""
        return self.member("NetworkDefinitionCreationFlag", "STRONGLY_TYPED") is not None

    @property
    def weakly_typed(self) -> bool:
        """Whether builder flags can still choose precisions (gone in 11)."""
        return self.member("BuilderFlag", "FP16") is not None

    @property
    def progress_monitor(self) -> bool:
        """Whether a build reports its progress and can be cancelled from outside (10 and later)."""
        return hasattr(self.trt, "IProgressMonitor") and self.has("IBuilderConfig", "progress_monitor")

    @property
    def calibrators(self) -> bool:
        """Whether TensorRT's own INT8 calibrators are there (gone in 11)."""
        return hasattr(self.trt, "IInt8EntropyCalibrator2") and self.has("IBuilderConfig", "int8_calibrator")

    @property
    def layer_precision(self) -> bool:
        """Whether a layer of a weakly typed network can be held at a precision (gone in 11)."""
        return self.has("ILayer", "precision") and self.member("BuilderFlag", "OBEY_PRECISION_CONSTRAINTS") is not None

    @property
    def parser_refitter(self) -> bool:
        """Whether an engine can be refitted from an ONNX file by TensorRT itself."""
        return hasattr(self.trt, "OnnxParserRefitter")

    @property
    def native_fp8(self) -> bool:
        """Whether FP8 Q/DQ nodes of standard ONNX are understood (8.6 has the name alone)."""
        return self.dialect == "strong" and self.member("DataType", "FP8") is not None

    @property
    def dialect(self) -> str:
        """The Q/DQ dialect to write for this release.

        10.0 to 10.11 have strongly typed networks too, but they still honour the precision flags without
        complaint and NVIDIA advises strong typing from 10.12 on; the older dialect is safe on all of them.
        """
        return "strong" if self.release >= _STRONG_SINCE and self.strongly_typed else "trt-8.6"

    def refuses(self, precision: str, device: Device) -> str | None:
        """Return why a precision cannot be had on this release and device, or None where it can.

        Args:
            precision: `fp32`, `tf32`, `fp16`, `bf16`, `int8`, `fp8` or `int4`.
        """
        needed = _COMPUTE_CAPABILITY.get(precision)
        if needed is not None and device.compute_capability < needed:
            return (
                f"{precision.upper()} needs compute capability {needed[0]}.{needed[1]}; {device.name} has "
                f"{device.capability}"
            )
        if precision == "bf16" and self.member("DataType", "BF16") is None:
            return f"BF16 needs TensorRT 10 or later; this is {self.version}"
        if precision == "fp8" and not self.native_fp8:
            return f"FP8 Q/DQ needs TensorRT 10.12 or later; this is {self.version}"
        if precision == "int4" and (self.dialect != "strong" or self.member("DataType", "INT4") is None):
            return f"INT4 weights need TensorRT 10.12 or later; this is {self.version}"
        return None


# TransformerEngine's support matrix for BF16 and FP8; CUDA's arithmetic tables for the others.
_COMPUTE_CAPABILITY = {"tf32": (8, 0), "fp16": (5, 3), "bf16": (8, 0), "int8": (6, 1), "fp8": (8, 9), "int4": (8, 0)}
