"""What explanations are judged from: frozen records of what was executed, what the file asks for, and where noise comes in.

Whoever has such records (of another machine, of an engine's own tables) can have them judged without running anything.
Gathers nothing, judges nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workbench.judging.roofline import Ceilings
from workbench.judging.statistics import Ratio
from workbench.records import Accuracy, TensorSpec

# What a layer's time goes into.
Kind = Literal["compute", "convert", "layout", "copy", "other"]
# Codes of a channel, from zero to its largest value, below which its shape is lost.
FEW_LEVELS = 32
# Of a layer's name in a sentence.
_LONGEST_NAME = 60
KINDS: tuple[Kind, ...] = ("compute", "convert", "layout", "copy", "other")


@dataclass(frozen=True)
class Layer:
    """One layer as an engine executed it.

    Attributes:
        kind: `compute` multiplies; `convert` changes types (Q/DQ, casts, reformats); `layout` moves values without
            changing them (transposes, reorders); `copy` joins, cuts and renames; `other` is all else.
        precision: the type that it computes in: `fp32`, `fp16`, `bf16`, `int8`, `fp8`, or the engine's own word.
        nodes: of the variant's file that it stands for; empty where the engine added it.
        modules: PyTorch module paths of these nodes.
        flops: of one call; a multiplication and an addition are two. 0 where none were counted.
        size_bytes: read and written in one call, weights among them.
        weight_bytes: of the weights that it reads.
        bound_seconds: the least that flops and bytes can take on this machine in this type; None without ceilings.
        bound_by: `compute` or `memory`.
    """

    name: str
    operator: str
    kind: Kind
    precision: str
    seconds: float
    nodes: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    flops: float = 0.0
    size_bytes: float = 0.0
    weight_bytes: float = 0.0
    bound_seconds: float | None = None
    bound_by: str = ""
    reads: tuple[TensorSpec, ...] = ()
    writes: tuple[TensorSpec, ...] = ()
    constants: tuple[str, ...] = ()

    @property
    def is_low(self) -> bool:
        """Whether it computes on 8-bit numbers."""
        return self.precision in ("int8", "fp8")

    @property
    def share_of_bound(self) -> float | None:
        """How much of what the machine can do it reaches; 1 is all of it."""
        return None if self.bound_seconds is None or not self.seconds else self.bound_seconds / self.seconds

    @property
    def title(self) -> str:
        """What a sentence calls it: its nodes where the engine's own name strings together all that was fused."""
        return self.name if len(self.name) <= _LONGEST_NAME or not self.nodes else " + ".join(self.nodes)

    @property
    def weight_shape(self) -> tuple[int | None, ...]:
        """Shape of its largest weight; empty where it has none."""
        held = [spec for spec in self.reads if spec.name in self.constants]
        return max((spec.shape for spec in held), key=lambda shape: (len(shape) > 1, _elements(shape)), default=())


@dataclass(frozen=True)
class Pass:
    """One call of one variant, taken apart.

    Attributes:
        layers: in the order of execution.
        profiled_seconds: of a whole call while it was profiled, what lies between layers included; None where untold.
        plain_seconds: of a whole call in the same processes without the profiler; None where untold.
        measured_seconds: median latency in the study; None where it was not measured.
        replayed: whether the study measured replays of a CUDA graph, which a profiled call never is.
    """

    variant: str
    layers: tuple[Layer, ...]
    profiled_seconds: float | None = None
    plain_seconds: float | None = None
    measured_seconds: float | None = None
    replayed: bool = False

    @property
    def layer_seconds(self) -> float:
        """Sum of the layers' times."""
        return sum(layer.seconds for layer in self.layers)

    @property
    def total_seconds(self) -> float:
        """What shares are of: the profiled call, or the layers' sum where the profiler tells no more."""
        return self.profiled_seconds or self.layer_seconds

    @property
    def between_seconds(self) -> float | None:
        """Time of the profiled call in which no layer ran: launches, and the profiler's own work."""
        return None if self.profiled_seconds is None else self.profiled_seconds - self.layer_seconds

    def of_kind(self, kind: Kind) -> float:
        """Sum the seconds of the layers of a kind."""
        return sum(layer.seconds for layer in self.layers if layer.kind == kind)


@dataclass(frozen=True)
class NodeFact:
    """What the variant's file says of one node, by its dataflow.

    Attributes:
        asked: whether the file hands it codes only and takes codes from it, so that an engine could run it in 8 bits.
        obstacle: why an engine could not although it was asked, such as a result that is read in floating point too.
        float_readers: nodes that read its result in floating point although it was asked, over activations and copies.
        signed: whether the codes that it reads are signed.
        mixed: whether it joins a dequantized branch with one that never was quantized.
        behind_pair_of: the multiplying node whose result it reads through a Q/DQ pair; empty where there is no pair.
        scales: of a Concat's dequantized inputs, then of its quantized output (0 where that is not quantized).
    """

    name: str
    operator: str
    asked: bool = False
    obstacle: str = ""
    float_readers: tuple[str, ...] = ()
    signed: bool = False
    mixed: bool = False
    behind_pair_of: str = ""
    scales: tuple[float, ...] = ()


@dataclass(frozen=True)
class TensorFact:
    """What quantizing one tensor does, by its values in the FP32 parent.

    Attributes:
        role: `activation` or `weight`.
        readers: nodes that read it.
        producer: the multiplying node whose result it is, over an activation; empty where there is none.
        clip_nsr: squared error by clipping over the squared signal of the tensor.
        round_nsr: the same by rounding.
        clipped_share: share of values beyond the range of the codes.
        largest: largest magnitude.
        outlier_ratio: largest magnitude of any channel over that of the median channel.
        outlier_channels: the channels that are 8 times the median channel or more.
        median_levels: codes from zero to the largest magnitude of the median channel.
        noise_share: share of the noise at the output that goes when this tensor alone is left in FP32; None where that was
            not tried.
    """

    name: str
    role: Literal["activation", "weight"]
    readers: tuple[str, ...]
    clip_nsr: float
    round_nsr: float
    clipped_share: float
    largest: float
    outlier_ratio: float
    outlier_channels: tuple[int, ...]
    median_levels: float
    noise_share: float | None = None
    producer: str = ""

    @property
    def clips(self) -> bool:
        """Whether cutting off makes more error than rounding."""
        return self.clip_nsr > self.round_nsr

    @property
    def has_outliers(self) -> bool:
        """Whether channels far larger than the others leave those few codes."""
        return not self.clips and bool(self.outlier_channels) and self.median_levels < FEW_LEVELS


@dataclass(frozen=True)
class JointFact:
    """What several tensors with one trouble do together: where each of them alone spoils the answer, leaving one in FP32
    mends little.

    Attributes:
        trouble: `clip` or `outlier_channel`.
        noise_share: as in `TensorFact`, with all of them left in FP32.
    """

    trouble: Literal["clip", "outlier_channel"]
    tensors: tuple[str, ...]
    noise_share: float


@dataclass(frozen=True)
class ConcatFact:
    """A Concat between quantized tensors.

    Attributes:
        tensors: its quantized inputs and output.
        largest: largest magnitude of each input in the FP32 parent.
        levels: codes from zero to that magnitude in the coarsest scale that each input passes.
        noise_share: as in `TensorFact`, with all its tensors left in FP32.
    """

    name: str
    tensors: tuple[str, ...]
    largest: tuple[float, ...]
    levels: tuple[float, ...]
    noise_share: float | None = None


@dataclass(frozen=True)
class LayerNoise:
    """What one layer costs at the output, noise over signal: lowered alone, and kept while all others are lowered."""

    name: str
    nodes: tuple[str, ...]
    alone_nsr: float
    kept_nsr: float | None = None
    alone_drop: float | None = None


@dataclass(frozen=True)
class Flip:
    """A sample whose answer changed, and the layer that gives the old one back when it alone is left in FP32, if one does."""

    sample: int
    before: int
    after: int
    layer: str = ""


@dataclass(frozen=True)
class Noise:
    """Where a variant's errors come in.

    Attributes:
        file_nsr: error of the file in exact arithmetic against the FP32 parent, over the signal, at the outputs.
        engine_nsr: error of the engine's own answers; None where it was not compared.
        samples: that this was judged on.
        notes: what could not be looked at, and why.
    """

    file_nsr: float
    engine_nsr: float | None
    samples: int
    tensors: tuple[TensorFact, ...] = ()
    concats: tuple[ConcatFact, ...] = ()
    joints: tuple[JointFact, ...] = ()
    layers: tuple[LayerNoise, ...] = ()
    flips: tuple[Flip, ...] = ()
    unit: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Memory:
    """Bytes of one variant.

    Attributes:
        weights: of the weights that its layers read.
        activations_sum: of everything that its layers write, together.
        activations_alive: the most that is alive at one moment in this order of execution; no plan can do with less.
        file: on disk.
        process: high-water mark of the processes that measured it; None where it was not measured.
        planned: what the engine itself sets aside for activations and workspace together; None where it does not tell.
        workspace: scratch memory of its kernels within that; None where it does not tell.
    """

    weights: float
    activations_sum: float
    activations_alive: float
    file: int
    process: int | None = None
    planned: int | None = None
    workspace: int | None = None


@dataclass(frozen=True)
class Evidence:
    """All that one explanation is judged from.

    Attributes:
        precision: the type that the variant's file asks for most: `int8`, `fp8`, `fp16`, `bf16` or `fp32`.
        facts: of the variant's file, node by node.
        noise: None where there were no data to look at answers with.
        accuracy: of the study, where answers were checked.
        worse: whether the score is distinguishably worse than the baseline's; None where that is not known.
        speed: against the baseline, with its interval, as the study has it; None where it was not measured in a study.
    """

    backend: str
    baseline: Pass
    variant: Pass
    ceilings: Ceilings | None
    precision: str
    facts: tuple[NodeFact, ...] = ()
    noise: Noise | None = None
    memory: tuple[Memory, Memory] | None = None
    accuracy: Accuracy | None = None
    worse: bool | None = None
    notes: tuple[str, ...] = ()
    speed: Ratio | None = None


def _elements(shape: tuple[int | None, ...]) -> int:
    count = 1
    for size in shape:
        count *= size or 1
    return count
