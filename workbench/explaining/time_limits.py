"""Reasons that lie in the work and the machine: kernels, weights to read, launches, and what was never lowered.

They look at what the more specific rules of `time_rules` left unclaimed. Causes weigh in full; symptoms, which only say
that something is slow, weigh less.
"""

from __future__ import annotations

import math

from workbench.explaining.evidence import Layer
from workbench.explaining.reasons import Advice, Reason, listed, milliseconds, percent
from workbench.explaining.view import View

_SYMPTOM = 0.3
# A quantized layer that gains less than this part of what the machine's rates promise is slow.
_GAINS = 0.3
_SLOWER = 0.8
# Profilers count whole microseconds, and need about one themselves: shorter layers are launches, whatever they do.
_RESOLVED_SECONDS = 4e-6
# Below, vector kernels of 8-bit numbers are not filled: output channels, and products for each output value.
_FEW_CHANNELS, _FEW_PRODUCTS = 16, 32
# Of a layer's bytes, and memory time over compute time, from which its weights bound it.
_MOSTLY_WEIGHTS, _CLEARLY = 0.6, 1.5
_HARDLY_FASTER = 1.5
_MOSTLY_LAUNCHES = 0.4
_WITH_GRAPHS = ("tensorrt", "tensorrt-rtx")


def weight_bound(view: View) -> Reason | None:
    """Layers whose least time is that of reading their weights."""
    ceilings = view.evidence.ceilings
    if ceilings is None:
        return None
    found = []
    for layer in view.free():
        if layer.kind == "compute" and layer.weight_bytes > _MOSTLY_WEIGHTS * layer.size_bytes:
            memory = layer.size_bytes / ceilings.bandwidth(layer.size_bytes)
            compute = layer.flops / ceilings.rate(layer.precision)
            # A layer that is over as soon as it is launched is bound by neither.
            if memory > _CLEARLY * compute and memory > 2 * ceilings.layer_seconds:
                found.append((layer, memory, compute))
    if not found:
        return None
    layers = [layer for layer, _, _ in found]
    share = view.claim(layers)
    size = sum(layer.weight_bytes for layer in layers)
    memory, compute = sum(one for _, one, _ in found), sum(one for _, _, one in found)
    sentence = (
        f"{listed([layer.title for layer in layers])} read {size / 1e6:.3g} MB of weights for "
        f"{sum(layer.flops for layer in layers) / 1e6:.3g} MFLOP: reading takes {milliseconds(memory)} at least, multiplying "
        f"{milliseconds(compute)}. Bytes decide, not the rate of the type; {percent(share)} of the call."
    )
    words = "Feed more samples a call: the weights are read once for all of them."
    smaller = Advice("Store the weights in fewer bits (weight-only quantization).", "weights", value="int4")
    advice = (Advice(words, "batch", value=_times(memory, compute)), smaller)
    return Reason("weight_bound", "time", share, share, sentence, _names(layers), _nodes(layers), advice=advice)


def few_channels(view: View) -> Reason | None:
    """Quantized layers that gain nothing and have too few channels to fill the kernel."""
    found = [layer for layer in view.free() if _is_slow(view, layer) and (_thin(layer) is not None)]
    return _kernels(view, found, "few_channels", _weight(view, found)) if found else None


def slow_kernel(view: View) -> Reason | None:
    """Quantized layers that gain little for no reason that is known."""
    found = [layer for layer in view.free() if _is_slow(view, layer)]
    return _kernels(view, found, "slow_kernel", _weight(view, found)) if found else None


def _weight(view: View, found: list[Layer]) -> float:
    """Slower than in FP32 is a cause of its own; not as fast as promised is a symptom."""
    before = view.baseline_seconds(_nodes(found))
    return 1.0 if before < _SLOWER * sum(layer.seconds for layer in found) else _SYMPTOM


def slower_in_float(view: View) -> Reason | None:
    """Layers that the variant computes in the baseline's own type, and slower."""
    found = [
        layer
        for layer in view.free()
        if layer.kind == "compute" and not view.is_lowered(layer) and _loses(view, layer) > _RESOLVED_SECONDS
    ]
    if not found:
        return None
    before, seconds = view.baseline_seconds(_nodes(found)), sum(layer.seconds for layer in found)
    view.claim(found)
    share = (seconds - before) / view.total
    sentence = (
        f"{listed([layer.title for layer in found])} compute in {found[0].precision.upper()} as the baseline does, and "
        f"{seconds / before:.2f} times as long ({milliseconds(seconds)} against {milliseconds(before)}): the engine takes "
        f"another kernel for them here; {percent(share)} of the call."
    )
    return Reason("slow_kernel", "time", share, share, sentence, _names(found), _nodes(found))


def _loses(view: View, layer: Layer) -> float:
    # Which node of a fused layer takes its time is known only where the file tells what multiplies.
    if not view.facts and not any(set(one.nodes) == set(layer.nodes) for one in view.evidence.baseline.layers):
        return 0.0
    before = view.baseline_seconds(layer.nodes)
    return layer.seconds - before if 0 < before < _SLOWER * layer.seconds else 0.0


def _kernels(view: View, found: list[Layer], kind: str, weight: float) -> Reason:
    before = view.baseline_seconds(node for layer in found for node in layer.nodes)
    seconds = sum(layer.seconds for layer in found)
    lost = sum(max(layer.seconds - view.ideal_seconds(layer), 0.0) for layer in found)
    view.claim(found)
    share = lost / view.total
    found = sorted(found, key=lambda layer: view.ideal_seconds(layer) - layer.seconds)
    told = [f"{layer.title} ({thin})" if (thin := _thin(layer)) else layer.title for layer in found]
    few = " They have too few channels to fill an 8-bit kernel." if kind == "few_channels" else ""
    sentence = (
        f"{listed(told)}: {milliseconds(seconds)} in {view.evidence.precision.upper()} against {milliseconds(before)} in the "
        f"baseline, {before / seconds:.2f} times as fast where this machine multiplies {view.rate_ratio or 1:.1f} times as "
        f"fast.{few} {percent(share)} of the call would go at the machine's rate."
    )
    slower = [layer for layer in found if layer.seconds > view.baseline_seconds(layer.nodes)]
    nodes = tuple(node for node in _nodes(slower) if node in view.facts)
    advice = (Advice(f"Leave {listed(nodes)} in FP32.", "keep", nodes),) if nodes else ()
    return Reason(kind, "time", share, weight * share, sentence, _names(found), _nodes(found), advice=advice)


def left_in_float(view: View) -> Reason | None:
    """Layers that multiply in floating point, and were not asked to do otherwise."""
    if view.evidence.precision == "fp32":
        return None
    found = [layer for layer in view.free() if layer.kind == "compute" and view.is_float(layer)]
    if not found:
        return None
    flops, all_flops = sum(layer.flops for layer in found), sum(layer.flops for layer in view.layers)
    seconds = sum(layer.seconds for layer in found)
    lost = sum(max(layer.seconds - view.ideal_seconds(layer), 0.0) for layer in found)
    view.claim(found)
    share = lost / view.total
    counted = f"{percent(flops / all_flops)} of the operations, " if all_flops else ""
    sentence = (
        f"{listed([layer.title for layer in found])} multiply in {found[0].precision.upper()}: {counted}"
        f"{milliseconds(seconds)} of {milliseconds(view.total)}; {percent(share)} of the call would go in "
        f"{view.evidence.precision.upper()} at the machine's rate."
    )
    nodes = tuple(node for node in _nodes(found) if node in view.facts)
    words = f"Lower {listed(nodes)} too, where the recipe leaves them out."
    advice = (Advice(words, "include", nodes),) if nodes else ()
    return Reason("left_in_float", "time", share, share, sentence, _names(found), _nodes(found), advice=advice)


def conversions(view: View) -> Reason | None:
    """Conversions that no other reason accounts for, such as those at the model's inputs and outputs."""
    found = [layer for layer in view.free() if layer.kind == "convert"]
    if not found:
        return None
    share = view.claim(found)
    weights = [layer for layer in found if layer.reads and all(spec.name in layer.constants for spec in layer.reads)]
    again = f"; {len(weights)} of them convert weights anew in every call" if weights else ""
    sentence = (
        f"{len(found)} conversions between types ({listed([layer.title for layer in found])}) take "
        f"{milliseconds(sum(layer.seconds for layer in found))}, {percent(share)} of the call{again}."
    )
    return Reason("conversions", "time", share, 0.5 * share, sentence, _names(found), _nodes(found))


def launch_bound(view: View) -> Reason | None:
    """A call that is mostly its launches: the layers that both variants have, at what an empty layer costs here."""
    ceilings, found = view.evidence.ceilings, view.evidence.variant
    if ceilings is None or not view.layers or found.replayed:
        return None  # a replayed graph launches once, whatever the profiler has to do
    count = min(len(view.layers), len(view.evidence.baseline.layers) or len(view.layers))
    # The profiler needs about a microsecond a layer itself, so launches are compared with an undisturbed call.
    total = found.plain_seconds or found.measured_seconds or view.total
    launches = ceilings.call_seconds + (count - 1) * ceilings.layer_seconds
    work = sum(layer.bound_seconds or 0.0 for layer in view.layers)
    share = min(launches / total, 1.0)
    if share < 0.1 or work > launches:
        return None
    sentence = (
        f"Launching {count} layers takes {milliseconds(launches)} of {milliseconds(total)} ({percent(share)}) with nothing to "
        f"compute, and all their work {milliseconds(work)} at this machine's rates: no type makes that faster."
    )
    words = "Feed more samples a call, so that each launch does more work."
    advice: tuple[Advice, ...] = (Advice(words, "batch", value=_times(launches, work)),)
    if view.evidence.backend in _WITH_GRAPHS:
        words = "Replay the calls from a CUDA graph, which launches once: Protocol(cuda_graph=True)."
        advice = (Advice(words, "cuda_graph"), *advice)
    # Below that the call is not mostly launches: the baseline has them too, and something else sets the variant apart.
    score = share if share >= _MOSTLY_LAUNCHES else share / 2
    return Reason("launch_bound", "time", share, score, sentence, advice=advice)


def machine_rate(view: View) -> Reason | None:
    """A machine that promises little in the variant's type."""
    ratio, low = view.rate_ratio, [layer for layer in view.layers if layer.kind == "compute" and view.is_lowered(layer)]
    if ratio is None or ratio >= _HARDLY_FASTER or view.evidence.precision == "fp32" or not low:
        return None
    share = sum(layer.seconds for layer in low) / view.total
    sentence = (
        f"This machine multiplies only {ratio:.2f} times as fast in {view.evidence.precision.upper()} as in FP32, measured in "
        f"large products: more is not to be had, in {percent(share)} of the call."
    )
    return Reason("machine_rate", "time", share, _SYMPTOM * share, sentence, _names(low))


def _times(fixed: float, each: float) -> str:
    """How many times as many samples make the work as long as what a call costs however many there are: 2 to 16."""
    wanted = fixed / each if each > 0 else math.inf
    return str(next((times for times in (2, 4, 8) if times >= wanted), 16))


def _is_slow(view: View, layer: Layer) -> bool:
    """Whether a lowered layer gains less than a fair part of what the machine's rates promise."""
    before = view.baseline_seconds(layer.nodes)
    if layer.seconds < _RESOLVED_SECONDS:
        return False
    if not view.is_lowered(layer) or layer.kind in ("convert", "layout") or before <= 0:
        return False
    return before / layer.seconds < 1 + _GAINS * max((view.rate_ratio or 1.0) - 1, 0.0)


def _thin(layer: Layer) -> str | None:
    """Say how thin a layer is; None where it fills a kernel."""
    shape = layer.weight_shape
    if len(shape) < 3 or layer.kind != "compute":
        return None
    channels, products = shape[0] or 1, math.prod(size or 1 for size in shape[1:])
    if channels > _FEW_CHANNELS and products >= _FEW_PRODUCTS:
        return None
    return f"{channels} output channels, {products} products a value"


def _names(layers: list[Layer]) -> tuple[str, ...]:
    return tuple(layer.name for layer in layers)


def _nodes(layers: list[Layer]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(node for layer in layers for node in layer.nodes))
