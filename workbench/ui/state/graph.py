"""The network drawn, coloured by what is known of its nodes; a click chooses what a new recipe leaves as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
from traitlets import HasTraits, Instance, Tuple, Unicode

from workbench.errors import DataError, RecipeError
from workbench.recipes import QUANTIZED_FORMATS, Recipe
from workbench.records import StudyRecord
from workbench.study import Study
from workbench.study.node_types import TYPES, typed
from workbench.transformation.accounting import formats_of
from workbench.ui import graph_drawing
from workbench.ui.graph_drawing import Box, Drawn
from workbench.ui.jobs import DRAWING, Job
from workbench.ui.state.layers import Layers
from workbench.ui.state.plan import Plan
from workbench.ui.state.results import Results
from workbench.ui.state.session import Session
from workbench.ui.state.tuning import Tuning

DETAILS: dict[str, int | None] = {"modules": 1, "blocks": 2, "layers": 3, "every node": None}
COLOURS = ("precision", "time", "error")


class Graph(HasTraits):
    """The view of the graph.

    Attributes:
        detail: a key of `DETAILS`: what one box stands for.
        colour: one of `COLOURS`, of the variant that is selected.
        variant: whose precision is shown, and whose recipe a click changes.
        found: boxes and arrows; None before it was drawn.
        dot: the graph in Graphviz's language.
        place: of the box that was chosen; empty where none is.
        chosen: nodes behind the box that was clicked, and `chosen_words` what it is.
        legend: (colour, words).
        words: where it stands.
    """

    detail = Unicode("blocks")
    colour = Unicode(COLOURS[0])
    variants = Tuple()
    variant = Unicode()
    found = Instance(Drawn, allow_none=True)
    dot = Unicode()
    chosen = Tuple()
    chosen_words = Unicode()
    legend = Tuple()
    place = Unicode()
    words = Unicode("No study is shown yet.")

    def __init__(self, session: Session, plan: Plan, results: Results, layers: Layers, tuning: Tuning) -> None:
        super().__init__()
        self.session, self.plan, self.results, self.layers, self.tuning = session, plan, results, layers, tuning
        self._of = ""
        results.observe(lambda change: self._settle(), ["record", "variants", "selected"])
        layers.observe(lambda change: self._paint(), "rows")
        tuning.observe(lambda change: self._paint(), "costs")
        self.observe(lambda change: self._paint(), ["colour", "variant"])
        self.observe(lambda change: self._again(), "detail")

    def draw(self) -> None:
        """Draw the network of the study that is shown, in the background.

        Raises:
            DataError: there is no study, or the file of its model is not here.
        """
        record = self.results.record
        if record is None:
            raise DataError("There is no study to look at. Start one on page `Run`, or open one on page `Studies`.")
        path, modules, depth = Path(record.model.path), record.model.modules, DETAILS[self.detail]
        if not path.is_file():
            self.words = f"The model's file {path} is not here, so its graph cannot be drawn. Load the model again."
            raise DataError(self.words)

        def work(job: Job[Drawn]) -> Drawn:
            return graph_drawing.drawn(onnx.load(str(path), load_external_data=False), modules, depth)

        self._of = record.name
        self.words = "Reading the graph …"
        self.session.start(DRAWING, Job("graph", work, key=("graph", id(self))), self._take)

    def choose(self, place: str) -> None:
        """Choose a box by its place."""
        if self.found is None or not place.isdecimal() or int(place) >= len(self.found.boxes):
            return
        self.place = place
        box = self.found.boxes[int(place)]
        self.chosen = box.nodes
        self.chosen_words = box.label.replace("\n", ", ")
        self._paint()

    def keep(self) -> None:
        """Add a recipe to the study: the variant's, with the chosen nodes left as they were.

        Raises:
            RecipeError: nothing is chosen, the recipe lowers nothing, or it is there already.
        """
        record = self._record()
        if not self.chosen:
            raise RecipeError("Nothing is chosen. Click a box of the graph first.")
        self._add(Study(record).keeping(self.variant, list(self.chosen)))

    def only(self) -> None:
        """Add a recipe to the study that lowers the chosen nodes alone.

        Raises:
            RecipeError: nothing is chosen, the recipe lowers nothing, or it is there already.
        """
        record = self._record()
        if not self.chosen or self.found is None:
            raise RecipeError("Nothing is chosen. Click a box of the graph first.")
        types = _types(record, self.variant)
        others = [name for name in types if name not in self.chosen]
        if len(others) == len(types):
            raise RecipeError(
                f"{self.variant} lowers none of what is chosen, so that there would be nothing left of it."
            )
        self._add(Study(record).keeping(self.variant, others))

    def give(self, to: str) -> None:
        """Add a recipe to the study: the variant's, with the chosen nodes in another type and all others as they are.

        Raises:
            RecipeError: nothing is chosen, a recipe cannot say so (see `workbench.study.node_types`), the backend cannot run
                it, or it is there already.
        """
        record = self._record()
        if not self.chosen or self.found is None:
            raise RecipeError("Nothing is chosen. Click a box of the graph first.")
        recipe = Study(record)[self.variant].recipe
        self._add(typed(recipe, self.chosen, to, self.found.operators, modules=record.model.modules))

    def refused(self) -> dict[str, str]:
        """Return the types that the backend or the data rule out -> why."""
        found = {}
        for to in TYPES:
            toggle = "quantization" if to in QUANTIZED_FORMATS else "precision"
            if why := self.plan.reasons.get((toggle, to)):
                found[to] = str(why)
        return found

    def _add(self, recipe: Recipe) -> None:
        added = self.plan.add_recipe(recipe)
        self.words = f"Added {added.name} to the recipes. Start it on page `Run`."

    def _record(self) -> StudyRecord:
        if self.results.record is None:
            raise DataError("There is no study to look at. Start one on page `Run`, or open one on page `Studies`.")
        return self.results.record

    def _take(self, job: Job[Drawn]) -> None:
        snapshot = job.snapshot
        if snapshot.state == "failed":
            self.words, self.found, self.dot = "", None, ""
            job.raise_failure()
        elif snapshot.state == "done" and job.outcome is not None:
            self.place, self.chosen, self.chosen_words = "", (), ""
            self.found = job.outcome
            self._paint()

    def _paint(self) -> None:
        record = self.results.record
        if self.found is None or record is None:
            return
        paint, self.legend, self.words = self._colours(record)
        self.dot = graph_drawing.dot(self.found, paint, int(self.place) if self.place else None)

    def _colours(
        self, record: StudyRecord
    ) -> tuple[Callable[[Box], tuple[str, str]], tuple[tuple[str, str], ...], str]:
        count = f"{len(self.found.boxes) if self.found else 0} boxes"
        scale = (("#fff6e8", "little"), ("#e97814", "most"), ("#ffffff", "nothing known"))
        if self.colour == "time":
            names, side = self.layers.names, "second" if self.layers.names[1] == self.variant else "first"
            if not self.layers.rows or self.variant not in names:
                return (
                    graph_drawing.by_amount({}, str),
                    scale,
                    f"No times of {self.variant} yet: profile it in view `Layers`.",
                )
            amounts: dict[str, float] = {}
            for row in self.layers.rows:
                for node in row.nodes:
                    amounts[node] = amounts.get(node, 0.0) + getattr(row, side).seconds / len(row.nodes)
            words = f"{count}, by the profiled time of {self.variant}; a layer's time is spread over its nodes."
            return graph_drawing.by_amount(amounts, graph_drawing.seconds_words), scale, words
        if self.colour == "error":
            costs = self.tuning.costs
            if costs is None:
                return (
                    graph_drawing.by_amount({}, str),
                    scale,
                    "No errors yet: rank the layers of a recipe on page `Tune`.",
                )
            total = sum(row.alone_nsr for row in costs.rows) or 1.0
            shares = {node: row.alone_nsr / total / len(row.nodes) for row in costs.rows for node in row.nodes}
            words = f"{count}, by their share of the noise that {costs.recipe.name} brings in."
            return graph_drawing.by_amount(shares, lambda share: f"{share:.1%} of the noise"), scale, words
        types = _types(record, self.variant)
        there = dict.fromkeys(["fp32", *types.values()])
        legend = tuple((graph_drawing.PRECISIONS.get(name, "#ffffff"), name) for name in there)
        return graph_drawing.by_precision(types), legend, f"{count}, by the precision in which {self.variant} computes."

    def _again(self) -> None:
        if self.found is not None:
            self.session.deliver(self.draw)

    def _settle(self) -> None:
        self.variants = self.results.variants
        if self.results.selected:
            self.variant = self.results.selected
        elif self.variant not in self.variants:
            self.variant = self.layers.second if self.layers.second in self.variants else next(iter(self.variants), "")
        record = self.results.record
        if record is not None and self._of and record.name != self._of:
            self.found, self.dot, self.chosen, self._of = None, "", (), ""
            self.place, self.chosen_words = "", ""


def _types(record: StudyRecord, variant: str) -> dict[str, str]:
    """Return the nodes that a variant's recipe lowers -> to what."""
    item = next((one for one in record.results if one.recipe.name == variant), None)
    return {} if item is None or item.variant is None else formats_of(item.variant)
