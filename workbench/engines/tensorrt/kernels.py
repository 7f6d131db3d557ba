"""The kernels of an engine as its build log lists them: what each computes, in which types, for which nodes.

At detailed verbosity the builder of TensorRT for RTX prints the finished plan, kernel by kernel, among its verbose lines.
That needs no GPU, where TensorRT's own inspector needs one. The list is text for people, of no promised form: a log
without it is an error that says so. What it cannot tell: speed, and which tactic a GPU will choose when it loads the plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from workbench.engines.tensorrt import log
from workbench.engines.tensorrt.layers import LayerInfo, LayerTensor, source_nodes, type_of
from workbench.errors import EngineError
from workbench.records import Engine

LOG_NAME = "build.log"
_LARGEST_BYTES = 512 * 2**20
_BEGIN = re.compile(r"^\[V\] Layers:\s*$")
_KERNEL = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: (?P<inputs>.*), Constants: (?P<constants>.*), "
    r"Outputs: (?P<outputs>.*), TacticName: (?P<tactic>.*?), StreamId: .*?Metadata: (?P<metadata>.*)$"
)
_TENSOR = re.compile(r"\{ Name: (.*?), Dimensions: \[([^\]]*)\],.*?Datatype: (\w+), Format: (.*?) \}")
# LayerType -> what it computes. `correlation` is a convolution; `runtime_fusion` a matrix product, or a convolution if its
# name says `Corr`, with what stands around it: the dequantization of its weights for one.
_KINDS = {"correlation": "convolution", "gemm": "matmul", "runtime_fusion": "matmul", "kgen": "fused region"}
_OVERHEAD = ("shape_call", "signal", "wait")
_ATTENTION = re.compile(r"(?<![a-z])f?mha(?![a-z])")
# `__myl_MulReshTran_myl0_6`: a generated kernel is called after its operations, each shortened to four letters.
_GENERATED = re.compile(r"^__myl_((?:[A-Z][a-z0-9]*)+)_myl\d")
_MOVEMENT = frozenset(("Move", "Resh", "Tran", "Cast", "Conc", "Slic", "Repl", "Unsq", "Sque"))
COMPUTING = ("convolution", "matmul", "attention")
_NO_OPERANDS = ("bool", "int32", "int64")
QUANTIZED = ("int8", "fp8", "int4", "fp4")


def of_engine(engine: Engine) -> tuple[tuple[LayerInfo, ...], dict[str, int]]:
    """Return the kernels of an engine and its memory from the log that its build left beside it; see `of_log`.

    Raises:
        EngineError: it has no such log, or the log lists no kernels.
    """
    if engine.folder is None:
        raise EngineError(f"The engine of {engine.variant!r} ({engine.backend}) left no build log. Build it again.")
    return of_log(Path(engine.folder) / LOG_NAME)


def of_log(path: Path) -> tuple[tuple[LayerInfo, ...], dict[str, int]]:
    """Return the kernels of the engine whose build wrote this log, in the order of execution, and its memory.

    Returns:
        The kernels, and bytes of `weights`, `activation` and others that `log.Digest.memory_bytes` lists.

    Raises:
        EngineError: there is no such file, it is too large, or it holds no list of kernels.
    """
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise EngineError(f"{path} is larger than {_LARGEST_BYTES:,} bytes; it is no build log of the workbench.")
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise EngineError(f"Cannot read the build log {path}: {error}. Build the engine again.") from error
    found = parse(lines)
    if not found:
        raise EngineError(
            f"The build log {path.name} lists no kernels. Build again with BuildOptions(extra={{'verbosity': 'detailed'}}); "
            f"if it was so, this release prints them in another form."
        )
    return found, log.digest(line[4:] for line in lines).memory_bytes


def parse(lines: Iterable[str]) -> tuple[LayerInfo, ...]:
    """Return the kernels that a build log lists; empty where it lists none."""
    found: list[LayerInfo] = []
    listing = False
    for line in lines:
        if _BEGIN.match(line):
            listing, found = True, []
        elif listing and (kernel := _KERNEL.match(line)):
            found.append(_kernel(kernel))
        else:
            listing = False
    return tuple(layer for layer in found if layer.layer_type not in _OVERHEAD)


def _kernel(match: re.Match[str]) -> LayerInfo:
    name, layer_type = match["name"], match["type"]
    attention = layer_type == "kgen" and _ATTENTION.search(name) is not None
    moves = layer_type == "kgen" and _only_moves(name)
    kind = "attention" if attention else "reformat" if moves else _KINDS.get(layer_type, "other")
    if layer_type == "runtime_fusion" and "Corr" in _operations(name):
        kind = "convolution"
    return LayerInfo(
        name=name,
        kind=kind,
        layer_type=layer_type,
        nodes=source_nodes(match["metadata"]),
        inputs=_tensors(match["inputs"]),
        outputs=_tensors(match["outputs"]),
        tactic=match["tactic"],
        is_reformat=moves,
        constants=_tensors(match["constants"]),
    )


def _only_moves(name: str) -> bool:
    operations = _operations(name)
    return bool(operations) and set(operations) <= _MOVEMENT


def _operations(name: str) -> list[str]:
    """Return the operations that a generated kernel is called after; none for others."""
    generated = _GENERATED.match(name)
    return [] if generated is None else re.findall(r"[A-Z][a-z0-9]*", generated[1])


def _tensors(text: str) -> tuple[LayerTensor, ...]:
    return tuple(
        LayerTensor(name, type_of(kind), layout, tuple(int(size) for size in re.findall(r"-?\d+", sizes)))
        for name, sizes, kind, layout in _TENSOR.findall(text)
    )


def weight(layer: LayerInfo) -> LayerTensor | None:
    """Return the weight of a convolution or matrix product: its largest constant matrix.

    None where it multiplies two inputs, as with weights that are computed: vectors among its constants are biases and
    scales then. With one input the largest vector is the weight, of a single channel.
    """
    if layer.kind not in COMPUTING:
        return None
    axes = {tensor: sum(size > 1 for size in tensor.shape) for tensor in layer.constants}
    least = 1 if len(_multiplied(layer)) == 1 and max(axes.values(), default=0) == 1 else 2
    found = [tensor for tensor, count in axes.items() if count >= least]
    return max(found, key=lambda tensor: tensor.size_bytes or 0, default=None)


def _multiplied(layer: LayerInfo) -> list[LayerTensor]:
    """Return the inputs that may be operands: masks and sizes are none."""
    return [tensor for tensor in layer.inputs if tensor.precision not in _NO_OPERANDS]


def operands(layer: LayerInfo) -> str:
    """Return what a convolution, matrix product or attention multiplies: `fp16 x int4`, activations times weights.

    Masks and sizes among its inputs are not counted.
    """
    types = [tensor.precision or "?" for tensor in _multiplied(layer)]
    constant = weight(layer)
    second = types[-1:] if constant is None else [constant.precision or "?"]
    return " x ".join([*types[:1], *second]) or "?"


def quantized(layer: LayerInfo) -> bool:
    """Return whether a convolution, matrix product or attention reads 8-bit or 4-bit operands."""
    read = [*layer.inputs, *layer.constants]
    return layer.kind in COMPUTING and any(tensor.precision in QUANTIZED for tensor in read)
