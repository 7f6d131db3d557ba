"""Choose a calibrator for each tensor by what it costs at the outputs.

`choose` is what `auto` means. Its thresholds come from one table over a part of the calibration data, its verdicts from
the outputs on the rest; evaluation data take no part. Knows nothing of engines' builders and of latency.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from workbench.calibration.histogram import Histogram
from workbench.calibration.table import CalibrationTable, Provenance
from workbench.calibration.thresholds import METHODS, sqnr_db
from workbench.datasets import Split
from workbench.errors import Cancelled, RecipeError
from workbench.graph.dialects import dialect as dialect_named
from workbench.graph.editing import Context, Graph
from workbench.graph.placement import place
from workbench.graph.quantization import Scale, activation_format, encode
from workbench.machine.handle import QUIET, Handle
from workbench.recipes import Quantize, Recipe, Step
from workbench.records import Model
from workbench.transformation.intermediate_outputs import Observation
from workbench.transformation.observing import calibrate_proto
from workbench.transformation.steps import Calibrated
from workbench.tuning.held_out import better, crossed, decibels, typical
from workbench.tuning.simulation import Simulation

if TYPE_CHECKING:
    pass

# Of each half of them: language models' logits fill it with a few texts.
_JUDGED_BYTES = 16 << 20
# Lowered graphs that `choose` may judge: most of its cost, which should stay below four times that of one calibrator
# (`benchmarks/calibration.py`). Six are the single calibrators.
MOST_TRIALS = 7
# With fewer judged samples than this the choice may turn on a handful, and says so.
_MANY = 64


Names = tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """What `auto` found.

    Attributes:
        calibrators: tensor -> calibrator, for every tensor whose threshold was free to choose.
        reasons: tensor -> why, in a sentence.
        single_db: calibrator -> SQNR at the outputs with that calibrator throughout, on the judged samples.
        best_single: the one that all tensors started from, the best of them as judged.
        auto_db: SQNR with the choice, never less than the best single calibrator's. As all that is judged here, it
            leaves out the noisiest twentieth of the samples.
        judged: how many calibration samples the outputs were compared on, each with thresholds that it had no part in.
        trials: how many quantized graphs were run.
    """

    calibrators: dict[str, str]
    reasons: dict[str, str]
    single_db: dict[str, float]
    best_single: str
    auto_db: float
    judged: int
    trials: int
    seconds: float

    @property
    def note(self) -> str:
        """What a reader of the report must know, in a sentence."""
        others = sum(name != self.best_single for name in self.calibrators.values())
        singles = ", ".join(f"{name} {value:.1f}" for name, value in self.single_db.items())
        return (
            f"auto took {self.best_single!r}, and another calibrator for {others} of {len(self.calibrators)} tensors: "
            f"{self.auto_db:.1f} dB at the outputs on {self.judged} calibration samples, each held back from the "
            f"thresholds it was judged with and the noisiest twentieth left out (single calibrators: {singles})."
            + (f" {self.judged} samples are few: another few may choose otherwise." if self.judged < _MANY else "")
        )


def choose(
    model: Model,
    split: Split,
    recipe: Recipe,
    *,
    known: Calibrated | None = None,
    tables: Sequence[CalibrationTable] = (),
    most_trials: int = MOST_TRIALS,
    handle: Handle = QUIET,
) -> Choice:
    """Find the calibrator of each tensor with which the outputs lose least.

    All tensors start from the best single calibrator. Then groups of tensors try another one, the most promising
    group first: a group that gains keeps it, one that loses is halved, until the trials are used up. The choice holds
    for this dialect only.

    Args:
        split: calibration samples, under the model's input names.
        recipe: with a static Quantize step.
        known: the dialect, and the channel maxima where the recipe smooths.
        tables: of the halves (see `held_out.crossed`), where they were observed before.

    Raises:
        RecipeError: the recipe has no such step.
        CalibrationError: activations are not finite, or there are too few samples for the model's batch.
    """
    started = time.perf_counter()
    if not is_static(recipe):
        raise RecipeError(f"The recipe {recipe.name!r} quantizes no activations with static ranges: nothing to choose.")
    known = known or Calibrated()
    stop = threading.Event()
    # The halves run in threads of their own, which hear of Ctrl-C through this.
    held = replace(handle, cancelled=lambda: stop.is_set() or handle.cancelled())

    def fold(halves: tuple[Split, Split], table: CalibrationTable | None) -> _Fold:
        return _Fold(_simulation(model, recipe, halves[1], known, held), halves[0], held, table)

    halves = crossed(split)
    with ThreadPoolExecutor(2, "observe") as pool:
        try:
            folds = list(pool.map(fold, halves, tables or [None] * len(halves)))
        except BaseException:
            stop.set()  # the other half is not waited for
            raise
    trials = _Trials(folds, handle, stop)
    single = {name: trials.nsr(dict.fromkeys(trials.free, name)) for name in METHODS}
    best = min(METHODS, key=lambda name: typical(single[name]))
    found, reasons, noise = trials.improved(best, single, most_trials)
    return Choice(
        calibrators={name: method for names, method in found.items() for name in names},
        reasons={name: reasons[names] for names in found for name in names},
        single_db={name: decibels(one) for name, one in single.items()},
        best_single=best,
        auto_db=decibels(noise),
        judged=len(noise),
        trials=trials.made,
        seconds=time.perf_counter() - started,
    )


def _simulation(model: Model, recipe: Recipe, judged: Split, known: Calibrated, handle: Handle) -> Simulation:
    # One thread each: the two halves run side by side.
    return Simulation(model, recipe, judged, known, threads=1, largest_held_bytes=_JUDGED_BYTES, handle=handle)


class _Fold:
    """Every tensor's candidate ranges, from some samples, and the outputs they give on others."""

    def __init__(self, simulation: Simulation, fitted: Split, handle: Handle, table: CalibrationTable | None) -> None:
        self.simulation = simulation
        self.step = next(step for step in simulation.base.steps if isinstance(step, Quantize))
        self.plain = Recipe(simulation.base.name, tuple(with_calibrator(item, "max") for item in simulation.base.steps))
        if table is None:
            provenance = Provenance(simulation.model.sha256, fitted.sha256, "")
            table = calibrate_proto(simulation.graph, fitted.inputs, provenance, Observation(handle=handle))
        to = activation_format(self.step, dialect_named(simulation.calibrated.dialect))
        self.joined = {
            names: Histogram.joined(table[name] for name in names) for names in _ranges(simulation, self.step, table)
        }
        self.scales: dict[Names, dict[str, Scale]] = {
            names: {method: encode(histogram, method, to) for method in METHODS}
            for names, histogram in self.joined.items()
        }

    def nsr(self, methods: Mapping[Names, str]) -> NDArray[np.float64]:
        return self.simulation.nsr(self.simulation.quantized(self.plain, self._table(methods))[0])

    def _table(self, methods: Mapping[Names, str]) -> CalibrationTable:
        """Return a table from which `max` takes just these thresholds: two values stand for each range."""
        ends: dict[str, np.ndarray] = {}
        for names, method in methods.items():
            limit, seen = self.scales[names][method].threshold, self.joined[names]
            ends.update(dict.fromkeys(names, np.array([max(seen.minimum, -limit), min(seen.maximum, limit)])))
        table = CalibrationTable(ends, Provenance("", "", ""))
        table.update(ends, 1)
        return table


class _Trials:
    """Judges assignments of calibrators to tensors, on all folds."""

    def __init__(self, folds: list[_Fold], handle: Handle, stop: threading.Event) -> None:
        self.folds = folds
        self.handle, self.stop = handle, stop
        self.made = 0
        first = folds[0]
        inputs = {value.name for value in first.simulation.graph.graph.input}
        known = [names for names in first.scales if all(names in fold.scales for fold in folds)]
        kept = [] if first.step.clip_inputs else [names for names in known if inputs & set(names)]
        self.kept = dict.fromkeys(kept, "max")
        self.free = [names for names in known if names not in self.kept]

    def nsr(self, methods: Mapping[Names, str]) -> NDArray[np.float64]:
        if self.handle.cancelled():
            raise Cancelled("Stopped as asked while calibrators were compared. Run again to start this choice anew.")
        self.made += 1
        with ThreadPoolExecutor(len(self.folds), "simulate") as pool:
            try:
                return np.concatenate(list(pool.map(lambda fold: fold.nsr({**self.kept, **methods}), self.folds)))
            except BaseException:
                self.stop.set()  # the other half is not waited for
                raise

    def improved(
        self, best: str, single: Mapping[str, NDArray[np.float64]], most_trials: int
    ) -> tuple[dict[Names, str], dict[Names, str], NDArray[np.float64]]:
        """Change groups of tensors from the best single calibrator to others while that helps."""
        found, noise = dict.fromkeys(self.free, best), single[best]
        reasons = {names: self._reason(names, best) for names in self.free}
        waiting: list[tuple[float, int, str, list[Names]]] = []
        order = itertools.count()

        def wait(method: str, group: list[Names], cost: float) -> None:
            for half in _halves(group):
                heapq.heappush(waiting, (cost, next(order), method, half))

        for method, result in single.items():
            # Throughout it lost; in half of the tensors it may gain. Near misses come first.
            wait(method, [names for names in self.free if self._differs(names, method, best)], typical(result))
        while waiting and self.made < most_trials:
            _, _, method, group = heapq.heappop(waiting)
            group = [names for names in group if self._differs(names, method, found[names])]
            if not group:
                continue
            changed = self.nsr({**found, **dict.fromkeys(group, method)})
            if better(changed, noise):
                gain = decibels(changed) - decibels(noise)
                reasons.update({names: self._gained(names, method, found[names], gain, len(group)) for names in group})
                found.update(dict.fromkeys(group, method))
                noise = changed
            elif len(group) > 1:
                wait(method, group, typical(changed))
        return found, reasons, noise

    def _reason(self, names: Names, method: str) -> str:
        if not any(self._differs(names, other, method) for other in METHODS):
            return "all calibrators give the same range"
        return f"the best single calibrator at the outputs, and nothing tried was surely better; {self._local(names)}"

    def _gained(self, names: Names, method: str, before: str, gain: float, group: int) -> str:
        others = f" together with {group - 1} other{'s' if group > 2 else ''}" if group > 1 else ""
        return f"{method!r} gives {gain:+.2f} dB at the outputs over {before!r}{others}; {self._local(names)}"

    def _local(self, names: Names) -> str:
        fold = self.folds[0]
        best = max(METHODS, key=lambda name: sqnr_db(fold.joined[names], fold.scales[names][name].threshold))
        return f"on the tensor itself {best!r} would lose least"

    def _differs(self, names: Names, method: str, other: str) -> bool:
        pairs = [(fold.scales[names][method], fold.scales[names][other]) for fold in self.folds]
        return any((one.scale, one.zero_point) != (two.scale, two.zero_point) for one, two in pairs)


def with_calibrator(step: Step, calibrator: str) -> Step:
    """Return a Quantize step with that calibrator, and any other step as it is."""
    return replace(step, calibrator=calibrator) if isinstance(step, Quantize) else step


def is_static(recipe: Recipe) -> bool:
    """Whether a recipe quantizes activations with ranges that are calibrated."""
    step = recipe.step("quantize")
    return isinstance(step, Quantize) and step.activations == "static"


def _ranges(simulation: Simulation, step: Quantize, table: CalibrationTable) -> list[Names]:
    """Return the tensors that get a range, tied ones together."""
    graph = Graph(simulation.graph)
    context = Context(simulation.calibrated.dialect, simulation.model.modules)
    placement = place(graph, step, context, dialect_named(simulation.calibrated.dialect))
    ranges = dict.fromkeys(placement.ranges.get(name, (name,)) for name in placement.readers)
    return [names for names in ranges if all(table[name].finite for name in names)]


def _halves(group: list[Names]) -> list[list[Names]]:
    middle = (len(group) + 1) // 2
    return [half for half in (group[:middle], group[middle:]) if half]
