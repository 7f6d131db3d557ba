"""The stages of a study, each remembered in the store by all that its result depends on.

A finished stage is never repeated: not after Ctrl-C, not after a kill, not when the same study is run again. A
remembered result whose artefact is gone or damaged is made again. Knows nothing of the order of stages.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from workbench import codec, engines, version
from workbench.datasets import Dataset
from workbench.datasets.metrics import identity
from workbench.engines import jobs
from workbench.machine import arrays, disk, ranges
from workbench.machine.handle import Handle
from workbench.machine.store import Store, digest, key_of
from workbench.measuring.answers import check
from workbench.measuring.arithmetic import arithmetic_note
from workbench.measuring.own_arithmetic import judged
from workbench.recipes import Quantize, Recipe
from workbench.records import Accuracy, BuildOptions, Engine, Model, Variant
from workbench.transformation.intermediate_outputs import Observation
from workbench.transformation.notes import alarmed
from workbench.transformation.observing import range_alarm
from workbench.transformation.steps import Calibrated, observed_graph, transform
from workbench.tuning.calibrating import calibrate, samples_of

# Evaluation samples that are watched for leaving the calibrated range.
_MOST_WATCHED = 1024


@dataclass(frozen=True)
class Note:
    """What a check has to say, in a sentence; empty where all is well."""

    text: str


@dataclass
class Stages:
    """What every stage of one study needs, and the stages as methods.

    Attributes:
        batch: samples a call while accuracy is checked.
        handle: the caller's; hears the builders' lines, and may stop a stage.
    """

    store: Store
    model: Model
    dataset: Dataset
    backend: str
    options: BuildOptions
    batch: int
    handle: Handle = field(default_factory=Handle)
    _parent_folders: set[Path] = field(default_factory=set)
    _last: tuple[Recipe, Calibrated] | None = None

    @property
    def dialect(self) -> str:
        """The Q/DQ dialect of the backend."""
        return engines.backend(self.backend).dialect(self.backend)

    def calibrated(self, recipe: Recipe) -> Calibrated:
        """Return what a recipe needs to know of the activations.

        Raises:
            CalibrationError: there are no calibration data, or activations are not finite.
        """
        if self._samples(recipe) is None:
            return Calibrated(self.dialect)
        # Pruned weights and channel maxima are too large for the store; a recipe's variant and its checks both need them.
        if self._last is None or self._last[0] != recipe:
            with ranges.opened(f"calibrate {recipe.name}"):
                found = calibrate(
                    self.model, self.dataset, recipe, dialect=self.dialect, store=self.store, handle=self.handle
                )
            self._last = (recipe, found)
        return self._last[1]

    def variant(self, recipe: Recipe) -> Variant:
        """Apply a recipe, calibrating first where it needs that."""

        def make() -> Variant:
            known = self.calibrated(recipe)
            with ranges.opened(f"transform {recipe.name}"):
                return transform(self.model, recipe, table=known, store=self.store)

        made = self.store.remember(
            Variant,
            ("study", self.model.sha256, recipe, self.dialect, self._samples(recipe), version.libraries()),
            make,
            lambda made: self.store.holds(made.sha256, Path(made.path).parent),
        )
        return replace(made, program=self.model.program)  # the same ONNX file can come with or without one

    def engine(self, variant: Variant) -> Engine:
        """Build a variant in a fresh process."""
        backend = engines.backend(self.backend)
        where = (self.backend, backend.version(self.backend), backend.device(self.backend))
        # Precision can be the builder's flag, not the file's: the recipe is part of what an engine depends on.
        parts = (
            variant.sha256,
            variant.program,
            variant.recipe,
            self.options,
            *where,
            self._native_samples(),
            self._plugins(),
        )

        def make() -> Engine:
            with self.store.scratch() as scratch:
                feeds = None
                if self._native_samples() is not None and self.dataset.calibration is not None:
                    feeds = scratch / "calibration.npz"
                    with disk.writing(feeds):
                        arrays.save(feeds, self.dataset.calibration.inputs)
                return jobs.build(
                    variant,
                    self.backend,
                    self.options,
                    store=self.store,
                    calibration=feeds,
                    handle=self.handle,
                )

        return self.store.remember(Engine, parts, make, engines.intact)

    def accuracy(self, engine: Engine, parent: Engine, recipe: Recipe | None = None) -> Accuracy:
        """Compare a variant's answers with its FP32 parent's and with the labels, sample by sample.

        Args:
            recipe: what the variant was made by; with it, evaluation samples that leave the calibrated range are told.
        """
        metric = identity(self.dataset.metric)
        axes = dict(self.dataset.sample_axes)
        parent_parts = (*identity_of(parent), self.dataset.evaluation.sha256, self.batch, axes)

        def make() -> Accuracy:
            folder = self.store.cache_folder("parent-outputs") / key_of(parent_parts)
            disk.folder(folder, exist_ok=True)
            self._parent_folders.add(folder)
            ours, note = judged(engine, self.store)
            theirs = ours if engine == parent else judged(parent, self.store)[0]
            made = check(ours, theirs, self.dataset, batch=self.batch, keep_parent=folder, handle=self.handle)
            notes = made.notes if note is None else (*made.notes, note)
            return replace(made, variant_sha256=engine.variant_sha256, backend=engine.backend, notes=notes)

        # A metric that may have changed without our seeing it is computed anew.
        parts = (*identity_of(engine), *parent_parts, metric)
        found = make() if metric is None else self.store.remember(Accuracy, parts, make)
        told = () if recipe is None else (self.alarm(recipe), self.arithmetic(recipe, engine))
        notes = tuple(note for note in told if note is not None)
        return replace(found, notes=(*found.notes, *notes)) if notes else found

    def arithmetic(self, recipe: Recipe, engine: Engine) -> str | None:
        """Say that the engine computes something else than its file in exact arithmetic; None where it does not."""
        split = self.dataset.calibration or self.dataset.evaluation

        def make() -> Note:
            variant = self.variant(recipe)
            return Note(arithmetic_note(engine, variant, self.model, split, self.handle) or "")

        parts = ("arithmetic", *identity_of(engine), split.sha256, version.libraries())
        return self.store.remember(Note, parts, make).text or None

    def alarm(self, recipe: Recipe) -> str | None:
        """Say how many evaluation samples leave the range that the recipe's calibration saw; None where none do."""
        quantize = recipe.step("quantize")
        if not isinstance(quantize, Quantize) or quantize.activations != "static":
            return None

        def make() -> Note:
            known = self.calibrated(recipe)
            assert known.table is not None
            how = Observation(samples=_MOST_WATCHED, handle=self.handle)
            graph = observed_graph(self.model, recipe, known)
            return Note(alarmed(range_alarm(known.table, graph, self.dataset.evaluation.inputs, how)) or "")

        samples = samples_of(self.dataset, recipe).sha256
        parts = ("range", self.model.sha256, recipe, self.dialect, samples, self.dataset.evaluation.sha256)
        return self.store.remember(Note, parts, make).text or None

    def forget_parent(self) -> None:
        """Drop the parent's outputs that were kept on disk while variants were compared with them."""
        for folder in self._parent_folders:
            shutil.rmtree(folder, ignore_errors=True)
        self._parent_folders.clear()

    def _samples(self, recipe: Recipe) -> str | None:
        """The calibration samples that a recipe takes; None where it takes none, or could do with some and there are none."""
        has_some = self.dataset.calibration is not None and len(self.dataset.calibration) > 0
        if recipe.needs_calibration or (recipe.uses_samples and has_some):
            return samples_of(self.dataset, recipe).sha256
        return None

    def _native_samples(self) -> str | None:
        """The calibration samples that the builder's own calibrator gets; they are part of what its engine depends on."""
        if not self.options.extra.get("native_calibrator") or self.dataset.calibration is None:
            return None
        return self.dataset.calibration.sha256

    def _plugins(self) -> list[str]:
        """What is in the libraries that the builder is to open; to refuse a missing one, or no path, is its part."""
        given = self.options.extra.get("plugins")
        paths = [Path(item) for item in given if isinstance(item, str)] if isinstance(given, (list, tuple)) else []
        return [digest(path) for path in paths if path.is_file()]


def identity_of(engine: Engine) -> tuple[object, ...]:
    """Return what tells an engine from every other one: how it was made and, where it was hashed, what came out.

    The file alone does not: builders take flags, and the same variant can be built for other shapes or threads.
    """
    built = (engine.variant, engine.variant_sha256, engine.fusion, codec.to_plain(engine.options))
    return (*built, engine.backend, engine.backend_version, engine.device, engine.sha256)
