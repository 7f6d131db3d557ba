"""What an explanation consists of: ranked reasons, each with its evidence in a sentence, and what could be done about it.

Plain records. The rules that make them are `time_rules`, `time_limits` and `accuracy_rules`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Aspect = Literal["time", "accuracy"]

Change = Literal[
    "", "keep", "calibrator", "smooth", "per_channel", "weights", "include", "unsigned", "range", "batch", "cuda_graph"
]

# Every reason that can be named -> what it means, in half a sentence.
KINDS: dict[str, str] = {
    "skip_without_pair": "a sum joins a quantized branch with one that is not, so both meet in floating point",
    "pair_between": "a Q/DQ pair between a product and its activation keeps the engine from fusing them",
    "fallback": "the file asks for 8 bits and the engine runs the layer in floating point all the same",
    "concat_scales": "a Concat joins tensors whose scales or ranges differ",
    "float_island": "layers left in floating point between 8-bit ones cost conversions on both sides",
    "unfused": "layers that the baseline runs as one run one by one",
    "emulated": "the engine has no arithmetic of this type here and computes in another",
    "layout": "values are moved between layouts",
    "few_channels": "too few channels to fill the 8-bit kernel",
    "weight_bound": "reading the weights is what takes the time, not multiplying",
    "left_in_float": "layers that multiply were left in floating point",
    "slow_kernel": "an 8-bit kernel is slower than the machine's rates promise",
    "conversions": "conversions between types",
    "launch_bound": "launching layers takes the time, not their work",
    "machine_rate": "this machine is hardly faster in this type",
    "saturation": "the engine's integer kernels compute something else than the file says",
    "clip": "values beyond the calibrated range are cut off",
    "outlier_channel": "one channel is so much larger that the others share few codes",
    "wide_range": "a few large values leave few codes for all others",
    "noisy_layers": "some layers make most of the noise",
}


@dataclass(frozen=True)
class Advice:
    """Something to try, because the evidence points to it.

    Attributes:
        words: what to do.
        change: how the recipe changes: `keep` layers as they were, another `calibrator`, `smooth`, `per_channel` weights,
            `weights` only, `include` layers that it leaves out, `unsigned` codes of activations, the `range` of weights; or how
            the same variant is called: in larger `batch`es, through a `cuda_graph`. Empty where nothing here can do it.
        names: layers (node names) for `keep` and `include`.
        value: of the change, such as a calibrator's name; for `batch` how many times as many samples.
    """

    words: str
    change: Change = ""
    names: tuple[str, ...] = ()
    value: str = ""


@dataclass(frozen=True)
class Reason:
    """One thing that costs time or accuracy, by evidence.

    Attributes:
        kind: one of `KINDS`.
        share: of the call's time, or of the noise at the output, that it accounts for.
        score: what reasons are ranked by.
        sentence: with the numbers.
        layers: executed layers that it is about.
        nodes: of the variant's file.
        tensors: that it is about.
    """

    kind: str
    aspect: Aspect
    share: float
    score: float
    sentence: str
    layers: tuple[str, ...] = ()
    nodes: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    advice: tuple[Advice, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Reason.kind is {self.kind!r}; allowed: {', '.join(KINDS)}")


def listed(names: tuple[str, ...] | list[str], most: int = 3) -> str:
    """Return the first names of a list, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def milliseconds(seconds: float) -> str:
    """Say a time in ms with three digits."""
    return f"{seconds * 1e3:.3g} ms"


def percent(share: float) -> str:
    """Say a share."""
    return f"{share:.0%}" if share >= 0.0995 or share == 0 else f"{share:.1%}"
