"""A study in an experiment tracker: on this machine where one is installed, else by the calls that it is given."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import synthetic_study

import workbench as wb
from workbench.errors import BackendMissing, RunError
from workbench.handoff import trackers


def study() -> wb.Study:
    return wb.Study(synthetic_study.study())


def test_every_variant_is_a_run_with_raw_numbers_and_a_failed_one_says_why() -> None:
    found = {run.name: run for run in trackers.runs(study().record)}
    assert list(found) == ["fp32", "fp16", "int8-kl", "int8-max", "int8-smooth"]
    assert found["int8-kl"].metrics["size_bytes"] < found["fp32"].metrics["size_bytes"]
    assert found["fp32"].metrics["is_baseline"] == 1.0
    assert found["int8-kl"].config["backend"] == "onnxruntime-cpu"
    assert found["int8-smooth"].config["failed_at"] and "failure" not in found["fp32"].config


def test_trackio_keeps_the_runs_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="pip install trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path)
    assert study().log_to("trackio", project="paper") == ["fp32", "fp16", "int8-kl", "int8-max", "int8-smooth"]
    storage = sqlite_storage.SQLiteStorage
    assert set(storage.get_runs("paper")) >= {"fp32", "int8-kl"}
    (logged,) = storage.get_logs("paper", "int8-kl")
    wanted = next(run for run in trackers.runs(study().record) if run.name == "int8-kl").metrics
    assert {name: logged[name] for name in wanted} == wanted


def test_mlflow_keeps_the_runs_in_its_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'runs.db'}")
    monkeypatch.chdir(tmp_path)  # where it puts artefacts
    assert study().log_to("mlflow", project="paper") == ["fp32", "fp16", "int8-kl", "int8-max", "int8-smooth"]
    kept = {run.info.run_name: run.data for run in mlflow.search_runs(experiment_names=["paper"], output_format="list")}
    for run in trackers.runs(study().record):
        assert kept[run.name].metrics == run.metrics
        assert kept[run.name].params == run.config


def test_wandb_keeps_the_runs_here_where_it_is_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    names = study().log_to("wandb", project="paper")
    files = [file.read_bytes() for file in tmp_path.glob("wandb/offline-run-*/*.wandb")]
    assert len(files) == len(names) == 5
    for run in trackers.runs(study().record):
        # W&B has no reader of these files any more: this is a key of the configuration, protobuf's tag, and the value.
        recipe = re.compile(rb'recipe.{1,4}"%s"' % run.name.encode(), re.DOTALL)
        (file,) = (file for file in files if recipe.search(file))
        assert all(name.encode() in file for name in (*run.config, *run.metrics))


class Recorder(ModuleType):
    """Takes the calls of mlflow and wandb and keeps what came, as their clients do before they send it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.kept: list[tuple[str, object]] = []

    def set_experiment(self, project: str) -> None:
        self.kept.append(("project", project))

    @contextlib.contextmanager
    def start_run(self, run_name: str):
        self.kept.append(("run", run_name))
        yield

    def log_params(self, config: dict) -> None:
        self.kept.append(("config", config["recipe"]))

    def log_metrics(self, metrics: dict) -> None:
        assert all(type(value) is float for value in metrics.values())
        self.kept.append(("metrics", len(metrics) > 3))

    @contextlib.contextmanager
    def init(self, project: str, name: str, config: dict):
        self.kept += [("project", project), ("run", name), ("config", config["recipe"])]
        yield SimpleNamespace(log=self.log_metrics)


@pytest.mark.parametrize("tool", ["mlflow", "wandb"])
def test_the_others_get_project_run_configuration_and_metrics(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tool)
    monkeypatch.setitem(sys.modules, tool, recorder)
    study().log_to(tool)
    assert recorder.kept[:4] == [("project", "digits_resnet"), ("run", "fp32"), ("config", "fp32"), ("metrics", True)]
    assert [value for kind, value in recorder.kept if kind == "run"][-1] == "int8-smooth"


def test_what_cannot_be_logged_to_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendMissing, match=r"no tracker 'neptune'.*mlflow, trackio, wandb"):
        study().log_to("neptune")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(BackendMissing, match=r"wandb cannot be imported.*pip install wandb"):
        study().log_to("wandb")
    broken = Recorder("mlflow")

    def gone(run_name: str) -> None:
        if run_name == "fp16":
            raise ConnectionError("no server")
        return contextlib.nullcontext()  # type: ignore[return-value]

    broken.start_run = gone  # type: ignore[method-assign,assignment]
    monkeypatch.setitem(sys.modules, "mlflow", broken)
    with pytest.raises(RunError, match=r"did not take the variant 'fp16': ConnectionError: no server. 1 of 5 variants"):
        study().log_to("mlflow")
