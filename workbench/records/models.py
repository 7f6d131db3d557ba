"""What a model is, and a variant of it: files, their inputs, and what each step of a recipe did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from workbench.recipes import Recipe
from workbench.records import cards, formats


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


@dataclass(frozen=True, repr=False)
class Model(cards.Card):
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

    def _headline(self) -> str:
        weights = formats.count(self.parameters, "parameter")
        return f"{self.name!r}: {weights}, opset {self.opset}, {formats.size(self.size_bytes)}"

    def _facts(self) -> cards.Facts:
        common = sorted(self.operators.items(), key=lambda item: -item[1])[: cards.MOST]
        yield "from", f"{self.origin.kind} {self.origin.reference}".strip()
        yield "inputs", cards.specs(self.inputs)
        yield "outputs", cards.specs(self.outputs)
        yield "operators", ", ".join(f"{name} x {count}" for name, count in common) + cards.more(self.operators)
        yield "was", self.lowered_before or ""
        yield "file", self.path
        yield "notes", " ".join(self.origin.notes)


@dataclass(frozen=True)
class Skipped:
    """A node or tensor that a step left alone, and why."""

    name: str
    reason: str


@dataclass(frozen=True, repr=False)
class StepReport(cards.Card):
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

    def _headline(self) -> str:
        return (
            f"{self.kind}: {len(self.changed)} changed, {len(self.skipped)} left alone, {formats.seconds(self.seconds)}"
        )

    def _facts(self) -> cards.Facts:
        yield "changed", ", ".join(self.changed[: cards.MOST]) + cards.more(self.changed)
        left = [f"{item.name} ({item.reason})" for item in self.skipped[: cards.MOST]]
        yield "left alone", "; ".join(left) + cards.more(self.skipped)
        yield "notes", " ".join(self.notes)


@dataclass(frozen=True, repr=False)
class Variant(cards.Card):
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

    def _headline(self) -> str:
        steps = ", ".join(report.kind for report in self.reports) or "no steps"
        return f"{self.name!r}: {steps}; dialect {self.dialect}, opset {self.opset}, {formats.size(self.size_bytes)}"

    def _facts(self) -> cards.Facts:
        for report in self.reports:
            yield report.kind.replace("_", " "), f"{len(report.changed)} changed, {len(report.skipped)} left alone"
        yield "inputs", cards.specs(self.inputs)
        yield "outputs", cards.specs(self.outputs)
        yield "calibration", "" if self.calibration_seconds is None else formats.seconds(self.calibration_seconds)
        yield "file", self.path
        yield "notes", " ".join(dict.fromkeys(self.notes))
