"""How far a variant reaches: shares of operations, bytes and time in each type, and what that limits its gain to."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.explaining.evidence import Evidence, Pass
from workbench.explaining.passes import shared_name
from workbench.explaining.reasons import milliseconds, percent
from workbench.explaining.view import View


@dataclass(frozen=True)
class InType:
    """What one type has of a pass; shares of all layers together, operations None where none were counted."""

    precision: str
    layers: int
    flops: float | None
    size_bytes: float | None
    seconds: float


@dataclass(frozen=True)
class Limit:
    """Amdahl's limit.

    Attributes:
        covered: share of the baseline's time in nodes that the variant computes in its type.
        rate: how many times faster this machine multiplies in that type than in FP32.
        most: times faster than the baseline that this allows.
        measured: times faster that it is; None where not measured.
    """

    covered: float
    rate: float
    most: float
    measured: float | None


def by_type(found: Pass) -> tuple[InType, ...]:
    """Return what each type has of a pass, the most time first."""
    flops, size = (sum(getattr(layer, name) for layer in found.layers) for name in ("flops", "size_bytes"))
    seconds = found.layer_seconds
    kinds: dict[str, list[int]] = {}
    for place, layer in enumerate(found.layers):
        kinds.setdefault(layer.precision, []).append(place)
    rows = []
    for precision, places in kinds.items():
        layers = [found.layers[place] for place in places]
        rows.append(
            InType(
                precision,
                len(layers),
                sum(layer.flops for layer in layers) / flops if flops else None,
                sum(layer.size_bytes for layer in layers) / size if size else None,
                sum(layer.seconds for layer in layers) / seconds if seconds else 0.0,
            )
        )
    return tuple(sorted(rows, key=lambda row: -row.seconds))


def limit(evidence: Evidence) -> Limit | None:
    """Return the most that the variant can gain; None where this machine has no rate of its own for the type."""
    view = View(evidence)
    if view.rate_ratio is None or evidence.precision == "fp32" or not evidence.baseline.layers:
        return None
    known = {node for layer in evidence.baseline.layers for node in layer.nodes}
    nodes = {shared_name(node, known) for layer in view.layers if view.is_lowered(layer) for node in layer.nodes}
    covered = view.baseline_seconds(nodes) / evidence.baseline.total_seconds
    before, after = (found.measured_seconds or found.plain_seconds for found in (evidence.baseline, evidence.variant))
    measured = before / after if before and after else None
    covered = min(covered, 1.0)
    return Limit(covered, view.rate_ratio, 1 / (1 - covered + covered / view.rate_ratio), measured)


def sentences(evidence: Evidence) -> list[str]:
    """Say how far the variant reaches, and what its call consists of, with what no layer accounts for."""
    found = limit(evidence)
    told = []
    if found is not None:
        name = evidence.precision.upper()
        measured = _measured(evidence, found)
        told.append(
            f"{name} covers {percent(found.covered)} of {evidence.baseline.variant}'s time; at this machine's "
            f"{name}:FP32 rate of {found.rate:.1f} the most it can give is {found.most:.2g}x{measured}."
        )
    told.append(anatomy(evidence.variant))
    return told


def _measured(evidence: Evidence, found: Limit) -> str:
    """Say what was measured, with its interval where there is one; only what is surely beyond the limit is called so."""
    if evidence.speed is not None:
        beyond = evidence.speed.low is not None and evidence.speed.low > found.most
        words = f"; measured: {evidence.speed.words}"
    elif found.measured is not None:
        beyond = found.measured > found.most
        words = f"; measured {found.measured:.2g}x"
    else:
        return ""
    return words + (
        ", which is more: FP32's own layers stay below the rate that large products reach" if beyond else ""
    )


def anatomy(found: Pass) -> str:
    """Say what a call's time goes into; what lies between layers is named and never shared out."""
    words = {
        "compute": "layers that multiply",
        "convert": "conversions",
        "layout": "changes of layout",
        "copy": "copies",
        "other": "other layers",
    }
    parts = [f"{label} {milliseconds(seconds)}" for kind, label in words.items() if (seconds := found.of_kind(kind))]  # type: ignore[arg-type]
    text = f"{found.variant} while profiled: {', '.join(parts)}"
    if found.between_seconds is not None:
        text += (
            f", between layers {milliseconds(max(found.between_seconds, 0.0))} of {milliseconds(found.total_seconds)}"
        )
    plain = found.plain_seconds or found.measured_seconds
    if plain is not None:
        gap = found.total_seconds - plain
        more = "more" if gap >= 0 else "less"
        text += (
            f". Without the profiler a call takes {milliseconds(plain)}: the profiled one took "
            f"{milliseconds(abs(gap))} {more}, which no layer accounts for"
        )
    if found.replayed and found.measured_seconds is not None:
        text += (
            f". Both are launched layer by layer; the study replays a CUDA graph, which takes "
            f"{milliseconds(found.measured_seconds)}"
        )
    return text + "."
