"""ONNX Runtime as a decoder: IO binding leaves keys and values on the device and hands them from step to step.

Joining and cutting caches is done by two small graphs on the same device, so that no cache passes through the host.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench.engines.decoding import LOGITS, MASK, POSITIONS, TOKENS, CacheLayout, cache_layout, check_step
from workbench.engines.onnxruntime import OnnxRuntimeRunner, _run_error, open_file
from workbench.engines.onnxruntime_session import runtime
from workbench.errors import EngineError, RunError
from workbench.records import Engine

_BANDWIDTH_SECONDS = 0.05
_ONNX_OPSET = 17


@dataclass(frozen=True)
class DeviceCache:
    """Keys and values as OrtValues, in the order of `CacheLayout.past`."""

    values: tuple[Any, ...]
    batch: int
    length: int
    token_bytes: int

    @property
    def size_bytes(self) -> int:
        """Bytes that its elements take."""
        return self.batch * self.length * self.token_bytes


def open_decoder(engine: Engine, threads: int | None, cuda_graph: bool = False) -> OnnxRuntimeDecoder:
    """Open a built engine as a decoder.

    Raises:
        EngineError: the file is gone, or is no decoder with a cache.
    """
    layout = cache_layout(engine.inputs, engine.outputs)
    if not Path(engine.path).exists():
        raise EngineError(f"The engine file {engine.path} is gone. Build the variant {engine.variant!r} again.")
    return OnnxRuntimeDecoder(open_file(engine.path, engine.fusion, threads, engine.backend), layout, threads)


class OnnxRuntimeDecoder:
    """An open decoder. Not for two threads at once."""

    def __init__(self, runner: OnnxRuntimeRunner, layout: CacheLayout, threads: int | None) -> None:
        self.layout = layout
        self._session, self._threads, self._backend = runner._session, threads, runner._backend
        self._place = "cpu" if self._backend == "onnxruntime-cpu" else "cuda"
        self._binding = self._session.io_binding()
        # Logits are sampled from on the host; keys and values stay.
        self._binding_outputs = [(LOGITS, "cpu"), *((name, self._place) for name in layout.present)]
        self._joiner: Any = None
        self._keeper: Any = None

    def __enter__(self) -> OnnxRuntimeDecoder:
        return self

    def __exit__(self, *exception: object) -> None:
        self._session = self._binding = self._joiner = self._keeper = None

    def empty(self, batch: int) -> DeviceCache:
        """Return a cache of `batch` sequences and no columns."""
        shape = (batch, self.layout.heads, 0, self.layout.width)
        values = tuple(self._value(np.zeros(shape, self.layout.dtype)) for _ in self.layout.past)
        return DeviceCache(values, batch, 0, self.layout.token_bytes)

    def step(
        self, tokens: np.ndarray, mask: np.ndarray, positions: np.ndarray, cache: DeviceCache
    ) -> tuple[np.ndarray, DeviceCache]:
        """Run once over new tokens; see `decoding.Decoder.step`."""
        check_step(tokens, mask, positions, cache)
        binding = self._binding
        for name, array in ((TOKENS, tokens), (MASK, mask), (POSITIONS, positions)):
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, value in zip(self.layout.past, cache.values, strict=True):
            binding.bind_ortvalue_input(name, value)
        for name, place in self._binding_outputs:
            binding.bind_output(name, place)
        try:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:
            raise _run_error(error) from error
        logits, *values = binding.get_outputs()
        last = np.ascontiguousarray(logits.numpy()[:, -1], dtype=np.float32)
        return last, DeviceCache(tuple(values), cache.batch, cache.length + tokens.shape[1], cache.token_bytes)

    def join(self, first: DeviceCache, second: DeviceCache) -> DeviceCache:
        """Return one cache with the sequences of both, padded at the front to the longer of the two."""
        self._joiner = self._joiner or self._layout_session(_joining_graph(self.layout))
        length = max(first.length, second.length)
        feeds = {}
        for part, cache in (("first", first), ("second", second)):
            shape = (cache.batch, self.layout.heads, length - cache.length, self.layout.width)
            feeds[f"{part}_padding"] = np.array(shape, np.int64)
        values = {f"first_{index}": value for index, value in enumerate(first.values)}
        values |= {f"second_{index}": value for index, value in enumerate(second.values)}
        joined = self._rearranged(self._joiner, feeds, values)
        return DeviceCache(joined, first.batch + second.batch, length, self.layout.token_bytes)

    def keep(self, cache: DeviceCache, rows: Sequence[int], length: int) -> DeviceCache:
        """Return a cache of these sequences, in this order, with their last `length` columns."""
        self._keeper = self._keeper or self._layout_session(_keeping_graph(self.layout))
        feeds = {"rows": np.array(rows, np.int64), "start": np.array([cache.length - length], np.int64)}
        values = {f"cache_{index}": value for index, value in enumerate(cache.values)}
        kept = self._rearranged(self._keeper, feeds, values)
        return DeviceCache(kept, len(rows), length, self.layout.token_bytes)

    def read_bandwidth(self, size_bytes: int) -> float:
        """Return the bytes/s at which this device reads a block of that size again and again, measured now.

        On a CPU: dot products of slices with themselves, one slice a thread.

        Raises:
            RunError: the session runs on a GPU, whose memory this cannot read.
        """
        if self._place != "cpu":
            raise RunError("ONNX Runtime offers no way to read a GPU's memory at full speed. Use the backend tensorrt.")
        return host_read_bandwidth(size_bytes, self._threads or 1)

    def memory(self) -> dict[str, int]:
        """Return the resident memory of this process."""
        import psutil

        return {"process_bytes": int(psutil.Process().memory_info().rss)}

    def _value(self, array: np.ndarray) -> Any:
        return runtime().OrtValue.ortvalue_from_numpy(array, self._place)

    def _layout_session(self, graph: bytes) -> Any:
        return open_file(graph, "basic", self._threads, self._backend)._session

    def _rearranged(self, session: Any, feeds: dict[str, np.ndarray], values: dict[str, Any]) -> tuple[Any, ...]:
        binding = session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for index in range(len(self.layout.past)):
            binding.bind_output(f"out_{index}", self._place)
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return tuple(binding.get_outputs())


def _joining_graph(layout: CacheLayout) -> bytes:
    """For each tensor: put zeros before the columns of both, then one below the other."""
    from onnx import TensorProto, helper

    element = helper.np_dtype_to_tensor_dtype(np.dtype(layout.dtype))
    zero = helper.make_tensor("value", element, [1], [0])
    inputs = [helper.make_tensor_value_info(f"{part}_padding", TensorProto.INT64, [4]) for part in ("first", "second")]
    nodes = [
        helper.make_node("ConstantOfShape", [f"{part}_padding"], [f"{part}_zeros"], value=zero)
        for part in ("first", "second")
    ]
    outputs = []
    for index in range(len(layout.past)):
        for part in ("first", "second"):
            inputs.append(_cache_info(f"{part}_{index}", layout, element))
            padded = f"{part}_padded_{index}"
            nodes.append(helper.make_node("Concat", [f"{part}_zeros", f"{part}_{index}"], [padded], axis=2))
        outputs.append(_cache_info(f"out_{index}", layout, element))
        padded_parts = [f"{part}_padded_{index}" for part in ("first", "second")]
        nodes.append(helper.make_node("Concat", padded_parts, [f"out_{index}"], axis=0))
    return _serialized(nodes, inputs, outputs)


def _keeping_graph(layout: CacheLayout) -> bytes:
    """For each tensor: take rows, then all columns from a start."""
    from onnx import TensorProto, helper

    element = helper.np_dtype_to_tensor_dtype(np.dtype(layout.dtype))
    inputs = [
        helper.make_tensor_value_info("rows", TensorProto.INT64, ["kept"]),
        helper.make_tensor_value_info("start", TensorProto.INT64, [1]),
    ]
    constants = [
        helper.make_tensor("end", TensorProto.INT64, [1], [np.iinfo(np.int64).max]),
        helper.make_tensor("axis", TensorProto.INT64, [1], [2]),
    ]
    nodes, outputs = [], []
    for index in range(len(layout.past)):
        inputs.append(_cache_info(f"cache_{index}", layout, element))
        outputs.append(_cache_info(f"out_{index}", layout, element))
        nodes.append(helper.make_node("Gather", [f"cache_{index}", "rows"], [f"taken_{index}"], axis=0))
        nodes.append(helper.make_node("Slice", [f"taken_{index}", "start", "end", "axis"], [f"out_{index}"]))
    return _serialized(nodes, inputs, outputs, constants)


def _cache_info(name: str, layout: CacheLayout, element: int) -> Any:
    from onnx import helper

    return helper.make_tensor_value_info(name, element, [f"{name}_batch", layout.heads, f"{name}_length", layout.width])


def _serialized(nodes: list[Any], inputs: list[Any], outputs: list[Any], constants: Sequence[Any] = ()) -> bytes:
    from onnx import helper

    graph = helper.make_graph(nodes, "cache_layout", inputs, outputs, list(constants))
    imports = [helper.make_opsetid("", _ONNX_OPSET)]
    return bytes(helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString())


def host_read_bandwidth(size_bytes: int, threads: int) -> float:
    """Return the bytes/s at which this CPU reads a block of that size: dot products of slices, one slice a thread."""
    count = max(size_bytes // 4 // threads, 1024)
    slices = [np.ones(count, np.float32) for _ in range(threads)]

    def read(block: np.ndarray) -> None:
        float(np.dot(block, block))

    fastest = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, slices))
        deadline = time.perf_counter() + _BANDWIDTH_SECONDS
        while time.perf_counter() < deadline:
            started = time.perf_counter()
            list(pool.map(read, slices))
            fastest = min(fastest, time.perf_counter() - started)
    return threads * count * 4 / fastest
