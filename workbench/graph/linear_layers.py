"""Find the layers with constant weights, and which axis of a weight runs over input channels and which over outputs.

Knows nothing of what steps do with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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
