"""`Workbench`: wires state and views, shows itself in a notebook, and leaves nothing behind when it is closed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from workbench.datasets import Dataset, as_dataset
from workbench.datasets.split import Array
from workbench.errors import StoreError, expect
from workbench.machine.store import Store
from workbench.models import as_model
from workbench.records import Model, Protocol
from workbench.study import Study
from workbench.ui.jobs import DRAWING
from workbench.ui.state import State
from workbench.ui.views import frame

# The app that shows a model and its data; a cell that is run again replaces its earlier app.
_SHOWN: weakref.WeakValueDictionary[Any, Workbench] = weakref.WeakValueDictionary()


class Workbench:
    """The workbench as an app: choose a model, toggle recipes, run, and see what each choice costs and gains.

    Running its cell again finds the study of the same model and data again, running or finished.

    Args:
        model: from `workbench.load`, or a name or path that it takes; None lets the user choose in the app.
        data: from `workbench.datasets`, or an array of samples; None takes shipped data that fit, or random inputs.
        store: where everything is kept; None takes the default store.
        backend: a name from `workbench.backends()`, or `auto`.
        protocol: how latency is measured; None takes the defaults of `Protocol`.
        name: of the study; None derives one from model, data, backend and protocol.
    """

    def __init__(
        self,
        model: Model | str | Path | None = None,
        data: Dataset | Array | Mapping[str, Array] | None = None,
        *,
        store: Store | None = None,
        backend: str = "auto",
        protocol: Protocol | None = None,
        name: str | None = None,
    ) -> None:
        store = store or Store()
        model = None if model is None else as_model(model, "Workbench", store)
        data = None if data is None else as_dataset(data, "Workbench")
        self.state = State(model, data, store=store, backend=backend, protocol=protocol, name=name)
        key = (str(self.state.session.store.root), None if model is None else model.sha256, name)
        if (earlier := _SHOWN.pop(key, None)) is not None:
            earlier._detach()
            if model is None:
                self.state.selection.take_over(earlier.state.selection)
        _SHOWN[key] = self
        self.widget = frame(self.state)
        self.state.session.attempt(self.state.running.find)

    @property
    def error(self) -> str:
        """What went wrong last, as the app shows it; empty where nothing did."""
        return self.state.error

    def start(self) -> None:
        """Start the study, as the button does.

        Raises:
            WorkbenchError: there is nothing to start, or a study runs already.
        """
        with self.state.session.lock:
            self.state.running.start()

    def cancel(self) -> None:
        """Stop the study that runs; what is finished is kept."""
        self.state.session.attempt(self.state.running.cancel)

    def result(self, timeout: float | None = None) -> Study:
        """Wait for the study and return it, so that a cell below the app can go on with it.

        Args:
            timeout: seconds to wait at most; None waits until its end.

        Raises:
            TimeoutError: it goes on after that time.
            WorkbenchError: none was started, it was cancelled, or it failed.
        """
        study = self.state.running.result(timeout)
        DRAWING.settle()  # what the app shows of it is there too
        return study

    def code(self) -> str:
        """Return the cell that does with the verbs what the app is set to do.

        Raises:
            WorkbenchError: the protocol that was typed is not possible.
        """
        with self.state.session.lock:
            self.state.export.show_code()
            return str(self.state.export.code)

    def close(self) -> None:
        """Stop what runs, and take every widget and thread away; the studies stay in the store."""
        self.state.session.stop()
        self._detach()

    def _detach(self) -> None:
        """Close the widgets; a study goes on, for the app that takes this one's place."""
        self.state.session.leave()
        for widget in list(_family(self.widget)):
            widget.close()

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.widget._repr_mimebundle_(**options)


def explore(study: Study | str, store: Store | None = None) -> Workbench:
    """Open a study in the app, at the drawing of its network.

    Args:
        study: a Study, or its name in the store.
        store: where it is; None takes the default store.

    Raises:
        StoreError: there is no such study.
    """
    store = store or Store()
    study = Study.open(study, store) if isinstance(study, str) else study
    expect(study, Study, "explore", "Pass what workbench.run returned, or the name of a study.", StoreError)
    app = Workbench(study.record.model, store=store, backend=study.record.backend, name=study.name)
    app.state.session.attempt(app.state.results.show, study.record)
    app.state.session.page, app.state.results.view = "Results", "Graph"
    return app


def _family(widget: widgets.Widget) -> Iterator[widgets.Widget]:
    """Yield a widget with everything that belongs to it: children, layout, style, a link between two of them."""
    for child in getattr(widget, "children", ()):
        yield from _family(child)
    for name in ("layout", "style", "link"):
        part = getattr(widget, name, None)
        if isinstance(part, widgets.Widget):
            yield part
    yield widget
