"""Find the layers with constant weights, and which axes of a weight and of what a layer reads run over channels.

Knows nothing of what steps do with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from workbench.graph.editing import Context, Graph, attribute
from workbench.records import Skipped


@dataclass(frozen=True, eq=False)
class WeightLayer:
    """A node with a constant floating-point weight on its second input.

    Attributes:
        weight: a copy of the values.
        input_axis, output_axis: of the weight; in a grouped convolution the input axis runs within a group.
    """

    node: onnx.NodeProto
    weight: np.ndarray
    input_axis: int
    output_axis: int

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.name


def weight_layers(
    graph: Graph, operators: Iterable[str], exclude: tuple[str, ...], context: Context
) -> Iterator[WeightLayer | Skipped]:
    """Yield every node of these operator types, in order: as a layer, or as skipped with the reason.

    Args:
        operators: of `Conv`, `Gemm` and `MatMul`.
        exclude: regular expressions on node names and module paths.
    """
    for node in list(graph.nodes):
        if node.op_type not in operators or node.domain not in ("", "ai.onnx"):
            continue
        pattern = context.excluded_by(node, exclude)
        if pattern is not None:
            yield Skipped(node.name, f"it matches the pattern {pattern!r}")
            continue
        weight = graph.array(node.input[1])
        if weight is None:
            yield Skipped(node.name, "its second input is not constant")
        elif weight.dtype != np.float32:
            yield Skipped(node.name, f"its weights are {weight.dtype}, not float32")
        elif node.op_type != "Conv" and weight.ndim != 2:
            yield Skipped(node.name, f"its weights have {weight.ndim} axes, not 2")
        else:
            turned = node.op_type == "Conv" or bool(attribute(node, "transB", 0))
            yield WeightLayer(node, weight, *((1, 0) if turned else (0, 1)))


@dataclass(frozen=True)
class Weight:
    """Which tensor of a file is a layer's weight, and which of its axes runs over output channels."""

    tensor: str
    axis: int


def weights_of(model: onnx.ModelProto) -> dict[str, Weight]:
    """Return the layers whose weight is in the file -> where it is, in the order of the graph; needs no values.

    A layer without a name is called after its result.
    """
    sizes = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and sizes.get(node.input[1], 0) > 1:
            turned = node.op_type == "Conv" or bool(attribute(node, "transB", 0))
            found[node.name or node.output[0]] = Weight(node.input[1], 0 if turned else 1)
    return found


def activation_channels(model: onnx.ModelProto) -> dict[str, int]:
    """Return the activations that a layer with a constant weight reads -> the axis that runs over their channels.

    Only such a layer says what a channel is: two activations that are multiplied have none.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    found: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.input[0] in constants:
            continue
        if node.input[1] in constants and not attribute(node, "transA", 0):
            found.setdefault(node.input[0], 1 if node.op_type.startswith("Conv") else -1)
    return found


def values_of(path: Path, tensor: str) -> np.ndarray:
    """Return the values of one tensor of a file; of data beside the file only this tensor's are read."""
    model = onnx.load(str(path), load_external_data=False)
    held = next(one for one in model.graph.initializer if one.name == tensor)
    return np.asarray(onnx.numpy_helper.to_array(held, str(path.parent)))
