"""What each layer costs when it is quantized, and what quantizing it saves: one row a layer, in PyTorch module paths.

Layers are lowered in groups, and only groups that matter are halved: a model of 200 layers needs tens of evaluations. The
answers are judged on calibration samples, so that evaluation data stay clean for what is made of the rows.
"""

from __future__ import annotations

import heapq
import html
import itertools
import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from workbench import engines
from workbench.datasets import Dataset
from workbench.engines import jobs
from workbench.errors import CalibrationError, Cancelled, DataError, RecipeError, expect
from workbench.machine.handle import QUIET, Handle
from workbench.machine.store import Store
from workbench.models import as_model
from workbench.recipes import Fuse, Recipe, named
from workbench.records import BuildOptions, Model
from workbench.transformation.steps import Calibrated, transform
from workbench.tuning.calibrating import calibrate
from workbench.tuning.layers import layer_times, time_of
from workbench.tuning.simulation import Effect, Simulation

if TYPE_CHECKING:
    import pandas

MOST_EVALUATIONS = 64
# A group of layers that makes less than this share of all noise is not looked into.
_NEGLIGIBLE = 0.02
_BLOCK = re.compile(r"^(.*?\.?\d+)(?:\.|$)")
Evaluate = Callable[[Sequence[str]], Effect]


@dataclass(frozen=True)
class LayerCost:
    """One layer, or one repeated block.

    Attributes:
        name: PyTorch module path; the ONNX node's name where there is none.
        nodes: the nodes that are lowered in it.
        group: how many layers were lowered together for the numbers below; 1 where it was measured by itself.
        alone_db: SQNR at the outputs when only it (its group) is lowered; +inf where nothing changes.
        alone_nsr: what alone_db says as noise over signal, divided by `group`: what rows are ranked by.
        alone_drop: accuracy lost then, of the whole group, in the unit of `LayerCosts.unit`.
        kept_db, kept_drop: the same when everything but it (its group) is lowered; None where that was not tried.
        seconds, quantized_seconds: profiled time a call in FP32 and lowered; None where it was not profiled.
    """

    name: str
    nodes: tuple[str, ...]
    group: int
    alone_db: float
    alone_nsr: float
    alone_drop: float | None = None
    kept_db: float | None = None
    kept_drop: float | None = None
    seconds: float | None = None
    quantized_seconds: float | None = None

    @property
    def saved_seconds(self) -> float | None:
        """What quantizing it saves a call; negative where it costs time."""
        if self.seconds is None or self.quantized_seconds is None:
            return None
        return self.seconds - self.quantized_seconds


# Rows that a notebook shows by itself.
_MOST_SHOWN = 20


@dataclass(frozen=True, repr=False)
class LayerCosts:
    """All layers that a recipe quantizes or reduces, the noisiest first.

    Attributes:
        whole_db, whole_drop: with all of them lowered.
        unit: what `drop` counts, such as `points of top-1`.
        samples: calibration samples that answers were judged on.
        evaluations: quantized graphs that were run.
        backend, backend_reason: what the layers were timed on, and why that.
    """

    recipe: Recipe
    rows: tuple[LayerCost, ...]
    whole_db: float
    whole_drop: float | None
    unit: str
    samples: int
    evaluations: int
    backend: str = ""
    backend_reason: str = ""

    def keeping(self, names: Sequence[str], name: str | None = None) -> Recipe:
        """Return the recipe with these layers kept as they were.

        Args:
            names: of rows.
            name: of the new recipe; None counts the layers.

        Raises:
            RecipeError: there is no such row.
        """
        unknown = [one for one in names if one not in {row.name for row in self.rows}]
        if unknown:
            raise RecipeError(f"No layer is called {unknown[0]!r}. The rows' names are module paths; see `.rows`.")
        return kept(self.recipe, names, name)

    def __repr__(self) -> str:
        loss = "" if self.whole_drop is None else f", {self.whole_drop:.3g} {self.unit} lost"
        return f"LayerCosts({self.recipe.name!r}: {len(self.rows)} layers; all lowered {self.whole_db:.1f} dB{loss})"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.table().head(_MOST_SHOWN).round(3).to_html(escape=True)}"

    def table(self) -> pandas.DataFrame:
        """Return milliseconds saved and accuracy lost, one row a layer, the noisiest first.

        Numbers stay numbers, so that it can be sorted by any column.
        """
        import pandas

        total = sum(item.alone_nsr for item in self.rows) or 1.0
        return pandas.DataFrame(
            [
                {
                    "layer": item.name,
                    "nodes": len(item.nodes),
                    "measured together": item.group,
                    "share of NSR %": 100 * item.alone_nsr / total,
                    "alone, dB": item.alone_db,
                    f"accuracy drop alone, {self.unit}": item.alone_drop,
                    "all but it, dB": item.kept_db,
                    f"accuracy drop of all but it, {self.unit}": item.kept_drop,
                    "FP32 ms": _ms(item.seconds),
                    "quantized ms": _ms(item.quantized_seconds),
                    "saved ms": _ms(item.saved_seconds),
                }
                for item in self.rows
            ]
        )


def layer_costs(
    model: Model | str | Path,
    data: Dataset,
    recipe: str | Recipe = "int8-max",
    *,
    by: Literal["layer", "block"] = "layer",
    backend: str = "auto",
    times: bool = True,
    batch: int = 8,
    known: Calibrated | None = None,
    store: Store | None = None,
    options: BuildOptions | None = None,
    most_evaluations: int = MOST_EVALUATIONS,
    handle: Handle = QUIET,
) -> LayerCosts:
    """Measure what quantizing each layer costs, and what it saves.

    Accuracy is judged in this process, by running the file that the backend would get on ONNX Runtime's CPU engine;
    times come from the backend's own profiler, on its own device.

    Args:
        data: its calibration samples find thresholds and judge answers; evaluation samples are not touched.
        recipe: with a step that lowers (Quantize, QuantizeWeights, Precision).
        by: `layer`, or `block` for repeated ones such as `layers.3`.
        backend: a name from `workbench.backends()`, or `auto` for what `run` takes; the dialect follows it.
        times: profile the FP32 engine and the lowered one, in child processes.
        batch: samples a call while profiling.
        known: what `workbench.calibrate` found for this recipe; None calibrates.
        store: remembers every evaluation; None takes the default store.

    Raises:
        BackendMissing: the backend cannot be used here.
        RecipeError: the recipe lowers nothing by name.
        CalibrationError: there are no calibration samples.
        EngineError: the backend has no profiler of layers; `times=False` leaves times out.
    """
    recipe, store = named(recipe), store or Store()
    model = as_model(model, "layer_costs", store)
    expect(
        data,
        Dataset,
        "layer_costs",
        "Wrap arrays with workbench.datasets.arrays(x, labels, calibration=...).",
        DataError,
    )
    data = data.bound_to(model)
    backend, reason = engines.choose(backend)
    split = data.calibration
    if split is None:
        raise CalibrationError(
            f"Layers are judged on calibration samples, and the data {data.name!r} have none. Split some off: "
            f"data.split_off(calibration=200)."
        )
    dialect = engines.backend(backend).dialect(backend)
    if known is None:
        known = _known(model, data, recipe, dialect, store=store, handle=handle)
    simulation = Simulation(model, recipe, split, known, data.metric, store, handle=handle)
    by_step = lowered(simulation, recipe)
    groups = layers_of(simulation, set().union(*by_step.values()), by)

    def evaluate(names: Sequence[str]) -> Effect:
        if handle.cancelled():
            raise Cancelled("Stopped as asked. What was evaluated is kept; run again to go on from there.")
        chosen = set(names)
        mixed = kept(recipe, [name for name in groups if name not in chosen])
        # A step that lowers none of the chosen layers has nothing to do, and refuses to do nothing.
        nodes = {node for name in chosen for node in groups[name]}
        idle = {kind for kind, changed in by_step.items() if not changed & nodes}
        return simulation.effect(replace(mixed, steps=tuple(step for step in mixed.steps if step.kind not in idle)))

    costs = rank(recipe, groups, evaluate, most_evaluations)
    costs = replace(costs, samples=len(simulation.judged), backend=backend, backend_reason=reason)
    if not times:
        return costs
    found = []
    for one in (Recipe("fp32", (Fuse(_level(recipe)),)), recipe):
        variant = transform(model, one, table=known, store=store)
        engine = jobs.build(variant, backend, options, store=store, handle=handle)
        feeds = {name: array[:batch] for name, array in split.inputs.items()}
        found.append(time_of(layer_times(engine, feeds, model.modules, handle=handle), groups)[0])
    rows = (replace(row, seconds=found[0][row.name], quantized_seconds=found[1][row.name]) for row in costs.rows)
    return replace(costs, rows=tuple(rows))


def _known(model: Model, data: Dataset, recipe: Recipe, dialect: str, *, store: Store, handle: Handle) -> Calibrated:
    if not (recipe.needs_calibration or recipe.uses_samples):
        return Calibrated(dialect)
    return calibrate(model, data, recipe, dialect=dialect, store=store, handle=handle)


def lowered(simulation: Simulation, recipe: Recipe) -> dict[str, set[str]]:
    """Return kind of step -> the nodes that it quantizes or reduces, where there are any.

    Raises:
        RecipeError: the recipe lowers no node.
    """
    _, reports = simulation.quantized(recipe)
    there = {node.name for node in simulation.graph.graph.node}
    found = {report.kind: nodes for report in reports if (nodes := there & set(report.changed))}
    if not found:
        raise RecipeError(f"The recipe {recipe.name!r} lowers no node of this model, so there is nothing to rank.")
    return found


def layers_of(simulation: Simulation, nodes: Set[str], by: Literal["layer", "block"]) -> dict[str, tuple[str, ...]]:
    """Return layer -> those of the nodes that are in it, in the order of the graph."""
    groups: dict[str, list[str]] = {}
    for node in simulation.graph.graph.node:
        if node.name in nodes:
            groups.setdefault(_layer(node.name, simulation.model.modules, by), []).append(node.name)
    return {name: tuple(held) for name, held in groups.items()}


def kept(recipe: Recipe, names: Sequence[str], name: str | None = None) -> Recipe:
    """Return a recipe that leaves these layers (module paths, blocks, nodes) as they were."""
    if not names:
        return replace(recipe, name=name or recipe.name)
    # A block is kept with all that is in it; `$` alone would leave its inner modules lowered.
    patterns = [f"^{re.escape(one)}(\\.|$)" if _is_block(one) else f"^{re.escape(one)}$" for one in names]
    return recipe.excluding(*patterns, name=name or f"{recipe.name}-keep{len(names)}")


def rank(
    recipe: Recipe, groups: Mapping[str, Sequence[str]], evaluate: Evaluate, most_evaluations: int = MOST_EVALUATIONS
) -> LayerCosts:
    """Find the layers that make the noise, by halving the groups that make most of it.

    Args:
        groups: layer -> its nodes, in the order of the graph, so that halves are neighbours.
        evaluate: layers that are lowered, all others not -> the effect.
    """
    names, made = list(groups), 0

    def measured(chosen: Sequence[str]) -> Effect:
        nonlocal made
        made += 1
        return evaluate(chosen)

    whole = measured(names)
    order = itertools.count()
    waiting = [(-_nsr(whole), next(order), names, whole)]
    leaves: list[tuple[list[str], Effect]] = []
    # A quarter of the evaluations is left for "all but this one".
    while waiting:
        noise, _, group, effect = heapq.heappop(waiting)
        small = -noise <= _NEGLIGIBLE * _nsr(whole) or made + 2 > most_evaluations * 3 // 4
        if len(group) == 1 or small:
            leaves.append((group, effect))
            continue
        middle = (len(group) + 1) // 2
        for half in (group[:middle], group[middle:]):
            part = measured(half)
            heapq.heappush(waiting, (-_nsr(part), next(order), half, part))
    leaves.sort(key=lambda leaf: -_nsr(leaf[1]) / len(leaf[0]))
    rows = []
    for group, effect in leaves:
        rest = [name for name in names if name not in set(group)]
        matters = _nsr(effect) > _NEGLIGIBLE * _nsr(whole)
        without = measured(rest) if rest and matters and made < most_evaluations else None
        rows += [_row(name, tuple(groups[name]), len(group), effect, without) for name in group]
    return LayerCosts(recipe, tuple(rows), whole.sqnr_db, whole.drop, whole.unit, len(whole.nsr), made)


def _row(name: str, nodes: tuple[str, ...], group: int, effect: Effect, without: Effect | None) -> LayerCost:
    return LayerCost(
        name=name,
        nodes=nodes,
        group=group,
        alone_db=effect.sqnr_db,
        alone_nsr=_nsr(effect) / group,
        alone_drop=effect.drop,
        kept_db=None if without is None else without.sqnr_db,
        kept_drop=None if without is None else without.drop,
    )


def _nsr(effect: Effect) -> float:
    mean = float(np.mean(effect.nsr))
    return mean if np.isfinite(mean) else float("inf")


def _layer(node: str, modules: Mapping[str, str], by: str) -> str:
    path = modules.get(node)
    if path is None:
        return node
    block = _BLOCK.match(path) if by == "block" else None
    return path if block is None else block[1]


def _is_block(name: str) -> bool:
    found = _BLOCK.match(name)
    return found is not None and found[1] == name


def _level(recipe: Recipe) -> Literal["off", "basic", "all"]:
    step = recipe.step("fuse")
    return step.level if isinstance(step, Fuse) else "all"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
