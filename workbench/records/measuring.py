"""How latency is measured, and the raw samples that were taken."""

from __future__ import annotations

import statistics
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.records import cards, formats

Boundary = Literal["compute", "end_to_end", "throughput"]


@dataclass(frozen=True)
class Protocol:
    """How latency is measured.

    Attributes:
        boundary: `compute` (inputs resident; device events on a GPU, the bare call on a CPU), `end_to_end`
            (host clock, copies included) or `throughput` (several streams at once).
        batch: samples in a call.
        rounds: how many fresh processes measure each variant; variants take turns within a round.
        min_seconds, min_runs: a round lasts until both are reached.
        warmup_seconds, warmup_runs: thrown away first, until both are reached.
        streams: concurrent callers, for `throughput`.
        cuda_graph: launch through a CUDA graph where the backend can.
        seed: of the order of variants and of the choice of feeds.
    """

    boundary: Boundary = "compute"
    batch: int = 8
    rounds: int = 9
    min_seconds: float = 0.3
    min_runs: int = 20
    warmup_seconds: float = 0.2
    warmup_runs: int = 10
    streams: int = 1
    cuda_graph: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.boundary not in typing.get_args(Boundary):
            raise ValueError(f"Protocol.boundary is {self.boundary!r}; allowed: {', '.join(typing.get_args(Boundary))}")
        for name in ("batch", "rounds", "min_runs", "streams"):
            if getattr(self, name) < 1:
                raise ValueError(f"Protocol.{name} is {getattr(self, name)}; it must be at least 1")
        if self.streams > 1 and self.boundary != "throughput":
            raise ValueError(
                f"Protocol.streams is {self.streams}: {self.streams} streams at once would disturb each other's "
                f"{self.boundary!r} latency. Use boundary='throughput', or streams=1"
            )


@dataclass(frozen=True, repr=False)
class Round(cards.Card):
    """The raw samples of one fresh process.

    Attributes:
        index: which turn of the interleaving this was; rounds of one index ran next to each other.
        latencies_seconds: one value a call, in the order they were taken.
        open_seconds: from the engine file to a runner that is ready.
        started_at: Unix time.
        peak_memory_bytes: high-water mark of the process's resident memory, or None where unknown.
        conditions: clocks, throttle bits, load average and the like, taken around the samples.
    """

    index: int
    latencies_seconds: tuple[float, ...]
    open_seconds: float
    started_at: float
    peak_memory_bytes: int | None = None
    conditions: dict[str, Any] = field(default_factory=dict)

    def _headline(self) -> str:
        middle = statistics.median(self.latencies_seconds) if self.latencies_seconds else None
        return f"{self.index}: {formats.count(len(self.latencies_seconds), 'call')}, median {formats.milliseconds(middle)} ms"

    def _facts(self) -> cards.Facts:
        yield "opened in", formats.seconds(self.open_seconds)
        yield "peak memory", "" if self.peak_memory_bytes is None else formats.size(self.peak_memory_bytes)
        yield "conditions", ", ".join(f"{key} {value}" for key, value in self.conditions.items())


@dataclass(frozen=True, repr=False)
class Measurement(cards.Card):
    """Raw latencies of one engine under one protocol, with where they were taken.

    Attributes:
        shapes: input name -> shape that was fed.
        device: in words, such as `AMD EPYC (2 cores)` or `NVIDIA H200`.
        environment: versions, threads, governor and so on (see `workbench.machine.device`).
    """

    variant: str
    variant_sha256: str
    backend: str
    device: str
    protocol: Protocol
    shapes: dict[str, tuple[int, ...]]
    rounds: tuple[Round, ...]
    environment: dict[str, Any] = field(default_factory=dict)

    def _headline(self) -> str:
        medians = [statistics.median(item.latencies_seconds) for item in self.rounds if item.latencies_seconds]
        middle = statistics.median(medians) if medians else None
        where = f"{self.protocol.boundary}, batch {self.protocol.batch}, {self.backend}, {self.device}"
        return f"{self.variant!r}: {formats.milliseconds(middle)} ms in {formats.count(len(self.rounds), 'round')}; {where}"

    def _facts(self) -> cards.Facts:
        medians = [statistics.median(item.latencies_seconds) for item in self.rounds if item.latencies_seconds]
        yield (
            "medians of rounds (ms)",
            ", ".join(map(formats.milliseconds, medians[: cards.MOST])) + cards.more(medians),
        )
        yield "calls", f"{sum(len(item.latencies_seconds) for item in self.rounds):,}"
        yield "fed", ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in self.shapes.items())
        yield "threads", str(self.environment.get("threads", ""))
