"""The Q/DQ dialects: what the engine that will read the file wants. Plain data; knows no graph and no engine library.

No one file serves all engines. ONNX Runtime's CPU kernels want unsigned activations, signed weights, and codes
handed from layer to layer; TensorRT wants signed symmetric pairs on the inputs of its kernels and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from workbench.errors import RecipeError, nearest


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
    """

    name: str
    engine: str
    symmetric: bool
    asymmetric_allowed: bool
    integer_chains: bool
    integer_constants: bool
    fp8: bool


DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect("ort-cpu", "ONNX Runtime on a CPU", False, True, True, True, True),
        Dialect("trt-8.6", "TensorRT 8.6", True, False, False, False, False),
        Dialect("strong", "TensorRT 10.12 and later", True, False, False, False, True),
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
