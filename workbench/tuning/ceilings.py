"""The least time a pass through a model can take on a device: its operations and weights over the device's peak rates.

From the data sheet's rates and counted operations; measures nothing. What a ceiling leaves out (activations that are read
and written, launches, layers that are not counted) only makes the true bound higher.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from workbench.graph.cost import cost
from workbench.machine import device
from workbench.models import as_model
from workbench.records import Model

# Matrix rate of a type over that of FP16 on the tensor cores; FP32 runs beside them.
_RATES = {"int8": 2.0, "fp8": 2.0, "fp16": 1.0, "bf16": 1.0, "tf32": 0.5, "fp32": 67 / 989}
_BYTES = {"int8": 1, "fp8": 1, "fp16": 2, "bf16": 2, "tf32": 4, "fp32": 4}


@dataclass(frozen=True)
class Ceiling:
    """What bounds one pass.

    Attributes:
        flops: floating-point operations of the counted layers; None where a shape is unknown.
        weight_bytes: of all weights in this type, read once.
        compute_seconds: operations over the peak rate; None where either is unknown.
        memory_seconds: weights over the peak bandwidth; None where that is unknown.
        source: where the rates are from.
    """

    flops: int | None
    weight_bytes: int
    compute_seconds: float | None
    memory_seconds: float | None
    source: str

    @property
    def seconds(self) -> float | None:
        """The higher of the known bounds, or None where none is known."""
        return max((one for one in (self.compute_seconds, self.memory_seconds) if one is not None), default=None)

    def share(self, measured_seconds: float) -> float | None:
        """Return how much of the bound a measured time reaches (1 is all of it), or None where no bound is known."""
        return None if self.seconds is None else self.seconds / measured_seconds


def ceiling(
    model: Model | str | Path, precision: str = "fp16", *, batch: int = 1, device_name: str | None = None
) -> Ceiling:
    """Return the least time of one pass.

    Args:
        model: from `workbench.load`, or a name or path that it takes.
        precision: the type that the layers compute in: fp32, tf32, fp16, bf16, int8 or fp8.
        batch: samples a pass.
        device_name: such as `NVIDIA H200`; None takes the first GPU here. CPUs and unknown GPUs have no rates.

    Raises:
        ValueError: another precision.
        LoadError: there is no such model.
    """
    model = as_model(model, "ceiling")
    if precision not in _RATES:
        raise ValueError(f"precision is {precision!r}; allowed: {', '.join(_RATES)}")
    shapes = {
        spec.name: tuple(_size(axis, size, batch) for axis, size in enumerate(spec.shape)) for spec in model.inputs
    }
    counted = cost(onnx.load(model.path, load_external_data=False), shapes)
    name = device_name or next((gpu.name for gpu in device.gpus()), "")
    peak = device.gpu_peak(name)
    weight_bytes = model.parameters * _BYTES[precision]
    flops, rate = counted.flops, peak.flops_per_second
    return Ceiling(
        flops=flops,
        weight_bytes=weight_bytes,
        compute_seconds=None if flops is None or rate is None else flops / (rate * _RATES[precision]),
        memory_seconds=None if peak.bytes_per_second is None else weight_bytes / peak.bytes_per_second,
        source=f"data sheet of {name}" if rate is not None else "no rates are known of this device",
    )


def _size(axis: int, size: int | None, batch: int) -> int:
    return (batch if axis == 0 else 1) if size is None else size
