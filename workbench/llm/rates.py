"""What generation measurements say: times, rates, memory, and the bound that the memory's bandwidth sets. No raw values here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workbench.errors import CompareError
from workbench.judging import statistics
from workbench.llm.timing import GenerationMeasurement
from workbench.records import Measurement

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Speed:
    """Seconds, rates and bytes of one variant under one workload.

    Attributes:
        first_token: time to first token (TTFT), with its interval over rounds.
        step: one decode step; its median.
        output_token_seconds: mean time of a step, median over rounds: the time per output token of a user (TPOT).
        user_tokens_per_second: what one user sees while tokens come: 1 / output_token_seconds.
        tokens_per_second: tokens of all sequences, prefill included, over the whole time.
        bound_seconds: bytes of weights and cache that a step reads, over the read bandwidth measured at that size in the
            same process; None where unknown. A step cannot be faster, as long as it reads all of them.
        bound_share: bound_seconds / output_token_seconds; 1 is perfect.
        weights_bytes, cache_bytes: what a step reads of weights; the cache when the last token has come.
        activations_bytes: what the process or device held more after the run than with the engine open and the cache
            there; None where unknown. An upper estimate: allocators keep what they once had.
    """

    variant: str
    label: str
    first_token: statistics.Summary
    step: statistics.Summary
    output_token_seconds: float
    user_tokens_per_second: float
    tokens_per_second: float
    read_bytes_per_second: float | None
    bound_seconds: float | None
    bound_share: float | None
    weights_bytes: int | None
    cache_bytes: int
    activations_bytes: int | None


def speed(measured: GenerationMeasurement) -> Speed:
    """Derive times, rates and bounds from raw values.

    Raises:
        DataError: the measurement has no latencies.
    """
    workload = measured.workload
    token = float(np.median([np.mean(item.latencies_seconds) for item in measured.step.rounds]))
    totals = _total_seconds(measured)
    bandwidth = _bandwidth(measured.step)
    mean_columns = workload.input_tokens + workload.output_tokens / 2
    cache_bytes = workload.batch * (workload.input_tokens + workload.output_tokens - 1) * measured.token_bytes
    bound = None
    if bandwidth is not None and measured.weights_bytes is not None:
        bound = (measured.weights_bytes + workload.batch * mean_columns * measured.token_bytes) / bandwidth
    return Speed(
        variant=measured.variant,
        label=workload.label,
        first_token=statistics.summary(measured.first_token),
        step=statistics.summary(measured.step),
        output_token_seconds=token,
        user_tokens_per_second=1 / token,
        tokens_per_second=workload.batch * workload.output_tokens / totals,
        read_bytes_per_second=bandwidth,
        bound_seconds=bound,
        bound_share=None if bound is None else bound / token,
        weights_bytes=measured.weights_bytes,
        cache_bytes=cache_bytes,
        activations_bytes=_activations(measured, cache_bytes),
    )


def faster(
    baseline: GenerationMeasurement, candidate: GenerationMeasurement
) -> tuple[statistics.Ratio, statistics.Ratio]:
    """Return how many times faster the candidate's first token and its decode step are, with intervals over rounds.

    Raises:
        CompareError: the workloads or devices differ.
    """
    if baseline.workload != candidate.workload or baseline.step.device != candidate.step.device:
        raise CompareError(
            f"{baseline.variant!r} was measured with {baseline.workload.label} on {baseline.step.device}, "
            f"{candidate.variant!r} with {candidate.workload.label} on {candidate.step.device}. Measure both alike."
        )
    return (
        statistics.ratio(baseline.first_token, candidate.first_token),
        statistics.ratio(baseline.step, candidate.step),
    )


def table(measurements: Sequence[GenerationMeasurement], baseline: str | None = None) -> pd.DataFrame:
    """Return one row a variant and workload, in milliseconds, tokens/s and MB, with decode speed-ups over the baseline.

    Args:
        baseline: name of a variant; None takes the first one's.
    """
    import pandas as pd

    first = baseline or measurements[0].variant
    parents = {item.workload: item for item in measurements if item.variant == first}
    rows = []
    for item in measurements:
        found = speed(item)
        parent = parents.get(item.workload)
        compared = parent is not None and parent is not item
        rows.append(
            {
                "Variant": found.variant,
                "Input + output x batch": found.label,
                "TTFT (ms)": round(found.first_token.median * 1e3, 2),
                "Time per token (ms)": round(found.output_token_seconds * 1e3, 3),
                "Tokens/s a user": round(found.user_tokens_per_second, 1),
                "Tokens/s in all": round(found.tokens_per_second, 1),
                f"Decode (vs {first})": faster(parent, item)[1].words if compared and parent else "-",
                "Bandwidth bound (ms)": _rounded(found.bound_seconds, 1e3, 3),
                "Share of bound (%)": _rounded(found.bound_share, 100, 0),
                "Weights (MB)": _rounded(found.weights_bytes, 1e-6, 2),
                "Cache (MB)": round(found.cache_bytes / 1e6, 2),
                "Activations (MB)": _rounded(found.activations_bytes, 1e-6, 1),
            }
        )
    return pd.DataFrame(rows)


def _rounded(value: float | None, scale: float, digits: int) -> float | None:
    return None if value is None else round(value * scale, digits)


def _total_seconds(measured: GenerationMeasurement) -> float:
    """Return the time of a whole generation: mean first token plus mean of all steps, median over rounds."""
    steps = measured.workload.output_tokens - 1
    pairs = zip(measured.first_token.rounds, measured.step.rounds, strict=True)
    return float(
        np.median([np.mean(one.latencies_seconds) + steps * np.mean(two.latencies_seconds) for one, two in pairs])
    )


def _bandwidth(measurement: Measurement) -> float | None:
    seen = [item.conditions.get("read_bandwidth_bytes_per_second") for item in measurement.rounds]
    values = [float(value) for value in seen if value]
    return max(values) if values else None


def _activations(measured: GenerationMeasurement, cache_bytes: int) -> int | None:
    grown = []
    for item in measured.step.rounds:
        before, after = item.conditions.get("memory_open"), item.conditions.get("memory_after")
        if not before or not after:
            return None
        if "activation_bytes" in after:
            return int(after["activation_bytes"])
        grown.append(max((item.peak_memory_bytes or 0) - before["process_bytes"] - cache_bytes, 0))
    return int(np.median(grown)) if grown else None
