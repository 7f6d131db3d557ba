"""The page of results: plot and budgets, table, layers, disagreements, calibration."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from workbench.ui.state import State
from workbench.ui.state.results import VIEWS
from workbench.ui.views import controls, markup
from workbench.ui.views.inspection import calibration_view
from workbench.ui.views.layers import layers_view
from workbench.ui.views.markup import escape


def results_page(state: State) -> widgets.Widget:
    """Return the page; one of its views is shown at a time."""
    session, results = state.session, state.results
    words = controls.html()

    def tell() -> None:
        first, *rest = map(escape, results.words.split("\n"))
        more = "".join(f"<p>{sentence}</p>" for sentence in rest)
        controls.write(words, f"<p><b>{first}</b></p>{more}")

    controls.follow(results, "words", tell)
    makers = {
        "Plot": _plot,
        "Table": _table,
        "Layers": layers_view,
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
        controls.write(words, f'<p role="status">{escape(results.budget_words)}</p>' if results.budget_words else "")

    def show_unit() -> None:
        shown = None if results.summary is None else results.summary.quality
        unit = "points" if shown is None or shown.unit == "%" else shown.unit or shown.name
        controls.write(loss, f"Loss ({unit})", "description")

    controls.follow(results, "budget_words", show)
    controls.follow(results, "summary", show_unit)
    budgets = controls.row(
        controls.html("Budget", "wb-group"), controls.field(latency, "210px"), controls.field(loss, "210px")
    )
    return controls.page(
        budgets,
        words,
        controls.picture_pair(
            results,
            "plot_light",
            "plot_dark",
            lambda: f"Accuracy against latency. {results.words.partition(chr(10))[0]} Numbers: view Table.",
        ),
    )


def _table(state: State) -> widgets.Widget:
    session, results = state.session, state.results
    column = controls.menu(
        session,
        results,
        "Sort by",
        "columns",
        "sort_column",
        command=lambda value: results.sort(value, results.descending),
    )
    descending = widgets.Checkbox(description="Largest first", indent=False, tooltip="Sort in descending order")
    controls.bind(session, results, "descending", descending, lambda value: results.sort(results.sort_column, value))
    shown = controls.html()

    def show() -> None:
        if results.summary is not None:
            text = markup.results(results.summary.table, results.best, results.sort_column, results.descending)
            controls.write(shown, text)

    controls.follow(results, ("summary", "best", "sort_column", "descending"), show)
    return controls.page(controls.row(column, descending), shown)


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
