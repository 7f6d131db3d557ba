"""Write Q/DQ pairs, and constants behind them, into a graph. Knows scales and codes, not why or where.

`scale_of_weight`, `WeightWriter` and `write_bias` work on constants, `write_pair` on activations.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray

from workbench.graph.dialects import SEVEN_BITS, Dialect
from workbench.graph.editing import Graph, attribute

# Below this a product of two scales would come near to the denormal numbers.
SMALLEST_SCALE = 2.0**-60
# Half of what int32 holds, so that a bias and a sum of products fit together.
_LARGEST_BIAS_CODE = 2.0**30


@dataclass(frozen=True)
class Format:
    """An 8-bit number format with its smallest and largest code."""

    dtype: np.dtype[Any]
    low: float
    high: float


# -128 is left out, so that the codes are symmetric.
SIGNED = Format(np.dtype(np.int8), -127.0, 127.0)
# What full 8-bit weights become where the sum of two products must stay within 16 bits (see `dialects`).
SEVEN_BIT = Format(np.dtype(np.int8), float(-SEVEN_BITS), float(SEVEN_BITS))
UNSIGNED = Format(np.dtype(np.uint8), 0.0, 255.0)
FLOAT8 = Format(np.dtype(ml_dtypes.float8_e4m3fn), -448.0, 448.0)


@dataclass(frozen=True)
class Bias:
    """The bias of a node, to be stored as int32 in units of the product of its input's and its weight's scales."""

    name: str
    array: NDArray[np.float32]
    input_scale: float


def write_pair(graph: Graph, name: str, scale: float, zero_point: int, to: Format) -> str:
    """Put QuantizeLinear and DequantizeLinear behind a tensor; return the dequantized one, which nobody reads yet."""
    constants = _constants(graph, name, np.float32(scale), np.array(zero_point, to.dtype))
    return _write_nodes(graph, name, constants)


def weight_format(node: onnx.NodeProto, shape: tuple[int, ...], style: Dialect) -> Format:
    """Return the INT8 format of a node's weight: as many bits as its kernel adds up without saturating.

    Kernels of depthwise convolutions widen each byte before they multiply; ConvTranspose has no integer kernel here.

    Args:
        shape: of the weight.
    """
    depthwise = node.op_type == "Conv" and shape[0] == attribute(node, "group", 1) and shape[1] == 1
    return SIGNED if not style.narrow or depthwise or node.op_type == "ConvTranspose" else SEVEN_BIT


def scale_of_weight(
    array: NDArray[np.float32], axis: int | None, to: Format, bias: Bias | None = None
) -> tuple[NDArray[np.float32], int]:
    """Return the scale per channel (or one), and how many channels are zero throughout.

    Where a weight is so small that the bias would not fit into int32, its scale is widened until it does.
    """
    others = tuple(range(array.ndim)) if axis is None else tuple(i for i in range(array.ndim) if i != axis)
    largest = np.abs(array).max(axis=others).astype(np.float64)
    needed = np.zeros_like(largest)
    if bias is not None:
        per_channel = np.abs(bias.array).astype(np.float64) / (bias.input_scale * _LARGEST_BIAS_CODE)
        needed = per_channel if axis is not None else per_channel.max()
    scale = np.maximum(np.maximum(largest / to.high, needed), SMALLEST_SCALE)
    # The scale of a dead channel is free: 1 is exact in every floating-point type, and never underflows.
    scale = np.where((largest == 0.0) & (needed == 0.0), 1.0, scale)
    return scale.astype(np.float32), int(np.count_nonzero(largest == 0.0))


@dataclass
class WeightWriter:
    """Puts weights behind their scales; nodes that share a weight and its scales share its codes.

    Attributes:
        integer: store codes behind a DequantizeLinear, instead of the weight as it is behind a Q/DQ pair.
    """

    graph: Graph
    integer: bool
    written: dict[tuple[object, ...], str] = field(default_factory=dict)

    def write(
        self, name: str, array: NDArray[np.float32], scale: NDArray[np.float32], axis: int | None, to: Format
    ) -> str:
        """Return the dequantized tensor of a weight in a format."""
        key = (name, axis, to, scale.tobytes())
        if key not in self.written:
            attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
            constants = _constants(self.graph, name, scale, np.zeros(scale.shape, to.dtype))
            if self.integer:
                stored = self.graph.add_initializer(f"{name}_quantized", codes(array, scale, axis, to))
                self.written[key] = _dequantize(self.graph, name, [stored, *constants], attributes)
            else:
                self.written[key] = _write_nodes(self.graph, name, constants, attributes)
        return self.written[key]


def write_bias(graph: Graph, bias: Bias, weight_scale: NDArray[np.float32]) -> str:
    """Store a bias as int32 behind a DequantizeLinear; return the dequantized tensor.

    A bias of one value for all channels (Gemm takes that) gets a code for each, as the scales differ.
    """
    scale, array = np.broadcast_arrays((weight_scale * np.float32(bias.input_scale)).astype(np.float32), bias.array)
    codes = np.rint(array.astype(np.float64) / scale).astype(np.int32)
    constants = _constants(graph, bias.name, scale, np.zeros(scale.shape, np.int32))
    stored = graph.add_initializer(f"{bias.name}_quantized", codes)
    return _dequantize(graph, bias.name, [stored, *constants], {"axis": 0})


def codes(array: NDArray[np.float32], scale: NDArray[np.float32], axis: int | None, to: Format) -> NDArray[Any]:
    """Return the codes of a constant, rounded to even and clipped as QuantizeLinear does."""
    shape = [1] * array.ndim
    if axis is not None:
        shape[axis] = -1
    scaled = array / scale.reshape(shape)
    if to is not FLOAT8:
        scaled = np.rint(scaled)
    return np.asarray(np.clip(scaled, to.low, to.high).astype(to.dtype))


def _constants(graph: Graph, name: str, scale: Any, zero_point: NDArray[Any]) -> list[str]:
    return [
        graph.add_initializer(f"{name}_scale", np.asarray(scale, np.float32)),
        graph.add_initializer(f"{name}_zero_point", zero_point),
    ]


def _write_nodes(graph: Graph, name: str, constants: list[str], attributes: dict[str, Any] | None = None) -> str:
    codes = graph.unique(f"{name}_quantized")
    graph.add_node("QuantizeLinear", [name, *constants], [codes], f"{name}_QuantizeLinear", **(attributes or {}))
    return _dequantize(graph, name, [codes, *constants], attributes or {})


def _dequantize(graph: Graph, name: str, inputs: list[str], attributes: dict[str, Any]) -> str:
    restored = graph.unique(f"{name}_dequantized")
    graph.add_node("DequantizeLinear", inputs, [restored], f"{name}_DequantizeLinear", **attributes)
    return restored
