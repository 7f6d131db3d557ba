"""The precision step: FP16 and BF16 written into the graph, or, where the engine casts by itself, listed for it.

Three dialects, three forms. `strong`: weights and activations have the type in the file. `ort-cpu`: FP16 likewise
(stored so, computed in FP32 by the engine); BF16, for which ONNX Runtime has no CPU kernels, as a rehearsal.
`trt-8.6`: FP16 is a flag of the builder, so the graph stays FP32 and the nodes to pin are listed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import onnx

from workbench.errors import TransformError
from workbench.graph import opset
from workbench.graph.bodies import in_every_graph
from workbench.graph.casting import Conversion, convert, rehearse
from workbench.graph.cost import MULTIPLIES
from workbench.graph.editing import Context, Graph, every_node, subgraphs
from workbench.graph.fp32_rules import kept_in_fp32, touches_fp32
from workbench.graph.tensor_types import tensor_types
from workbench.recipes import Precision
from workbench.records import Skipped, StepReport

_TARGETS = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
_Q_DQ = ("QuantizeLinear", "DequantizeLinear")
_FP16_Q_DQ_OPSET = 19
_BF16_OPSET = 22
_LEFT_TO_BUILDER = "it lies in a body, whose types the TensorRT 8.6 builder chooses"
_UNCHANGED = {
    "fp32": "FP32: the graph is unchanged; the engine computes in FP32, with TF32 off.",
    "tf32": "TF32 is a switch of engines on NVIDIA GPUs; the graph is unchanged.",
}


def apply(model: onnx.ModelProto, step: Precision, context: Context) -> StepReport:
    """Bring the graph to the step's floating-point type in place.

    Graph inputs and outputs keep their types, and so does what a body of If, Loop or Scan reads, gets and gives: it is
    converted by itself, with casts inside. Nodes stay in FP32 where a pattern of the step says so or they have no such
    form, and with `auto_exclude` where numerics ask for it: norms and Softmax, position arithmetic, all but products in
    loops, and for FP16 activations that calibration saw above 512 or constants above 65504.

    Args:
        model: any ONNX model, quantized or not.
        step: what to.
        context: its dialect decides the form; its table, where there is one, brings the activations' magnitudes.

    Returns:
        A report; `skipped` has each node that stays in FP32 with the reason. Details: `casts` (Cast nodes added),
        `constants` (elements rounded), `underflowed`, `overflowed` (shares of them), and for `trt-8.6` `keep_fp32`
        (names of the nodes that the builder must pin).

    Raises:
        TransformError: BF16 for TensorRT 8.6, which has none.
    """
    started = time.perf_counter()
    if step.to in _UNCHANGED:
        return StepReport("precision", time.perf_counter() - started, notes=(_UNCHANGED[step.to],))
    if context.family == "trt-8.6":
        return _listed(model, step, context, started)
    target, rehearsal = _TARGETS[step.to], step.to == "bf16" and context.family == "ort-cpu"
    notes = () if rehearsal else _raise_opset(model, step)
    casts = _casts(model)
    quantized = any(node.op_type in _Q_DQ for node in every_node(model.graph))
    found, left = in_every_graph(Graph(model), lambda graph: _lowered(graph, step, context, target))
    done = Conversion([name for _, one in found for name in one.changed], {})
    kept: dict[str, str] = {}
    for names, one in found:
        kept |= names
        done.constants += one.constants
        done.underflowed += one.underflowed
        done.overflowed += one.overflowed
    if rehearsal:
        notes += (
            "A rehearsal of BF16: weights and every node's results are rounded to BF16, arithmetic and file are FP32, "
            "because ONNX Runtime has no BF16 kernels on a CPU. It shows accuracy, not speed or size.",
        )
    details = {"casts": _casts(model) - casts, **_shares(done)}
    return StepReport(
        kind="precision",
        seconds=time.perf_counter() - started,
        changed=tuple(done.changed),
        skipped=_skipped(kept | {item.name: item.reason for item in left}),
        notes=notes
        + _assumed(step, context, done.changed)
        + _of_bodies(step, [name for _, one in found[:-1] for name in one.changed])
        + _notes(step, done, quantized and context.family == "ort-cpu" and not rehearsal),
        details=details,
    )


def _lowered(graph: Graph, step: Precision, context: Context, target: int) -> tuple[dict[str, str], Conversion]:
    """Convert one graph; what a body reads from outside, gets and gives keeps its type, as a model's inputs and outputs do."""
    graph.lift_constants()
    types = tensor_types(graph.model)
    kept = kept_in_fp32(graph, step, context, types, target)
    done = convert(graph, types, kept, target)
    if step.to == "bf16" and context.family == "ort-cpu":
        rehearse(graph, done, target)
    graph.finish()
    return kept, done


def _listed(model: onnx.ModelProto, step: Precision, context: Context, started: float) -> StepReport:
    if step.to == "bf16":
        raise TransformError(
            "TensorRT 8.6 has no BF16, and this file is written for it (the dialect 'trt-8.6'). Use fp16, or TensorRT 10.12 or "
            "later, which takes types from the graph."
        )
    graph = Graph(model)
    types = tensor_types(model)
    kept = kept_in_fp32(graph, step, context, types, _TARGETS[step.to])
    # The builder refuses a precision on Q/DQ, and needs none on what moves data or computes with integers.
    quantizing = {node.name for node in graph.nodes if node.op_type in _Q_DQ}
    pinned = [name for name in kept if name not in quantizing]
    note = (
        f"FP16 is a flag of the TensorRT 8.6 builder: the file stays FP32, and the builder is told to keep "
        f"{len(pinned)} nodes in FP32."
    )
    inner = [one for node in graph.nodes for body in subgraphs(node) for one in every_node(body)]
    inside = {one.name: _LEFT_TO_BUILDER for one in inner if one.op_type in MULTIPLIES}
    changed = [node.name for node in graph.nodes if node.name not in kept and touches_fp32(node, types)]
    return StepReport(
        kind="precision",
        seconds=time.perf_counter() - started,
        changed=tuple(name for name in changed if name not in quantizing),
        skipped=_skipped({name: kept[name] for name in pinned} | inside),
        notes=(note, *_assumed(step, context, changed)),
        details={"keep_fp32": pinned},
    )


def _raise_opset(model: onnx.ModelProto, step: Precision) -> tuple[str, ...]:
    if step.to == "bf16":
        return opset.raise_to(model, _BF16_OPSET)
    if any(node.op_type in _Q_DQ for node in every_node(model.graph)):
        return opset.raise_to(model, _FP16_Q_DQ_OPSET)
    return ()


def _casts(model: onnx.ModelProto) -> int:
    return sum(node.op_type == "Cast" for node in every_node(model.graph))


def _skipped(kept: Mapping[str, str]) -> tuple[Skipped, ...]:
    return tuple(Skipped(name, reason) for name, reason in kept.items())


def _shares(done: Conversion) -> dict[str, Any]:
    constants = max(done.constants, 1)
    return {
        "constants": done.constants,
        "underflowed": done.underflowed / constants,
        "overflowed": done.overflowed / constants,
    }


def _assumed(step: Precision, context: Context, changed: list[str]) -> tuple[str, ...]:
    """Say what FP16 takes for granted where no activations were observed; BF16 has the range of FP32."""
    observed = context.magnitudes is not None or context.table is not None
    if step.to != "fp16" or not step.auto_exclude or observed or not changed:
        return ()
    return (
        "Activations were assumed to stay within FP16's range, because there were no calibration samples to see them on: "
        "with some, nodes whose values go beyond 512 stay in FP32.",
    )


def _of_bodies(step: Precision, changed: list[str]) -> tuple[str, ...]:
    """Say what was done in bodies and what FP16 takes for granted there."""
    if not changed:
        return ()
    name = step.to.upper()
    words = f"In bodies {len(changed)} nodes are {name}, with casts around them: what a body reads and gives keeps its type."
    if step.to == "fp16" and step.auto_exclude:
        words += " Activations there are not observed, and were assumed to stay within FP16's range."
    return (words,)


def _notes(step: Precision, done: Conversion, slow: bool) -> tuple[str, ...]:
    notes = []
    if slow:
        notes.append(
            "With FP16 around Q/DQ, ONNX Runtime finds no integer kernels on a CPU and computes all in FP32: this shows "
            "accuracy; for speed on a CPU take the recipe without FP16."
        )
    if not done.changed:
        notes.append(f"No node was changed to {step.to.upper()}: the model has no FP32 tensors, or all are excluded.")
    if done.overflowed:
        notes.append(
            f"{done.overflowed} of {done.constants} constants lie beyond the largest {step.to.upper()} number and "
            f"were set to it. With auto_exclude their nodes would stay in FP32."
        )
    return tuple(notes)
