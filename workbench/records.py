"""The frozen records that cross modules: standard library only; `workbench.codec` writes and reads them as JSON.

Raw values are stored and statistics are derived (see `workbench.judging.statistics`), so a stored record can be
judged again with better statistics later. Seconds and bytes everywhere. A shape is a tuple; a dynamic axis is None.

History of SCHEMA_VERSION: 1 - first; 2 - studies hold their build options; 3 - build options have a target.
"""

from __future__ import annotations

import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.recipes import Recipe

SCHEMA_VERSION = 3

Boundary = Literal["compute", "end_to_end", "throughput"]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output.

    Attributes:
        dtype: a numpy name such as `float32`.
        shape: None = dynamic.
        limits: conditions on sizes, beyond which an exported file is not what its module computes, each with the first
            input that it speaks of; see `workbench.engines.limits`.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Origin:
    """Where a model came from, and how it became ONNX.

    Attributes:
        kind: `onnx`, `torch`, `transformers`, `torchvision`, `timm` or `shipped`.
        reference: file name, class name, hub id.
        exporter: `dynamo`, `torchscript`, or None where the source was ONNX already.
        notes: what did not go as asked (another exporter, another opset), one sentence each.
    """

    kind: str
    reference: str
    exporter: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """The PyTorch module that an ONNX file was exported from, as an exported program (`.pt2`), weights included.

    Attributes:
        inputs: ONNX input names in the order of the program's arguments.
        outputs: ONNX output names in the order of its results.
        sha256: of the file, which is opened only where it still has it.
    """

    path: str
    sha256: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A checked ONNX file with its origin.

    Attributes:
        path: the ONNX file (external data beside it), inside the store or where the user has it.
        sha256: over the file and its external data.
        size_bytes: file and external data.
        opset: of the default domain, as read from the file.
        parameters: of the network, quantized ones among them; scales and zero points are none.
        operators: operator type -> count.
        modules: ONNX node name -> PyTorch module path, where the exporter left it; may be empty.
        quantized_by: `workbench`, `onnxruntime`, `modelopt` or `unknown` where Q/DQ nodes were there already, else None.
        program: the PyTorch module it was exported from, for the torch backends; None where there is none.
        stored_as: the format of most parameters: `fp32`, `fp16`, `bf16`, `int8` and so on.
    """

    name: str
    path: str
    sha256: str
    size_bytes: int
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    origin: Origin
    parameters: int
    operators: dict[str, int]
    modules: dict[str, str] = field(default_factory=dict)
    quantized_by: str | None = None
    program: Program | None = None
    stored_as: str = "fp32"

    @property
    def lowered_before(self) -> str | None:
        """What the file was when it was loaded, in words such as `int8, by onnxruntime`; None where it is plain FP32."""
        if self.quantized_by is not None:
            return f"{self.stored_as}, by {self.quantized_by}"
        return None if self.stored_as == "fp32" else self.stored_as


@dataclass(frozen=True)
class Skipped:
    """A node or tensor that a step left alone, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class StepReport:
    """What one step did to the graph.

    Attributes:
        kind: the step's kind, such as `quantize`.
        changed: names of the nodes (or tensors) that the step changed.
        skipped: what it left alone and why.
        notes: sentences a reader of the report must see (a rehearsal, an option without effect).
        details: step-specific plain data (thresholds, pruned shares), JSON types only.
    """

    kind: str
    seconds: float
    changed: tuple[str, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """A model after a recipe: a new ONNX file plus one StepReport a step.

    Attributes:
        dialect: the Q/DQ dialect the file is written in, one of `workbench.graph.dialects.DIALECTS`.
        calibration_sha256: of the calibration table used, or None.
        calibration_seconds: time to collect the table (shared by recipes of one study), or None.
        program: the model's, as it was before the recipe; only the torch backends use it.
    """

    recipe: Recipe
    model_sha256: str
    path: str
    sha256: str
    size_bytes: int
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dialect: str
    reports: tuple[StepReport, ...] = ()
    calibration_sha256: str | None = None
    calibration_seconds: float | None = None
    program: Program | None = None

    @property
    def name(self) -> str:
        """The recipe's name, the variant's label in tables and plots."""
        return self.recipe.name

    @property
    def notes(self) -> tuple[str, ...]:
        """All notes of all steps."""
        return tuple(note for report in self.reports for note in report.notes)


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


@dataclass(frozen=True)
class Engine:
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


@dataclass(frozen=True)
class LayerTime:
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


@dataclass(frozen=True)
class LayerProfile:
    """What a backend's profiler of layers told of one engine.

    Attributes:
        layers: in the order of execution.
        call_seconds: median of a whole profiled call, what lies between layers included; None where it is not told.
        plain_seconds: median of calls without the profiler, in the same process; None where not taken.
    """

    layers: tuple[LayerTime, ...]
    call_seconds: float | None = None
    plain_seconds: float | None = None


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


@dataclass(frozen=True)
class Round:
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


@dataclass(frozen=True)
class Measurement:
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


@dataclass(frozen=True)
class Accuracy:
    """What a variant does to the answers, sample by sample, beside its FP32 parent.

    Attributes:
        metric: name of the task metric, or None where there are no labels.
        scores, parent_scores: the metric's value for each sample (mean is the score); empty where no metric.
        predictions, parent_predictions: class or token index for each sample where the first output is made of
            scores over classes; empty where it is not.
        sqnr_db: output name -> 10 log10(sum y^2 / sum (y - y')^2) against the parent; None where the error is zero.
        cosine: output name -> cosine similarity of the flattened outputs.
        largest_error: output name -> largest absolute difference.
        data_name, data_kind: name of the data, and whether it was `user`, `shipped` or `random`.
        notes: such as "random inputs: no accuracy is claimed" or "3 of 540 samples left the calibrated range".
        display: whether the score is the mean of the values or its exponential (perplexity).
        unit: of the score; `share` is shown as a percentage.
    """

    variant: str
    variant_sha256: str
    backend: str
    samples: int
    data_name: str
    data_kind: str
    data_sha256: str
    metric: str | None = None
    higher_is_better: bool = True
    scores: tuple[float, ...] = ()
    parent_scores: tuple[float, ...] = ()
    predictions: tuple[int, ...] = ()
    parent_predictions: tuple[int, ...] = ()
    sqnr_db: dict[str, float | None] = field(default_factory=dict)
    cosine: dict[str, float] = field(default_factory=dict)
    largest_error: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    display: Literal["mean", "exp_mean"] = "mean"
    unit: str = ""


@dataclass(frozen=True)
class Failure:
    """A variant that did not get through: at which stage, with which message and log."""

    variant: str
    stage: str
    error: str
    message: str
    log: str = ""


@dataclass(frozen=True)
class VariantResult:
    """All that a study knows of one recipe; later fields are None until their stage is done."""

    recipe: Recipe
    variant: Variant | None = None
    engine: Engine | None = None
    measurement: Measurement | None = None
    accuracy: Accuracy | None = None
    failure: Failure | None = None


@dataclass(frozen=True)
class StudyRecord:
    """A whole study as plain data: what a report is made of, and what moves between machines.

    Attributes:
        baseline: name of the recipe that the others are compared with (the FP32 parent).
        backend_reason: why this backend was taken, in a sentence.
        samples: small pictures or texts of evaluation samples, index -> {"kind": "image"|"text", "value": ...,
            "label": ...}, for the ones on which variants disagree.
    """

    name: str
    created_at: float
    model: Model
    backend: str
    backend_reason: str
    protocol: Protocol
    baseline: str
    results: tuple[VariantResult, ...]
    data: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    options: BuildOptions = field(default_factory=BuildOptions)
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Progress:
    """One step forward of long work: what is being done, for which variant, and how much of all is done (0..1)."""

    stage: str
    variant: str
    fraction: float
    message: str = ""
