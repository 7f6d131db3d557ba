"""Give a decoder's head its own weights where it shares the embeddings' (tied embeddings).

Exporters write tied weights once, with a Transpose before the head's MatMul. Recipes leave such a head alone: its
second input is computed, and lowering the shared tensor would lower the embeddings too.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from workbench.engines.decoding import LOGITS
from workbench.graph.editing import Graph
from workbench.machine.store import Store
from workbench.models import onnx_file
from workbench.models.place import Place
from workbench.records import Model


def untied(model: Model, store: Store | None = None) -> Model:
    """Return the model with the head's weights stored apart, ready to be quantized; larger by one embedding table.

    A head with weights of its own is left as it is. Either way the model's notes say so.
    """
    proto = onnx.load(model.path, load_external_data=True)
    if not untie(proto):
        return _noted(model, "The head has weights of its own already; untie_head changed nothing.")
    place = Place(store=store)
    read = onnx_file.read(place.keep(proto, model.name), name=model.name, origin=model.origin, place=place)
    return _noted(read, "The head's weights are stored apart from the embeddings they are tied to (untie_head).")


def untie(proto: onnx.ModelProto) -> bool:
    """Replace the Transpose before the head's MatMul by a transposed copy of the weights; whether there was one."""
    graph = Graph(proto)
    head = graph.producer.get(LOGITS)
    if head is None or head.op_type != "MatMul":
        return False
    transpose = graph.producer.get(head.input[1])
    if transpose is None or transpose.op_type != "Transpose":
        return False
    weights = graph.array(transpose.input[0])
    if weights is None or weights.ndim != 2:
        return False
    graph.set_input(head, 1, graph.add_initializer("lm_head.weight.transposed", np.ascontiguousarray(weights.T)))
    graph.remove_node(transpose)
    graph.finish()
    return True


def _noted(model: Model, note: str) -> Model:
    return replace(model, origin=replace(model.origin, notes=(*model.origin.notes, note)))
