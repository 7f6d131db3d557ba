"""Weight-only quantization: INT8 or INT4 weights behind a DequantizeLinear, arithmetic in floating point.

The standard ONNX form serves both engines. ONNX Runtime 1.32 fuses it on a CPU into its MatMulNBits kernel, measured
on a 2048 x 2048 MatMul, one thread: 3.6x faster than FP32 for INT4 and 2.4x for INT8 at one row, 1.6x and 1.8x at 128
rows, as fast as writing MatMulNBits directly. Not fused (ONNX Runtime 1.23 with INT8, or its optimizer off), every
call dequantizes the weight again and is 2 to 10 times slower than FP32.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from workbench.errors import TransformError
from workbench.graph.bodies import in_every_graph
from workbench.graph.editing import Context, Graph, attribute
from workbench.graph.linear_layers import WeightLayer, weight_layers
from workbench.recipes import QuantizeWeights
from workbench.records import Skipped, StepReport

_BLOCKS_OPSET = 21
# TensorRT builds INT4 weights in blocks of these two sizes only.
_TENSORRT_BLOCKS = (64, 128)
_LARGEST_CODE = {"int8": 127, "int4": 7}
_DTYPE = {"int8": np.dtype(np.int8), "int4": np.dtype(ml_dtypes.int4)}
_SMALLEST_SCALE = 2.0**-60
# What may stand between the last projection and a graph output.
_AFTER_HEAD = ("Add", "Cast", "Identity", "LogSoftmax", "Reshape", "Softmax", "Squeeze", "Transpose")
_NO_INT4 = "TensorRT 8.6 has no INT4"
# Measured with ONNX Runtime 1.32, bidirectional LSTM of 128 on 128 inputs, one thread, one sequence of 64 and of 4 steps.
_RECURRENT = (
    "ONNX Runtime dequantizes a recurrent layer's weights anew in every call, which takes 5 to 36 times as long as FP32"
)
_CPU_NOTE = (
    "On a CPU ONNX Runtime multiplies these weights with activations that it rounds to 8 bits a block as it goes, where "
    "its optimizer is on; with fusion off it computes in FP32, slowly."
)
_WEAK_NOTE = (
    "TensorRT 8.6 has no kernels for weights alone: the rounded weights stay FP32 in the file, behind Q/DQ, so this "
    "shows accuracy and neither size nor speed."
)


@dataclass(frozen=True, eq=False)
class Codes:
    """A quantized weight: integers, and scales a block along the input axis or an output channel (`block` is None)."""

    codes: np.ndarray
    scale: np.ndarray
    block: int | None


def apply(model: onnx.ModelProto, step: QuantizeWeights, context: Context) -> StepReport:
    """Quantize the constant weights of MatMul and Gemm in place, in the bodies of nodes too.

    INT4, and INT8 for ONNX Runtime, have a symmetric scale a block of `block_size` weights along the input axis (opset
    21; 64 or 128 for TensorRT); INT8 for TensorRT has one an output channel. Gemm becomes MatMul and Add, the form that
    engines fuse. Embeddings stay, and unless `head` is set the projection that gives a graph output does too: both
    stand for the whole vocabulary, and lose most.

    Returns:
        A report. Details: under `layers`, by node name, `relative_error` (norm of the weights' change by their norm);
        `bytes_before` and `bytes_after` of those weights.

    Raises:
        TransformError: blocks need opset 21 and the model has less (`workbench.graph.opset.raise_to` mends it).
    """
    started = time.perf_counter()
    block = _block(step, context.family)
    graph = Graph(model)
    if block is not None and graph.opset < _BLOCKS_OPSET:
        raise TransformError(
            f"Weights in blocks need opset {_BLOCKS_OPSET}, the model has {graph.opset}. "
            f"Call workbench.graph.opset.raise_to(model, {_BLOCKS_OPSET}) first."
        )
    done = _Done()
    _, left = in_every_graph(graph, lambda one: _lower(one, step, context, done))
    return StepReport(
        kind="quantize_weights",
        seconds=time.perf_counter() - started,
        changed=tuple(done.layers),
        skipped=(*left, *done.skipped),
        notes=(*_notes(step, context, block, bool(done.layers)), *_block_notes(done.blocks, block, context.family)),
        details={"layers": done.layers, "bytes_before": done.bytes_before, "bytes_after": done.bytes_after},
    )


@dataclass
class _Done:
    """What was done to a graph and its bodies; `blocks` has a layer's inputs and block size."""

    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    blocks: dict[str, tuple[int, int]] = field(default_factory=dict)
    bytes_after: int = 0
    weights: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def bytes_before(self) -> int:
        """Of the weights; one that several graphs read counts once, though each gets codes of its own."""
        return sum(self.weights.values())


def _lower(graph: Graph, step: QuantizeWeights, context: Context, done: _Done) -> None:
    """Quantize the weights of one graph, where they get codes of their own: ONNX Runtime fuses no codes from outside a body."""
    block = _block(step, context.family)
    done.skipped += [*_embeddings(graph), *_recurrent(graph, context)]
    written: dict[tuple[object, ...], str] = {}
    for layer in weight_layers(graph, ("MatMul", "Gemm"), step.exclude, context):
        reason = layer.reason if isinstance(layer, Skipped) else _refusal(graph, layer, step, context, block)
        if reason is not None or isinstance(layer, Skipped):
            done.skipped.append(Skipped(layer.name, str(reason)))
            continue
        key, weight = _as_matmul(graph, layer)
        size_of_block = _for_inputs(block, len(weight), context.family)
        if size_of_block is not None:
            done.blocks[layer.name] = (len(weight), size_of_block)
        coded = quantize(weight, step.to, size_of_block)
        if key not in written:
            written[key] = _write(graph, layer.node.input[1], weight, coded, context.family)
            done.weights[_home(graph, key[0]), str(key[0])] = weight.nbytes
            done.bytes_after += coded.codes.size * (4 if step.to == "int4" else 8) // 8 + coded.scale.nbytes
        graph.set_input(layer.node, 1, written[key])
        done.layers[layer.name] = {"relative_error": _relative_error(weight, coded)}
    graph.finish()


def quantize(weight: np.ndarray, to: str, block: int | None) -> Codes:
    """Round a (inputs, outputs) weight to symmetric codes.

    Args:
        weight: float32.
        to: `int8` or `int4`.
        block: inputs that share a scale, the last block may be shorter; None for one scale an output.

    Returns:
        Codes of the weight's shape, and float32 scales of shape (blocks, outputs) or (outputs,).
    """
    inputs, outputs = weight.shape
    length = block or inputs
    blocks = -(-inputs // length)
    padded = np.zeros((blocks * length, outputs), np.float32)
    padded[:inputs] = weight
    padded = padded.reshape(blocks, length, outputs)
    largest = np.abs(padded).max(axis=1)
    scale = np.maximum(largest / np.float32(_LARGEST_CODE[to]), np.float32(_SMALLEST_SCALE))
    codes = np.rint(padded / scale[:, None]).astype(np.int8).reshape(-1, outputs)[:inputs]
    return Codes(codes.astype(_DTYPE[to]), scale if block else scale[0], block)


def dequantize(coded: Codes) -> np.ndarray:
    """Return the float32 weight that the codes stand for."""
    codes = coded.codes.astype(np.float32)
    scale = coded.scale if coded.block is None else np.repeat(coded.scale, coded.block, axis=0)[: len(codes)]
    return np.asarray(codes * scale, np.float32)


def _block(step: QuantizeWeights, dialect: str) -> int | None:
    """Return the block size that this dialect takes, or None for one scale an output channel."""
    if dialect == "ort-cpu":
        return step.block_size
    if step.to == "int8" or dialect == "trt-8.6":
        return None
    return _TENSORRT_BLOCKS[0] if step.block_size <= _TENSORRT_BLOCKS[0] else _TENSORRT_BLOCKS[1]


def _for_inputs(block: int | None, inputs: int, family: str) -> int | None:
    """Return the block size of one layer: two blocks a column at least where TensorRT would have one of 128."""
    if block == _TENSORRT_BLOCKS[1] and family == "strong" and inputs < 2 * block and inputs % _TENSORRT_BLOCKS[0] == 0:
        return _TENSORRT_BLOCKS[0]
    return block


def _block_notes(blocks: dict[str, tuple[int, int]], asked: int | None, family: str) -> tuple[str, ...]:
    """Say where blocks are smaller than asked, and where they are whole columns. Layer -> its inputs and block size."""
    if family != "strong":
        return ()
    smaller = [name for name, (_, size) in blocks.items() if size != asked]
    whole = [name for name, (inputs, size) in blocks.items() if inputs == size]
    notes = []
    if smaller:
        notes.append(
            f"{len(smaller)} layers with fewer than {2 * _TENSORRT_BLOCKS[1]} inputs have INT4 blocks of {_TENSORRT_BLOCKS[0]}: "
            f"where one block is a whole column, TensorRT for RTX 1.7 dequantizes the weight apart from its product."
        )
    if whole:
        notes.append(
            f"{len(whole)} layers have one INT4 block a column ({', '.join(whole[:3])}): TensorRT for RTX 1.7 dequantizes them "
            f"apart from their product, which gains memory and no speed."
        )
    return tuple(notes)


def _refusal(
    graph: Graph, layer: WeightLayer, step: QuantizeWeights, context: Context, block: int | None
) -> str | None:
    if context.family == "trt-8.6" and step.to == "int4":
        return _NO_INT4
    if attribute(layer.node, "transA", 0):
        return "its first input is transposed"
    bias = layer.node.input[2] if len(layer.node.input) > 2 else ""
    if bias and not graph.is_constant(bias):
        return "its bias is not constant"
    if any(reader.op_type.startswith("Gather") for reader in graph.readers(layer.node.input[1])):
        return f"{layer.node.input[1]!r} is an embedding too, and would be stored twice"
    inputs = layer.weight.shape[layer.input_axis]
    size = _for_inputs(block, inputs, context.family)
    if size is not None and context.family == "strong" and inputs % size:
        return f"its {inputs} inputs are no multiple of the block size {size}"
    output = None if step.head else _reached_output(graph, layer.node)
    return None if output is None else f"it is the last projection before the output {output!r}; head=True includes it"


def _reached_output(graph: Graph, node: onnx.NodeProto) -> str | None:
    queue = [node]
    while queue:
        for name in queue.pop().output:
            if name in graph.outputs:
                return str(name) if graph.owner is None else _reached_output(*graph.owner)
            queue += [reader for reader in graph.consumers.get(name, []) if reader.op_type in _AFTER_HEAD]
            # A sum with another branch is a residual connection, and goes on.
            queue = [item for item in queue if item.op_type != "Add" or any(graph.is_constant(n) for n in item.input)]
    return None


def _embeddings(graph: Graph) -> list[Skipped]:
    found = []
    for node in graph.nodes:
        tensor = graph.initializers.get(node.input[0]) if node.op_type == "Gather" else None
        if tensor is not None and tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2:
            found.append(Skipped(node.name, "embeddings stay in floating point"))
    return found


def _home(graph: Graph, name: object) -> str:
    """Return which graph holds a constant: the nodes that it lies in, one after the other."""
    if graph.owner is None:
        return ""
    outer, node = graph.owner
    return _home(outer, name) if name in outer.initializers else f"{_home(outer, name)}/{node.name}/{graph.proto.name}"


def _recurrent(graph: Graph, context: Context) -> list[Skipped]:
    layers = [node for node in graph.nodes if node.op_type in ("LSTM", "GRU", "RNN")]
    return [Skipped(node.name, _RECURRENT) for node in layers if context.family == "ort-cpu"]


def _as_matmul(graph: Graph, layer: WeightLayer) -> tuple[tuple[object, ...], np.ndarray]:
    """Make a Gemm a MatMul and an Add; return the (inputs, outputs) weight with alpha in it, and what it is made of."""
    node = layer.node
    key = (node.input[1], layer.input_axis, attribute(node, "alpha", 1.0))
    weight = layer.weight if layer.input_axis == 0 else np.ascontiguousarray(layer.weight.T)
    if node.op_type == "MatMul":
        return key, weight
    weight = weight * np.float32(attribute(node, "alpha", 1.0))
    beta = np.float32(attribute(node, "beta", 1.0))
    bias = graph.array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    node.op_type = "MatMul"
    del node.attribute[:]
    if len(node.input) > 2:
        old = node.input[2]
        del node.input[2:]
        graph.consumers[old] = [reader for reader in graph.consumers.get(old, []) if reader is not node]
    if bias is not None:
        result = node.output[0]
        product = graph.unique(f"{node.name}_product")
        node.output[0] = product
        graph.producer[product] = node
        added = graph.add_initializer(f"{node.name}_bias", bias * beta)
        graph.add_node("Add", [product, added], [result], f"{node.name}/bias")
    return key, weight


def _write(graph: Graph, stem: str, weight: np.ndarray, coded: Codes, dialect: str) -> str:
    """Put the codes behind a DequantizeLinear; return the tensor that it writes."""
    scale = graph.add_initializer(f"{stem}_scale", coded.scale)
    layout: dict[str, Any] = {"axis": 1} if coded.block is None else {"axis": 0, "block_size": coded.block}
    restored = graph.unique(f"{stem}_dequantized")
    if dialect == "trt-8.6":
        # Its parser wants FP32 weights behind Q/DQ, and a zero point.
        zero = graph.add_initializer(f"{stem}_zero_point", np.zeros(coded.scale.shape, np.int8))
        exact = graph.add_initializer(stem, weight)
        codes = graph.unique(f"{stem}_quantized")
        graph.add_node("QuantizeLinear", [exact, scale, zero], [codes], f"{stem}_QuantizeLinear", **layout)
        inputs = [codes, scale, zero]
    else:
        inputs = [graph.add_initializer(f"{stem}_quantized", coded.codes), scale]
    graph.add_node("DequantizeLinear", inputs, [restored], f"{stem}_DequantizeLinear", **layout)
    return restored


def _relative_error(weight: np.ndarray, coded: Codes) -> float:
    norm = float(np.linalg.norm(weight))
    return float(np.linalg.norm(weight - dequantize(coded))) / norm if norm else 0.0


def _notes(step: QuantizeWeights, context: Context, block: int | None, any_layer: bool) -> tuple[str, ...]:
    if not any_layer:
        return ("No weights were quantized; see what was skipped and why.",)
    notes = {"ort-cpu": [_CPU_NOTE], "trt-8.6": [_WEAK_NOTE]}.get(context.family, [])
    if block is not None and block != step.block_size:
        notes = [*notes, f"TensorRT takes INT4 blocks of 64 or 128: {block} was used instead of {step.block_size}."]
    if block is None:
        notes = [*notes, f"INT8 weights have one scale an output channel; block_size {step.block_size} is not used."]
    return tuple(notes)
