"""What the installed TensorRT can do, asked by name.

Enum members are renumbered and removed between releases, so nothing here or in the modules beside it uses a
number. TensorRT for RTX is another library of the same make with a numbering of its own: what sets it apart is asked
of the library too, not of its name. Knows nothing of recipes or engines.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

from workbench.errors import BackendMissing

# From this release on NVIDIA advises strongly typed networks; the precision flags are deprecated since.
_STRONG_SINCE = (10, 12)


@dataclass(frozen=True)
class Product:
    """A library of the TensorRT family.

    Attributes:
        name: in words, for messages.
        modules: the names that it can be imported under; the first that is there is taken.
        extra: of this package, which installs it.
    """

    name: str
    modules: tuple[str, ...]
    extra: str

    @property
    def install(self) -> str:
        """The line that installs it."""
        return f'Run: pip install "trt-workbench[{self.extra}]"'


# Backend -> what serves it. `tensorrt_rtx` is a thin package over the bindings' wheel, which is importable by itself.
PRODUCTS = {
    "tensorrt": Product("TensorRT", ("tensorrt",), "gpu"),
    "tensorrt-rtx": Product("TensorRT for RTX", ("tensorrt_rtx", "tensorrt_rtx_bindings"), "rtx"),
}
INSTALL = PRODUCTS["tensorrt"].install


@dataclass(frozen=True)
class Device:
    """A CUDA device: its name and compute capability, such as (9, 0)."""

    name: str
    compute_capability: tuple[int, int]

    @property
    def capability(self) -> str:
        """The compute capability in words, such as `9.0`."""
        return f"{self.compute_capability[0]}.{self.compute_capability[1]}"


def library(backend: str = "tensorrt") -> Any:
    """Import and return the module of a backend's library.

    Raises:
        BackendMissing: it is not installed, or one of its libraries cannot be loaded.
    """
    product, found = PRODUCTS[backend], None
    for name in product.modules:
        try:
            found = importlib.import_module(name)
            break
        except ModuleNotFoundError as error:
            absent = error
        except (ImportError, OSError) as error:
            raise BackendMissing(
                f"{product.name} is installed but cannot be loaded: {error}. {product.install}"
            ) from error
    if found is None:
        raise BackendMissing(f"{product.name} is not installed ({absent}). {product.install}") from absent
    if not hasattr(found, "Builder"):  # any folder of that name on the path can be imported
        raise BackendMissing(
            f"What Python imports as {found.__name__} is not {product.name}: {found}. Rename it. {product.install}"
        )
    return found


def name_of(member: Any) -> str:
    """Return the name of an enum member: in 8.6 the `name` of a parser's ErrorCode is a function, not a string."""
    name = getattr(member, "name", None)
    if isinstance(name, str):
        return name
    known = getattr(type(member), "__members__", {})
    return next((key for key, value in known.items() if value == member), str(member).rpartition(".")[2])


class Capabilities:
    """What one tensorrt module offers.

    Attributes:
        name: product and version in words, such as `TensorRT 11.4.0`.
    """

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.version = str(trt.__version__)
        self.name = f"{PRODUCTS['tensorrt-rtx' if self.ahead_of_time else 'tensorrt'].name} {self.version}"
        numbers = [int(number) for number in re.findall(r"\d+", self.version)[:2]]
        self.release = (numbers[0], numbers[1] if len(numbers) > 1 else 0)

    def member(self, enum: str, name: str) -> Any | None:
        """Return an enum member by name, or None where this release has no such enum or member."""
        return getattr(getattr(self.trt, enum, None), name, None)

    def has(self, kind: str, member: str) -> bool:
        """Return whether this release has the class and the class has the member."""
        return hasattr(getattr(self.trt, kind, None), member)

    @property
    def ahead_of_time(self) -> bool:
        """Whether it builds for compute capabilities instead of for the GPU at hand, and needs none (TensorRT for RTX)."""
        return self.has("IBuilderConfig", "set_compute_capability")

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
    def plugins(self) -> bool:
        """Whether operators can be added to it (TensorRT for RTX: no)."""
        return hasattr(self.trt, "get_plugin_registry")

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
        complaint and NVIDIA advises strong typing from 10.12 on; the older dialect is safe on all of them. Where the
        flags are gone, the graph is all there is, whatever the number (TensorRT for RTX counts from 1).
        """
        only_strong = not self.weakly_typed or self.release >= _STRONG_SINCE
        return "strong" if self.strongly_typed and only_strong else "trt-8.6"

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
