"""Observe the inputs of layers and prune their weights for these inputs: what SparseGPT needs of a graph and of data.

A few layers at a time, so that memory stays within a limit; layers are observed in the dense graph. Knows no recipes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from workbench.graph.linear_layers import WeightLayer
from workbench.graph.pruned import Pruned
from workbench.graph.reconstruction import columns_of, prune, unfolded
from workbench.transformation.intermediate_outputs import Observation, Samples, batches, grouped

# Second moments that are held at a time.
_LARGEST_HELD_BYTES = 1 << 30
# Second moments settle long before ranges do, and cost a product of matrices each; SparseGPT takes 128 texts.
_SAMPLES = 128


def reconstruct(
    proto: onnx.ModelProto, layers: Sequence[WeightLayer], inputs: Samples, how: Observation | None = None
) -> dict[str, Pruned]:
    """Return node name -> its weight, pruned 2:4 for the inputs that it gets from these samples.

    Args:
        proto: the dense FP32 graph that holds the layers; not changed.
        inputs: input name -> array with samples on axis 0, of which the first 128 are taken.

    Raises:
        CalibrationError: there are no samples, or they do not fit the graph.
        Cancelled: the caller stopped it.
    """
    few = {name: array[:_SAMPLES] for name, array in inputs.items()}
    found: dict[str, Pruned] = {}
    of_name = {layer.name: layer for layer in layers}
    for names in grouped({layer.name: _bytes_of_moments(layer) for layer in layers}, _LARGEST_HELD_BYTES):
        group = [of_name[name] for name in names]
        moments = _moments(proto, group, few, how or Observation())
        found.update((layer.name, prune(layer, moments.pop(layer.name))) for layer in group)
    return found


def _moments(
    proto: onnx.ModelProto, layers: Sequence[WeightLayer], inputs: Samples, how: Observation
) -> dict[str, NDArray[np.float64]]:
    tensors = list(dict.fromkeys(layer.node.input[0] for layer in layers))
    sums: dict[str, NDArray[np.float64]] = {}
    for batch in batches(proto, tensors, inputs, how):
        for layer in layers:
            if layer.node.input[0] not in batch.arrays:
                continue  # its turn is in another pass
            rows = unfolded(layer, batch.arrays[layer.node.input[0]])
            if layer.name not in sums:
                sums[layer.name] = np.zeros((len(rows), rows.shape[2], rows.shape[2]))
            sums[layer.name] += rows.transpose(0, 2, 1) @ rows
    return sums


def _bytes_of_moments(layer: WeightLayer) -> int:
    count, columns = columns_of(layer)
    return 8 * count * columns * columns
