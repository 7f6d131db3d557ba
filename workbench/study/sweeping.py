"""`sweep`: many models under many recipes on many backends, one study each, on this machine or on a Ray cluster."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from workbench import codec, engines
from workbench.datasets import Dataset
from workbench.errors import Cancelled, DataError, StoreError, WorkbenchError, nearest
from workbench.handoff import capsule
from workbench.machine.store import Store
from workbench.models import as_model
from workbench.recipes import LONGEST_NAME, Recipe
from workbench.records import BuildOptions, Model, Progress, Protocol, StudyRecord
from workbench.study import progress as bars
from workbench.study import ray_cluster
from workbench.study.catalog import is_finished
from workbench.study.request import Request, requested, with_profiles
from workbench.study.running import DEFAULT_RECIPES, blank_record, run
from workbench.study.study import Study

if TYPE_CHECKING:
    import pandas

PLACES = ("local", "ray")


@dataclass(frozen=True)
class Cell:
    """One study of a sweep."""

    name: str
    model: Model
    data: Dataset | None
    backend: str


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        studies: those that were finished, in the order asked for.
        failures: what could not be done: (study, message).
    """

    studies: tuple[Study, ...]
    failures: tuple[tuple[str, str], ...] = ()

    def table(self) -> pandas.DataFrame:
        """Return one row a variant, with model, backend and machine in front.

        Ratios are within a study; rows of unlike machines are beside each other to be read, not compared.
        """
        import pandas

        tables = []
        for study in self.studies:
            record = study.record
            devices = {item.measurement.device for item in record.results if item.measurement is not None}
            table = study.table()
            for place, (column, value) in enumerate(
                (("Model", record.model.name), ("Backend", record.backend), ("Machine", ", ".join(sorted(devices))))
            ):
                table.insert(place, column, value)
            tables.append(table)
        return pandas.concat(tables, ignore_index=True) if tables else pandas.DataFrame()


def sweep(
    models: Sequence[Model | str | Path] | Mapping[str, Model | str | Path],
    recipes: Sequence[str | Recipe] = DEFAULT_RECIPES,
    backends: Sequence[str] = ("auto",),
    *,
    data: Dataset | Mapping[str, Dataset] | None = None,
    protocol: Protocol | None = None,
    options: BuildOptions | None = None,
    baseline: str = "fp32",
    on: Literal["local", "ray"] = "local",
    address: str | None = None,
    name: str = "sweep",
    store: Store | None = None,
    progress: bars.Listener | Literal["auto"] | None = "auto",
    cancel: Callable[[], bool] = lambda: False,
) -> Sweep:
    """Run every model with all recipes on every backend: one study for each pair of a model and a backend.

    Resumable: finished studies are read from the store, an interrupted one goes on. With `on="ray"` a study goes to the
    machine that takes it first and has the backend, as a capsule; on each machine one study is run at a time (one a GPU for
    backends of GPUs), and a study whose machine is lost goes to another. What comes back lies in this store, as if run here.

    Args:
        models: from `workbench.load`, or names and paths; a dict names them.
        data: for all models, or by the model's name; None takes random inputs.
        on: `local`, one study after the other on this machine; `ray` needs the extra of that name, here and there.
        address: of a running Ray cluster; None takes the one of the environment, or starts Ray on this machine.
        name: in front of the names of the studies.
        progress: as for `run`; the message says which machine a study is on, and what it does there.

    Raises:
        DataError, LoadError, RecipeError: before anything is started.
        BackendMissing: Ray is not installed, or no cluster is at that address.
        Cancelled: `cancel` said so; what is finished stays.
    """
    if on not in PLACES:
        raise DataError(f"A sweep runs on {' or '.join(PLACES)}. {nearest(str(on), PLACES)}")
    store, tell = store or Store(), bars.listener(progress)
    cells = _cells(models, backends, data, name, store, here=on == "local")
    terms = _Terms(tuple(recipes), protocol, options, baseline, store)
    # What is wrong with recipes, data or protocol is said before the first study is begun.
    requests = {cell.name: terms.request(cell) for cell in cells}
    waiting = [cell for cell in cells if not _is_done(requests[cell.name], store)]
    failures: dict[str, str] = {}
    account = _Account(tell, len(cells), len(cells) - len(waiting))
    outcomes = (
        _on_ray(waiting, requests, terms, address, account.told, cancel)
        if on == "ray"
        else _here(waiting, terms, account.told, cancel)
    )
    for name, message in outcomes:
        if message:
            failures[name] = message
        account.ended(name, "failed" if message else "done")
    tell(Progress("finished", "", 1.0))
    done = [Study.open(cell.name, store) for cell in cells if cell.name not in failures]
    return Sweep(tuple(done), tuple(failures.items()))


class _Account:
    """How much of a sweep is done: the studies that ended, and what those that are being run have done."""

    def __init__(self, tell: bars.Listener, studies: int, ended: int) -> None:
        self._tell, self._studies, self._ended = tell, studies, ended
        self._running: dict[str, float] = {}
        self._fraction = 0.0

    def told(self, study: str, machine: str, progress: Progress | None) -> None:
        """Tell what a study does; None when it was only sent to its machine."""
        self._running[study] = 0.0 if progress is None else progress.fraction
        doing = "" if progress is None else f"{progress.stage} {progress.variant} {progress.message}".strip()
        self._say(study, ": ".join(part for part in (f"on {machine}" if machine else "", doing) if part))

    def ended(self, study: str, how: str) -> None:
        """Tell that a study ended."""
        self._running.pop(study, None)
        self._ended += 1
        self._say(study, how)

    def _say(self, study: str, words: str) -> None:
        done = (self._ended + sum(self._running.values())) / self._studies
        # A study whose machine was lost begins again; what was told is not taken back.
        self._fraction = max(self._fraction, min(done, 0.999))
        self._tell(Progress("sweep", study, self._fraction, words))


@dataclass(frozen=True)
class _Terms:
    """What all studies of a sweep have in common."""

    recipes: tuple[str | Recipe, ...]
    protocol: Protocol | None
    options: BuildOptions | None
    baseline: str
    store: Store

    def request(self, cell: Cell) -> Request:
        """Check what is asked of one study, on whatever backend this machine has."""
        return requested(
            cell.model, cell.data, self.recipes, backend="auto", protocol=self.protocol, options=self.options,
            baseline=self.baseline, name=cell.name,
        )  # fmt: skip

    def run(self, cell: Cell, progress: bars.Listener, cancel: Callable[[], bool]) -> None:
        """Run one study on this machine."""
        run(
            cell.model, cell.data, self.recipes, backend=cell.backend, protocol=self.protocol, options=self.options,
            baseline=self.baseline, name=cell.name, store=self.store, progress=progress,
            cancel=cancel,
        )  # fmt: skip

    def capsule(self, cell: Cell, request: Request, folder: Path) -> Path:
        """Write a study of which nothing is done, for another machine; this one need not have its backend."""
        options = with_profiles(
            replace(request.options, profiles=self.options.profiles if self.options else ()),
            cell.backend, request.dataset, request.protocol,
        )  # fmt: skip
        record = replace(blank_record(request, self.store), backend=cell.backend, options=options, backend_reason="")
        place = folder / f"{hashlib.sha256(cell.name.encode()).hexdigest()[:16]}.zip"
        return capsule.write(record, place, request.dataset, self.store)


def _cells(
    models: Sequence[Model | str | Path] | Mapping[str, Model | str | Path],
    backends: Sequence[str],
    data: Dataset | Mapping[str, Dataset] | None,
    name: str,
    store: Store,
    here: bool,
) -> list[Cell]:
    if isinstance(models, (str, Path, Model)) or not isinstance(models, Iterable) or len(models) == 0:
        raise DataError(
            "sweep takes a list of models (or a dict that names them), such as ['digits_resnet', 'm.onnx']."
        )
    if isinstance(backends, str) or not backends:
        raise DataError("sweep takes a list of backends, such as ['onnxruntime-cpu', 'openvino'].")
    given = models.items() if isinstance(models, Mapping) else [(None, model) for model in models]
    loaded = [(known, as_model(model, "sweep", store)) for known, model in given]
    named = [(known or model.name, model) for known, model in loaded]
    names = [known for known, _ in named]
    if twice := sorted({known for known in names if names.count(known) > 1}):
        raise DataError(f"Several models are called {', '.join(twice)}. Pass a dict that names them.")
    if isinstance(data, Mapping) and (unknown := sorted(set(data) - set(names))):
        raise DataError(f"There are data for {unknown[0]!r}, and no such model. {nearest(unknown[0], names)}")
    for backend in backends:
        if here:
            engines.choose(backend)
        elif backend != "auto":
            engines.backend(backend)  # whether it can be used is each machine's matter
    cells = []
    for known, model in named:
        own = data.get(known) if isinstance(data, Mapping) else data
        for backend in dict.fromkeys(backends):
            cells.append(Cell(f"{name} {known} {backend}"[:LONGEST_NAME], model, own, backend))
    return cells


def _is_done(request: Request, store: Store) -> bool:
    try:
        study = Study.open(request.name, store)
    except StoreError:
        return False
    record = study.record
    return (
        record.model.sha256 == request.model.sha256
        and record.data.get("sha256") == request.dataset.sha256
        and record.protocol == request.protocol
        and set(request.recipes) <= {item.recipe for item in record.results}
        and is_finished(study)
    )


def _here(
    waiting: list[Cell], terms: _Terms, told: ray_cluster.Told, cancel: Callable[[], bool]
) -> Iterator[tuple[str, str]]:
    """Run the studies one after the other, and yield each as it ends with what went wrong, if anything."""
    for cell in waiting:
        try:
            terms.run(cell, functools.partial(told, cell.name, ""), cancel)
            message = ""
        except Cancelled:
            raise
        except WorkbenchError as error:
            message = str(error)
        yield cell.name, message


def _on_ray(
    waiting: list[Cell],
    requests: Mapping[str, Request],
    terms: _Terms,
    address: str | None,
    told: ray_cluster.Told,
    cancel: Callable[[], bool],
) -> Iterator[tuple[str, str]]:
    """Spread the studies over the cluster, and yield each as it ends with what went wrong, if anything."""
    if not waiting:
        return
    with terms.store.scratch() as scratch:
        work = [
            ray_cluster.Work(cell.name, terms.capsule(cell, requests[cell.name], scratch), cell.backend)
            for cell in waiting
        ]
        for answer in ray_cluster.spread(work, address, told, cancel):
            if answer.record is not None:
                record = replace(codec.from_json(StudyRecord, answer.record), name=answer.name)
                terms.store.put("study", answer.name, codec.to_json(record))
            yield answer.name, answer.message
