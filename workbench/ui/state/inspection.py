"""A closer look: what calibration saw of a tensor, and what became of the nodes of a file in the runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from traitlets import Bytes, HasTraits, Instance, Tuple, Unicode

from workbench import engines
from workbench.calibration.table import CalibrationTable
from workbench.errors import DataError, RecipeError
from workbench.graph.fused_layers import FusionMap, fusion_map
from workbench.graph.linear_layers import Weight, values_of, weights_of
from workbench.machine.handle import Handle
from workbench.recipes import NAMED
from workbench.records import StudyRecord, VariantResult
from workbench.tuning.calibrating import calibrate
from workbench.ui import pictures
from workbench.ui.jobs import DRAWING, STUDIES, Job
from workbench.ui.state.plan import Plan
from workbench.ui.state.results import THEMES
from workbench.ui.state.selection import ModelSelection
from workbench.ui.state.session import Session

# Any recipe with static quantization: the table is the same for all calibrators.
_CALIBRATED = NAMED["int8-kl"]


class Inspection(HasTraits):
    """The calibration view, and the fusion in the view of layers.

    Attributes:
        table: what calibration counted; None before it was collected.
        tensors, tensor: names in the table, and the one that is shown.
        histogram_light, histogram_dark, curve_light, curve_dark: PNG.
        weights, weight: layers with weights, and the one that is shown; `weight_words` where that stands.
        weight_light, weight_dark: PNG.
        clips: what each calibrator would do to the tensor (`pictures.Clip`).
        variant: whose layers are shown.
        before: operator -> count, in the file that was built.
        fusion: layers of the runtime and the nodes behind them.
    """

    table = Instance(CalibrationTable, allow_none=True)
    tensors = Tuple()
    tensor = Unicode()
    clips = Tuple()
    words = Unicode("Not collected yet.")
    histogram_light = Bytes()
    histogram_dark = Bytes()
    curve_light = Bytes()
    curve_dark = Bytes()
    weights = Tuple()
    weight = Unicode()
    weight_words = Unicode("Not read yet.")
    weight_light = Bytes()
    weight_dark = Bytes()
    variant = Unicode()
    before: Any = Instance(dict, args=())
    fusion = Instance(FusionMap, allow_none=True)
    fusion_words = Unicode("No study is shown yet.")

    def __init__(self, session: Session, selection: ModelSelection, plan: Plan) -> None:
        super().__init__()
        self.session, self.selection, self.plan = session, selection, plan
        self._weights: dict[str, Weight] = {}
        selection.observe(lambda change: self._forget(), ["model", "data"])

    def collect(self) -> None:
        """Run the model over its calibration samples, or read what a study collected.

        Raises:
            DataError: no model, or data without calibration samples.
        """
        model, data, plan = self.selection.model, self.selection.data, self.plan
        if model is None or data is None or data.calibration is None:
            raise DataError("Calibration needs a model and data with calibration samples. Choose both on page `Model`.")
        backend, store = plan.backend, self.session.store

        def work(job: Job[CalibrationTable]) -> CalibrationTable:
            dialect = engines.backend(backend).dialect(backend)
            known = calibrate(
                model, data, _CALIBRATED, dialect=dialect, store=store, handle=Handle(cancelled=job.cancelled)
            )
            assert known.table is not None
            return known.table

        self.words = "Collecting …"
        self.session.start(STUDIES, Job("calibration", work, key=("calibration", id(self))), self._take_table)

    def show_tensor(self, tensor: str) -> None:
        """Draw the histogram and the KL curve of a tensor.

        Raises:
            RecipeError: the table has no such tensor.
        """
        table = self.table
        if table is None or tensor not in table:
            raise RecipeError(
                f"There is no tensor {tensor!r} in the calibration table. Collect it, and choose one of its."
            )
        self.tensor = tensor
        values = table[tensor]

        def work(job: Job[Any]) -> Any:
            drawn = [
                (pictures.histogram(tensor, values, theme), pictures.divergence(tensor, values, theme))
                for theme in THEMES
            ]
            return pictures.clips(values), drawn

        self.words = f"Drawing {tensor} …"
        self.session.start(DRAWING, Job("tensor", work, key=("tensor", id(self))), self._take_pictures)

    def read_weights(self) -> None:
        """List the layers that have constant weights, and draw the first one's.

        Raises:
            DataError: there is no model, or its file is not here.
        """
        path = self._file()

        def work(job: Job[dict[str, Weight]]) -> dict[str, Weight]:
            return weights_of(onnx.load(str(path), load_external_data=False))

        self.weight_words = "Reading …"
        self.session.start(DRAWING, Job("weights", work, key=("weights", id(self))), self._take_weights)

    def show_weight(self, name: str) -> None:
        """Draw the weight of a layer, with its outlier channels.

        Raises:
            RecipeError: no layer of that name has a weight.
            DataError: the model's file is not here.
        """
        if name not in self._weights:
            raise RecipeError(f"There is no layer {name!r} with a weight. Read the weights, and choose one of theirs.")
        self.weight, found, path = name, self._weights[name], self._file()

        def work(job: Job[Any]) -> Any:
            values = values_of(path, found.tensor)
            return [pictures.weight(name, values, found.axis, theme) for theme in THEMES]

        self.weight_words = f"Drawing {name} …"
        self.session.start(DRAWING, Job("weight", work, key=("weight", id(self))), self._take_weight)

    def show_layers(self, record: StudyRecord | None, variant: str) -> None:
        """Map the layers of a variant's runtime to the nodes they stand for.

        Raises:
            RecipeError: the record has no such variant.
        """
        found = next((item for item in record.results if item.recipe.name == variant), None) if record else None
        if found is None:
            raise RecipeError(f"There is no variant {variant!r} in the study that is shown.")
        self.variant = variant
        place = _runtime_graph(found)
        if place is None or found.variant is None:
            self.fusion, self.before = None, {}
            self.fusion_words = (
                f"{variant} left no graph of its runtime: it was not built yet, was built with fusion off, on another "
                f"machine, or by a backend that keeps none."
            )
            return
        source = found.variant.path

        def work(job: Job[Any]) -> Any:
            graphs = [onnx.load(path, load_external_data=False) for path in (source, str(place))]
            return _counts(graphs[0]), fusion_map(*graphs)

        self.session.start(DRAWING, Job("layers", work, key=("layers", id(self))), self._take_layers)

    def _file(self) -> Path:
        model = self.selection.model
        if model is None or not Path(model.path).is_file():
            raise DataError("There is no file of a model to read weights from. Choose a model on page `Model`.")
        return Path(model.path)

    def _take_weights(self, job: Job[dict[str, Weight]]) -> None:
        snapshot = job.snapshot
        if snapshot.state == "failed":
            self.weight_words = "Not read."
            job.raise_failure()
        elif snapshot.state == "done" and job.outcome is not None:
            self._weights = job.outcome
            self.weights = tuple(job.outcome)
            self.weight_words = f"{len(self.weights)} layers have constant weights."
            if self.weights:
                self.show_weight(self.weight if self.weight in self.weights else self.weights[0])

    def _take_weight(self, job: Job[Any]) -> None:
        snapshot = job.snapshot
        if snapshot.state == "failed":
            self.weight_words = "Not drawn."
            job.raise_failure()
        elif snapshot.state == "done" and job.outcome is not None and self.weights:
            self.weight_light, self.weight_dark = job.outcome
            self.weight_words = f"{self.weight}, one of {len(self.weights)} layers with constant weights."

    def _take_table(self, job: Job[CalibrationTable]) -> None:
        snapshot = job.snapshot
        if snapshot.state == "waiting":
            self.words = "Waits until the running study has ended."
        elif snapshot.state == "failed":
            self.words = "Not collected."
            job.raise_failure()
        elif snapshot.state == "done" and job.outcome is not None:
            self.table = job.outcome
            self.tensors = tuple(job.outcome)
            self.words = f"{len(self.tensors)} tensors, {job.outcome.samples} samples."
            if self.tensors:
                self.show_tensor(self.tensor if self.tensor in self.tensors else self.tensors[0])

    def _take_pictures(self, job: Job[Any]) -> None:
        snapshot = job.snapshot
        if snapshot.state == "failed":
            job.raise_failure()
        elif snapshot.state == "done" and job.outcome is not None and self.table is not None:
            self.clips, ((self.histogram_light, self.curve_light), (self.histogram_dark, self.curve_dark)) = job.outcome
            best = self.clips[0]
            self.words = (
                f"{self.tensor}: {best.calibrator} is expected to keep most of it ({best.sqnr_db:.1f} dB). What counts is "
                f"the accuracy of the whole model: run the calibrators as recipes and compare."
            )

    def _take_layers(self, job: Job[Any]) -> None:
        snapshot = job.snapshot
        if snapshot.state == "failed":
            job.raise_failure()
        elif snapshot.state == "done" and job.outcome is not None:
            self.before, self.fusion = job.outcome
            layers = self.fusion.layers
            several = sum(len(layer.sources) > 1 for layer in layers)
            added = sum(not layer.sources for layer in layers)
            self.fusion_words = (
                f"{self.variant}: {sum(self.before.values())} nodes in the file became {len(layers)} layers of the runtime; "
                f"{several} of them stand for several nodes, {added} were added by the runtime, and "
                f"{len(self.fusion.folded)} nodes were folded away."
            )

    def _forget(self) -> None:
        self.table, self.tensors, self.clips = None, (), ()
        self.words = "Not collected yet."
        self._weights, self.weights, self.weight, self.weight_words = {}, (), "", "Not read yet."
        pictures_of = ("histogram", "curve", "weight")
        for name in (f"{what}_{theme}" for what in pictures_of for theme in THEMES):
            setattr(self, name, b"")


def _runtime_graph(result: VariantResult) -> Path | None:
    folder = None if result.engine is None or result.engine.folder is None else Path(result.engine.folder)
    if folder is None or result.variant is None or not Path(result.variant.path).exists():
        return None
    path = folder / "optimized.onnx"
    return path if path.exists() else None


def _counts(model: onnx.ModelProto) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts
