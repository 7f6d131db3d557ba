"""The Q/DQ dialects: what the engine that will read the file wants. Plain data; knows no graph and no engine library.

No one file serves all engines. ONNX Runtime's CPU kernels want unsigned activations, signed weights, and codes
handed from layer to layer; TensorRT wants signed symmetric pairs on the inputs of its kernels and nothing else. And no
one file serves all CPUs: without VNNI (or AMX) x86 kernels add pairs of products in 16 bits, and full 8-bit weights
saturate. Weights of 7 bits do not, since 2 * 255 * 64 < 2 ** 15, and are as fast within 3 %; unsigned weights do not
either and are up to 5 dB more accurate (0.8 dB less for digits_vit), but slower (digits_resnet at 0.90 times the speed of
FP32 instead of 1.35). Measured
with benchmarks/int8_cpu.py on an AMD EPYC with AVX2, one thread: benchmarks/results/int8_cpu_avx2.json.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from workbench.errors import RecipeError, nearest
from workbench.machine import device

# The largest weight code with which a pair of products stays within 16 bits.
SEVEN_BITS = 64


@dataclass(frozen=True)
class Dialect:
    """What one kind of engine wants.

    Attributes:
        engine: in words, for messages.
        symmetric: signed symmetric activations where the recipe says nothing.
        asymmetric_allowed: whether unsigned activations with a zero point are understood at all.
        integer_chains: quantize outputs too, so that codes pass from kernel to kernel without floating point.
        integer_constants: store weights and biases as integers behind a DequantizeLinear; otherwise weights stay
            floating-point constants behind a Q/DQ pair and biases are left alone.
        fp8: whether float8 Q/DQ can be written in it.
        family: the dialect that it differs from only in the range of its weights; itself where there is none.
        largest_weight: largest magnitude of an INT8 weight's code; less than 127 where full weights would saturate.
        products_saturate: whether products of two signed activations do, which no range of weights can mend.
        forced: whether the recipe chose the range of weights, not the engine.
    """

    name: str
    engine: str
    symmetric: bool
    asymmetric_allowed: bool
    integer_chains: bool
    integer_constants: bool
    fp8: bool
    family: str
    largest_weight: int = 127
    products_saturate: bool = False
    forced: bool = False

    def ranged(self, reduce_range: bool | None) -> Dialect:
        """Return it with weights of 7 (True) or 8 bits (False); None leaves the choice to the engine."""
        if reduce_range is None or reduce_range == self.narrow:
            return self
        return replace(self, largest_weight=SEVEN_BITS if reduce_range else 127, forced=True)

    @property
    def narrow(self) -> bool:
        """Whether INT8 weights have 7 bits."""
        return self.largest_weight < 127

    @property
    def weights(self) -> str:
        """How INT8 weights are written and why, in a sentence; empty where they are plain 8-bit ones."""
        if not self.narrow:
            kept = (
                "INT8 weights have 8 bits, as the recipe asks, where kernels of the CPU that this file is for saturate."
            )
            return kept if self.forced else ""
        why = (
            "as the recipe asks."
            if self.forced
            else f"because this file is for {self.engine}: kernels there add pairs of products in 16 bits, and full 8-bit "
            f"weights saturate."
        )
        return f"INT8 weights have 7 bits (codes from -{self.largest_weight} to {self.largest_weight}), {why}"


_ORT_CPU = Dialect("ort-cpu", "ONNX Runtime on a CPU", False, True, True, True, True, "ort-cpu")
_STRONG = Dialect("strong", "TensorRT 10.12 and later", True, False, False, False, True, "strong")
DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        _ORT_CPU,
        replace(
            _ORT_CPU, name="ort-cpu-7bit", engine="ONNX Runtime on an x86 CPU without VNNI", largest_weight=SEVEN_BITS
        ),
        Dialect("trt-8.6", "TensorRT 8.6", True, False, False, False, False, "trt-8.6"),
        _STRONG,
        replace(
            _STRONG,
            name="openvino-7bit",
            engine="OpenVINO on an x86 CPU without VNNI",
            largest_weight=SEVEN_BITS,
            products_saturate=True,
        ),
    )
}


def dialect(name: str) -> Dialect:
    """Return the dialect of that name.

    Raises:
        RecipeError: there is none; the message suggests the nearest.
    """
    if name not in DIALECTS:
        raise RecipeError(f"There is no Q/DQ dialect {name!r}. {nearest(name, DIALECTS)}")
    return DIALECTS[name]


def family(name: str) -> str:
    """Return the dialect whose rules one follows but for the range of weights.

    Raises:
        RecipeError: there is none of that name.
    """
    return dialect(name).family


def of_this_cpu(base: str = "ort-cpu") -> str:
    """Return the name of the dialect for an engine on this CPU.

    Args:
        base: what the engine wants of CPUs that do not saturate: `ort-cpu` (ONNX Runtime) or `strong` (OpenVINO).
    """
    return {"ort-cpu": "ort-cpu-7bit", "strong": "openvino-7bit"}[base] if device.int8().saturates else base
