"""What every test of the workbench's widgets is watched for: errors in callbacks, threads and widgets left behind."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from ipywidgets.widgets import widget as ipywidgets_widget

from workbench.machine.store import Store
from workbench.ui import jobs
from workbench.ui.state import State

_IGNORED_LOGGERS = ("asyncio", "matplotlib", "PIL")


@pytest.fixture(autouse=True)
def no_error_in_any_callback(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> Iterator[None]:
    """ipywidgets and the app log what a callback raised and go on; a test must not."""
    yield
    if request.node.get_closest_marker("expects_callback_error"):
        return
    found = [
        record
        for phase in ("setup", "call")
        for record in caplog.get_records(phase)
        if record.levelno >= logging.ERROR and not record.name.startswith(_IGNORED_LOGGERS)
    ]
    assert not found, "\n".join(f"{record.name}: {record.getMessage()}\n{record.exc_text or ''}" for record in found)


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    yield
    for queue in (jobs.STUDIES, jobs.DRAWING):
        queue.stop()
        queue._latest.clear()
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("workbench-")]
    assert not left, left


@pytest.fixture(autouse=True)
def no_widget_left_behind() -> Iterator[None]:
    before = set(ipywidgets_widget._instances)
    yield
    left = [widget for key, widget in ipywidgets_widget._instances.items() if key not in before]
    assert not left, f"{len(left)} widgets were not closed, such as {left[:5]}"


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a store of its own."""
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def state(tmp_path: Path, own_store: Path) -> Iterator[State]:
    """The app's state over a tiny network and its samples, in a store of its own."""
    made = State(tiny.classifier(tmp_path), tiny.samples(), store=Store(own_store), protocol=tiny.QUICK)
    tiny.settle()
    yield made
    made.session.stop()
    made.session.leave()
