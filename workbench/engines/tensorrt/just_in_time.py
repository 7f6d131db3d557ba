"""Where an engine of TensorRT for RTX runs: whether it may, its kernels finished in time, and what that took kept.

Such a plan is compiled for a kind of GPU and finished on the GPU at hand, when it first runs. What was finished is a
runtime cache, kept beside the plan, so that the next process need not do it again. Kernels for dynamic shapes are
specialized before a call returns (EAGER): by default the library does so in the background, while a slower kernel runs,
and a latency would be that of neither. Knows nothing of shapes, memory and streams.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.engines.tensorrt.capabilities import Capabilities, name_of
from workbench.errors import EngineError, StoreError
from workbench.machine import disk

CACHE_SUFFIX = ".jit"
SPECIALIZATION = "EAGER"
_LARGEST_CACHE_BYTES = 2**30


def doubt(caps: Capabilities, runtime: Any, data: bytes) -> str | None:
    """Return why a plan will not run here as well as it could, or None where it will.

    Raises:
        EngineError: it cannot run here at all; the message has the library's reasons.
    """
    validity, bits = runtime.get_engine_validity(data)
    members = caps.trt.EngineInvalidityDiagnostics.__members__
    said = sorted(name for name, member in members.items() if int(bits) & int(member))
    reasons = ", ".join(said) or "no reason given"
    found = name_of(validity)
    if found == "INVALID":
        raise EngineError(
            f"{caps.name} says that the plan cannot run on this machine: {reasons}. Build it again here, or with a "
            f"BuildOptions.target that this GPU is one of."
        )
    return None if found == "VALID" else f"{caps.name} says that the plan is {found.lower()} here: {reasons}"


class JustInTime:
    """Makes execution contexts of one engine, and keeps what they compiled.

    Attributes:
        notes: what did not go as it should with the cache.
        loaded_bytes: of the cache that an earlier process left; 0 where there was none.
    """

    def __init__(self, caps: Capabilities, engine: Any, plan: Path) -> None:
        self.notes: list[str] = []
        self.loaded_bytes = 0
        self._caps, self._engine = caps, engine
        self._path = plan.with_name(plan.name + CACHE_SUFFIX)
        self._cache: Any = None
        self._stored = b""

    def context(self, *, graphs: bool) -> Any:
        """Return an execution context, or None where the library makes none.

        Args:
            graphs: let the library capture the whole engine in a CUDA graph by itself.
        """
        trt, config = self._caps.trt, self._engine.create_runtime_config()
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = getattr(strategies, SPECIALIZATION)
        config.cuda_graph_strategy = getattr(trt.CudaGraphStrategy, "WHOLE_GRAPH_CAPTURE" if graphs else "DISABLED")
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            self._load()
        if not config.set_runtime_cache(self._cache):
            self.notes.append(f"{self._caps.name} took no runtime cache, so kernels are compiled in every process.")
        return self._engine.create_execution_context(config)

    def _load(self) -> None:
        try:
            stored = self._path.read_bytes() if self._path.stat().st_size <= _LARGEST_CACHE_BYTES else b""
        except OSError:
            return  # the first process to open this engine
        if stored and self._cache.deserialize(stored):
            self.loaded_bytes, self._stored = len(stored), stored
        else:  # of another GPU or driver, or damaged
            self.notes.append(f"The runtime cache {self._path.name} does not fit this machine; it is made anew.")

    def keep(self) -> None:
        """Write what was compiled beside the plan, for the next process; replaced whole, as two may do so at once."""
        if self._cache is None:
            return
        data = bytes(memoryview(self._cache.serialize()))
        if data == self._stored:
            return
        self._stored = data
        try:
            with disk.whole_file(self._path) as unfinished:
                unfinished.write_bytes(data)
        except StoreError as error:
            self.notes.append(f"The runtime cache could not be kept ({error}), so the next process compiles again.")
