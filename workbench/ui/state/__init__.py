"""What the app knows and does, part by part, without widgets: traits that views show, and commands that they call."""

from __future__ import annotations

from collections.abc import Callable

from workbench.datasets import Dataset
from workbench.machine.store import Store
from workbench.records import Model, Protocol
from workbench.study import Study, run
from workbench.ui.state.batches import Batches
from workbench.ui.state.channels import Channels
from workbench.ui.state.export import Export
from workbench.ui.state.graph import Graph
from workbench.ui.state.inspection import Inspection
from workbench.ui.state.layers import Layers
from workbench.ui.state.plan import Plan
from workbench.ui.state.previewing import Previewing
from workbench.ui.state.results import Results
from workbench.ui.state.running import Running
from workbench.ui.state.selection import ModelSelection
from workbench.ui.state.session import PAGES, Session
from workbench.ui.state.studies import Studies
from workbench.ui.state.tuning import Tuning

__all__ = ["PAGES", "State"]


class State:
    """All parts of the state, wired to each other.

    Args:
        name: of the study; None lets model, data, backend and protocol name it.
        run_study: what runs a study, for tests.
    """

    def __init__(
        self,
        model: Model | None = None,
        data: Dataset | None = None,
        *,
        store: Store | None = None,
        backend: str = "auto",
        protocol: Protocol | None = None,
        name: str | None = None,
        run_study: Callable[..., Study] = run,
    ) -> None:
        self.session = Session(store)
        self.selection = ModelSelection(self.session, model, data)
        self.plan = Plan(self.session, self.selection, protocol, backend)
        self.running = Running(self.session, self.selection, self.plan, run_study, name)
        self.results = Results(self.session, self.selection)
        self.previewing = Previewing(self.session, self.selection, self.plan)
        self.inspection = Inspection(self.session, self.selection, self.plan)
        self.channels = Channels(self.session, self.selection, self.plan, self.inspection)
        self.layers = Layers(self.session, self.selection, self.plan, self.results)
        self.tuning = Tuning(self.session, self.selection, self.plan, self.results)
        self.batches = Batches(self.session, self.selection, self.plan)
        self.graph = Graph(self.session, self.plan, self.results, self.layers, self.tuning)
        self.export = Export(self.session, self.selection, self.plan, self.results, name)
        self.studies = Studies(self.session, self.results)
        self.running.observe(lambda change: self.results.show(change["new"], self.running.is_settled), "drawn")

    @property
    def error(self) -> str:
        """What went wrong last, as the user sees it."""
        return str(self.session.error)
