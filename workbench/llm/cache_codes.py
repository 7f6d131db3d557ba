"""Keys and values kept as 8-bit codes: the scales, found on samples, and the type of the cache where it crosses a graph.

One static scale a channel (a head's element) costs nothing where the cache is read: a key's is put on the query, a
value's on the mixed values, both of one token, and the cache itself is only widened. The network computes with codes in
floating point (`two_pieces`); `store` gives the graph's inputs and outputs their type. Torch is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper

from workbench.engines.slots import NEW
from workbench.errors import CalibrationError
from workbench.graph import opset
from workbench.graph.quantized_by import AT_THE_EDGE
from workbench.llm import two_pieces

if TYPE_CHECKING:
    from torch import Tensor, nn

CacheFormat = Literal["int8", "fp8"]
# Format -> element type, largest code, and the opset that has its QuantizeLinear.
_FORMATS = {
    "int8": (TensorProto.INT8, 127.0, 17),
    "fp8": (TensorProto.FLOAT8E4M3FN, float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max), 19),
}
_SCALES_IN_ANY_FLOAT = 19  # before, Q/DQ take FP32 alone
_AT_ONCE = 16  # samples a call


@dataclass(frozen=True)
class CacheScales:
    """How keys and values become codes.

    Attributes:
        to: `int8` or `fp8` (e4m3).
        keys, values: of each layer, (key/value heads, elements a head): what a code of 1 stands for.
    """

    to: CacheFormat
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


def calibrate(network: nn.Module, to: CacheFormat, samples: Any) -> CacheScales:
    """Find the scales of a network's cache: the largest magnitude that a channel has on the samples gets the largest code.

    Args:
        network: a transformers decoder, whose type the scales have.
        samples: token ids (N, T), no padding among them.

    Raises:
        CalibrationError: no such format, no samples, ids that the network does not have, or keys or values that are not
            finite.
        ExportError: as `two_pieces.call`.
    """
    import torch

    tokens = _checked(network, to, samples)
    device, dtype = next(network.parameters()).device, next(network.parameters()).dtype
    length = tokens.shape[1]
    later = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
    inputs = {"attention_mask": torch.where(later, torch.finfo(dtype).min, 0.0).to(dtype)[None, None]}
    inputs["position_ids"] = torch.arange(length, device=device)[None]
    largest: dict[tuple[int, int], Tensor] = {}
    with torch.no_grad(), two_pieces.attending(network):
        for start in range(0, len(tokens), _AT_ONCE):
            past = two_pieces.Past(False)
            part = torch.from_numpy(tokens[start : start + _AT_ONCE]).to(device)
            two_pieces.call(network, past, input_ids=part, **inputs)
            for layer, pair in past.new.items():
                for kind, tensor in enumerate(pair):
                    seen = tensor.float().abs().amax(dim=(0, 2))
                    largest[layer, kind] = torch.maximum(largest.get((layer, kind), seen), seen)
    found = [tuple(_scale(largest[key], to, dtype) for key in sorted(largest) if key[1] == kind) for kind in (0, 1)]
    return CacheScales(to, *found)


def _checked(network: nn.Module, to: str, samples: Any) -> np.ndarray:
    if to not in _FORMATS:
        raise CalibrationError(
            f"cache is {to!r}; a cache can be kept in {' or '.join(_FORMATS)}, or None as it is computed."
        )
    tokens = np.asarray([] if samples is None else samples)
    if tokens.ndim != 2 or not tokens.size:
        raise CalibrationError(
            f"A cache in {to} has static scales, which are found on samples: token ids (N, T), got {tokens.shape}. Pass "
            f"samples=, such as windows of the text that the model will read."
        )
    vocabulary = int(network.config.vocab_size)  # type: ignore[union-attr, arg-type]
    if tokens.dtype.kind not in "iu" or tokens.min() < 0 or tokens.max() >= vocabulary:
        raise CalibrationError(f"samples must be token ids from 0 to {vocabulary - 1}; got {tokens.dtype}, {tokens.min()} to "
                               f"{tokens.max()}.")  # fmt: skip
    return tokens.astype(np.int64)


def _scale(largest: Tensor, to: CacheFormat, dtype: Any) -> Tensor:
    import torch

    if not bool(torch.isfinite(largest).all()):
        raise CalibrationError("Keys or values of the samples are not finite in this type; load the model in float32.")
    # A channel that is always zero may have any scale; one below the type's normal numbers would lose digits.
    scale = torch.where(largest == 0, 1.0, largest / _FORMATS[to][1])
    return scale.clamp(min=torch.finfo(dtype).tiny).to(dtype)


def store(proto: onnx.ModelProto, to: CacheFormat, names: Sequence[str]) -> None:
    """Let a graph take these cache tensors as codes, and give its new ones as codes, in place.

    The network computes with codes in floating point, so Q/DQ have the scale 1: they round, clip and change the type.
    """
    element, _, least = _FORMATS[to]
    opset.raise_to(proto, least)
    version = next(entry.version for entry in proto.opset_import if not entry.domain)
    graph = proto.graph
    taken = {value.name: value for value in graph.input if value.name in names}
    given = {value.name: value for value in graph.output if value.name.removeprefix(NEW) in names}
    floats = next(iter(given.values())).type.tensor_type.elem_type
    scale_type = floats if version >= _SCALES_IN_ANY_FLOAT else TensorProto.FLOAT
    graph.initializer.append(helper.make_tensor("cache_unit", scale_type, [], [1.0]))
    graph.initializer.append(helper.make_tensor("cache_zero", element, [], [0]))
    constants = ["cache_unit", "cache_zero"]
    before, behind = [], []
    for name, value in taken.items():
        wide = f"{name}.widened"
        _rename(graph, name, wide, outputs=False)
        steps = [("DequantizeLinear", constants, {}), *_cast(scale_type, floats)]
        before += _chain(steps, name, wide)
        value.type.tensor_type.elem_type = element
    for name, value in given.items():
        exact = f"{name}.exact"
        _rename(graph, name, exact, outputs=True)
        steps = [*_cast(floats, scale_type), ("QuantizeLinear", constants, {})]
        behind += _chain(steps, exact, name)
        value.type.tensor_type.elem_type = element
    nodes = [*before, *graph.node, *behind]
    del graph.node[:]
    graph.node.extend(nodes)


_Step = tuple[str, list[str], dict[str, Any]]


def _cast(source: int, target: int) -> list[_Step]:
    return [] if source == target else [("Cast", [], {"to": target})]


def _chain(steps: Sequence[_Step], first: str, last: str) -> list[onnx.NodeProto]:
    nodes, name = [], first
    for index, (kind, constants, attributes) in enumerate(steps):
        output = last if index == len(steps) - 1 else f"{last}.{kind}"
        nodes.append(
            helper.make_node(kind, [name, *constants], [output], name=f"{AT_THE_EDGE}{output}/{kind}", **attributes)
        )
        name = output
    return nodes


def _rename(graph: onnx.GraphProto, old: str, new: str, *, outputs: bool) -> None:
    """Let the nodes read, or with `outputs` read and give, a tensor under another name."""
    for node in graph.node:
        for names in (node.input, node.output) if outputs else (node.input,):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
