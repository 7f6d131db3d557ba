"""The page of results: plot and budgets, table, layers, graph, disagreements, calibration."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from workbench.ui import live_rows
from workbench.ui.state import State
from workbench.ui.state.results import VIEWS
from workbench.ui.views import controls, markup
from workbench.ui.views.graph import graph_view
from workbench.ui.views.inspection import calibration_view
from workbench.ui.views.layers import layers_view
from workbench.ui.views.live import Front, Table
from workbench.ui.views.markup import label, message


def results_page(state: State) -> widgets.Widget:
    """Return the page; one of its views is shown at a time."""
    session, results = state.session, state.results
    words = controls.html()

    def tell() -> None:
        first, *rest = map(message, results.words.split("\n"))
        more = "".join(f"<p>{sentence}</p>" for sentence in rest)
        controls.write(words, f"<p><b>{first}</b></p>{more}")

    controls.follow(results, "words", tell)
    makers = {
        "Plot": _plot,
        "Table": _table,
        "Layers": layers_view,
        "Graph": graph_view,
        "Disagreements": _disagreements,
        "Calibration": calibration_view,
    }
    views = controls.tabs(session, results, "view", "View", {name: makers[name](state) for name in VIEWS})
    return controls.page(controls.html("<h2>Results</h2>"), words, views)


def _plot(state: State) -> widgets.Widget:
    session, results = state.session, state.results
    latency = widgets.Text(description="Latency (ms)", placeholder="none", continuous_update=False)
    loss = widgets.Text(description="Loss (points)", placeholder="none", continuous_update=False)
    controls.bind(session, results, "latency_text", latency, lambda text: results.set_budget(text, results.loss_text))
    controls.bind(session, results, "loss_text", loss, lambda text: results.set_budget(results.latency_text, text))
    for control in (latency, loss):
        control.add_class("wb-tight")
    words = controls.html()

    def show() -> None:
        controls.write(words, f'<p role="status">{message(results.budget_words)}</p>' if results.budget_words else "")

    def show_unit() -> None:
        shown = None if results.summary is None else results.summary.quality
        unit = "points" if shown is None or shown.unit == "%" else shown.unit or shown.name
        controls.write(loss, f"Loss ({label(unit)})", "description")

    controls.follow(results, "budget_words", show)
    controls.follow(results, "summary", show_unit)
    budgets = controls.row(
        controls.html("Budget", "wb-group"), controls.field(latency, "210px"), controls.field(loss, "210px")
    )
    return controls.page(budgets, words, _view_choices(state), _front(state))


def _view_choices(state: State) -> widgets.Widget:
    """Return what changes the picture: the axes, the variant, and which other studies are drawn."""
    session, results = state.session, state.results
    log = widgets.Checkbox(description="Logarithmic latency", indent=False, tooltip="Equal ratios get equal distances")
    whole = widgets.Checkbox(
        description="Show far points", indent=False, tooltip="Widen the axes to points that lie far from all others"
    )
    controls.bind(session, results, "is_log", log)
    controls.bind(session, results, "is_whole", whole)
    variant = controls.menu(session, results, "Selected", "variants", "selected", command=results.select)
    beside = controls.field(
        widgets.SelectMultiple(description="Studies beside", rows=3, tooltip="Studies of the same model in the store"),
        "700px",
    )
    box = widgets.Accordion([controls.page(beside)], titles=("Other studies of this model in the same plot",))

    def show_others() -> None:
        if tuple(beside.options) != results.others:
            beside.options = results.others
        box.layout.display = None if results.others else "none"

    controls.follow(results, "others", show_others)
    controls.bind(session, results, "beside", beside, results.draw_beside)
    results.observe(lambda change: session.deliver(results.look_for_others), "summary")
    return controls.page(controls.row(variant, log, whole), box)


def _front(state: State) -> widgets.Widget:
    session, results = state.session, state.results
    front = Front()

    def show() -> None:
        words = f"Accuracy against latency. {results.words.partition(chr(10))[0]} Numbers: view Table."
        front.draw(results.figure, words) if results.figure else setattr(front, "figure", {})

    def choose(change: Any) -> None:
        if change["new"] in results.variants and change["new"] != results.selected:
            session.attempt(results.select, change["new"])

    controls.follow(results, "figure", show)
    front.observe(choose, "selected")
    results.observe(lambda change: controls.write(front, results.selected, "selected"), "selected")
    note = controls.html(
        "<p class='wb-quiet'>Click a point to select its variant everywhere; drag to zoom, double-click to see all again. "
        "Diamond: the baseline. Hollow: not told apart from it. Dashed: the Pareto front.</p>"
    )
    controls.follow(results, "figure", lambda: setattr(note.layout, "display", None if results.figure else "none"))
    return controls.page(front, note)


def _table(state: State) -> widgets.Widget:
    session, results = state.session, state.results
    table, notes = Table(label="Variants with their numbers", search_label="Search variants"), controls.html()

    def show() -> None:
        if results.summary is None:
            return
        shown = results.summary.table
        table.show(live_rows.columns(shown), live_rows.rows(shown, results.best))
        controls.write(notes, "".join(f'<p class="wb-quiet">{message(note)}</p>' for note in shown.footnotes))

    def choose(change: Any) -> None:
        for name in change["new"]:
            if name in results.variants and name != results.selected:
                session.attempt(results.select, name)

    controls.follow(results, ("summary", "best"), show)
    table.observe(choose, "selected")
    controls.follow(
        results,
        "selected",
        lambda: controls.write(table, [results.selected] if results.selected else [], "selected"),
    )
    return controls.page(table, notes)


def _disagreements(state: State) -> widgets.Widget:
    session, results = state.session, state.results
    first = controls.menu(
        session,
        results,
        "Variant",
        "variants",
        "first",
        command=lambda name: results.compare_answers(name, results.second),
    )
    second = controls.menu(
        session,
        results,
        "against",
        "variants",
        "second",
        command=lambda name: results.compare_answers(results.first, name),
    )
    shown = controls.html()

    def show(change: Any = None) -> None:
        controls.write(shown, markup.disagreements(results.disagreements, results.first, results.second))

    controls.follow(results, "disagreements", show)
    return controls.page(controls.row(first, second), shown)
