"""Time the calls of an open engine: a stopwatch for measurements, and a profile of its layers.

Knows nothing of statistics or protocols.
"""

from __future__ import annotations

import time

import numpy as np

from workbench.engines.base import Feeds
from workbench.engines.tensorrt import layers
from workbench.engines.tensorrt.context import Context
from workbench.engines.tensorrt.cuda import Event, Graph
from workbench.errors import EngineError
from workbench.machine import ranges


class Stopwatch:
    """Repeats one call of an engine and times it; captures the launch again where the engine was used otherwise."""

    def __init__(self, context: Context, feeds: Feeds, cuda_graph: bool) -> None:
        self._context, self._feeds, self._wants_graph = context, dict(feeds), cuda_graph
        self._graph: Graph | None = None
        self._layout = -1
        self._start, self._end = Event(context.cuda), Event(context.cuda)
        self._ready()

    def compute(self) -> float:
        """Run once; seconds between device events around the launch."""
        if self._layout != self._context.layout:
            self._ready()
        self._start.record(self._context.stream.raw)
        self._launch()
        self._end.record(self._context.stream.raw)
        self._end.synchronize()
        return self._end.seconds_since(self._start)

    def end_to_end(self) -> float:
        """Run once; seconds of the host's clock from the caller's arrays to new arrays."""
        if self._layout != self._context.layout:
            self._ready()
        context = self._context
        started = time.perf_counter()
        context.bind(self._feeds)
        self._launch()
        shapes = context.download()
        context.stream.synchronize()
        context.collect(shapes)
        return time.perf_counter() - started

    def _launch(self) -> None:
        if self._graph is not None:
            self._graph.launch()
        else:
            self._context.enqueue()

    def _ready(self) -> None:
        """Make inputs resident, and capture where that is wanted."""
        if self._graph is not None:
            self._graph.free()
            self._graph = None
        if self._wants_graph:
            self._context.prefer_graphs()
        self._context.bind(self._feeds)
        if self._wants_graph:
            self._graph = self._context.capture()
        self._context.stream.synchronize()
        self._layout = self._context.layout

    def free(self) -> None:
        """Give events and graph back."""
        if self._graph is not None:
            self._graph.free()
        self._start.free()
        self._end.free()


def profile(context: Context, feeds: Feeds, runs: int = 20) -> dict[str, float]:
    """Return layer name -> median seconds, from runs of their own with TensorRT's profiler.

    Profiling slows the launch down, so these are no part of any latency; close the engine afterwards.

    Raises:
        RunError: the feeds do not fit; EngineError: the engine reports no layers.
    """
    collected = layers.profiler(context.caps.trt)
    for _ in range(3):  # first launches set things up and would distort the medians
        _once(context, feeds)
    context.context.profiler = collected
    context.context.enqueue_emits_profile = True
    for _ in range(runs):
        with ranges.opened("profiled call"):  # and TensorRT opens one around each layer
            _once(context, feeds)
    if not collected.times:
        raise EngineError("TensorRT reported no layer times. Build with the option verbosity='detailed'.")
    return {name: float(np.median(values)) for name, values in collected.times.items()}


def _once(context: Context, feeds: Feeds) -> None:
    context.bind(feeds)
    context.enqueue()
    context.stream.synchronize()
