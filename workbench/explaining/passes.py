"""A profile and a file become a pass: each layer with its kind, type, operations, bytes and bound. Runs nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

import onnx

from workbench.explaining.evidence import Kind, Layer, Memory, Pass
from workbench.graph.cost import MULTIPLIES, node_flops
from workbench.judging.roofline import Ceilings
from workbench.records import LayerProfile, LayerTime, TensorSpec

_BITS = {
    "int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "bool": 8, "float8_e4m3fn": 8, "float16": 16, "bfloat16": 16, "int16": 16,
    "float64": 64, "int64": 64,
}  # fmt: skip
# The type of what a layer reads -> what it computes in.
_PRECISIONS = {
    "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float8_e4m3fn": "fp8", "int8": "int8", "uint8": "int8",
    "float64": "fp64", "f32": "fp32", "f16": "fp16", "u8": "int8", "i8": "int8",
}  # fmt: skip
# Operators of engines by what their time goes into; the first that matches counts.
_KINDS: tuple[tuple[str, Kind], ...] = (
    (r"^(Dynamic)?QuantizeLinear$|^DequantizeLinear$|^Cast$|^FakeQuantize$|^quantize$|^Convert$", "convert"),
    (r"^Reorder(Input|Output)?$|^reformat$|^Transpose$", "layout"),
    (rf"^(QLinear)?({'|'.join(MULTIPLIES)})(Integer)?$|^QGemm$|^MatMul(Integer\w*|NBits)$|^DynamicQuantizeMatMul$", "compute"),
    (r"^(convolution|matmul|attention|fused region)$|^(De)?[Cc]onvolution$|^FullyConnected$", "compute"),
    (r"Concat|^Slice$|^Split|^Gather|^Reshape$|^Flatten$|^Squeeze$|^Unsqueeze$|^Identity$|^copy$|^Expand$|^Pad$", "copy"),
)  # fmt: skip
_INTEGER = re.compile(r"^(MatMul|Conv)Integer|^DynamicQuantize(MatMul|LSTM)$|^QLinear|^QGemm$|^QAttention$")
_Shapes = Mapping[str, tuple[int, ...]]


def pass_of(
    variant: str,
    profile: LayerProfile,
    file: onnx.ModelProto,
    shapes: _Shapes,
    *,
    modules: Mapping[str, str] | None = None,
    ceilings: Ceilings | None = None,
    measured_seconds: float | None = None,
    replayed: bool = False,
) -> Pass:
    """Take one call of a variant apart.

    Args:
        profile: of the variant's engine, under the feeds that `shapes` are of.
        file: the variant's ONNX file; its weights are not needed.
        shapes: input name -> shape that was fed.
        modules: ONNX node name -> module path, `Model.modules`.
        measured_seconds: median latency without a profiler.
        replayed: whether that was of a replayed CUDA graph, which a profiled call never is.
    """
    flops = node_flops(file, shapes)
    batch = next((shape[0] for shape in shapes.values() if shape), 1)
    layers = tuple(_layer(one, flops, batch, modules or {}, ceilings) for one in profile.layers)
    return Pass(variant, layers, profile.call_seconds, profile.plain_seconds, measured_seconds, replayed)


def _layer(
    told: LayerTime, flops: Mapping[str, int], batch: int, modules: Mapping[str, str], ceilings: Ceilings | None
) -> Layer:
    constants = set(told.constants)
    size = sum(_bytes(spec, batch) for spec in (*told.reads, *told.writes))
    kind, precision = _kind(told), _precision(told)
    count = float(sum(flops.get(node, 0) for node in told.nodes)) or _counted(told, kind, batch)
    bound = _bound(count, size, precision, ceilings)
    paths = dict.fromkeys(path for node in told.nodes if (path := modules.get(node)))
    return Layer(
        name=told.name,
        operator=told.operator,
        kind="compute" if count and kind == "other" else kind,
        precision=precision,
        seconds=told.seconds,
        nodes=told.nodes,
        modules=(*told.modules, *(path for path in paths if path not in told.modules)),
        flops=count,
        size_bytes=size,
        weight_bytes=sum(_bytes(spec, batch) for spec in told.reads if spec.name in constants),
        bound_seconds=bound[0],
        bound_by=bound[1],
        reads=told.reads,
        writes=told.writes,
        constants=told.constants,
    )


def bounded(found: Pass, ceilings: Ceilings) -> Pass:
    """Return a pass with the bounds of other ceilings."""
    layers = []
    for layer in found.layers:
        seconds, by = _bound(layer.flops, layer.size_bytes, layer.precision, ceilings)
        layers.append(replace(layer, bound_seconds=seconds, bound_by=by))
    return replace(found, layers=tuple(layers))


def _bound(flops: float, size: float, precision: str, ceilings: Ceilings | None) -> tuple[float | None, str]:
    return (None, "") if ceilings is None or not (size or flops) else ceilings.bound(flops, size, precision)


def _counted(told: LayerTime, kind: Kind, batch: int) -> float:
    """Count the operations of a layer by what it reads and writes: of integer operators, which nodes are not counted for."""
    weights = [spec.shape for spec in told.reads if spec.name in told.constants and len(spec.shape) > 1]
    if kind != "compute" or not weights or not told.writes or not told.reads:
        return 0.0
    weight = max(weights, key=lambda shape: math.prod(size or 1 for size in shape))
    inner = weight[1:] if "Conv" in told.operator else told.reads[0].shape[-1:]
    made = math.prod(batch if size is None else size for size in told.writes[0].shape)
    return 2.0 * made * math.prod(size or 1 for size in inner)


def _kind(told: LayerTime) -> Kind:
    found: Kind = next((kind for pattern, kind in _KINDS if re.search(pattern, told.operator)), "other")
    types = {spec.dtype for spec in (*told.reads[:1], *told.writes[:1]) if spec.dtype}
    if found == "layout" and told.operator != "Transpose" and len(types) == 2:
        return "convert"  # engines call both a reformat or a reorder
    return found


def _precision(told: LayerTime) -> str:
    if _INTEGER.search(told.operator):
        return "int8"  # whatever they read: some quantize it themselves
    # Scales come first in some integer operators; what has many values is what is worked on.
    known = [spec for spec in told.reads if spec.dtype in _PRECISIONS]
    first = next((spec.dtype for spec in known if math.prod(size or 2 for size in spec.shape) > 1), "")
    first = first or (known[0].dtype if known else told.precision)
    return _PRECISIONS.get(first, first.lower())


def _bytes(spec: TensorSpec, batch: int) -> float:
    """Return a tensor's size; an axis that the engine leaves open is the batch."""
    return math.prod(batch if size is None else size for size in spec.shape) * _BITS.get(spec.dtype, 32) / 8


def memory_of(found: Pass, file_bytes: int, process_bytes: int | None = None, batch: int = 1) -> Memory:
    """Return the bytes of a pass: what its layers write together, and the most that is alive at one moment."""
    weights = {
        spec.name: _bytes(spec, batch) for one in found.layers for spec in one.reads if spec.name in one.constants
    }
    written = {spec.name: _bytes(spec, batch) for layer in found.layers for spec in layer.writes}
    last = {spec.name: place for place, layer in enumerate(found.layers) for spec in layer.reads}
    alive, most = 0.0, 0.0
    for place, layer in enumerate(found.layers):
        alive += sum(written[spec.name] for spec in layer.writes)
        most = max(most, alive)
        alive -= sum(written.get(name, 0.0) for name in {spec.name for spec in layer.reads} if last[name] == place)
    return Memory(sum(weights.values()), sum(written.values()), most, file_bytes, process_bytes)


def grouped(baseline: Pass, variant: Pass) -> list[tuple[tuple[Layer, ...], tuple[Layer, ...]]]:
    """Join layers of both passes that stand for the same nodes, directly or through others, in the baseline's order.

    A layer that stands for no node of the other pass is a group of its own.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    sides = (("b", baseline.layers), ("v", variant.layers))
    known = {node for layer in baseline.layers for node in layer.nodes}
    for side, layers in sides:
        for place, layer in enumerate(layers):
            for node in layer.nodes:
                parent[root(f"{side}{place}")] = root(f"n{shared_name(node, known)}")
    groups: dict[str, tuple[list[Layer], list[Layer]]] = {}
    for index, (side, layers) in enumerate(sides):
        for place, layer in enumerate(layers):
            groups.setdefault(root(f"{side}{place}"), ([], []))[index].append(layer)
    return [(tuple(ours), tuple(theirs)) for ours, theirs in groups.values()]


def shared_name(node: str, known: set[str]) -> str:
    """Return what the baseline calls a node: one that was replaced lives on in nodes called after it."""
    return node if node in known or node.rpartition("_")[0] not in known else node.rpartition("_")[0]
