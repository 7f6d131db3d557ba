"""Ask an open engine for its layers with their types, also where its shapes are dynamic.

TensorRT tells types and layouts of a dynamic engine only with a context that knows its shapes; 8.6.0 did not on a GPU
where the shapes were merely set, and did after a call had run with them.
"""

from __future__ import annotations

import numpy as np

from workbench.engines.tensorrt import layers
from workbench.engines.tensorrt.context import Context


def describe(opened: Context) -> str:
    """Return TensorRT's description of an engine as JSON text, at the typical shapes of its first profile.

    Raises:
        RunError, OutOfMemory: the call on zeros that a dynamic engine needs first was not possible.
    """
    if any(None in spec.shape for spec in opened.inputs):
        opened.bind({spec.name: np.zeros(_typical(opened, spec.name), spec.dtype) for spec in opened.inputs})
        opened.enqueue()
        opened.stream.synchronize()
    return layers.information(opened.caps, opened.engine, opened.context)


def _typical(opened: Context, name: str) -> tuple[int, ...]:
    shape = tuple(opened.engine.get_tensor_shape(name))
    if any(size < 0 for size in shape):
        _, shape, _ = opened.engine.get_tensor_profile_shape(name, 0)
    return tuple(shape)
