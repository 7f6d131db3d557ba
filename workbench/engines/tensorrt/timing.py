"""Time the calls of an open engine: a stopwatch for measurements, and a profile of its layers.

Knows nothing of statistics or protocols.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from workbench.engines.base import Feeds
from workbench.engines.tensorrt import layers
from workbench.engines.tensorrt.cuda import Event, Graph
from workbench.errors import EngineError

if TYPE_CHECKING:
    from workbench.engines.tensorrt.running import TensorRTRunner


class Stopwatch:
    """Repeats one call of a runner and times it; captures the launch again where the runner was used otherwise."""

    def __init__(self, runner: TensorRTRunner, feeds: Feeds, cuda_graph: bool) -> None:
        self._runner, self._feeds, self._wants_graph = runner, dict(feeds), cuda_graph
        self._graph: Graph | None = None
        self._layout = -1
        self._start, self._end = Event(runner.cuda), Event(runner.cuda)
        self._ready()

    def compute(self) -> float:
        """Run once; seconds between device events around the launch."""
        if self._layout != self._runner.layout:
            self._ready()
        self._start.record(self._runner.stream.raw)
        self._launch()
        self._end.record(self._runner.stream.raw)
        self._end.synchronize()
        return self._end.seconds_since(self._start)

    def end_to_end(self) -> float:
        """Run once; seconds of the host's clock from the caller's arrays to new arrays."""
        if self._layout != self._runner.layout:
            self._ready()
        runner = self._runner
        started = time.perf_counter()
        runner.bind(self._feeds)
        self._launch()
        shapes = runner.download()
        runner.stream.synchronize()
        runner.collect(shapes)
        return time.perf_counter() - started

    def _launch(self) -> None:
        if self._graph is not None:
            self._graph.launch()
        else:
            self._runner.enqueue()

    def _ready(self) -> None:
        """Make inputs resident, and capture where that is wanted."""
        if self._graph is not None:
            self._graph.free()
            self._graph = None
        self._runner.bind(self._feeds)
        if self._wants_graph:
            self._graph = self._runner.capture()
        self._runner.stream.synchronize()
        self._layout = self._runner.layout

    def free(self) -> None:
        """Give events and graph back."""
        if self._graph is not None:
            self._graph.free()
        self._start.free()
        self._end.free()


def profile(runner: TensorRTRunner, feeds: Feeds, runs: int = 20) -> dict[str, float]:
    """Return layer name -> median seconds, from runs of their own with TensorRT's profiler.

    Profiling slows the launch down, so these are no part of any latency; close the runner afterwards.

    Raises:
        RunError: the feeds do not fit; EngineError: the engine reports no layers.
    """
    collected = layers.profiler(runner.caps.trt)
    for _ in range(3):  # first launches set things up and would distort the medians
        runner.infer(feeds)
    runner.context.profiler = collected
    runner.context.enqueue_emits_profile = True
    for _ in range(runs):
        runner.infer(feeds)
    if not collected.times:
        raise EngineError("TensorRT reported no layer times. Build with the option verbosity='detailed'.")
    return {name: float(np.median(values)) for name, values in collected.times.items()}
