"""`run`: take a model through N recipes, remember every finished piece, and survive whatever stops it."""

from __future__ import annotations

import contextlib
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np

from workbench import codec
from workbench.datasets import Dataset
from workbench.errors import Cancelled, RecipeError, StoreError, WorkbenchError
from workbench.judging import accuracy, roofline
from workbench.judging.disagreeing import spread
from workbench.machine import device, turn
from workbench.machine.handle import Handle
from workbench.machine.store import Store
from workbench.measuring import latency
from workbench.models import as_model
from workbench.recipes import Recipe
from workbench.records import (
    BuildOptions,
    Engine,
    Failure,
    Model,
    Progress,
    Protocol,
    Round,
    StudyRecord,
    VariantResult,
)
from workbench.study import progress as bars
from workbench.study.effort import Effort
from workbench.study.request import Request, requested, summary_of
from workbench.study.rounds import Rounds, selected
from workbench.study.stages import Stages, identity_of
from workbench.study.study import Study
from workbench.tuning import machine_ceilings

DEFAULT_RECIPES = ("fp32", "fp16", "int8-kl")
# Pictures or texts kept in the record, of samples on which variants disagree.
_MOST_SAMPLES = 24
# While a stage works, it is told now and then how far all of it is.
_BEAT_SECONDS = 1.0
_BUILDING = re.compile(r"progress (\d\.\d+) ?(.*)")
_DAMAGED = "Records in the store were not what had been written"


def run(
    model: Model | str | Path,
    data: Dataset | None = None,
    recipes: Sequence[str | Recipe] = DEFAULT_RECIPES,
    *,
    backend: str = "auto",
    protocol: Protocol | None = None,
    options: BuildOptions | None = None,
    baseline: str = "fp32",
    name: str | None = None,
    store: Store | None = None,
    progress: bars.Listener | Literal["auto"] | None = "auto",
    watch: Callable[[StudyRecord], None] = lambda record: None,
    on_line: Callable[[str], None] = lambda line: None,
    cancel: Callable[[], bool] = lambda: False,
) -> Study:
    """Transform, build, check and measure a model under several recipes, and compare them with the baseline.

    Whatever is finished stays: interrupt it, or kill it, and the same call goes on where it stopped. A recipe that
    fails is recorded with its message and log while the others go on; running again tries it again.

    Args:
        model: from `workbench.load`, or a name or path that it takes.
        data: evaluation and calibration samples; None takes random inputs, and then no accuracy is claimed.
        recipes: names (see `workbench.recipes.NAMED`) or Recipe objects, in the order in which they are shown.
        backend: a name from `workbench.backends()`, or `auto` for the fastest that is here.
        protocol: how latency is measured; None takes the defaults of `Protocol`.
        options: how engines are built; None takes one CPU thread and the engine's own choices.
        baseline: name of the recipe that all are compared with; put in front if it is not among the recipes.
        name: of the study, to find it again; a study of that name keeps what it has and grows by what is new. None
            derives one from everything asked for, so that another request is another study. Engines that both have
            are neither built nor measured twice.
        store: None takes the default store.
        progress: a function called with each Progress, `auto` for a bar where somebody looks, None for silence.
        watch: called from this thread with the record so far, whenever something was added to it; nothing is being
            measured meanwhile.
        on_line: called from this thread with each line of the builds' logs.
        cancel: asked now and then from this thread; True stops with Cancelled.

    Raises:
        LoadError, RecipeError, BackendMissing, DataError: before anything is started.
        StoreError: there is a study of that name on other terms, or it is being run by another process.
        Cancelled: `cancel` said so; KeyboardInterrupt likewise loses nothing.
        WorkbenchError: the baseline itself failed, so that there is nothing to compare with.
    """
    store = store or Store()
    model = as_model(model, "run", store)
    request = requested(
        model, data, recipes, backend=backend, protocol=protocol, options=options, baseline=baseline, name=name
    )
    handle = Handle(cancel, bars.listener(progress), on_line)
    with turn.alone(store.root / "locks", request.name):
        return _Run(request, store, handle, watch).go()


def blank_record(request: Request, store: Store) -> StudyRecord:
    """Return the record of a study of which nothing is done yet."""
    return StudyRecord(
        name=request.name,
        created_at=time.time(),
        model=request.model,
        backend=request.backend,
        backend_reason=request.backend_reason,
        protocol=request.protocol,
        options=request.options,
        baseline=request.baseline,
        results=tuple(VariantResult(recipe) for recipe in request.recipes),
        data=summary_of(request.dataset),
        environment=_environment(request, store),
        notes=request.notes,
    )


class _Run:
    """One call of `run`: the record so far, and how much is done."""

    def __init__(self, request: Request, store: Store, handle: Handle, watch: Callable[[StudyRecord], None]) -> None:
        self.request, self.store, self.handle, self.watch = request, store, handle, watch
        self.effort = Effort(request.recipes, request.protocol)
        self._begun = self._told = Progress("starting", "", 0.0)
        self._beat = 0.0
        # What a stage says, and how often it asks whether to stop, moves the progress of the whole.
        self.inner = Handle(self._asked, self._within, self._line)
        self.stages = Stages(
            store, request.model, request.dataset, request.backend, request.options, request.protocol.batch, self.inner
        )  # fmt: skip
        self.kept = Rounds(store, request.model.sha256, request.dataset.evaluation.sha256, request.protocol)
        self.earlier = _earlier(store, request)
        blank = blank_record(request, store)
        created_at = blank.created_at if self.earlier is None else self.earlier.created_at
        explanations = {} if self.earlier is None else self.earlier.explanations
        self.record = replace(
            blank, created_at=created_at, results=(*blank.results, *self._carried()), explanations=explanations
        )
        self.feeds: dict[str, np.ndarray] = {}

    def go(self) -> Study:
        if self.earlier is None:
            self._keep()
        try:
            self._answers()
            self._measure()
        finally:
            self.stages.forget_parent()
            self._keep()
        self.handle.progress(Progress("finished", "", 1.0))
        return Study(self.record)

    def _carried(self) -> list[VariantResult]:
        """What the study of this name has beside what is asked for now."""
        if self.earlier is None:
            return []
        asked = {recipe.name: recipe for recipe in self.request.recipes}
        for item in self.earlier.results:
            if item.recipe.name in asked and item.recipe != asked[item.recipe.name]:
                raise RecipeError(
                    f"The study {self.earlier.name!r} has a recipe {item.recipe.name!r} with other steps. Give this one "
                    f"another name, or the study."
                )
        return [item for item in self.earlier.results if item.recipe.name not in asked]

    def _answers(self) -> None:
        """Transform, build and check every recipe, the baseline first: the others are compared with its answers."""
        parent: Engine | None = None
        for recipe in sorted(self.request.recipes, key=lambda recipe: recipe.name != self.request.baseline):
            stage = "transform"
            try:
                self._begin(stage, recipe.name)
                variant = self.stages.variant(recipe)
                stage = "build"
                self._begin(stage, recipe.name)
                engine = self.stages.engine(variant)
                parent = parent or engine
                self._put(recipe.name, variant=variant, engine=engine, failure=None)
                stage = "check"
                self._begin(stage, recipe.name)
                self._put(recipe.name, accuracy=self.stages.accuracy(engine, parent, recipe))
                self._end()
            except (Cancelled, StoreError):  # a full disk is no fault of a variant
                raise
            except WorkbenchError as error:
                self._failed(recipe.name, stage, error)
                if parent is None:
                    raise  # the baseline failed: nothing to compare with
        self._put_samples()

    def _measure(self) -> None:
        """Measure in turns until every variant has its rounds.

        A variant that lacks rounds (new, or cut off by an interruption) is measured together with the baseline in new
        turns, so that ratios always pair neighbours in time.
        """
        self.feeds = self.request.dataset.evaluation.cycled(self.request.protocol.batch)
        self._take_over_rounds()
        self.effort.rounds(self._rounds_left())
        seed = self.request.protocol.seed
        order = latency.turns(
            self._lacking,
            self.kept.next_turn,
            seed=seed,
            beside=self.request.baseline,
            handle=self.handle,
            waiting=lambda words: self._tell(Progress("measure", "", 0.0, words)),
        )
        with contextlib.closing(order):  # whatever ends this loop, the turn goes to whoever waits for it
            for index, name in order:
                self._take(index, name)

    def _take(self, index: int, name: str) -> None:
        """Measure one round of one variant, and keep it."""
        engine = self._result(name).engine
        if engine is None or self._result(name).failure is not None:
            return
        self._begin("measure", name, f"round {len(self._rounds(name)) + 1}")
        try:
            taken = latency.take_round(engine, self.feeds, self.request.protocol, index, handle=self.inner)
            self.kept.keep(engine, taken)
            self._put_rounds(name, engine, (*self._rounds(name), taken))
        except (Cancelled, StoreError):  # a full disk is no fault of a variant
            raise
        except WorkbenchError as error:
            self._failed(name, "measure", error)
            if name == self.request.baseline:
                raise
        self._end()

    def _lacking(self) -> list[str]:
        return [name for name, _ in self._usable() if len(self._rounds(name)) < self.request.protocol.rounds]

    def _rounds_left(self) -> int:
        """Rounds that are still to be measured; the baseline takes part in every turn."""
        lacks = {name: max(0, self.request.protocol.rounds - len(self._rounds(name))) for name, _ in self._usable()}
        return max(lacks.values(), default=0) + sum(lacks.values()) - lacks.get(self.request.baseline, 0)

    def _usable(self) -> list[tuple[str, Engine]]:
        asked = {recipe.name for recipe in self.request.recipes}
        return [
            (item.recipe.name, item.engine)
            for item in self.record.results
            if item.recipe.name in asked and item.engine is not None and item.failure is None
        ]

    def _rounds(self, name: str) -> tuple[Round, ...]:
        taken = self._result(name).measurement
        return () if taken is None else taken.rounds

    def _take_over_rounds(self) -> None:
        """Find the rounds that were measured before on the very same engines, and keep what this study has shown."""
        usable = dict(self._usable())
        pinned = {name: self._shown_before(name, engine) for name, engine in usable.items()}
        measured = {name: self.kept.of(engine) for name, engine in usable.items()}
        baseline = measured.pop(self.request.baseline, [])
        chosen = selected(baseline, measured, self.request.protocol.rounds, pinned, self.request.baseline)
        for name, rounds in chosen.items():
            if rounds and name in usable:
                self._put_rounds(name, usable[name], rounds)

    def _shown_before(self, name: str, engine: Engine) -> tuple[Round, ...]:
        for item in () if self.earlier is None else self.earlier.results:
            if item.recipe.name == name and item.measurement is not None and item.engine is not None:
                return item.measurement.rounds if identity_of(item.engine) == identity_of(engine) else ()
        return ()

    def _put_rounds(self, name: str, engine: Engine, rounds: tuple[Round, ...]) -> None:
        here = {key: value for key, value in self.record.environment.items() if key != roofline.KIND}
        environment = {**here, "threads": engine.options.threads}
        measurement = latency.measurement(engine, self.feeds, self.request.protocol, rounds, environment)
        self._put(name, measurement=measurement)

    def _failed(self, name: str, stage: str, error: WorkbenchError) -> None:
        log = str(getattr(error, "log", ""))
        self._put(name, failure=Failure(name, stage, type(error).__name__, str(error), log))
        if stage == "measure":
            self._end()
            self.effort.rounds(self._rounds_left())
        else:
            self.effort.drop(name, stage)

    def _result(self, name: str) -> VariantResult:
        return next(item for item in self.record.results if item.recipe.name == name)

    def _put(self, name: str, **fields: Any) -> None:
        results = tuple(replace(item, **fields) if item.recipe.name == name else item for item in self.record.results)
        self.record = replace(self.record, results=results)
        self.watch(self.record)

    def _put_samples(self) -> None:
        """Keep pictures or texts of samples on which variants disagree with the baseline, spread over the variants."""
        show = self.request.dataset.show
        if show is None:
            return
        checks = {item.recipe.name: item.accuracy for item in self.record.results if item.accuracy is not None}
        flipped = {name: [int(index) for index in accuracy.flips(check)] for name, check in checks.items()}
        self.record = replace(
            self.record, samples={str(index): show(index) for index in spread(flipped, _MOST_SAMPLES)}
        )

    def _keep(self) -> None:
        """Write the record; an earlier one with raw samples that this one no longer has gets a name of its own."""
        self.record = replace(self.record, notes=self._notes())
        if self.earlier is not None and _measured(self.earlier) - _measured(self.record):
            when = datetime.fromtimestamp(self.earlier.created_at, tz=timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
            aside = replace(self.earlier, name=f"{self.earlier.name} (of {when} UTC)")
            self.store.put("study", aside.name, codec.to_json(aside))
        self.store.put("study", self.record.name, codec.to_json(self.record))

    def _notes(self) -> tuple[str, ...]:
        """What did not go as asked, and which records of the store were damaged, in this run or an earlier one."""
        told = [note for note in (() if self.earlier is None else self.earlier.notes) if note.startswith(_DAMAGED)]
        if self.store.damaged:
            kinds = Counter(kind for kind, _ in self.store.damaged)
            listed = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
            told.append(f"{_DAMAGED} ({listed}): they were left out, and what is missing was made or measured again.")
        return (*self.request.notes, *dict.fromkeys(told))

    def _begin(self, stage: str, variant: str, message: str = "") -> None:
        self.effort.begin(stage, variant)
        self.handle.check()
        self._begun = Progress(stage, variant, 0.0, message)
        self._tell(self._begun)

    def _end(self) -> None:
        self.effort.end()
        self.handle.check()
        self._tell(replace(self._begun, message=""))

    def _tell(self, step: Progress) -> None:
        """Tell what is being done, and how much of all is done."""
        self._told, self._beat = step, time.monotonic()
        effort = self.effort
        self.handle.progress(replace(step, fraction=effort.fraction, remaining_seconds=effort.remaining_seconds))

    def _asked(self) -> bool:
        """Whether to stop; who asks while it works is also a clock."""
        if time.monotonic() - self._beat >= _BEAT_SECONDS:
            self._tell(self._told)
        return self.handle.cancelled()

    def _within(self, step: Progress) -> None:
        """Hear how far a stage is."""
        self.effort.at(step.fraction)
        self._tell(replace(step, variant=step.variant or self._told.variant))

    def _line(self, line: str) -> None:
        """Hand on what a builder prints; TensorRT's says how far it is."""
        if (said := _BUILDING.match(line)) is not None:
            self.effort.at(float(said[1]))
            self._tell(replace(self._told, message=f"{float(said[1]):.0%} {said[2]}".strip()))
        self.handle.on_line(line)


def _earlier(store: Store, request: Request) -> StudyRecord | None:
    """Return the study of this name, or refuse to mix with one on other terms."""
    text = store.get("study", request.name)
    if text is None:
        return None
    try:
        found = codec.from_json(StudyRecord, text)
    except StoreError:
        return None  # a damaged record loses nothing: every stage and every round has a record of its own
    theirs = (found.model.sha256, found.backend, found.protocol, found.baseline, found.data.get("sha256"))
    ours = (
        request.model.sha256, request.backend, request.protocol, request.baseline, request.dataset.sha256,
    )  # fmt: skip
    same_options = found.schema_version < 2 or found.options == request.options
    if theirs != ours or not same_options:
        raise StoreError(
            f"There is a study {request.name!r} already, of another model, data, backend, protocol, build options or "
            f"baseline. Give this one another name."
        )
    return found


def _environment(request: Request, store: Store) -> dict[str, Any]:
    """Describe this machine, with what it can do at most where that was measured before."""
    found = device.describe()
    known = machine_ceilings.kept(request.backend, threads=request.options.threads, store=store)
    return found if known is None else {**found, roofline.KIND: codec.to_plain(known)}


def _measured(record: StudyRecord) -> set[tuple[str, float]]:
    """Return which rounds a record holds: variant and moment."""
    results = (item for item in record.results if item.measurement is not None)
    return {(item.recipe.name, taken.started_at) for item in results for taken in item.measurement.rounds}  # type: ignore[union-attr]
