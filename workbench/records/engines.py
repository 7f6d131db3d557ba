"""What was built, with which options, and the layers that a profiler tells of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from workbench.records import cards, formats
from workbench.records.models import TensorSpec


@dataclass(frozen=True)
class ShapeProfile:
    """The shapes one input may take in an engine: smallest, the one tuned for, largest."""

    smallest: tuple[int, ...]
    typical: tuple[int, ...]
    largest: tuple[int, ...]


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built. A backend names in `Engine.notes` what it does not use.

    Attributes:
        threads: intra-operator threads on a CPU; None lets the engine choose (recorded as chosen).
        profiles: sets of input name -> ShapeProfile, for engines that compile for shapes.
        workspace_bytes: scratch memory limit of the builder, None for the engine's own.
        optimization_level: the builder's effort (TensorRT 0..5), None for the engine's own.
        target: compute capabilities to compile for where the backend does so on any machine (TensorRT for RTX): `sm89`,
            `sm86,sm89` or `portable`; None takes the GPU here.
        extra: backend-specific switches, documented where the backend is.
    """

    threads: int | None = 1
    profiles: tuple[dict[str, ShapeProfile], ...] = ()
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    target: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Engine(cards.Card):
    """A variant built for one backend and device.

    Attributes:
        path: the ONNX file or the plan that the runner opens, inside the store.
        options: what it was built with.
        log: what the backend said while building, shortened from the front if long.
        folder: what the backend left in the store (plan, optimized graph, layer information), or None.
        notes: options it ignored, fallbacks it took; shown in every report.
        sha256: of what was built: two engines of one ONNX file can differ (builder flags). Empty in old records.
    """

    variant: str
    variant_sha256: str
    fusion: str
    backend: str
    backend_version: str
    device: str
    path: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    build_seconds: float
    size_bytes: int
    options: BuildOptions = field(default_factory=BuildOptions)
    log: str = ""
    notes: tuple[str, ...] = ()
    folder: str | None = None
    sha256: str = ""

    def _headline(self) -> str:
        took = f"{formats.size(self.size_bytes)}, built in {formats.seconds(self.build_seconds)}"
        return f"{self.variant!r} on {self.backend} {self.backend_version}, {self.device}: {took}"

    def _facts(self) -> cards.Facts:
        yield "inputs", cards.specs(self.inputs)
        yield "outputs", cards.specs(self.outputs)
        yield "fusion", self.fusion
        yield "threads", "" if self.options.threads is None else str(self.options.threads)
        yield "file", self.path
        yield "log", f"{len(self.log.splitlines())} lines, in .log" if self.log else ""
        yield "notes", " ".join(self.notes)


@dataclass(frozen=True, repr=False)
class LayerTime(cards.Card):
    """One layer as an engine executes it.

    Attributes:
        name, operator: as the engine calls them.
        seconds: median a call, while being profiled.
        nodes: nodes of the variant's file that it stands for; empty where the engine added it.
        modules: the PyTorch modules of these nodes, each once.
        precision: what it computes in, in the engine's words; empty where the engine does not tell.
        reads: what it reads, weights among them, in the order of its inputs; empty where the engine does not tell.
        writes: what it writes.
        constants: names of those in `reads` that are weights.
    """

    name: str
    operator: str
    seconds: float
    nodes: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    precision: str = ""
    reads: tuple[TensorSpec, ...] = ()
    writes: tuple[TensorSpec, ...] = ()
    constants: tuple[str, ...] = ()

    def _headline(self) -> str:
        return f"{formats.milliseconds(self.seconds)} ms {self.operator} {self.name} {self.precision}".strip()

    def _facts(self) -> cards.Facts:
        yield "nodes", ", ".join(self.nodes[: cards.MOST]) + cards.more(self.nodes) or "added by the engine"
        yield "modules", ", ".join(self.modules[: cards.MOST]) + cards.more(self.modules)
        yield "reads", cards.specs(self.reads)
        yield "writes", cards.specs(self.writes)


@dataclass(frozen=True, repr=False)
class LayerProfile(cards.Card):
    """What a backend's profiler of layers told of one engine.

    Attributes:
        layers: in the order of execution.
        call_seconds: median of a whole profiled call, what lies between layers included; None where it is not told.
        plain_seconds: median of calls without the profiler, in the same process; None where not taken.
    """

    layers: tuple[LayerTime, ...]
    call_seconds: float | None = None
    plain_seconds: float | None = None

    def _headline(self) -> str:
        total = sum(layer.seconds for layer in self.layers)
        return f"{formats.count(len(self.layers), 'layer')}, {formats.milliseconds(total)} ms"

    def _facts(self) -> cards.Facts:
        slowest = sorted(self.layers, key=lambda layer: -layer.seconds)[: cards.MOST]
        for layer in slowest:
            yield (
                f"{formats.milliseconds(layer.seconds)} ms",
                f"{layer.operator} {layer.name} {layer.precision}".strip(),
            )
