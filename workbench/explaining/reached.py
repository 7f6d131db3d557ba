"""Ceilings that layers went beyond are too low: they are measured again, and named where that does not help.

A ceiling that was taken while something else ran would make every layer look close to its bound, or beyond it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from workbench.explaining.evidence import Evidence, Layer, Pass
from workbench.explaining.passes import bounded
from workbench.judging.roofline import Ceilings

# Of the ceiling, and of a pass's time: timers and counts are not exact, and a layer of some microseconds proves nothing.
_CLEARLY = 1.1
_MATTERS = 0.02
# A layer whose algorithm multiplies less often than is counted (Winograd's) stays beyond; it is not measured for ever.
_MOST_TRIES = 3


def within(evidence: Evidence, measure_again: Callable[[], Ceilings]) -> Evidence:
    """Return the evidence under ceilings that no layer went beyond, or with a note of the layer that did all the same."""
    if evidence.ceilings is None:
        return evidence
    passes = (evidence.baseline, evidence.variant)
    ceilings, (baseline, variant), notes = under(evidence.ceilings, passes, measure_again)
    held = (*evidence.notes, *notes)
    return replace(evidence, ceilings=ceilings, baseline=baseline, variant=variant, notes=held)


def under(
    ceilings: Ceilings, passes: Sequence[Pass], measure_again: Callable[[], Ceilings]
) -> tuple[Ceilings, list[Pass], list[str]]:
    """Return ceilings, passes with bounds by them, and what is to be said where a layer still went beyond."""
    found = list(passes)
    if furthest(ceilings, found) is not None and ceilings.tries < _MOST_TRIES:
        ceilings = measure_again()
        found = [bounded(one, ceilings) for one in found]
    left = furthest(ceilings, found)
    return ceilings, found, [] if left is None else [_said(ceilings, left)]


def furthest(ceilings: Ceilings, passes: Iterable[Pass]) -> Layer | None:
    """Return the layer that ran furthest beyond the rate of its type; None where none that matters clearly did."""
    beyond = [
        (_rate(layer) / ceilings.rate(layer.precision), place, layer)
        for found in passes
        for place, layer in enumerate(found.layers)
        if layer.flops and layer.seconds > _MATTERS * sum(one.seconds for one in found.layers)
    ]
    ratio, _, layer = max(beyond, key=lambda one: one[:2], default=(0.0, 0, None))
    return layer if ratio > _CLEARLY else None


def _rate(layer: Layer) -> float:
    return layer.flops / layer.seconds


def _said(ceilings: Ceilings, layer: Layer) -> str:
    kind, most = layer.precision.upper(), ceilings.rate(layer.precision)
    return (
        f"{layer.name} ran at {_rate(layer) / 1e9:,.0f} GFLOP/s in {kind}, beyond this machine's ceiling of {most / 1e9:,.0f} "
        f"that was measured {ceilings.tries} times: its algorithm multiplies less often than is counted, or something "
        f"else ran each time. Bounds in {kind} are too high."
    )
