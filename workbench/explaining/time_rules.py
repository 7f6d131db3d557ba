"""Reasons that lie in how a quantized file and its engine fit together, found in the executed dataflow and in what the file asks.

Each rule claims the layers that it explains, the most specific first, so that no second is counted twice.
"""

from __future__ import annotations

from collections.abc import Sequence

from workbench.explaining.evidence import Layer, NodeFact
from workbench.explaining.reasons import Advice, Reason, listed, milliseconds, percent
from workbench.explaining.view import View

# Scales that differ by less are the same for a kernel that copies codes.
_SAME_SCALE = 1e-3
_CLAIMS_AT_LEAST = 0.01


def skip_without_pair(view: View) -> Reason | None:
    """A sum of a dequantized branch and one that never was quantized, executed in floating point."""
    sums = [layer for layer in view.free() if view.is_float(layer) and any(fact.mixed for fact in view.facts_of(layer))]
    if not sums:
        return None
    names = {node for layer in sums for node in layer.nodes}
    dragged = _dragged(view, names)
    moves = [one for layer in (*sums, *dragged) for one in view.moves_around(layer)]
    share = _cost(view, sums, dragged, moves)
    joined = listed([layer.title for layer in sums])
    sentence = (
        f"{joined} {_join(sums)} a quantized branch with one without a Q/DQ pair, in FP32, with {len(_unique(moves))} "
        f"conversions and changes of layout around it{_pulled(dragged)}: {percent(share)} of the call."
    )
    advice = (Advice("Quantize the skip branch too: put a Q/DQ pair on the input of the sum that has none."),)
    return _reason("skip_without_pair", share, sentence, (*sums, *dragged), advice)


def pair_between(view: View) -> Reason | None:
    """An activation that the baseline fuses with its product and the variant cannot, for a Q/DQ pair in between."""
    found = []
    for layer in view.free():
        for fact in view.facts_of(layer):
            source = fact.behind_pair_of
            if source and source not in layer.nodes and view.fused_in_baseline(source, fact.name):
                found.append((layer, f"{source} and {fact.name}"))
    if not found:
        return None
    layers = _unique([layer for layer, _ in found])
    moves = [one for layer in layers for one in view.moves_around(layer)]
    count, share = len(_unique([*layers, *moves])), view.claim((*layers, *moves))
    sentence = (
        f"A Q/DQ pair lies between {listed(list(dict.fromkeys(pair for _, pair in found)))}, which the baseline runs as one "
        f"layer: here {count} layers of their own take {percent(share)} of the call."
    )
    advice = (Advice("Take the pairs between the products and their activations out; quantize behind the activation."),)
    return _reason("pair_between", share, sentence, layers, advice)


def fallback(view: View) -> Reason | None:
    """Layers that the file hands codes and the engine runs in floating point."""
    found = [
        layer
        for layer in view.free()
        if layer.kind in ("compute", "other")
        and view.is_float(layer)
        and any(fact.asked for fact in view.facts_of(layer))
    ]
    if not found:
        return None
    moves = _unique([one for layer in found for one in view.moves_around(layer)])
    moving = sum(one.seconds for one in moves)
    seconds = sum(layer.seconds for layer in found)
    lost = sum(max(layer.seconds - view.ideal_seconds(layer), 0.0) for layer in found) + moving
    view.claim((*found, *moves))
    share = lost / view.total
    if share < _CLAIMS_AT_LEAST:
        return None
    facts = [fact for layer in found for fact in view.facts_of(layer) if fact.asked]
    why = list(dict.fromkeys(fact.obstacle for fact in facts if fact.obstacle))
    kinds = listed(list(dict.fromkeys(fact.operator for fact in facts)))
    # ONNX Runtime's CPU kernels are written for unsigned activations; signed codes get there only where it can turn them.
    signed = not why and view.evidence.backend == "onnxruntime-cpu" and any(fact.signed for fact in facts)
    form = " with signed codes" if signed else ""
    because = f" ({why[0]})" if why else f" ({view.evidence.backend} has no 8-bit kernel for {kinds}{form} here)"
    sentence = (
        f"{listed([layer.title for layer in found])}: the file asks for 8 bits, and the engine ran "
        f"{'it' if len(found) == 1 else 'them'} in FP32{because}: {milliseconds(seconds)}, and {milliseconds(moving)} for "
        f"{len(moves)} conversions; {percent(share)} of the call would go."
    )
    nodes = tuple(node for layer in found for node in layer.nodes if node in view.facts and view.facts[node].asked)
    words = f"Leave {listed(nodes)} out of the quantization, so that nothing is converted for {_them(nodes)}."
    advice = (Advice(words, "keep", nodes),) if moving > 0.2 * seconds else ()
    if signed:
        advice = (
            Advice("Write the activations as unsigned codes, the form of this engine's kernels.", "unsigned"),
            *advice,
        )
    return _reason("fallback", share, sentence, found, advice)


def concat_scales(view: View) -> Reason | None:
    """A Concat whose inputs have other scales than its output, so that codes are computed anew instead of copied."""
    found = []
    for layer in view.free():
        for fact in view.facts_of(layer):
            steps = [scale for scale in fact.scales if scale]
            if len(steps) > 1 and max(steps) > min(steps) * (1 + _SAME_SCALE) and layer.kind != "compute":
                found.append((layer, fact))
    if not found:
        return None
    layers = _unique([layer for layer, _ in found])
    moves = [one for layer in layers if view.is_float(layer) for one in view.moves_around(layer)]
    seconds = sum(layer.seconds for layer in layers)
    before = view.baseline_seconds(node for layer in layers for node in layer.nodes)
    share = view.claim((*layers, *moves))
    fact = found[0][1]
    scales = ", ".join(f"{scale:.3g}" for scale in fact.scales[:-1])
    sentence = (
        f"{listed([one.name for _, one in found])} joins codes of unequal scales ({scales} into "
        f"{fact.scales[-1]:.3g}), so it computes every code anew instead of copying: {milliseconds(seconds)} against "
        f"{milliseconds(before)} in the baseline; {percent(share)} of the call."
    )
    advice = (Advice("Give the Concat's inputs and its output one scale, as this workbench's own recipes do."),)
    return _reason("concat_scales", share, sentence, layers, advice)


def float_island(view: View) -> Reason | None:
    """What was left in floating point between lowered layers, with the conversions that it needs on both sides."""
    found = [
        layer
        for layer in view.free()
        if layer.kind in ("other", "copy")
        and view.is_float(layer)
        and not any(fact.asked for fact in view.facts_of(layer))
        and view.reaches_low(layer, forwards=False)
        and view.reaches_low(layer, forwards=True)
    ]
    if not found:
        return None
    dragged = _dragged(view, {node for layer in found for node in layer.nodes})
    moves = _unique([one for layer in (*found, *dragged) for one in view.moves_around(layer)])
    seconds, moving = sum(layer.seconds for layer in found), sum(one.seconds for one in moves)
    share = _cost(view, found, dragged, moves)
    sentence = (
        f"{listed([layer.title for layer in found])} ({_work_by_operator(found)}) {_stays(found)} in FP32 between 8-bit layers: "
        f"{milliseconds(seconds)} that 8 bits do not touch, and {milliseconds(moving)} for {len(moves)} conversions and changes "
        f"of layout{_pulled(dragged)}; {percent(share)} of the call."
    )
    return _reason("float_island", share, sentence, (*found, *dragged))


def _dragged(view: View, names: set[str]) -> list[Layer]:
    """Products that were asked for 8 bits, and whose result one of these nodes reads in floating point: they cannot follow."""
    return [
        layer
        for layer in view.free()
        if layer.kind == "compute" and view.is_float(layer) and _read_by(view.facts_of(layer), names)
    ]


def _cost(view: View, found: list[Layer], dragged: list[Layer], moves: list[Layer]) -> float:
    """Claim all of them; of the products only what they lose counts."""
    kept = sum(min(layer.seconds, view.ideal_seconds(layer)) for layer in dragged)
    return view.claim((*found, *dragged, *moves)) - kept / view.total


def _pulled(dragged: list[Layer]) -> str:
    if not dragged:
        return ""
    seconds = milliseconds(sum(layer.seconds for layer in dragged))
    return f"; {listed([layer.title for layer in dragged])} had to be computed in FP32 for that ({seconds})"


def unfused(view: View) -> Reason | None:
    """What the baseline runs within a product and the variant runs on its own, for no pair in between."""
    found = [
        layer
        for layer in view.free()
        if layer.kind in ("other", "copy") and layer.nodes and view.is_part_of_a_product(layer.nodes)
    ]
    if not found:
        return None
    share = view.claim(found)
    sentence = (
        f"{listed([layer.title for layer in found])} ({_work_by_operator(found)}) {_run(found)} apart, and within "
        f"products in the baseline: {milliseconds(sum(layer.seconds for layer in found))}, {percent(share)} of the "
        f"call."
    )
    return _reason("unfused", share, sentence, found)


def emulated(view: View) -> Reason | None:
    """A type that is stored, and not computed in."""
    wanted = view.evidence.precision
    work = [layer for layer in view.layers if layer.kind == "compute"]
    if wanted not in ("fp16", "bf16", "fp8") or not work or any(view.is_lowered(layer) for layer in work):
        return None
    moves = [layer for layer in view.free() if layer.kind == "convert"]
    share = view.claim(moves)
    precisions = " and ".join(sorted({layer.precision.upper() for layer in work}))
    sentence = (
        f"The file is in {wanted.upper()}, and {view.evidence.backend} computed all {len(work)} layers that multiply in "
        f"{precisions}: it has no {wanted.upper()} arithmetic here. {len(moves)} conversions take "
        f"{percent(share)} of the call."
    )
    return Reason("emulated", "time", 1.0, 1.0, sentence, tuple(layer.name for layer in work))


def layout(view: View) -> Reason | None:
    """Transposes and reorders, the engine's own and the file's."""
    found = [layer for layer in view.free() if layer.kind == "layout"]
    if not found:
        return None
    seconds = sum(layer.seconds for layer in found)
    before = view.evidence.baseline.of_kind("layout")
    own = [layer for layer in found if not layer.nodes]
    share = view.claim(found)
    sentence = (
        f"{len(found)} layers only move values between layouts ({listed([layer.title for layer in found])}; {len(own)} of "
        f"them were added by the engine): {milliseconds(seconds)} against {milliseconds(before)} in the baseline, "
        f"{percent(share)} of the call."
    )
    return _reason("layout", share, sentence, found)


def _reason(kind: str, share: float, sentence: str, layers: Sequence[Layer], advice: tuple[Advice, ...] = ()) -> Reason:
    nodes = tuple(dict.fromkeys(node for layer in layers for node in layer.nodes))
    return Reason(kind, "time", share, share, sentence, tuple(layer.name for layer in layers), nodes, advice=advice)


def _read_by(facts: list[NodeFact], names: set[str]) -> bool:
    """Whether a node that was asked for 8 bits could not, because one of these nodes reads it in floating point."""
    return any(names & set(fact.float_readers) for fact in facts)


def _unique(layers: list[Layer]) -> list[Layer]:
    return list({layer.name: layer for layer in layers}.values())


def _work_by_operator(layers: list[Layer]) -> str:
    """Say which operators take the time, the most first."""
    sums: dict[str, tuple[int, float]] = {}
    for layer in layers:
        count, seconds = sums.get(layer.operator, (0, 0.0))
        sums[layer.operator] = (count + 1, seconds + layer.seconds)
    ranked = sorted(sums.items(), key=lambda item: -item[1][1])
    if len(layers) == 1:
        return ranked[0][0]
    return listed([f"{count} {name} {milliseconds(seconds)}" for name, (count, seconds) in ranked])


def _join(layers: list[Layer]) -> str:
    return "joins" if len(layers) == 1 else "join"


def _run(layers: list[Layer]) -> str:
    return "runs" if len(layers) == 1 else "run"


def _stays(layers: list[Layer]) -> str:
    return "stays" if len(layers) == 1 else "stay"


def _them(names: tuple[str, ...]) -> str:
    return "it" if len(names) == 1 else "them"
