"""What this machine can do at most with one backend, measured once and kept: matrix rates, bandwidth, cost of a launch.

Tiny models of one kind of work each are built and timed as every engine is; the fastest call counts, because a ceiling is
what nothing disturbed. Data-sheet values are `ceilings.ceiling`'s. Knows nothing of any model of the user's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from workbench import codec, datasets, engines
from workbench.engines import jobs
from workbench.errors import StoreError, WorkbenchError
from workbench.judging.roofline import KIND, Ceilings
from workbench.machine import child, device
from workbench.machine.handle import QUIET, Handle
from workbench.machine.store import Store, key_of
from workbench.measuring import latency
from workbench.models import load
from workbench.records import BuildOptions, Protocol
from workbench.transformation.steps import transform
from workbench.tuning.calibrating import calibrate

# What each backend multiplies in; the others have no arithmetic of the type, and store it only.
_TYPES = {
    "onnxruntime-cpu": ("fp32", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
}
_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
_ALL_TYPES = ("fp32", "tf32", "fp16", "bf16", "int8")
_RECIPES = {"int8": "int8-max"}
_BATCH = 4
_PROTOCOL = Protocol(batch=_BATCH, rounds=1, min_seconds=0.1, min_runs=12, warmup_seconds=0.03, warmup_runs=3)
_CHAIN = 33
_Net = tuple[onnx.ModelProto, np.ndarray]


@dataclass(frozen=True)
class Sizes:
    """How large the probes are: enough to keep the device busy far longer than a launch takes.

    Attributes:
        rows, width: of each product, a batch of `rows` by `width` times `width` by `width`.
        convolution: channels and side of 3x3 convolutions; None where products alone are tried, as where the same units do both.
        copy_bytes: that a copy moves in one call, read and written: from what stays in the nearest cache to what fits in none.
        launched: the operator that a chain of launches is made of: one that the engine does not fuse with the next.
    """

    rows: int
    width: int
    convolution: tuple[int, int] | None
    copy_bytes: tuple[int, ...]
    launched: Literal["MatMul", "Conv"]


ON_CPU = Sizes(128, 1024, (64, 28), (1 << 16, 1 << 19, 1 << 22, 1 << 26), "MatMul")
ON_GPU = Sizes(512, 4096, None, (1 << 20, 1 << 24, 1 << 27, 1 << 29), "Conv")


def ceilings(
    backend: str = "auto",
    *,
    threads: int | None = 1,
    again: bool = False,
    store: Store | None = None,
    handle: Handle = QUIET,
) -> Ceilings:
    """Return what this machine can do at most with a backend: from the store, else measured now (a minute on a CPU).

    Args:
        backend: a name from `workbench.backends()`, or `auto`.
        threads: CPU threads inside an operator, as in `BuildOptions`.
        again: measure even where they are kept, and keep the best of all.
        store: keeps them; None takes the default store.

    Raises:
        BackendMissing: the backend cannot be used here.
        WorkbenchError: it cannot run the FP32 probes.
    """
    store = store or Store()
    name, _ = engines.choose(backend)
    found = kept(name, threads=threads, store=store)
    if found is None or again:
        with child.measuring(handle):
            measured = _Probes(name, threads, store, handle).measured()
        found = measured if found is None else found.joined(measured)
        store.put(KIND, _key(name, threads), codec.to_json(found))
    return found


def kept(backend: str, *, threads: int | None = 1, store: Store | None = None) -> Ceilings | None:
    """Return the ceilings that were measured before on this device with this version; None where there are none."""
    text = (store or Store()).get(KIND, _key(backend, threads))
    try:
        return None if text is None else codec.from_json(Ceilings, text)
    except StoreError:
        return None  # damaged, or of another version: they are measured again


def _key(backend: str, threads: int | None) -> str:
    module = engines.backend(backend)
    return key_of([backend, module.version(backend), module.device(backend), threads])


class _Probes:
    def __init__(self, backend: str, threads: int | None, store: Store, handle: Handle) -> None:
        self.backend, self.store, self.handle = backend, store, handle
        self.options = BuildOptions(threads=threads)
        on_cpu = engines.backend(backend).device(backend) == device.cpu_device()
        self.sizes = ON_CPU if on_cpu else ON_GPU

    def measured(self) -> Ceilings:
        module = engines.backend(self.backend)
        chain, one = (self._seconds("fp32", _chain(length, self.sizes.launched)) for length in (_CHAIN, 1))
        layer = max((chain - one) / (_CHAIN - 1), 0.0)
        rates, absent = self._rates(one)
        sizes = self.sizes.copy_bytes
        copies = [size / _without(one, self._seconds("fp32", _copy(size))) for size in sizes]
        return Ceilings(
            self.backend,
            module.version(self.backend),
            module.device(self.backend),
            self.options.threads,
            rates,
            sizes,
            tuple(copies),
            one,
            layer,
            time.time(),
            absent,
        )

    def _rates(self, call_seconds: float) -> tuple[dict[str, float], dict[str, str]]:
        rates: dict[str, float] = {}
        absent = {}
        nets = [_products(self.sizes.rows, self.sizes.width)]
        if self.sizes.convolution is not None:
            nets.append(_convolutions(*self.sizes.convolution))
        for name in _ALL_TYPES:
            if name not in _TYPES.get(self.backend, _ALL_TYPES) or not _has(self.backend, name):
                absent[name] = f"{self.backend} has no {name.upper()} arithmetic on this device"
                continue
            try:
                rates[name] = max(flops / _without(call_seconds, self._seconds(name, net)) for net, flops in nets)
            except WorkbenchError as error:
                if name == "fp32":
                    raise
                absent[name] = str(error)
        return rates, absent

    def _seconds(self, precision: str, net: _Net) -> float:
        """Return the fastest of a dozen calls or more."""
        proto, x = net
        recipe = _RECIPES.get(precision, precision)
        feeds = {"x": x}
        with self.store.scratch() as scratch:
            path = scratch / "probe.onnx"
            onnx.save(proto, str(path))
            model = load(path, store=self.store)
            dialect = engines.backend(self.backend).dialect(self.backend)
            table = None
            if precision == "int8":
                split = datasets.arrays(feeds).bound_to(model).evaluation
                table = calibrate(model, split, recipe, dialect=dialect, handle=self.handle)
            variant = transform(model, recipe, dialect=dialect, table=table, store=self.store)
            engine = jobs.build(variant, self.backend, self.options, store=self.store, handle=self.handle)
            return min(latency.take_round(engine, feeds, _PROTOCOL, 0, handle=self.handle).latencies_seconds)


def _has(backend: str, precision: str) -> bool:
    """Whether this CPU has the arithmetic; OpenVINO takes BF16 files on others too, and computes them in FP32."""
    return not (backend == "openvino" and precision == "bf16") or bool({*_BF16_FLAGS} & {*device.cpu_flags()})


def _without(call_seconds: float, seconds: float) -> float:
    """Take the launch out of a time; where it is nearly all, half of what was measured is still taken as work."""
    return max(seconds - call_seconds, seconds / 2)


def _products(rows: int, size: int) -> tuple[_Net, int]:
    """Two products, one behind the other."""
    weights = {f"w{i}": _values((size, size), i, size**-0.5) for i in range(2)}
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "w1"], ["y"], name="second"),
    ]
    return _net(nodes, (_BATCH, rows, size), weights), 2 * 2 * _BATCH * rows * size * size


def _convolutions(channels: int, side: int) -> tuple[_Net, int]:
    """Three 3x3 convolutions; the pool behind them keeps all of them quantizable."""
    weights = {f"w{i}": _values((channels, channels, 3, 3), i, (9 * channels) ** -0.5) for i in range(3)}
    nodes, last = [], "x"
    for index in range(3):
        nodes.append(
            helper.make_node("Conv", [last, f"w{index}"], [f"c{index}"], name=f"conv{index}", pads=[1, 1, 1, 1])
        )
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"], name=f"relu{index}"))
        last = f"r{index}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["y"], name="pool"))
    flops = 3 * 2 * _BATCH * side * side * channels * channels * 9
    return _net(nodes, (_BATCH, channels, side, side), weights), flops


def _chain(length: int, operator: str) -> _Net:
    """Layers so small that only their launch counts."""
    names = ["x", *(f"t{index}" for index in range(length - 1)), "y"]
    nodes = [
        helper.make_node(operator, [names[index], f"w{index}"], [names[index + 1]], name=f"tiny{index}")
        for index in range(length)
    ]
    one, shape = ((8, 8), (_BATCH, 1, 8)) if operator == "MatMul" else ((8, 8, 1, 1), (_BATCH, 8, 1, 1))
    return _net(nodes, shape, {f"w{index}": _values(one, index, 0.3) for index in range(length)})


def _copy(size_bytes: int) -> _Net:
    """Half of the bytes are read, half are written."""
    elements = size_bytes // 2 // 4
    shape = (_BATCH, elements // _BATCH)
    proto, _ = _net([helper.make_node("Relu", ["x"], ["y"], name="copy")], shape, {})
    return proto, np.resize(_values((1 << 12,), 99), shape)


def _net(nodes: list[onnx.NodeProto], shape: tuple[int, ...], weights: Mapping[str, np.ndarray]) -> _Net:
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model), _values(shape, 99)


def _values(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)
