"""A TensorRT engine as a runner: whole calls, stopwatches, device tensors, and what the device tells of its state.

Outputs of `infer` are the caller's own. Not for two threads at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.engines.base import Feeds
from workbench.engines.tensorrt import device_state, just_in_time, timing
from workbench.engines.tensorrt.capabilities import Capabilities
from workbench.engines.tensorrt.context import Context
from workbench.engines.tensorrt.cuda import Cuda
from workbench.engines.tensorrt.device_tensors import Exchange
from workbench.records import Boundary, Engine

if TYPE_CHECKING:
    import torch


class TensorRTRunner(Context):
    """An open TensorRT engine. Use it as a context manager."""

    def __init__(self, caps: Capabilities, cuda: Cuda, engine: Engine) -> None:
        """Load the plan and make room for its context; raises as `Context` does."""
        super().__init__(caps, cuda, engine)
        self._exchange: Exchange | None = None

    def __enter__(self) -> TensorRTRunner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def infer(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run once, end to end, from host arrays to host arrays of the caller's own.

        Args:
            feeds: input name -> array in the model's type and shape.

        Returns:
            Output name -> array in the model's type.

        Raises:
            RunError: names, shapes or dtypes do not fit, or TensorRT reports an error.
        """
        self.bind(feeds)
        self.enqueue()
        shapes = self.download()
        self.stream.synchronize()
        return self.collect(shapes)

    def stopwatch(self, feeds: Feeds, boundary: Boundary, cuda_graph: bool = False) -> Callable[[], float]:
        """Return a function that runs once and returns the seconds within the boundary.

        `compute`: device events around the launch, inputs resident, outputs left on the device. `end_to_end` and
        `throughput`: host clock from the caller's arrays to new arrays. Where the engine cannot be captured, the
        launch goes to the stream and `conditions()` says why.
        """
        watch = timing.Stopwatch(self, feeds, cuda_graph)
        self.resources.callback(watch.free)
        return watch.compute if boundary == "compute" else watch.end_to_end

    def conditions(self) -> dict[str, Any]:
        """Return clocks, throttling, temperature and memory of the device now, and how launches are made."""
        used = self.cuda.used_bytes()
        self.peak_bytes = max(self.peak_bytes, used)
        return {
            **device_state.read(self.cuda.pci_address()),
            "device_memory_used_bytes": used,
            "device_memory_peak_seen_bytes": self.peak_bytes - self.before_bytes,
            "activation_memory_bytes": self.activation_bytes,
            "cuda_graph_refused": self.graph_refusal,
            **self._finishing(),
        }

    def _finishing(self) -> dict[str, Any]:
        """Return how and when kernels were finished, where that happens here."""
        if self.jit is None:
            return {}
        return {
            "kernel_specialization": just_in_time.SPECIALIZATION.lower(),
            "first_run_seconds": self.first_run_seconds,
            "runtime_cache_loaded_bytes": self.jit.loaded_bytes,
            "runtime_notes": [*self.jit.notes, *([] if self.doubt is None else [self.doubt])],
        }

    @property
    def device_dtypes(self) -> dict[str, str]:
        """The type of each input and output inside the engine: INT64 of the model is `int32` in TensorRT 8.6."""
        return {tensor.name: tensor.dtype.name for tensor in self.tensors}

    def infer_device(self, feeds: Mapping[str, torch.Tensor], stream: int = 0) -> dict[str, torch.Tensor]:
        """Run on data that lies on the device already, and leave the outputs there; nothing is copied.

        Args:
            feeds: input name -> torch CUDA tensor, contiguous and of the engine's type (see `device_dtypes`).
            stream: handle of the caller's stream (0 is the default one): inputs are waited for on it, and outputs
                are ready for what is put on it afterwards.

        Returns:
            Output name -> tensor of the engine's type, in memory of torch's own.

        Raises:
            RunError: a tensor is not on the device, or names, shapes or types do not fit.
        """
        if self._exchange is None:
            self._exchange = Exchange(self)
            self.resources.callback(self._exchange.free)
        return self._exchange.run(feeds, stream)
