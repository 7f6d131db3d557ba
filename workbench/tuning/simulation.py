"""Simulate a recipe without building it: lower the FP32 graph, run it on ONNX Runtime's CPU, compare the outputs.

What calibrators, sensitivity and the search have in common: many quantized graphs judged on the same few samples. Builds
no engine, measures no time. The samples come from the calibration data: evaluation data are for the final word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from numpy.typing import NDArray

from workbench import codec
from workbench.calibration.table import CalibrationTable
from workbench.datasets import Split
from workbench.datasets.metrics import Metric, Outputs, identity
from workbench.datasets.outputs import Answers
from workbench.engines.base import Feeds
from workbench.engines.isolated import open_file
from workbench.engines.sample_axes import sample_axes
from workbench.errors import CalibrationError
from workbench.graph.dialects import family
from workbench.graph.files import fixed_batch
from workbench.judging import accuracy, statistics
from workbench.judging.accuracy import Accumulator
from workbench.machine.handle import QUIET, Handle
from workbench.machine.store import Store
from workbench.recipes import Recipe
from workbench.records import Accuracy, Model, StepReport, TensorSpec
from workbench.transformation.steps import BEFORE_QUANTIZATION, STEPS, Calibrated, observed_graph

# Outputs of the FP32 parent that are held, so that each simulation compares with them.
LARGEST_HELD_BYTES = 96 << 20
_BATCH = 32


@dataclass(frozen=True)
class Effect:
    """What quantizing does to the outputs.

    Attributes:
        nsr: for each sample its squared error over the mean squared output of all samples, averaged over outputs:
            the mean of these is what 10 ** (-SQNR / 10) is.
        accuracy: the same, as every other check of answers records it.
    """

    nsr: tuple[float, ...]
    accuracy: Accuracy

    @property
    def sqnr_db(self) -> float:
        """Signal to quantization noise at the outputs; +inf where nothing changed, -inf where an output is not finite."""
        mean = float(np.mean(self.nsr))
        if not np.isfinite(mean):
            return -np.inf
        return float(-10 * np.log10(mean)) if mean > 0 else np.inf

    @property
    def drop(self) -> float | None:
        """How much worse the answers are, see `accuracy_drop`."""
        return accuracy_drop(self.accuracy)

    @property
    def unit(self) -> str:
        """What `drop` counts."""
        return drop_unit(self.accuracy)


def accuracy_drop(record: Accuracy) -> float | None:
    """Return how much worse the answers are than the parent's, in `drop_unit`, negative where better.

    None where there are neither scores nor predictions of classes.
    """
    if record.scores:
        ours, theirs = (
            statistics.shown_score(np.asarray(values), record.display)
            for values in (record.scores, record.parent_scores)
        )
        worse = theirs - ours if record.higher_is_better else ours - theirs
        return 100 * worse if record.unit == "share" else worse
    if record.predictions:
        return 100 * float(1 - np.mean(accuracy.agreeing(record)))
    return None


def drop_unit(record: Accuracy) -> str:
    """Return in what a loss of accuracy is counted: points of a share, the metric's unit, or points of agreement."""
    if record.scores:
        return f"points of {record.metric}" if record.unit == "share" else str(record.metric)
    return "points of agreement" if record.predictions else "nothing"


@dataclass
class Simulation:
    """One model, one set of samples to judge on, and any number of quantized graphs.

    Attributes:
        base: the recipe whose steps before quantization (fusion, pruning, smoothing) make the FP32 parent.
        judged: samples to judge on, labels with them where there is a metric; cut where FP32 outputs would not fit.
        calibrated: the dialect, and what recipes with static quantization, `auto` and smoothing need.
        store: remembers every effect, so that a search goes on where it stopped; None remembers nothing.
        largest_held_bytes: FP32 outputs held; samples beyond that are not judged on.
        handle: the caller's, which may stop it.
        evaluations: how many graphs were run, those that were remembered not among them.
    """

    model: Model
    base: Recipe
    judged: Split
    calibrated: Calibrated = field(default_factory=Calibrated)
    metric: Metric | None = None
    store: Store | None = None
    threads: int | None = None
    largest_held_bytes: int = LARGEST_HELD_BYTES
    handle: Handle = QUIET
    evaluations: int = 0

    def __post_init__(self) -> None:
        self.graph = observed_graph(self.model, self.base, self.calibrated)
        self._parent, self._axes, count = _held(self.graph, self.judged, self)
        if count < len(self.judged):
            self.judged = self.judged.take(range(count))
        self._power = {name: _power(values) for name, values in self._parent.items()}

    def quantized(
        self, recipe: Recipe, table: CalibrationTable | None = None
    ) -> tuple[onnx.ModelProto, list[StepReport]]:
        """Return the graph after the recipe's lowering steps, and their reports.

        Args:
            table: instead of the simulation's own.

        Raises:
            TransformError, RecipeError, CalibrationError: a step cannot be applied.
        """
        proto = onnx.ModelProto()
        proto.CopyFrom(self.graph)
        calibrated = self.calibrated if table is None else replace(self.calibrated, table=table, calibrators={})
        context = calibrated.context(self.model)
        steps = [step for step in recipe.steps if step.kind not in ("fuse", *BEFORE_QUANTIZATION)]
        return proto, [STEPS[step.kind](proto, step, context) for step in steps]

    def effect(self, recipe: Recipe) -> Effect:
        """Return what a recipe does to the outputs; remembered in the store.

        Args:
            recipe: with the same steps before quantization as `base`.
        """
        if self.store is None or identity(self.metric) is None:
            return self.judge(self.quantized(recipe)[0])
        return self.store.remember(Effect, self._parts(recipe), lambda: self.judge(self.quantized(recipe)[0]))

    def judge(self, proto: onnx.ModelProto) -> Effect:
        """Run a quantized graph over the judged samples and compare its outputs with the FP32 parent's."""
        labels = self.judged.labels
        metric = self.metric if labels is not None else None
        accumulator = Accumulator(metric)
        noise = []
        for rows, ours, theirs in self._outputs(proto):
            accumulator.update(self._laid_out(ours), self._laid_out(theirs), None if metric is None else labels[rows])  # type: ignore[index]
            noise.append(self._nsr(ours, theirs))
        return Effect(tuple(float(value) for value in np.concatenate(noise)), accumulator.result())

    def nsr(self, proto: onnx.ModelProto) -> NDArray[np.float64]:
        """Return `Effect.nsr` of a quantized graph, (samples,), without the other comparisons."""
        return np.concatenate([self._nsr(ours, theirs) for _, ours, theirs in self._outputs(proto)])

    def _outputs(self, proto: onnx.ModelProto) -> Iterator[tuple[slice, Outputs, Outputs]]:
        self.evaluations += 1
        start = 0
        # Other engines' Q/DQ pairs are run as they stand: what ONNX Runtime would make of them is not what they do there.
        fusion = "all" if family(self.calibrated.dialect) == "ort-cpu" else "off"
        with open_file(proto.SerializeToString(), fusion, self.threads, handle=self.handle) as runner:
            for feeds in self.judged.batches(fixed_batch(self.graph) or _BATCH):
                outputs = runner.infer(feeds)
                rows = slice(start, start + len(next(iter(feeds.values()))))
                start = rows.stop
                theirs = {name: values[rows] for name, values in self._parent.items()}
                yield rows, {name: _samples_first(outputs[name], self._axes[name]) for name in theirs}, theirs

    def _laid_out(self, outputs: Outputs) -> Answers:
        """Return outputs as the model lays them out, which is what a metric is made for."""
        laid_out = {name: np.moveaxis(values, 0, self._axes[name]) for name, values in outputs.items()}
        return Answers(laid_out, self._axes, samples=len(next(iter(outputs.values()))))

    def _nsr(self, ours: Outputs, theirs: Outputs) -> NDArray[np.float64]:
        each = []
        for name, values in theirs.items():
            # Dot products sample by sample: the logits of a language model in float64 would need several times the time.
            # A place that both forbid with the same infinity is no difference.
            with np.errstate(invalid="ignore"):
                errors = np.subtract(ours[name], values, dtype=np.float32)
            errors[np.isinf(values) & (ours[name] == values)] = 0
            errors = errors.reshape(len(values), -1)
            squares = np.array([np.dot(row, row) for row in errors], np.float64)
            each.append(squares / errors.shape[1] / self._power[name])
        return np.asarray(np.mean(each, axis=0))

    def _parts(self, recipe: Recipe) -> tuple[object, ...]:
        """What an effect depends on."""
        plain = codec.to_plain(Recipe("simulated", recipe.steps))
        return (self.model.sha256, plain, self.calibrated.sha256, self.judged.sha256, identity(self.metric))


def _held(graph: onnx.ModelProto, split: Split, how: Simulation) -> tuple[dict[str, np.ndarray], dict[str, int], int]:
    """Return the FP32 outputs of as many samples as fit, samples first, on which axis they were, and how many these are.

    Outputs without an axis of samples are left out: what quantizing does to a sample cannot be told from them.
    """
    size = fixed_batch(graph) or min(_BATCH, len(split))
    if len(split) < size:
        raise CalibrationError(
            f"The model takes {size} samples at a time, and {len(split)} are there to judge a simulation on. Give more "
            f"calibration samples."
        )
    calls: list[tuple[int, Outputs]] = []
    first: Feeds = {}
    held = count = 0
    with open_file(graph.SerializeToString(), "all", how.threads, handle=how.handle) as runner:
        for feeds in split.batches(size):
            rows = len(next(iter(feeds.values())))
            if rows < size and fixed_batch(graph):
                break
            outputs = {name: values for name, values in runner.infer(feeds).items() if values.dtype.kind == "f"}
            first = first or feeds
            calls.append((rows, outputs))
            count += rows
            held += sum(values.nbytes for values in outputs.values())
            if held > how.largest_held_bytes:
                break
        found = sample_axes(runner.infer, first, calls, fixed_batch(graph), _stated(graph)) if calls[0][1] else {}
    axes = {name: axis for name, axis in found.items() if axis is not None}
    if not axes:
        raise CalibrationError(
            "The model has no floating-point output with an axis of samples, so what quantizing does to it cannot be judged."
        )
    parts = {name: [_samples_first(outputs[name], axis) for _, outputs in calls] for name, axis in axes.items()}
    return {name: np.concatenate(values) for name, values in parts.items()}, axes, count


def _samples_first(values: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(values, axis, 0)


def _power(values: np.ndarray) -> float:
    """Return the mean square of what is finite; 1 where that is nothing."""
    finite = np.isfinite(values)
    return float(np.mean(np.square(values), where=finite)) or 1.0 if finite.any() else 1.0


def _stated(graph: onnx.ModelProto) -> list[TensorSpec]:
    """Return names and shapes of the outputs; the element types do not count here."""
    return [
        TensorSpec(
            value.name,
            "float32",
            tuple(dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim),
        )
        for value in graph.graph.output
    ]
