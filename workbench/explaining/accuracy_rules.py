"""Reasons that lie in what quantizing does to values: judged by errors that were measured, at the tensors and at the output.

A tensor is blamed only where leaving it in FP32 takes a good part of the noise at the output away.
"""

from __future__ import annotations

import math

from workbench.explaining.evidence import FEW_LEVELS, ConcatFact, Evidence, JointFact, Noise, TensorFact
from workbench.explaining.reasons import Advice, Reason, listed, percent

# Noise over signal from which answers suffer: 20 dB.
_SUFFERS = 0.01
_PART = 0.2
# Engines round a little differently than exact arithmetic: 1 dB and more is another thing.
_DIFFERS = 10**0.1
_UNEQUAL = 8.0
# Rounding to the numbers of float8 is up to 1.3e-3 of any values; more is of values so small that few numbers are left them.
_WIDE_NSR = {"int8": 1e-3, "fp8": 4e-3}
# Whose inputs SmoothQuant smooths.
_SMOOTHED = ("MatMul", "Gemm")
_LEADING, _MOST_LAYERS = 0.5, 3


def accuracy_reasons(evidence: Evidence) -> list[Reason]:
    """Return what costs accuracy, unranked; nothing where no noise was looked at."""
    noise = evidence.noise
    if noise is None or not max(noise.file_nsr, noise.engine_nsr or 0.0) > 0:
        return []
    found = [saturation(evidence, noise)]
    joined = {name for fact in noise.concats if _is_unequal(fact) for name in fact.tensors}
    found += [_concat(evidence, noise, fact) for fact in noise.concats if _is_unequal(fact)]
    alone = [fact for fact in noise.tensors if (fact.noise_share or 0.0) >= _PART and fact.name not in joined]
    found += [_tensor(evidence, noise, fact) for fact in alone]
    blamed = [reason for reason in found if reason is not None]
    named = {name for reason in blamed for name in reason.tensors}
    joints = [fact for fact in noise.joints if fact.noise_share >= _PART and not named & set(fact.tensors)]
    blamed += [_joint(evidence, noise, fact) for fact in joints]
    if not blamed:
        blamed = [reason for reason in (_layers(evidence, noise),) if reason is not None]
    return blamed


def severity(evidence: Evidence, noise: Noise, share: float) -> float:
    """Rank noise among the reasons for time: above all of them where answers suffer, in proportion where they do not."""
    nsr = max(noise.file_nsr, noise.engine_nsr or 0.0)
    if evidence.worse or nsr >= _SUFFERS:
        return 1 + share
    return share * nsr / _SUFFERS


def saturation(evidence: Evidence, noise: Noise) -> Reason | None:
    """An engine whose answers are worse than those of its file in exact arithmetic."""
    if noise.engine_nsr is None or not noise.engine_nsr > _DIFFERS * max(noise.file_nsr, 1e-9):
        return None
    share = 1 - noise.file_nsr / noise.engine_nsr
    integer = evidence.precision == "int8"
    whose = "Its integer kernels cut sums off" if integer else "Its optimizer or its kernels change the function"
    sentence = (
        f"{evidence.backend} computes this file differently than it says: {decibels(noise.engine_nsr)} against "
        f"{decibels(noise.file_nsr)} in exact arithmetic ({noise.samples} samples). {whose}; "
        f"{percent(share)} of the noise is theirs."
    )
    words = "Write the weights in 7 bits (the dialect of CPUs without VNNI), whose products such kernels add exactly."
    advice = (Advice(words, "range"),) if integer else ()
    return Reason("saturation", "accuracy", share, severity(evidence, noise, share), sentence, advice=advice)


def _concat(evidence: Evidence, noise: Noise, fact: ConcatFact) -> Reason | None:
    share = fact.noise_share or 0.0
    if share < _PART:
        return None
    ranges = ", ".join(f"{value:.3g}" for value in fact.largest)
    sentence = (
        f"{fact.name} joins tensors with the ranges {ranges} under scales that leave the smallest {min(fact.levels):.1f} "
        f"codes; left in FP32, {percent(share)} of the noise at the output goes."
    )
    advice = (Advice(f"Leave {fact.name} and what it joins in FP32.", "keep", _readers(noise, fact.tensors)),)
    score = severity(evidence, noise, share)
    return Reason(
        "concat_scales", "accuracy", share, score, sentence, nodes=(fact.name,), tensors=fact.tensors, advice=advice
    )


def _tensor(evidence: Evidence, noise: Noise, fact: TensorFact) -> Reason | None:
    share = fact.noise_share or 0.0
    operators = {one.name: one.operator for one in evidence.facts}
    kind, cause, advice = _cause(fact, [operators.get(name, "") for name in fact.readers], evidence.precision)
    if not kind:
        return None
    readers = listed(fact.readers)
    sentence = (
        f"{'Weight' if fact.role == 'weight' else 'Tensor'} {fact.name} (read by {readers}): {cause}; left in FP32, "
        f"{percent(share)} of the noise at the output goes ({decibels(noise.file_nsr)} now)."
    )
    # ONNX Runtime's integer kernels write codes only: what makes the tensor must stay in FP32 too.
    chained = (fact.producer,) if fact.producer and evidence.backend == "onnxruntime-cpu" else ()
    names = tuple(dict.fromkeys((*chained, *fact.readers)))
    keep = Advice(f"Leave {listed(names)} in FP32.", "keep", names)
    score = severity(evidence, noise, share)
    return Reason(
        kind, "accuracy", share, score, sentence, nodes=fact.readers, tensors=(fact.name,), advice=(*advice, keep)
    )


def _joint(evidence: Evidence, noise: Noise, fact: JointFact) -> Reason:
    """Several tensors with one trouble, none of which mends much alone."""
    held = [one for one in noise.tensors if one.name in fact.tensors]
    worst = max(held, key=lambda one: one.clip_nsr + one.round_nsr)
    _, cause, advice = _cause(worst, [], evidence.precision)
    sentence = (
        f"{len(held)} tensors ({listed(fact.tensors)}) have one trouble; of {worst.name}, {cause}. With all of them left in FP32 "
        f"{percent(fact.noise_share)} of the noise at the output goes ({decibels(noise.file_nsr)} now)."
    )
    nodes = tuple(dict.fromkeys(name for one in held for name in one.readers))
    score = severity(evidence, noise, fact.noise_share)
    return Reason(
        fact.trouble, "accuracy", fact.noise_share, score, sentence, nodes=nodes, tensors=fact.tensors, advice=advice
    )


def _cause(fact: TensorFact, readers: list[str], precision: str) -> tuple[str, str, tuple[Advice, ...]]:
    if fact.clips:
        cause = f"{percent(fact.clipped_share)} of its values lie beyond its codes and are cut off (largest {fact.largest:.3g})"
        return "clip", cause, (Advice("Take the whole range: the calibrator 'max'.", "calibrator", value="max"),)
    if fact.has_outliers:
        cause = (
            f"channel {listed([str(index) for index in fact.outlier_channels])} is {fact.outlier_ratio:.0f} times the "
            f"median channel, which is left {fact.median_levels:.1f} codes"
        )
        if fact.role == "weight":
            return "outlier_channel", cause, (Advice("Give each channel of the weight its own scale.", "per_channel"),)
        smooth = (Advice("Move the outliers into the weights (SmoothQuant).", "smooth"),)
        return "outlier_channel", cause, smooth if set(readers) & set(_SMOOTHED) else ()
    if fact.round_nsr > _WIDE_NSR.get(precision, 1e-3) and fact.role == "activation":
        cause = f"its largest value is {fact.largest:.3g}, and rounding alone is {decibels(fact.round_nsr)} of it"
        return (
            "wide_range",
            cause,
            (Advice("Clip the rare large values: the calibrator 'mse'.", "calibrator", value="mse"),),
        )
    return "", "", ()


def _layers(evidence: Evidence, noise: Noise) -> Reason | None:
    """Layers that lead in noise where no tensor stands out for a reason that is known."""
    rows = [row for row in noise.layers if math.isfinite(row.alone_nsr) and row.alone_nsr > 0]
    total = sum(row.alone_nsr for row in rows)
    leading = sorted(rows, key=lambda row: -row.alone_nsr)[:_MOST_LAYERS]
    share = sum(row.alone_nsr for row in leading) / total if total else 0.0
    if share < _LEADING or len(rows) <= _MOST_LAYERS:
        return None
    told = ", ".join(f"{row.name} ({percent(row.alone_nsr / total)})" for row in leading)
    sentence = (
        f"Lowered alone, {told} make most of the noise that all {len(rows)} layers make ({decibels(noise.file_nsr)})."
    )
    nodes = tuple(node for row in leading for node in row.nodes)
    advice = (Advice(f"Leave {listed([row.name for row in leading])} in FP32.", "keep", nodes),)
    score = 0.5 * severity(evidence, noise, share)
    return Reason("noisy_layers", "accuracy", share, score, sentence, nodes=nodes, advice=advice)


def decibels(nsr: float) -> str:
    """Say noise over signal in dB of signal over noise."""
    if not math.isfinite(nsr):
        return "values that are not finite"
    return "no noise" if nsr <= 0 else f"{round(-10 * math.log10(nsr), 1) + 0.0:.1f} dB"


def _is_unequal(fact: ConcatFact) -> bool:
    """Whether one input of a Concat is left few codes, while another has many."""
    return len(fact.levels) > 1 and min(fact.levels) < FEW_LEVELS and max(fact.levels) > _UNEQUAL * min(fact.levels)


def _readers(noise: Noise, tensors: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for fact in noise.tensors if fact.name in tensors for name in fact.readers))
