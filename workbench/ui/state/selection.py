"""The model under study and its data: where they come from, and what is known of the model before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traitlets import Dict, HasTraits, Instance, Tuple, Unicode

import workbench
from workbench import datasets, engines, zoo
from workbench.datasets import Dataset
from workbench.engines.base import Missing
from workbench.errors import DataError, LoadError, WorkbenchError
from workbench.graph.cost import Cost, cost
from workbench.models import onnx_file
from workbench.records import Model
from workbench.study import offers
from workbench.ui.jobs import STUDIES, Job
from workbench.ui.state.browsing import Browsing
from workbench.ui.state.session import Session

SHIPPED, ONNX_FILE, FOLDER, GIVEN = "shipped model", "ONNX file", "transformers folder", "from the notebook"
NPZ, IMAGES, RANDOM = ".npz file", "image folder", "random numbers"
# The one whose study takes seconds and shows the most.
_FIRST_SHIPPED = "digits_resnet"
_SHIPPED_DATA: dict[str, Callable[[], Dataset]] = {"digits": datasets.digits, "stdlib_text": datasets.stdlib_text}


@dataclass(frozen=True)
class Examined:
    """A model and what can be said of it without building anything.

    Attributes:
        lacks: backend that is here -> operators it cannot run -> the reason.
        layers: node name -> module path, in the order of the graph.
        data_source: the data that were found to fit, and the data.
    """

    model: Model
    cost: Cost
    lacks: dict[str, dict[str, str]]
    layers: dict[str, str]
    data_source: str
    data: Dataset


class ModelSelection(HasTraits):
    """The model and the data that were chosen.

    Attributes:
        source, shipped, path: what the menu says; `load` acts on them.
        data_source, data_path: likewise; `use_data` acts on them.
        model, data: what is in use; None before anything was loaded.
        model_files, data_files: the lists from which a path can be chosen.
        backends: every backend -> why it cannot be used here, or None where it can.
        busy: what is being done in the background, or empty.
    """

    source = Unicode(SHIPPED)
    shipped = Unicode()
    shipped_names = Tuple()
    path = Unicode()
    sources = Tuple((SHIPPED, ONNX_FILE, FOLDER))
    data_source = Unicode(RANDOM)
    data_path = Unicode()
    data_sources = Tuple((*_SHIPPED_DATA, NPZ, IMAGES, RANDOM))
    model = Instance(Model, allow_none=True)
    data = Instance(Dataset, allow_none=True)
    cost = Instance(Cost, allow_none=True)
    lacks = Dict()
    layers = Dict()
    backends = Dict()
    busy = Unicode()

    def __init__(self, session: Session, model: Model | None = None, data: Dataset | None = None) -> None:
        super().__init__()
        self.session = session
        self._given_model, self._given_data = model, data
        self.model_files = Browsing(
            lambda: (".onnx",) if self.source == ONNX_FILE else (), lambda path: setattr(self, "path", path)
        )
        self.data_files = Browsing(
            lambda: (".npz",) if self.data_source == NPZ else (), lambda path: setattr(self, "data_path", path)
        )
        self.shipped_names = tuple(_shipped_names(session))
        first = _FIRST_SHIPPED if _FIRST_SHIPPED in self.shipped_names else ""
        self.shipped = first or (self.shipped_names[0] if self.shipped_names else "")
        self.backends = engines.backends()
        if data is not None:
            self.data_sources = (GIVEN, *self.data_sources)
            self.data_source, self.data = GIVEN, data
        if model is not None:
            self.sources = (GIVEN, *self.sources)
            self.source, self.model = GIVEN, model
            self._examine(lambda: model, model.name)

    def take_over(self, earlier: ModelSelection) -> None:
        """Go on with what was chosen and loaded in an earlier app."""
        for trait in (
            "source",
            "shipped",
            "path",
            "data_source",
            "data_path",
            "lacks",
            "cost",
            "layers",
            "data",
            "model",
        ):
            setattr(self, trait, getattr(earlier, trait))

    def load(self) -> None:
        """Load the chosen model in the background, look at it, and find data that fit.

        Raises:
            LoadError: no path was given.
        """
        if self.source == GIVEN and self._given_model is not None:
            given = self._given_model
            self._examine(lambda: given, given.name)
            return
        reference = self.shipped if self.source == SHIPPED else str(Path(self.path.strip()).expanduser())
        if self.source != SHIPPED and not self.path.strip():
            raise LoadError(f"No path was given for the {self.source}. Write one into the field `Path`.")
        self._examine(lambda: workbench.load(reference, store=self.session.store), reference)

    def use_data(self) -> None:
        """Take the chosen data, in the background.

        Raises:
            DataError: no model is loaded yet, or no path was given.
        """
        model, source, path = self.model, self.data_source, self.data_path.strip()
        if model is None:
            raise DataError("Data are fitted to a model, and none is loaded yet. Load one first.")
        if source in (NPZ, IMAGES) and not path:
            raise DataError(f"No path was given for the {source}. Write one into the field `Data path`.")

        def work(job: Job[Dataset]) -> Dataset:
            data = self._read_data(source, path, model)
            data.bound_to(model)
            return data

        self.busy = f"Reading {source}"
        self.session.start(STUDIES, Job(f"data {source}", work, key=("data", id(self))), self._take_data)

    def split_off(self, samples: int) -> None:
        """Take calibration samples out of the evaluation data.

        Raises:
            DataError: there are no data, or too few.
        """
        if self.data is None:
            raise DataError("There are no data to split. Choose data first.")
        self.data = self.data.split_off(samples)

    def _examine(self, get: Callable[[], Model], words: str) -> None:
        data, source = self.data, self.data_source

        def work(job: Job[Examined]) -> Examined:
            model = get()
            chosen = (source, data) if source == GIVEN and data is not None else _fitting_data(model)
            return examine(model, self.backends, *chosen)

        self.busy = f"Reading {words}"
        self.session.start(STUDIES, Job(f"model {words}", work, key=("model", id(self))), self._take_model)

    def _take_model(self, job: Job[Examined]) -> None:
        found = self._outcome(job)
        if found is not None:
            with self.hold_trait_notifications():
                self.lacks, self.cost, self.layers = found.lacks, found.cost, found.layers
                self.data_source, self.data, self.model = found.data_source, found.data, found.model

    def _take_data(self, job: Job[Dataset]) -> None:
        data = self._outcome(job)
        if data is not None:
            self.data = data

    def _outcome(self, job: Job[Any]) -> Any:
        """Return what a job found; None while it goes on, and where it failed, which is then shown."""
        snapshot = job.snapshot
        if snapshot.state == "waiting":
            self.busy = f"{job.name} waits until the running study has ended"
        if not snapshot.is_final:
            return None
        self.busy = ""
        if snapshot.state == "failed":
            job.raise_failure()
        return job.outcome if snapshot.state == "done" else None

    def _read_data(self, source: str, path: str, model: Model) -> Dataset:
        if source == GIVEN and self._given_data is not None:
            return self._given_data
        if source in _SHIPPED_DATA:
            return _SHIPPED_DATA[source]()
        if source == RANDOM:
            return datasets.random(model)
        return datasets.npz(path) if source == NPZ else datasets.image_folder(path)


def examine(model: Model, backends: dict[str, Missing | None], data_source: str, data: Dataset) -> Examined:
    """Find out what can be said of a model without building anything."""
    proto = onnx_file.reread(model)
    inputs = data.bound_to(model).evaluation.inputs
    shapes = {name: (1, *array.shape[1:]) for name, array in inputs.items()}
    return Examined(
        model=model,
        cost=cost(proto, shapes),
        lacks=offers.lacking(backends, model),
        layers=offers.layer_names(model, proto),
        data_source=data_source,
        data=data,
    )


def _fitting_data(model: Model) -> tuple[str, Dataset]:
    """The shipped data that fit the model, or random numbers."""
    for name, make in _SHIPPED_DATA.items():
        data = make()
        try:
            data.bound_to(model)
        except DataError:
            continue
        return name, data
    return RANDOM, datasets.random(model)


def _shipped_names(session: Session) -> list[str]:
    try:
        return list(zoo.models())
    except WorkbenchError as error:
        session.error = str(error)
        return []
