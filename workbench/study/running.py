"""`run`: take a model through N recipes, remember every finished piece, and survive whatever stops it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from workbench import codec, datasets, engines
from workbench.datasets import Dataset
from workbench.errors import Cancelled, DataError, LoadError, RecipeError, StoreError, WorkbenchError
from workbench.judging import accuracy
from workbench.machine import device
from workbench.machine.store import Store
from workbench.measuring import latency as measurement
from workbench.recipes import Recipe, named
from workbench.records import (
    BuildOptions,
    Engine,
    Failure,
    Measurement,
    Model,
    Progress,
    Protocol,
    Round,
    ShapeProfile,
    StudyRecord,
    VariantResult,
)
from workbench.study import progress
from workbench.study.stages import Stages
from workbench.study.study import Study

DEFAULT_RECIPES = ("fp32", "fp16", "int8-kl")
# Pictures or texts kept in the record, of samples on which variants disagree.
_MOST_SAMPLES = 24


def run(
    model: Model,
    data: Dataset | None = None,
    recipes: Sequence[str | Recipe] = DEFAULT_RECIPES,
    *,
    backend: str = "auto",
    protocol: Protocol | None = None,
    options: BuildOptions | None = None,
    baseline: str = "fp32",
    name: str | None = None,
    store: Store | None = None,
    progress: progress.Listener | Literal["auto"] | None = "auto",
    watch: Callable[[StudyRecord], None] = lambda record: None,
    on_line: Callable[[str], None] = lambda line: None,
    cancel: Callable[[], bool] = lambda: False,
) -> Study:
    """Transform, build, check and measure a model under several recipes, and compare them with the baseline.

    Whatever is finished stays: interrupt it, or kill it, and the same call goes on where it stopped. A recipe that
    fails is recorded with its message and log while the others go on; running again tries it again.

    Args:
        data: evaluation and calibration samples; None takes random inputs, and then no accuracy is claimed.
        recipes: names (see `workbench.recipes.NAMED`) or Recipe objects, in the order in which they are shown.
        backend: a name from `workbench.backends()`, or `auto` for the fastest that is here.
        protocol: how latency is measured; None takes the defaults of `Protocol`.
        options: how engines are built; None takes one CPU thread and the engine's own choices.
        baseline: name of the recipe that all are compared with; put in front if it is not among the recipes.
        name: of the study, to find it again; None derives one from model, data, backend and protocol.
        store: None takes the default store.
        progress: a function called with each Progress, `auto` for a bar where somebody looks, None for silence.
        watch: called from this thread with the record so far, whenever something was added to it; nothing is being
            measured meanwhile.
        on_line: called from this thread with each line of the builds' logs.
        cancel: asked now and then from this thread; True stops with Cancelled.

    Raises:
        LoadError, RecipeError, BackendMissing, DataError: before anything is started.
        Cancelled: `cancel` said so; KeyboardInterrupt likewise loses nothing.
        WorkbenchError: the baseline itself failed, so that there is nothing to compare with.
    """
    begun = _Run(model, data, recipes, backend, protocol, options, baseline, name, store, progress, cancel)
    begun.watch = watch
    begun.stages.on_line = on_line
    return begun.go()


class _Run:
    """One call of `run`: what was asked, the record so far, and how much is done."""

    def __init__(
        self,
        model: Model,
        data: Dataset | None,
        recipes: Sequence[str | Recipe],
        backend: str,
        protocol: Protocol | None,
        options: BuildOptions | None,
        baseline: str,
        name: str | None,
        store: Store | None,
        show: progress.Listener | Literal["auto"] | None,
        cancel: Callable[[], bool],
    ) -> None:
        if not isinstance(model, Model):
            raise LoadError(f"run takes a loaded model, got {type(model).__name__}. Pass workbench.load(...).")
        if data is not None and not isinstance(data, Dataset):
            raise DataError(
                f"run takes a Dataset, got {type(data).__name__}. Wrap arrays with workbench.datasets.arrays(x, labels)."
            )
        self.cancel = cancel
        self.watch: Callable[[StudyRecord], None] = lambda record: None
        self.show = progress.listener(show)
        self.store = store or Store()
        chosen = _chosen([recipes] if isinstance(recipes, (str, Recipe)) else recipes, baseline)
        backend, reason = engines.choose(backend)
        dataset = (datasets.random(model) if data is None else data).bound_to(model)
        protocol, notes = _fitting(protocol or Protocol(), model)
        options = _with_profiles(options or BuildOptions(), backend, dataset, protocol)
        self.stages = Stages(self.store, model, dataset, backend, options, protocol.batch, cancel)
        self.record = StudyRecord(
            name=name or _name(model, dataset, backend, protocol, self.stages.options, baseline),
            created_at=time.time(),
            model=model,
            backend=backend,
            backend_reason=reason,
            protocol=protocol,
            baseline=chosen[0].name if baseline not in [item.name for item in chosen] else baseline,
            results=tuple(VariantResult(recipe) for recipe in chosen),
            data=_summary(dataset),
            environment=device.describe(),
            notes=(*notes, *dataset.notes, *_data_notes(dataset)),
        )
        self._resume()
        self.feeds: dict[str, np.ndarray] = {}
        # For each recipe: transform, build, check; then its share of the rounds.
        self.units = len(chosen) * (3 + protocol.rounds)
        self.done = 0

    def go(self) -> Study:
        self._keep()
        try:
            self._answers()
            self._measure()
        finally:
            self.stages.forget_parent()
            self._keep()
        self._tick("finished", "", self.units)
        return Study(self.record)

    def _answers(self) -> None:
        """Transform, build and check every recipe, the baseline first: the others are compared with its answers."""
        parent: Engine | None = None
        order = sorted(self.record.results, key=lambda result: result.recipe.name != self.record.baseline)
        for result in order:
            stage = "transform"
            try:
                self._tick(stage, result.recipe.name)
                variant = self.stages.variant(result.recipe)
                stage = "build"
                self._tick(stage, result.recipe.name, 1)
                engine = self.stages.engine(variant)
                parent = parent or engine
                self._put(result.recipe.name, variant=variant, engine=engine, failure=None)
                stage = "check"
                self._tick(stage, result.recipe.name, 1)
                self._put(result.recipe.name, accuracy=self.stages.accuracy(engine, parent, result.recipe))
                self._tick(stage, result.recipe.name, 1)
            except Cancelled:
                raise
            except WorkbenchError as error:
                self._failed(result.recipe.name, stage, error)
                if parent is None:
                    raise  # the baseline failed: nothing to compare with
        self._put_samples()

    def _measure(self) -> None:
        """Measure in turns until every variant has its rounds.

        Rounds of one index ran next to each other. A variant that lacks rounds (new, or cut off by an interruption)
        is measured together with the baseline under new indices, so that ratios always pair neighbours in time.
        """
        self.feeds = self._feeds()
        self._take_over_rounds()
        while lacking := self._lacking():
            names = [self.record.baseline, *(name for name in lacking if name != self.record.baseline)]
            index = 1 + max((item.index for name in names for item in self._rounds(name)), default=-1)
            order = np.random.default_rng([self.record.protocol.seed, index]).permutation(len(names))
            for name in (names[place] for place in order):
                engine = self._result(name).engine
                if engine is None or self._result(name).failure is not None:
                    continue
                self._tick("measure", name, message=f"round {index + 1}")
                try:
                    taken = measurement.take_round(engine, self.feeds, self.record.protocol, index, cancel=self.cancel)
                    self.store.put("round", f"{self._round_prefix(engine)}{index}", codec.to_json(taken))
                    self._add_round(name, engine, taken)
                except Cancelled:
                    raise
                except WorkbenchError as error:
                    self._failed(name, "measure", error)
                    if name == self.record.baseline:
                        raise
                self._tick("measure", name, 1)

    def _lacking(self) -> list[str]:
        wanted = self.record.protocol.rounds
        usable = [item for item in self.record.results if item.engine is not None and item.failure is None]
        return [item.recipe.name for item in usable if len(self._rounds(item.recipe.name)) < wanted]

    def _rounds(self, name: str) -> tuple[Round, ...]:
        taken = self._result(name).measurement
        return () if taken is None else taken.rounds

    def _add_round(self, name: str, engine: Engine, taken: Round) -> None:
        so_far = self._result(name).measurement or Measurement(
            variant=engine.variant,
            variant_sha256=engine.variant_sha256,
            backend=engine.backend,
            device=engine.device,
            protocol=self.record.protocol,
            shapes={key: tuple(array.shape) for key, array in self.feeds.items()},
            rounds=(),
            environment={**self.record.environment, "threads": engine.options.threads},
        )
        self._put(name, measurement=replace(so_far, rounds=(*so_far.rounds, taken)))

    def _feeds(self) -> dict[str, np.ndarray]:
        inputs = self.stages.dataset.evaluation.inputs
        count = len(self.stages.dataset.evaluation)
        rows = np.arange(self.record.protocol.batch) % count
        return {name: np.ascontiguousarray(array[rows]) for name, array in inputs.items()}

    def _resume(self) -> None:
        """Join an earlier run of the same name, or refuse to mix with a study on other terms."""
        text = self.store.get("study", self.record.name)
        if text is None:
            return
        try:
            earlier = codec.from_json(StudyRecord, text)
        except StoreError:
            return  # a damaged record loses nothing: every stage and every round has a record of its own
        if _terms(earlier) != _terms(self.record):
            raise StoreError(
                f"There is a study {self.record.name!r} already, of another model, data, backend, protocol or baseline. "
                f"Give this one another name."
            )
        self.record = replace(self.record, created_at=earlier.created_at)

    def _take_over_rounds(self) -> None:
        """Find the rounds that an earlier run of this study measured on the very same engines."""
        for item in self.record.results:
            if item.engine is None or item.failure is not None:
                continue
            keys = self.store.keys("round", prefix=self._round_prefix(item.engine))
            rounds = []
            for key in keys:
                try:
                    rounds.append(codec.from_json(Round, self.store.get("round", key) or ""))
                except StoreError:
                    continue  # a damaged round is measured again
            for taken in sorted(rounds, key=lambda taken: taken.index):
                self._add_round(item.recipe.name, item.engine, taken)
                self.done += 1

    def _round_prefix(self, engine: Engine) -> str:
        terms = [
            engine.variant_sha256,
            engine.fusion,
            engine.backend_version,
            engine.device,
            codec.to_plain(engine.options),
        ]
        return f"{self.record.name}/{hashlib.sha256(json.dumps(terms).encode()).hexdigest()[:16]}/"

    def _failed(self, name: str, stage: str, error: WorkbenchError) -> None:
        log = str(getattr(error, "log", ""))
        self._put(name, failure=Failure(name, stage, type(error).__name__, str(error), log))

    def _result(self, name: str) -> VariantResult:
        return next(item for item in self.record.results if item.recipe.name == name)

    def _put(self, name: str, **fields: Any) -> None:
        results = tuple(replace(item, **fields) if item.recipe.name == name else item for item in self.record.results)
        self.record = replace(self.record, results=results)
        self.watch(self.record)

    def _put_samples(self) -> None:
        """Keep pictures or texts of the samples on which most variants disagree with the baseline."""
        show = self.stages.dataset.show
        if show is None:
            return
        votes: dict[int, int] = {}
        for item in self.record.results:
            for index in accuracy.flips(item.accuracy) if item.accuracy is not None else ():
                votes[int(index)] = votes.get(int(index), 0) + 1
        chosen = sorted(votes, key=lambda index: (-votes[index], index))[:_MOST_SAMPLES]
        self.record = replace(self.record, samples={str(index): show(index) for index in chosen})

    def _keep(self) -> None:
        self.store.put("study", self.record.name, codec.to_json(self.record))

    def _tick(self, stage: str, variant: str, units: int = 0, message: str = "") -> None:
        self.done = min(self.done + units, self.units)
        if self.cancel():
            raise Cancelled("Stopped as asked. What was finished before is kept; run again to go on from there.")
        self.show(Progress(stage, variant, self.done / self.units, message))


def _chosen(recipes: Sequence[str | Recipe], baseline: str) -> list[Recipe]:
    chosen = [named(recipe) for recipe in recipes]
    names = [recipe.name for recipe in chosen]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RecipeError(f"The recipe names {', '.join(twice)} appear more than once. Give each recipe its own name.")
    return chosen if baseline in names else [named(baseline), *chosen]


def _fitting(protocol: Protocol, model: Model) -> tuple[Protocol, tuple[str, ...]]:
    """Take the model's own batch size where its first axis is fixed."""
    fixed = {spec.shape[0] for spec in model.inputs if spec.shape and spec.shape[0] is not None}
    if not fixed or fixed == {protocol.batch}:
        return protocol, ()
    if len(fixed) > 1:
        raise DataError(
            f"The inputs of {model.name} have the fixed first axes {sorted(fixed)}; one batch cannot serve all."
        )
    batch = int(next(iter(fixed)))
    note = f"The model takes batches of {batch} only, so batch {batch} was measured instead of {protocol.batch}."
    return replace(protocol, batch=batch), (note,)


def _with_profiles(options: BuildOptions, backend: str, dataset: Dataset, protocol: Protocol) -> BuildOptions:
    """Give engines that compile for shapes the shapes that this study will feed, unless the caller named some."""
    if backend != "tensorrt" or options.profiles:
        return options
    profile = {
        name: ShapeProfile(
            (1, *array.shape[1:]), (protocol.batch, *array.shape[1:]), (protocol.batch, *array.shape[1:])
        )
        for name, array in dataset.evaluation.inputs.items()
    }
    return replace(options, profiles=(profile,))


def _name(
    model: Model, dataset: Dataset, backend: str, protocol: Protocol, options: BuildOptions, baseline: str
) -> str:
    terms = [model.sha256, dataset.sha256, backend, codec.to_plain(protocol), codec.to_plain(options), baseline]
    return f"{model.name}-{hashlib.sha256(json.dumps(terms, sort_keys=True).encode()).hexdigest()[:8]}"


def _terms(record: StudyRecord) -> tuple[object, ...]:
    return (record.model.sha256, record.backend, record.protocol, record.baseline, record.data.get("sha256"))


def _summary(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "kind": dataset.kind,
        "sha256": dataset.sha256,
        "evaluation_samples": len(dataset.evaluation),
        "calibration_samples": 0 if dataset.calibration is None else len(dataset.calibration),
        "metric": None if dataset.metric is None else dataset.metric.name,
    }


def _data_notes(dataset: Dataset) -> tuple[str, ...]:
    if dataset.kind != "random":
        return ()
    return ("The inputs are random numbers: latencies hold for these shapes, and no accuracy is claimed.",)
