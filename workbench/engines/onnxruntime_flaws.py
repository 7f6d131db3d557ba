"""What ONNX Runtime's optimizer must be kept from doing to a file, because it would crash. Looks at the graph alone."""

from __future__ import annotations

from pathlib import Path

import onnx

from workbench.graph.editing import graphs

_HALF = onnx.TensorProto.FLOAT16
_FUSION = "MatmulTransposeFusion"
NOTE = (
    f"ONNX Runtime's {_FUSION} is left out: of a file in FP16 that moves its first axis inwards before a product, it makes a "
    f"session that crashes (1.32). Transposes before products are run by themselves."
)


def left_out(model: Path | str | bytes) -> tuple[str, ...]:
    """Return the names of the optimizers that a session of this file must do without.

    The fusion reads the shape of a tensor that it has just put a Cast before, which has none yet; that happens where the
    CPU's provider has no FP16 kernel and the transpose moves the batch. Other optimizers may bring the two together, so
    any such transpose counts.
    """
    try:
        proto = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model, load_external_data=False)
    except Exception:  # noqa: BLE001 - whether it is a model at all is for ONNX Runtime to say
        return ()
    moved = any(_moves_the_batch(node) for graph in graphs(proto.graph) for node in graph.node)
    return (_FUSION,) if moved and _holds_half(proto.graph) else ()


def _moves_the_batch(node: onnx.NodeProto) -> bool:
    if node.op_type != "Transpose":
        return False
    order = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [])
    last = len(order) - 1
    return last >= 2 and order in ([*range(1, last), 0, last], [*range(1, last), last, 0])


def _holds_half(graph: onnx.GraphProto) -> bool:
    values = (*graph.input, *graph.output)
    return any(
        any(tensor.data_type == _HALF for tensor in part.initializer)
        or any(attribute.i == _HALF for node in part.node if node.op_type == "Cast" for attribute in node.attribute)
        for part in graphs(graph)
    ) or any(value.type.tensor_type.elem_type == _HALF for value in values)
