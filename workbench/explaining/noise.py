"""Where a quantized file's errors come in: every pair judged by its tensor's values, and by what leaving it out saves.

The files are run on ONNX Runtime's CPU with its optimizer off, in exact arithmetic, on a few samples. Knows no recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from workbench.calibration.channels import outliers
from workbench.engines.base import Feeds
from workbench.engines.isolated import open_file
from workbench.errors import RunError
from workbench.explaining.evidence import ConcatFact, Flip, JointFact, Noise, TensorFact
from workbench.explaining.pairs import Grid, Pair, Weight, activation_pairs, dequantized_weights, without
from workbench.graph.files import fixed_batch, is_large
from workbench.graph.linear_layers import activation_channels
from workbench.machine.handle import QUIET, Handle
from workbench.transformation.intermediate_outputs import Observation, batches

SAMPLES = 32
# Tensors that are left out one by one: those with most error of their own.
_MOST_TRIED = 12
_MOST_FLIPS = 16
_BATCH = 32
_Array = NDArray[np.float64]
Outputs = dict[str, NDArray[np.float64]]


@dataclass
class Noises:
    """One parent, one quantized file, and the few samples that both are run on.

    Attributes:
        parent: the FP32 graph that was quantized; tensors of both are joined by name.
        lowered: the file.
        inputs: input name -> samples.
        weights: whether weights of the parent are those that were quantized; not so where a step changed them.
    """

    parent: onnx.ModelProto
    lowered: onnx.ModelProto
    inputs: Feeds
    weights: bool = True
    handle: Handle = QUIET
    _clean: Outputs = field(init=False)

    def __post_init__(self) -> None:
        """Run the parent.

        Raises:
            RunError: a file is beyond 2 GB, or cannot be run.
        """
        if is_large(self.parent) or is_large(self.lowered):
            raise RunError("Files beyond 2 GB are not run with single tensors left in FP32. Look at the times alone.")
        count = min(SAMPLES, len(next(iter(self.inputs.values()))))
        size = fixed_batch(self.parent)
        count = count if size is None else max(count // size, 1) * size
        self.inputs = {name: array[:count] for name, array in self.inputs.items()}
        self.samples = count
        self._clean = self.run(self.parent)
        self.pairs = activation_pairs(self.lowered)

    def run(self, proto: onnx.ModelProto, inputs: Feeds | None = None) -> Outputs:
        """Return the floating-point outputs of a graph, in float64."""
        inputs = self.inputs if inputs is None else inputs
        count, size = len(next(iter(inputs.values()))), fixed_batch(self.parent) or _BATCH
        parts: dict[str, list[NDArray[np.float64]]] = {}
        with open_file(proto.SerializeToString(), "off", 1, handle=self.handle) as runner:
            for start in range(0, count, size):
                found = runner.infer({name: array[start : start + size] for name, array in inputs.items()})
                for name, values in found.items():
                    if values.dtype.kind == "f":
                        parts.setdefault(name, []).append(values.astype(np.float64))
        return {name: np.concatenate([np.atleast_1d(one) for one in each]) for name, each in parts.items()}

    def nsr(self, outputs: Outputs) -> float:
        """Return the squared error over the squared signal, averaged over outputs; one of another size has no such thing.

        Raises:
            RunError: there is no output to compare.
        """
        pairs = [(outputs[name], want) for name, want in self._clean.items() if name in outputs]
        found = [_nsr(have, want) for have, want in pairs if have.shape == want.shape]
        if not found:
            raise RunError(
                "No output holds floating-point numbers, as many in both files: noise has nothing to show in."
            )
        return float(np.mean(found))

    def found(self, flipped: Sequence[tuple[int, int, int]] = (), flipped_inputs: Feeds | None = None) -> Noise:
        """Look at every tensor.

        Args:
            flipped: (sample, class before, class after) of samples whose answer changed.
            flipped_inputs: their inputs, in the same order.
        """
        whole = self.nsr(self.run(self.lowered))
        facts = [*self._activations(), *self._weights()]
        facts.sort(key=lambda fact: -(fact.clip_nsr + fact.round_nsr))
        tried = [replace(fact, noise_share=self._share(whole, [fact])) for fact in facts[:_MOST_TRIED] if whole > 0]
        tried.sort(key=lambda fact: -(fact.noise_share or 0.0))
        concats = tuple(self._concat(node, facts, whole) for node in self._concats())
        joints = tuple(self._joints(facts, whole)) if whole > 0 else ()
        flips = self._flips(tried, flipped[:_MOST_FLIPS], flipped_inputs) if flipped and flipped_inputs else ()
        left = len(facts) - len(tried)
        notes = (f"{left} tensors with less error of their own were not left out one by one.",) if left else ()
        return Noise(
            whole, None, self.samples, (*tried, *facts[len(tried) :]), concats, joints, flips=flips, notes=notes
        )

    def bypassed(self, names: Iterable[str]) -> onnx.ModelProto:
        """Return the file with these tensors (activations, or weights by name) left in floating point."""
        return without(self.lowered, self.parent, set(names))

    def _share(self, whole: float, facts: Sequence[TensorFact]) -> float:
        rest = self.nsr(self.run(self.bypassed(fact.name for fact in facts)))
        return 1 - rest / whole

    def _activations(self) -> list[TensorFact]:
        known = {name for node in self.parent.graph.node for name in node.output} | set(self.inputs)
        pairs = [pair for pair in self.pairs if pair.tensor in known]
        axes = activation_channels(self.parent)
        operators = {node.name: node.op_type for node in self.parent.graph.node}
        sums = {}
        for pair in pairs:
            made = 1 if operators.get(pair.producer, "").startswith("Conv") else None
            sums[pair.tensor] = _Sums(pair, axes.get(pair.tensor, made))
        how = Observation(batch=fixed_batch(self.parent) or 8, handle=self.handle)
        for batch in batches(self.parent, list(sums), self.inputs, how) if sums else ():
            for name, array in batch.arrays.items():
                sums[name].add(array.astype(np.float64))
        return [sums[pair.tensor].fact() for pair in pairs]

    def _weights(self) -> list[TensorFact]:
        return [_weight_fact(item) for item in dequantized_weights(self.lowered, self.parent)] if self.weights else []

    def _concats(self) -> list[onnx.NodeProto]:
        return [node for node in self.lowered.graph.node if node.op_type == "Concat" and len(node.input) > 1]

    def _concat(self, node: onnx.NodeProto, facts: Sequence[TensorFact], whole: float) -> ConcatFact:
        by_output = {output: pair for pair in self.pairs for output in pair.dequantized}
        ours = [by_output.get(name) for name in node.input]
        behind = next((pair for pair in self.pairs if pair.tensor == node.output[0]), None)
        known = {fact.name: fact for fact in facts if fact.role == "activation"}
        used = [pair for pair in (*ours, behind) if pair is not None and pair.tensor in known]
        inputs = [pair for pair in ours if pair is not None and pair.tensor in known]
        coarsest = behind.scale if behind is not None else 0.0
        share = self._share(whole, [known[pair.tensor] for pair in used]) if len(inputs) > 1 and whole > 0 else None
        return ConcatFact(
            node.name,
            tuple(dict.fromkeys(pair.tensor for pair in used)),
            tuple(known[pair.tensor].largest for pair in inputs),
            tuple(known[pair.tensor].largest / max(pair.scale, coarsest) for pair in inputs),
            share,
        )

    def _joints(self, facts: Sequence[TensorFact], whole: float) -> Iterator[JointFact]:
        troubles: tuple[tuple[Literal["clip", "outlier_channel"], list[TensorFact]], ...] = (
            ("clip", [fact for fact in facts if fact.clips]),
            ("outlier_channel", [fact for fact in facts if fact.has_outliers]),
        )
        for trouble, held in troubles:
            if len(held) > 1:
                yield JointFact(trouble, tuple(fact.name for fact in held), self._share(whole, held))

    def _flips(
        self, tried: Sequence[TensorFact], flipped: Sequence[tuple[int, int, int]], inputs: Feeds
    ) -> tuple[Flip, ...]:
        """Say which single tensor, left in floating point, gives a sample its old answer back."""
        size = fixed_batch(self.parent) or 1
        few = {name: np.resize(array[: len(flipped)], (-(-len(flipped) // size) * size, *array.shape[1:]))
               for name, array in inputs.items()}  # fmt: skip
        mended: dict[int, str] = {}
        clean = self.run(self.parent, few)
        answer = next(
            (name for name, values in clean.items() if _gives(values, [before for _, before, _ in flipped])), ""
        )
        for fact in tried[:4] if answer else ():
            scores = self.run(self.bypassed([fact.name]), few)[answer]
            for place, (_, before, _) in enumerate(flipped):
                if int(scores[place].argmax()) == before:
                    mended.setdefault(place, fact.readers[0] if fact.readers else fact.name)
        return tuple(Flip(*item, mended.get(place, "")) for place, item in enumerate(flipped))


def _gives(scores: NDArray[np.float64], classes: list[int]) -> bool:
    """Whether an output is the one that classes were read from: its highest scores are theirs, but for a tie here and there."""
    return scores.ndim == 2 and float(np.mean(scores[: len(classes)].argmax(axis=1) == classes)) > 0.9


class _Sums:
    """What streaming over one activation adds up.

    Args:
        axis: that runs over channels, as the layers around it say; None where they do not: the second of images, else the last.
    """

    def __init__(self, pair: Pair, axis: int | None) -> None:
        self.pair, self.axis = pair, axis
        self.signal = self.clip = self.round = 0.0
        self.clipped = self.count = 0
        self.maxima: NDArray[np.float64] | None = None

    def add(self, x: NDArray[np.float64]) -> None:
        grid, scale = self.pair.grid, self.pair.scale
        inside = np.clip(x, grid.low * scale, grid.high * scale)
        self.signal += float(np.square(x).sum())
        self.clip += float(np.square(x - inside).sum())
        self.round += float(np.square(inside - grid.nearest(inside / scale) * scale).sum())
        self.clipped += grid.beyond(x / scale)
        self.count += x.size
        looks = 1 if x.ndim >= 4 else -1
        axis = (looks if self.axis is None else self.axis) % max(x.ndim, 1)
        others = tuple(place for place in range(x.ndim) if place != axis)
        maxima = np.abs(x).max(axis=others, initial=0.0) if x.ndim > 1 else np.abs(x).max(initial=0.0, keepdims=True)
        same = self.maxima is not None and self.maxima.shape == maxima.shape
        self.maxima = np.maximum(self.maxima, maxima) if same and self.maxima is not None else maxima

    def fact(self) -> TensorFact:
        maxima = np.zeros(1) if self.maxima is None else self.maxima
        return TensorFact(
            self.pair.tensor,
            "activation",
            self.pair.readers,
            self.clip / self.signal if self.signal else 0.0,
            self.round / self.signal if self.signal else 0.0,
            self.clipped / max(self.count, 1),
            float(maxima.max()),
            *_outliers(maxima / self.pair.scale, self.pair.grid),
            producer=self.pair.producer,
        )


def _weight_fact(weight: Weight) -> TensorFact:
    """Judge a weight along both of its channel axes; the one with the larger outliers counts."""
    want, codes = weight.before, weight.unrounded
    signal = float(np.square(want).sum())
    axes = range(min(codes.ndim, 2))
    along = [np.abs(codes).max(axis=tuple(place for place in range(codes.ndim) if place != axis)) for axis in axes]
    worst = max(
        (_outliers(maxima, weight.grid) for maxima in along), key=lambda item: item[0], default=(1.0, (), 127.0)
    )
    error = float(np.square(want - weight.after).sum())
    largest = float(np.abs(want).max(initial=0.0))
    rounding = error / signal if signal else 0.0
    return TensorFact(weight.name, "weight", (weight.reader,), 0.0, rounding, 0.0, largest, *worst)


def _outliers(maxima: NDArray[np.float64], grid: Grid) -> tuple[float, tuple[int, ...], float]:
    """Return the largest channel over the median one, which channels stand out, and the codes of the median channel.

    Args:
        maxima: of the channels, in units of the scale.
    """
    ratio, out, middle = outliers(maxima)
    return ratio, out, grid.levels(middle)


def _nsr(have: NDArray[np.float64], want: NDArray[np.float64]) -> float:
    usable = np.isfinite(want)
    signal = float(np.square(want[usable]).sum())
    if not np.isfinite(have[usable]).all():
        return float("inf")
    return float(np.square((have - want)[usable]).sum()) / signal if signal else 0.0
