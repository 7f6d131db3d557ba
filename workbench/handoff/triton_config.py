"""Triton's `config.pbtxt`: an engine's inputs, outputs and batching as text. Pure text, and the check of it.

The fields are those of `model_config.proto` (https://github.com/triton-inference-server/common).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workbench.errors import EngineError
from workbench.handoff.batching import Batching
from workbench.records import TensorSpec

TYPES = {
    "bool": "TYPE_BOOL", "uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16", "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64", "int8": "TYPE_INT8", "int16": "TYPE_INT16", "int32": "TYPE_INT32",
    "int64": "TYPE_INT64", "float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}  # fmt: skip
_BACKENDS = {"onnxruntime_onnx": "onnxruntime", "tensorrt_plan": "tensorrt", "python": "python"}
# ONNX Runtime's backend for Triton: -1 is basic, 2 is none, and without a word it is all.
_LEVELS = {"basic": -1, "off": 2}


@dataclass(frozen=True)
class Served:
    """What the server is told of one model.

    Attributes:
        platform: `onnxruntime_onnx`, `tensorrt_plan` or `python`.
        shapes: input name -> shape that was measured, for warm-up; empty for none.
        batching: None where the engine takes no batches of free size.
        on_gpu: where instances run.
        fusion, threads: how ONNX Runtime opens the file.
        comments: lines on top, such as where the numbers come from.
    """

    name: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    shapes: Mapping[str, tuple[int, ...]]
    batching: Batching | None
    instances: int
    on_gpu: bool
    fusion: str = "all"
    threads: int | None = None
    comments: tuple[str, ...] = ()


def text(served: Served) -> str:
    """Return the configuration.

    Raises:
        EngineError: a tensor has a type that Triton (or its python backend) does not have.
    """
    batched = served.batching is not None
    lines = [f"# {' '.join(comment.split())}" for comment in served.comments]
    lines += [f"name: {_quoted(served.name)}", f"backend: {_quoted(_BACKENDS[served.platform])}"]
    if served.platform != "python":
        lines.append(f"platform: {_quoted(served.platform)}")
    lines.append(f"max_batch_size: {served.batching.largest if served.batching is not None else 0}")
    for kind, specs in (("input", served.inputs), ("output", served.outputs)):
        for spec in specs:
            lines += _tensor(kind, spec, batched, served.platform)
    if served.batching is not None and served.batching.preferred:
        lines += ["dynamic_batching {", f"  preferred_batch_size: {_listed(served.batching.preferred)}"]
        lines += [f"  max_queue_delay_microseconds: {served.batching.delay_microseconds}", "}"]
    lines += [f"instance_group [ {{ count: {served.instances} kind: {'KIND_GPU' if served.on_gpu else 'KIND_CPU'} }} ]"]
    lines += _warmup(served)
    if served.platform == "onnxruntime_onnx":
        lines += _session(served)
    return "\n".join(lines) + "\n"


def check(config: str) -> bool:
    """Parse the configuration as the server does; return whether that could be done here.

    Raises:
        EngineError: it is no valid configuration.
    """
    try:
        protobuf = importlib.import_module("google.protobuf.text_format")
        messages = importlib.import_module("tritonclient.grpc.model_config_pb2")
    except ImportError:
        return False
    try:
        protobuf.Parse(config, messages.ModelConfig())
    except protobuf.ParseError as error:
        raise EngineError(
            f"The configuration for Triton is not valid: {error}. Report this as a bug, with the names of the model's "
            f"inputs and outputs."
        ) from error
    return True


def sent_dims(spec: TensorSpec, batched: bool) -> tuple[int | None, ...]:
    """Return the axes of a tensor as the server counts them: without the samples, and never none at all."""
    return (spec.shape[1:] if batched else spec.shape) or (1,)


def _tensor(kind: str, spec: TensorSpec, batched: bool, platform: str) -> list[str]:
    if spec.dtype not in TYPES:
        raise EngineError(
            f"The {kind} {spec.name!r} is {spec.dtype}, a type that Triton does not have. It has: {', '.join(TYPES)}. Cast "
            f"it inside the model."
        )
    if platform == "python" and spec.dtype == "bfloat16":
        raise EngineError(
            f"The {kind} {spec.name!r} is bfloat16, which numpy lacks and so Triton's python backend. Cast it inside the "
            f"model, or deploy with backend='onnxruntime_onnx' or 'tensorrt_plan'."
        )
    dims = sent_dims(spec, batched)
    fields = f"name: {_quoted(spec.name)} data_type: {TYPES[spec.dtype]} dims: {_listed(dims)}"
    without_axes = not (spec.shape[1:] if batched else spec.shape)
    # For the python backend the server itself takes the axis off inputs; model.py puts it on outputs.
    reshaped = " reshape { shape: [] }" if without_axes and not (platform == "python" and kind == "output") else ""
    return [f"{kind} [ {{ {fields}{reshaped} }} ]"]


def _warmup(served: Served) -> list[str]:
    """One request of each size that will be common: the first call of an engine allocates, and is slow."""
    sizes = [1, *(() if served.batching is None else served.batching.preferred)]
    lines = []
    for size in dict.fromkeys(sizes) if served.shapes else ():
        lines += ["model_warmup [ {", f'  name: "of {size}"', f"  batch_size: {size}"]
        for spec in served.inputs:
            shape = served.shapes[spec.name]
            dims = (shape[1:] if served.batching is not None else shape) or (1,)
            # Random integers would be no tokens; zero is one in every vocabulary.
            filled = "random_data" if "float" in spec.dtype else "zero_data"
            value = f"data_type: {TYPES[spec.dtype]} dims: {_listed(dims)} {filled}: true"
            lines.append(f"  inputs {{ key: {_quoted(spec.name)} value {{ {value} }} }}")
        lines.append("} ]")
    return lines


def _session(served: Served) -> list[str]:
    lines = []
    if served.fusion in _LEVELS:
        lines.append(f"optimization {{ graph {{ level: {_LEVELS[served.fusion]} }} }}")
    if served.threads is not None:
        value = _quoted(str(served.threads))
        lines.append(f'parameters {{ key: "intra_op_thread_count" value {{ string_value: {value} }} }}')
    return lines


def _listed(sizes: Sequence[int | None]) -> str:
    return "[" + ", ".join("-1" if size is None else str(size) for size in sizes) + "]"


def _quoted(value: str) -> str:
    return json.dumps(value)  # the escapes that JSON needs are those of protobuf's text too
