"""What became of the graph inside an engine: its layers, from TensorRT's engine information, and their times.

`parse` reads the JSON of 8.6, 10 and 11; only `information` and `profile` touch the tensorrt module.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workbench.engines.tensorrt.capabilities import Capabilities
from workbench.errors import EngineError
from workbench.records import TensorSpec

FILE_NAME = "layers.json"
_LARGEST_BYTES = 256 * 2**20
_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]\x1e\x1f]+)\]")
_FUSED_ATTENTION = re.compile(r"(?<![a-z])f?mha(?![a-z])", re.IGNORECASE)
# The order matters: the first that is found in a format's description names the type.
_TYPES = (
    (r"BF16|BFloat16", "bf16"),
    (r"FP16|Half", "fp16"),
    (r"TF32", "tf32"),
    (r"FP32|Float32|\bFloat\b|\bkFLOAT\b", "fp32"),
    (r"FP8|E4M3", "fp8"),
    (r"FP4|E2M1", "fp4"),
    (r"U[Ii][Nn][Tt]8", "uint8"),
    (r"Int8|INT8", "int8"),
    (r"Int4|INT4", "int4"),
    (r"Int32|INT32", "int32"),
    (r"Int64|INT64", "int64"),
    (r"Bool|BOOL", "bool"),
)
# Where numpy calls a type otherwise; TF32 is stored as float32.
_NUMPY = {"fp16": "float16", "bf16": "bfloat16", "tf32": "float32", "fp32": "float32", "fp8": "float8_e4m3fn"}
_BITS = {"int4": 4, "fp4": 4, "int8": 8, "uint8": 8, "fp8": 8, "bool": 8, "fp16": 16, "bf16": 16, "int64": 64}
# What a layer is, by the first pattern that its type, parameter type, tactic or name shows.
_KINDS = (
    (r"reformat", "reformat"),
    (r"mha|attention", "attention"),
    (r"conv|deconv", "convolution"),
    (r"gemm|matmul|matrix_?multiply|fullyconnected|\bfc\b", "matmul"),
    (r"softmax", "softmax"),
    (r"normalization|layernorm|_mean|batchnorm", "normalization"),
    (r"pool", "pooling"),
    (r"reduce", "reduction"),
    (r"quantize|scale", "quantize"),
    (r"pointwise|pwn|elementwise|activation|unary", "pointwise"),
    (r"shuffle|concat|slice|gather|copy|move|transpose", "copy"),
    (r"constant", "constant"),
    (r"shape|signal|wait", "overhead"),
    (r"myelin|foreignnode|kgen|fusion", "fused region"),
    (r"plugin", "plugin"),
)


@dataclass(frozen=True)
class LayerTensor:
    """A tensor at a layer's border: its name, type (`fp16`, or None where it is not told), layout and shape."""

    name: str
    precision: str | None
    layout: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int | None:
        """Its size without padding, or None where shape or type are not known before run time."""
        if self.precision is None or any(size < 0 for size in self.shape):
            return None
        elements = 1
        for size in self.shape:
            elements *= size
        return (elements * _BITS.get(self.precision, 32) + 7) // 8


@dataclass(frozen=True)
class LayerInfo:
    """One layer of an engine.

    Attributes:
        kind: what it computes, such as `convolution`, `matmul`, `reformat`, `fused region` or `other`.
        layer_type: as TensorRT names it.
        nodes: the ONNX nodes it was made from; several where they were fused.
        modules: the PyTorch modules of those nodes.
        is_reformat: whether it only changes layout or type.
        seconds: median of its time in a separate, profiled run, or None. Sums exceed the engine's latency.
        constants: its weights, scales and the like, where they are told.
    """

    name: str
    kind: str
    layer_type: str
    nodes: tuple[str, ...]
    inputs: tuple[LayerTensor, ...] = ()
    outputs: tuple[LayerTensor, ...] = ()
    tactic: str = ""
    modules: tuple[str, ...] = ()
    is_reformat: bool = False
    seconds: float | None = None
    constants: tuple[LayerTensor, ...] = ()

    @property
    def precision(self) -> str | None:
        """The type that the layer reads (its first floating-point or quantized input), or None where not told."""
        known = [tensor.precision for tensor in (*self.inputs, *self.outputs) if tensor.precision is not None]
        return next((name for name in known if not name.startswith(("int32", "int64", "bool"))), None)


@dataclass(frozen=True)
class ActivationMemory:
    """Memory for activations: what the engine asks for, and what its layers' outputs are together.

    The first is smaller where TensorRT lets tensors that do not live at the same time share memory.
    """

    planned_bytes: int
    sum_bytes: int
    unknown_tensors: int

    @property
    def share(self) -> float | None:
        """Planned over sum, or None where nothing is known of the sum."""
        return self.planned_bytes / self.sum_bytes if self.sum_bytes else None


def information(caps: Capabilities, engine: Any, context: Any = None) -> str:
    """Return TensorRT's description of an engine as JSON text, as it is (see `parse`).

    Args:
        context: an execution context that ran with the shapes that count. Without one, an engine with dynamic shapes
            tells neither types nor layouts ("N/A due to dynamic shapes"); see `inspecting.describe`.
    """
    inspector = engine.create_engine_inspector()
    if context is not None:
        inspector.execution_context = context
    return str(inspector.get_engine_information(caps.trt.LayerInformationFormat.JSON))


def typical_context(engine: Any, inputs: Iterable[str]) -> Any:
    """Return an execution context with the typical shapes of the first profile, or None where TensorRT makes none."""
    context = engine.create_execution_context()
    if context is not None:
        for name in inputs:
            if any(size < 0 for size in engine.get_tensor_shape(name)):
                _, typical, _ = engine.get_tensor_profile_shape(name, 0)
                context.set_input_shape(name, tuple(typical))
        context.infer_shapes()
    return context


def read(path: Path) -> tuple[LayerInfo, ...]:
    """Read the layers that a build left beside its plan.

    Where shapes are dynamic, 8.6 may leave types out before a first call; `tensorrt.layer_table` tells them always.

    Raises:
        EngineError: the file is missing, too large or damaged.
    """
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise EngineError(f"{path} is larger than {_LARGEST_BYTES:,} bytes; it is no layer information.")
        return parse(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise EngineError(f"Cannot read the layers of the engine: {error}. Rebuild the engine.") from error


def parse(text: str) -> tuple[LayerInfo, ...]:
    """Read engine information in the dialect of any release.

    Raises:
        EngineError: it is no JSON, or not of any known shape.
    """
    try:
        found = json.loads(text, strict=False)  # 8.6 writes raw control characters into Metadata
    except (ValueError, RecursionError) as error:
        raise EngineError(f"TensorRT's layer information is no JSON: {error}.") from error
    layers = found.get("Layers") if isinstance(found, dict) else found
    if not isinstance(layers, list):
        raise EngineError("TensorRT's layer information holds no list of layers. Is it of a newer release?")
    return tuple(_layer(item) for item in layers if isinstance(item, (dict, str)))


def _layer(item: Mapping[str, Any] | str) -> LayerInfo:
    if isinstance(item, str):  # an engine built with names only
        return LayerInfo(item, _kind(item), "", source_nodes(item) or _from_name(item), is_reformat=_reformats(item))
    name, layer_type = str(item.get("Name", "")), str(item.get("LayerType", ""))
    tactic = str(item.get("TacticName") or item.get("TacticValue") or "")
    own = f"{layer_type} {item.get('ParameterType', '')}"
    return LayerInfo(
        name=name,
        kind=_kind_of(own, name, tactic),
        layer_type=layer_type,
        nodes=source_nodes(str(item.get("Metadata", ""))) or _from_name(name),
        inputs=_tensors(item.get("Inputs")),
        outputs=_tensors(item.get("Outputs")),
        tactic=tactic,
        is_reformat=_reformats(f"{own} {name}"),
        constants=_weights(item, name),
    )


def _weights(item: Mapping[str, Any], name: str) -> tuple[LayerTensor, ...]:
    """Return the weights and the bias that a layer says it holds: type and count, as (out, in, ...) where kernels are told."""
    found = []
    for key in ("Weights", "Bias"):
        told = item.get(key)
        if not isinstance(told, dict) or not isinstance(told.get("Count"), int) or told["Count"] < 1:
            continue
        shape: tuple[int, ...] = (told["Count"],)
        outputs, kernel = item.get("OutMaps"), item.get("Kernel")
        if key == "Weights" and isinstance(outputs, int) and isinstance(kernel, list) and kernel:
            sizes = [size for size in kernel if isinstance(size, int) and size > 0]
            rest = outputs * math.prod(sizes)
            if len(sizes) == len(kernel) and outputs > 0 and told["Count"] % rest == 0:
                shape = (outputs, told["Count"] // rest, *sizes)
        found.append(LayerTensor(f"{name} {key.lower()}", type_of(str(told.get("Type", ""))), "", shape))
    return tuple(found)


def _kind_of(own: str, name: str, tactic: str) -> str:
    kind = _kind(own)
    if kind == "fused region":  # generated code: what it does is only in its names, and only attention is told there
        return "attention" if _FUSED_ATTENTION.search(f"{name} {tactic}") else kind
    return _kind(name) if kind == "other" else kind


def _kind(words: str) -> str:
    return next((kind for pattern, kind in _KINDS if re.search(pattern, words, re.IGNORECASE)), "other")


def _reformats(words: str) -> bool:
    return re.search(r"reformat", words, re.IGNORECASE) is not None


def source_nodes(metadata: str) -> tuple[str, ...]:
    """Return the ONNX nodes that a layer's metadata names, each once."""
    return tuple(dict.fromkeys(_ONNX_LAYER.findall(metadata)))


def _from_name(name: str) -> tuple[str, ...]:
    """Take a layer's name apart: before there was metadata, fused nodes were joined by ` + `."""
    if _reformats(name):
        return ()
    inner = re.sub(r"^(?:PWN|Myelin|\{ForeignNode)\s*[(\[](.*)[)\]]\}?$", r"\1", name)
    parts = (re.sub(r"^PWN\((.*)\)$", r"\1", part.strip()) for part in re.split(r" \+ |, |\.\.\.", inner))
    return tuple(dict.fromkeys(part for part in parts if part))


def _tensors(items: Any) -> tuple[LayerTensor, ...]:
    if not isinstance(items, list):
        return ()
    return tuple(_tensor(item) for item in items if isinstance(item, (dict, str)))


def _tensor(item: Mapping[str, Any] | str) -> LayerTensor:
    if isinstance(item, str):
        return LayerTensor(item, None, "", ())
    together = str(item.get("Format/Datatype") or item.get("Format/DataType") or "")
    layout = str(item.get("Format") or together)
    stated = str(item.get("DataType") or item.get("Datatype") or together)
    sizes = item.get("Dimensions")
    shape = tuple(int(size) for size in sizes if isinstance(size, int)) if isinstance(sizes, list) else ()
    return LayerTensor(str(item.get("Name", "")), type_of(stated), layout, shape)


def type_of(words: str) -> str | None:
    """Return the type that a format's description names, such as `fp16`; None where it names none."""
    return next((name for pattern, name in _TYPES if re.search(pattern, words)), None)


def with_modules(layers: Iterable[LayerInfo], modules: Mapping[str, str]) -> tuple[LayerInfo, ...]:
    """Return the layers with the PyTorch modules of their nodes.

    Args:
        modules: ONNX node name -> module path, as in `Model.modules`.
    """
    return tuple(
        replace(layer, modules=tuple(dict.fromkeys(modules[node] for node in layer.nodes if node in modules)))
        for layer in layers
    )


def with_times(layers: Sequence[LayerInfo], seconds: Mapping[str, float]) -> tuple[LayerInfo, ...]:
    """Return the layers with their times; a time whose layer is not told of gets a layer of its own."""
    known = {layer.name for layer in layers}
    merged = [replace(layer, seconds=seconds.get(layer.name)) for layer in layers]
    for name, value in seconds.items():
        if name not in known:
            merged.append(
                LayerInfo(name, _kind(name), "", _from_name(name), is_reformat=_reformats(name), seconds=value)
            )
    return tuple(merged)


def spec(tensor: LayerTensor) -> TensorSpec:
    """Return a layer's tensor as every backend tells them; the type is empty where TensorRT does not tell it."""
    precision = tensor.precision or ""
    return TensorSpec(tensor.name, _NUMPY.get(precision, precision), tuple(tensor.shape))


def activation_memory(layers: Iterable[LayerInfo], planned_bytes: int) -> ActivationMemory:
    """Compare the memory that an engine plans for activations with the sum of its layers' outputs."""
    sizes = {tensor.name: tensor.size_bytes for layer in layers for tensor in layer.outputs}
    known = [size for size in sizes.values() if size is not None]
    return ActivationMemory(planned_bytes, sum(known), len(sizes) - len(known))


def profiler(trt: Any) -> Any:
    """Return an IProfiler that collects `times`: layer name -> seconds of each run."""

    class LayerTimes(trt.IProfiler):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.setdefault(str(layer_name), []).append(float(ms) / 1e3)

    return LayerTimes()
