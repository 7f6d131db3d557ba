"""A study into an experiment tracker: one run a variant, its raw numbers as metrics, how it was made as configuration.

One function a tracker, each the only user of its library. Trackio keeps runs on this machine; where MLflow and W&B keep
theirs is their own configuration.
"""

from __future__ import annotations

import csv
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from workbench import codec
from workbench.errors import BackendMissing, RunError, nearest
from workbench.records import StudyRecord
from workbench.reports import plain


@dataclass(frozen=True)
class TrackedRun:
    """One variant as a tracker sees it.

    Attributes:
        config: model, data, recipe, backend, protocol; where it failed, `failed_at` and `failure` too.
        metrics: raw numbers in seconds, bytes and shares.
    """

    name: str
    config: dict[str, Any]
    metrics: dict[str, float]


def runs(record: StudyRecord) -> list[TrackedRun]:
    """Return a study's variants, failed ones too, in their order."""
    found = []
    lines = list(csv.DictReader(io.StringIO(plain.csv(record))))
    for result, line in zip(record.results, lines, strict=True):
        device = "" if result.measurement is None else result.measurement.device
        config: dict[str, Any] = {
            "study": record.name, "model": record.model.name, "model_sha256": record.model.sha256,
            "data_sha256": str(record.data.get("sha256")), "backend": record.backend, "device": device,
            "baseline": record.baseline, "recipe": result.recipe.name, "steps": codec.to_json(result.recipe.steps),
            "protocol": codec.to_json(record.protocol),
        }  # fmt: skip
        if result.failure is not None:
            config |= {"failed_at": result.failure.stage, "failure": result.failure.message}
        found.append(TrackedRun(result.recipe.name, config, _numbers(line)))
    return found


def log(record: StudyRecord, tool: str, project: str | None) -> list[str]:
    """Hand all variants to a tracker; return the names of the runs.

    Raises:
        BackendMissing: no such tracker, or it is not installed.
        RunError: the tracker reported an error; runs that were handed over before stay there.
    """
    if tool not in _TRACKERS:
        raise BackendMissing(f"There is no tracker {tool!r} here. {nearest(str(tool), _TRACKERS)}")
    try:
        library = importlib.import_module(tool)
    except ImportError as error:
        raise BackendMissing(f"{tool} cannot be imported ({error}). Run: pip install {tool}") from error
    done: list[str] = []
    for run in runs(record):
        try:
            _TRACKERS[tool](library, run, project or record.model.name)
        except Exception as error:
            kept = f"{len(done)} of {len(record.results)} variants were handed over before"
            raise RunError(
                f"{tool} did not take the variant {run.name!r}: {type(error).__name__}: {error}. {kept}. Is its server there, "
                f"and its folder writable?"
            ) from error
        done.append(run.name)
    return done


def to_trackio(library: ModuleType, run: TrackedRun, project: str) -> None:
    """Hand one variant to trackio, which keeps it on this machine."""
    # A study is measured by now: what the machine does meanwhile says nothing of it.
    library.init(project=project, name=run.name, config=run.config, embed=False, auto_log_gpu=False, auto_log_cpu=False)
    try:
        library.log(run.metrics)
    finally:
        library.finish()


def to_mlflow(library: ModuleType, run: TrackedRun, project: str) -> None:
    """Hand one variant to MLflow, where its tracking URI points."""
    library.set_experiment(project)
    with library.start_run(run_name=run.name):
        library.log_params(run.config)
        library.log_metrics(run.metrics)


def to_wandb(library: ModuleType, run: TrackedRun, project: str) -> None:
    """Hand one variant to Weights & Biases, in the mode that WANDB_MODE says."""
    with library.init(project=project, name=run.name, config=run.config) as opened:
        opened.log(run.metrics)


_TRACKERS: dict[str, Callable[[ModuleType, TrackedRun, str], None]] = {
    "trackio": to_trackio,
    "mlflow": to_mlflow,
    "wandb": to_wandb,
}


def _numbers(line: dict[str, str]) -> dict[str, float]:
    found = {}
    for name, text in line.items():
        try:
            found[name] = float(text)
        except ValueError:  # words, an empty field: no number
            if text in ("True", "False"):
                found[name] = float(text == "True")
    return found
