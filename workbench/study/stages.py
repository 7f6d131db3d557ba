"""The stages of a study, each remembered in the store by all that its result depends on.

A finished stage is never repeated: not after Ctrl-C, not after a kill, not when the same study is run again. A
remembered result whose artefact is gone or damaged is made again. Knows nothing of the order of stages.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from workbench import codec, engines, version
from workbench.calibration.table import CalibrationTable
from workbench.datasets import Dataset, Split
from workbench.datasets.metrics import fingerprint
from workbench.engines import jobs
from workbench.errors import CalibrationError, StoreError
from workbench.machine.store import Store
from workbench.measuring.answers import check
from workbench.measuring.arithmetic import arithmetic_note
from workbench.measuring.own_arithmetic import judged
from workbench.recipes import Quantize, Recipe
from workbench.records import Accuracy, BuildOptions, Engine, Model, StepReport, Variant
from workbench.transformation.intermediate_outputs import Observation
from workbench.transformation.notes import alarmed, settled, troubles
from workbench.transformation.observing import range_alarm
from workbench.transformation.steps import (
    BEFORE_QUANTIZATION,
    calibrate,
    channel_maxima,
    magnitudes,
    observed_graph,
    transform,
)
from workbench.tuning.calibrators import Choice, choose

Made = TypeVar("Made")
# Evaluation samples that are watched for leaving the calibrated range.
_MOST_WATCHED = 1024


@dataclass
class Stages:
    """What every stage of one study needs, and the stages as methods.

    Attributes:
        batch: samples a call while accuracy is checked.
        cancel: asked now and then; True stops the stage with Cancelled.
    """

    store: Store
    model: Model
    dataset: Dataset
    backend: str
    options: BuildOptions
    batch: int
    cancel: Callable[[], bool] = lambda: False
    on_line: Callable[[str], None] = lambda line: None
    _tables: dict[str, tuple[CalibrationTable, float]] = field(default_factory=dict)
    _maxima: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    _parent_folders: set[Path] = field(default_factory=set)

    @property
    def dialect(self) -> str:
        """The Q/DQ dialect of the backend."""
        return engines.backend(self.backend).dialect(self.backend)

    def table(self, recipe: Recipe) -> tuple[CalibrationTable, float]:
        """Return the calibration table that a recipe needs, and the seconds it took to collect.

        Raises:
            CalibrationError: there are no calibration data, or activations are not finite.
        """
        split = self._calibration_split(recipe)
        before = [codec.to_plain(step) for step in recipe.steps if step.kind in BEFORE_QUANTIZATION]
        key = self._key("table", self.model.sha256, recipe.fusion, before, self.dialect, split.sha256)
        if key not in self._tables:
            self._tables[key] = self._stored_table(key) or self._collected(key, recipe, split)
        return self._tables[key]

    def variant(self, recipe: Recipe) -> Variant:
        """Apply a recipe, calibrating first where it needs that."""
        table, seconds = self.table(recipe) if recipe.needs_calibration else (None, None)
        largest = self.magnitudes(recipe)
        sha256 = None if table is None else table.sha256
        key = self._key("variant", self.model.sha256, codec.to_plain(recipe), self.dialect, sha256, largest)

        def make() -> Variant:
            maxima = self._channel_maxima(recipe)
            choice = self.choice(recipe) if recipe.needs_choice else None
            variant = transform(
                self.model,
                recipe,
                dialect=self.dialect,
                table=table,
                calibrators=None if choice is None else choice.calibrators,
                channel_maxima=maxima,
                magnitudes=largest,
                store=self.store,
            )
            reports = tuple(_told(report, table, choice) for report in variant.reports)
            return replace(variant, calibration_seconds=seconds, reports=reports)

        made = self._remembered(Variant, key, make, lambda made: self.store.holds(made.sha256, Path(made.path).parent))
        return replace(made, program=self.model.program)  # the same ONNX file can come with or without one

    def choice(self, recipe: Recipe) -> Choice:
        """Return the calibrators that `auto` takes, tensor by tensor."""
        split = self._calibration_split(recipe)
        key = self._key("choice", self.model.sha256, codec.to_plain(recipe.steps), self.dialect, split.sha256)

        def make() -> Choice:
            maxima = self._channel_maxima(recipe)
            return choose(self.model, split, recipe, dialect=self.dialect, channel_maxima=maxima, cancel=self.cancel)

        return self._remembered(Choice, key, make, lambda made: True)

    def magnitudes(self, recipe: Recipe) -> dict[str, float] | None:
        """Return the largest magnitude of each activation, for FP16; None where the recipe or the data have no use for it."""
        if not recipe.uses_magnitudes or self.dataset.calibration is None or not len(self.dataset.calibration):
            return None
        split = self._calibration_split(recipe)
        before = [codec.to_plain(step) for step in recipe.steps if step.kind in BEFORE_QUANTIZATION]
        key = self._key("magnitudes", self.model.sha256, recipe.fusion, before, self.dialect, split.sha256)
        text = self.store.get("magnitudes", key)
        if text is None:
            maxima = self._channel_maxima(recipe)
            found = magnitudes(
                self.model, split, recipe, dialect=self.dialect, channel_maxima=maxima, cancel=self.cancel
            )
            text = json.dumps(found)
            self.store.put("magnitudes", key, text)
        return {name: float(value) for name, value in json.loads(text).items()}

    def alarm(self, recipe: Recipe) -> str | None:
        """Say how many evaluation samples leave the range that the recipe's calibration saw; None where none do."""
        quantize = recipe.step("quantize")
        if not isinstance(quantize, Quantize) or quantize.activations != "static":
            return None
        table, _ = self.table(recipe)
        key = self._key("alarm", table.sha256, self.dialect, self.dataset.evaluation.sha256)
        text = self.store.get("alarm", key)
        if text is None:
            graph = observed_graph(self.model, recipe, self.dialect, self._channel_maxima(recipe))
            how = Observation(samples=_MOST_WATCHED, cancel=self.cancel)
            text = alarmed(range_alarm(table, graph, self.dataset.evaluation.inputs, how)) or ""
            self.store.put("alarm", key, text)
        return text or None

    def engine(self, variant: Variant) -> Engine:
        """Build a variant in a fresh process."""
        backend = engines.backend(self.backend)
        where = (self.backend, backend.version(self.backend), backend.device(self.backend))
        key = self._key(
            "engine", variant.sha256, variant.name, variant.recipe.fusion, codec.to_plain(self.options), *where
        )

        def make() -> Engine:
            with self.store.scratch() as scratch:
                feeds = None
                if self.options.extra.get("native_calibrator") and self.dataset.calibration is not None:
                    feeds = scratch / "calibration.npz"
                    np.savez(feeds, **self.dataset.calibration.inputs)  # type: ignore[arg-type]
                return jobs.build(
                    variant,
                    self.backend,
                    self.options,
                    store=self.store,
                    calibration=feeds,
                    cancel=self.cancel,
                    on_line=self.on_line,
                )

        return self._remembered(Engine, key, make, lambda made: Path(made.path).exists())

    def accuracy(self, engine: Engine, parent: Engine, recipe: Recipe | None = None) -> Accuracy:
        """Compare a variant's answers with its FP32 parent's and with the labels, sample by sample.

        Args:
            recipe: what the variant was made by; with it, evaluation samples that leave the calibrated range are told.
        """
        evaluation = self.dataset.evaluation
        key_of_parent = self._key(*_identity(parent), evaluation.sha256, self.batch)
        metric = fingerprint(self.dataset.metric)
        key = self._key("accuracy", key_of_parent, *_identity(engine), metric)

        def make() -> Accuracy:
            folder = self.store.cache_folder("parent-outputs") / key_of_parent
            folder.mkdir(exist_ok=True)
            self._parent_folders.add(folder)
            ours, note = judged(engine, self.store)
            theirs = ours if engine == parent else judged(parent, self.store)[0]
            made = check(ours, theirs, self.dataset, batch=self.batch, keep_parent=folder, cancel=self.cancel)
            notes = made.notes if note is None else (*made.notes, note)
            return replace(made, variant_sha256=engine.variant_sha256, backend=engine.backend, notes=notes)

        # A metric that may have changed without our seeing it is computed anew.
        found = make() if metric is None else self._remembered(Accuracy, key, make, lambda made: True)
        told = () if recipe is None else (self.alarm(recipe), self.arithmetic(recipe, engine))
        notes = tuple(note for note in told if note is not None)
        return replace(found, notes=(*found.notes, *notes)) if notes else found

    def arithmetic(self, recipe: Recipe, engine: Engine) -> str | None:
        """Say that the engine computes something else than its file in exact arithmetic; None where it does not."""
        split = self.dataset.calibration or self.dataset.evaluation
        variant = self.variant(recipe)
        key = self._key("arithmetic", *_identity(engine), codec.to_plain(engine.options), variant.name, split.sha256)
        text = self.store.get("arithmetic", key)
        if text is None:
            text = arithmetic_note(engine, variant, self.model, split, self.cancel) or ""
            self.store.put("arithmetic", key, text)
        return text or None

    def forget_parent(self) -> None:
        """Drop the parent's outputs that were kept on disk while variants were compared with them."""
        for folder in self._parent_folders:
            shutil.rmtree(folder, ignore_errors=True)
        self._parent_folders.clear()

    def _calibration_split(self, recipe: Recipe) -> Split:
        split = self.dataset.calibration
        if split is None or len(split) == 0:
            raise CalibrationError(
                f"The recipe {recipe.name!r} needs calibration samples, and the data {self.dataset.name!r} have none. "
                f"Give the dataset a calibration split, or use a recipe without static quantization such as 'int8-dynamic'."
            )
        step = recipe.step("quantize")
        samples = step.samples if isinstance(step, Quantize) else None
        return split if samples is None else split.take(range(min(samples, len(split))))

    def _stored_table(self, key: str) -> tuple[CalibrationTable, float] | None:
        text = self.store.get("table", key)
        if text is None:
            return None
        try:
            kept = json.loads(text)
            if not self.store.holds(kept["sha256"], kept["path"]):
                return None
            return CalibrationTable.load(kept["path"]), float(kept["seconds"])
        except (CalibrationError, KeyError, TypeError, ValueError):
            return None

    def _collected(self, key: str, recipe: Recipe, split: Split) -> tuple[CalibrationTable, float]:
        started = time.perf_counter()
        table = calibrate(
            self.model,
            split,
            recipe,
            dialect=self.dialect,
            channel_maxima=self._channel_maxima(recipe),
            data_name=self.dataset.name,
            cancel=self.cancel,
        )
        seconds = time.perf_counter() - started
        with self.store.scratch() as scratch:
            path = scratch / "table.npz"
            table.save(path)
            sha256, place = self.store.add(path)
        self.store.put("table", key, json.dumps({"sha256": sha256, "path": str(place), "seconds": seconds}))
        return table, seconds

    def _channel_maxima(self, recipe: Recipe) -> dict[str, np.ndarray]:
        if recipe.step("smooth_quant") is None:
            return {}
        if recipe.name not in self._maxima:
            split = self._calibration_split(recipe)
            self._maxima[recipe.name] = channel_maxima(
                self.model, split, recipe, dialect=self.dialect, cancel=self.cancel
            )
        return self._maxima[recipe.name]

    def _key(self, *parts: object) -> str:
        text = json.dumps([version.code_sha256(), *parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _remembered(self, kind: type[Made], key: str, make: Callable[[], Made], valid: Callable[[Made], bool]) -> Made:
        name = kind.__name__.lower()
        text = self.store.get(name, key)
        if text is not None:
            try:
                found = codec.from_json(kind, text)
                if valid(found):
                    return found
            except StoreError:
                pass  # a record from a damaged store or another version: make it again
        made = make()
        self.store.put(name, key, codec.to_json(made))
        return made


def _told(report: StepReport, table: CalibrationTable | None, choice: Choice | None) -> StepReport:
    """Put what calibration found into the report of the step that used it."""
    if report.kind != "quantize" or table is None:
        return report
    settling = settled(table)
    notes = (*troubles(table), *(() if settling is None else (settling,)))
    if choice is None:
        return replace(report, notes=(*report.notes, *notes))
    details = {**report.details, "auto": codec.to_plain(choice)}
    return replace(report, notes=(*report.notes, choice.note, *notes), details=details)


def _identity(engine: Engine) -> tuple[str, ...]:
    return (engine.variant_sha256, engine.fusion, engine.backend, engine.backend_version, engine.device)
