"""Evidence made easy to ask: which layer feeds which, which was asked for what, what is already accounted for.

Holds no rules. One view serves one explanation: rules claim layers in turn, so that no second is counted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from workbench.explaining.evidence import Evidence, Layer, NodeFact
from workbench.explaining.passes import shared_name
from workbench.graph.cost import MULTIPLIES

# The type that a file asks for -> the types that count as having got it.
_GOT = {
    "int8": ("int8", "fp8"),
    "fp8": ("fp8", "int8"),
    "fp16": ("fp16", "int8", "fp8"),
    "bf16": ("bf16", "int8", "fp8"),
}


class View:
    """Questions that rules ask of the evidence.

    Attributes:
        claimed: names of the variant's layers that a reason accounts for already.
    """

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.layers = evidence.variant.layers
        self.total = evidence.variant.total_seconds or 1.0
        self.facts = {fact.name: fact for fact in evidence.facts}
        self.claimed: set[str] = set()
        self._producer = {spec.name: layer for layer in self.layers for spec in layer.writes}
        self._readers: dict[str, list[Layer]] = {}
        for layer in self.layers:
            for spec in layer.reads:
                self._readers.setdefault(spec.name, []).append(layer)
        self._known = {node for layer in evidence.baseline.layers for node in layer.nodes}
        self._seconds = self._spread()

    def is_lowered(self, layer: Layer) -> bool:
        """Whether a layer computes in the type that the variant asks for, or a lower one."""
        return layer.precision in _GOT.get(self.evidence.precision, ())

    def is_float(self, layer: Layer) -> bool:
        """Whether a layer works on floating-point values of more bits than the variant asks for."""
        return not self.is_lowered(layer) and layer.precision.startswith(("fp", "bf", "tf"))

    def facts_of(self, layer: Layer) -> list[NodeFact]:
        """Return what the file says of a layer's nodes."""
        return [self.facts[node] for node in layer.nodes if node in self.facts]

    def free(self) -> list[Layer]:
        """Return the layers that no reason accounts for yet."""
        return [layer for layer in self.layers if layer.name not in self.claimed]

    def claim(self, layers: Iterable[Layer]) -> float:
        """Account for layers; return the share of the call's time that was still free of them."""
        taken = {layer.name: layer for layer in layers if layer.name not in self.claimed}
        self.claimed |= set(taken)
        return sum(layer.seconds for layer in taken.values()) / self.total

    def before(self, layer: Layer) -> list[Layer]:
        """Return the layers whose results a layer reads."""
        found = [self._producer[spec.name] for spec in layer.reads if spec.name in self._producer]
        return list({one.name: one for one in found}.values())

    def after(self, layer: Layer) -> list[Layer]:
        """Return the layers that read a layer's results."""
        found = [reader for spec in layer.writes for reader in self._readers.get(spec.name, ())]
        return list({one.name: one for one in found}.values())

    def moves_around(self, layer: Layer) -> list[Layer]:
        """Return the conversions and changes of layout between a layer and the next ones that do work, on both sides."""
        found: dict[str, Layer] = {}
        for step in (self.before, self.after):
            ahead = step(layer)
            while ahead:
                one = ahead.pop()
                if one.kind in ("convert", "layout") and one.name not in found:
                    found[one.name] = one
                    ahead += step(one)
        return [one for one in found.values() if one.name not in self.claimed]

    def reaches_low(self, layer: Layer, *, forwards: bool) -> bool:
        """Whether work that is lowered, or was asked to be, lies on some way from here.

        Layers that do not multiply are passed; what multiplies in floating point ends a way.
        """
        step: Callable[[Layer], list[Layer]] = self.after if forwards else self.before
        ahead, seen = step(layer), {layer.name}
        while ahead:
            one = ahead.pop()
            if one.name in seen:
                continue
            seen.add(one.name)
            if one.kind == "compute":
                if self.is_lowered(one) or any(fact.asked for fact in self.facts_of(one)):
                    return True
                continue
            ahead += step(one)
        return False

    def baseline_seconds(self, nodes: Iterable[str]) -> float:
        """Return what the baseline spends on nodes of the variant's file; a fused layer's time goes by its nodes' work."""
        return sum(self._seconds.get(name, 0.0) for name in {shared_name(node, self._known) for node in nodes})

    def fused_in_baseline(self, first: str, second: str) -> bool:
        """Whether the baseline runs two nodes as one layer."""
        return any(first in layer.nodes and second in layer.nodes for layer in self.evidence.baseline.layers)

    def is_part_of_a_product(self, nodes: Iterable[str]) -> bool:
        """Whether the baseline runs all of these nodes within layers that multiply, with other nodes in them."""
        wanted = {shared_name(node, self._known) for node in nodes}
        homes = [layer for layer in self.evidence.baseline.layers if wanted & set(layer.nodes)]
        return bool(homes) and all(layer.kind == "compute" and set(layer.nodes) - wanted for layer in homes)

    def ideal_seconds(self, layer: Layer) -> float:
        """Return what a layer could take in the type that the variant asks for; half its time without ceilings."""
        ceilings, wanted = self.evidence.ceilings, self.evidence.precision
        if ceilings is None:
            return layer.seconds / 2
        narrower = 1.0 if self.is_lowered(layer) else {"int8": 4, "fp8": 4, "fp16": 2, "bf16": 2}.get(wanted, 1)
        return ceilings.bound(layer.flops, layer.size_bytes / narrower, wanted)[0] + ceilings.layer_seconds

    @property
    def rate_ratio(self) -> float | None:
        """How many times faster this machine multiplies in the variant's type than in FP32; None where not measured."""
        ceilings = self.evidence.ceilings
        if ceilings is None or self.evidence.precision not in ceilings.rates:
            return None
        return ceilings.rates[self.evidence.precision] / ceilings.rates["fp32"]

    def _spread(self) -> dict[str, float]:
        """Node -> its part of the baseline's seconds. What multiplies gets a fused layer's time, whatever else is in it."""
        found: dict[str, float] = {}
        multiplying = {fact.name for fact in self.evidence.facts if fact.operator in MULTIPLIES}
        for layer in self.evidence.baseline.layers:
            heavy = [node for node in layer.nodes if node in multiplying] if layer.kind == "compute" else []
            for node in heavy or layer.nodes:
                found[node] = found.get(node, 0.0) + layer.seconds / len(heavy or layer.nodes)
        return found
