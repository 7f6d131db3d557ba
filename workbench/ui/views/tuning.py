"""The page of tuning: layers ranked by what lowering them costs, mixes by hand, and the search for one within a bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from workbench.records.formats import ABSENT, milliseconds
from workbench.study.search import Found
from workbench.tuning.sensitivity import LayerCosts
from workbench.ui.state import State
from workbench.ui.state.tuning import BY
from workbench.ui.views import controls, markup
from workbench.ui.views.live import Table
from workbench.ui.views.markup import escape, message


def tuning_page(state: State) -> widgets.Widget:
    """Return the page."""
    session, tuning = state.session, state.tuning
    recipe = controls.menu(session, tuning, "Recipe", "recipes", "recipe", command=tuning.choose)
    by = controls.field(widgets.Dropdown(description="Rank by", options=BY), "260px")
    controls.bind(session, tuning, "by", by)
    rank = controls.button(
        session,
        "Rank layers",
        tuning.rank,
        "Measure what lowering each layer alone costs and saves",
        button_style="primary",
    )
    cancel = controls.button(session, "Stop", tuning.cancel, "Stop; what was measured is kept")
    bar = controls.field(widgets.FloatProgress(description="All of it", min=0.0, max=1.0), "100%")
    words = controls.html()

    def tell() -> None:
        controls.write(words, f'<p role="status">{message(tuning.words)}</p>{markup.error(tuning.error)}')
        controls.write(rank, tuning.is_running, "disabled")
        controls.write(bar, tuning.fraction)
        for part in (cancel, bar):
            part.layout.display = None if tuning.is_running else "none"

    controls.follow(tuning, ("words", "error", "is_running", "fraction"), tell)
    return controls.page(
        controls.html(
            "<h2>Tune</h2><p class='wb-quiet'>Which layers a recipe had better leave as they are: choose them by what they "
            "cost, or let a bound choose.</p>"
        ),
        controls.row(recipe, by),
        controls.actions(rank, cancel),
        bar,
        words,
        *_by_hand(state),
        *_by_bound(state),
    )


def _by_hand(state: State) -> Sequence[widgets.Widget]:
    session, tuning = state.session, state.tuning
    table = Table(label="Layers by what lowering them costs", search_label="Search layers", multiple=True)
    add = controls.button(
        session, "Add recipe", tuning.add, "Add the recipe that keeps the selected layers as they are"
    )
    box = controls.page(controls.html("<h3>Choose layers to keep</h3>"), table, controls.row(add))

    def show() -> None:
        costs = tuning.costs
        box.layout.display = "none" if costs is None else None
        if costs is not None:
            table.show(_columns(costs), rows(costs))

    def choose(change: Any) -> None:
        if tuple(change["new"]) != tuning.chosen:
            session.attempt(lambda: setattr(tuning, "chosen", tuple(change["new"])))

    def follow() -> None:
        controls.write(table, list(tuning.chosen), "selected")
        count = len(tuning.chosen)
        controls.write(add, f"Add recipe that keeps {count} layer{'' if count == 1 else 's'}", "description")
        controls.write(add, count == 0, "disabled")

    controls.follow(tuning, "costs", show)
    controls.follow(tuning, "chosen", follow)
    table.observe(choose, "selected")
    return (box,)


def _by_bound(state: State) -> Sequence[widgets.Widget]:
    session, tuning = state.session, state.tuning
    loss = controls.field(
        widgets.Text(description="Lose at most", placeholder="points", continuous_update=False), "260px"
    )
    latency = controls.field(
        widgets.Text(description="or take at most", placeholder="ms a call", continuous_update=False), "260px"
    )
    controls.bind(session, tuning, "loss_text", loss)
    controls.bind(session, tuning, "latency_text", latency)
    search = controls.button(
        session, "Search", tuning.search, "Find the best mix within the bound; builds and measures it"
    )
    show = controls.button(session, "Show on Results", tuning.show, "Show the study of the search, the best selected")
    path = controls.html()

    def tell() -> None:
        controls.write(search, tuning.is_running, "disabled")
        controls.write(path, "" if tuning.found is None else path_table(tuning.found))
        show.layout.display = "none" if tuning.found is None else None

    controls.follow(tuning, ("found", "is_running"), tell)
    return (
        controls.html("<h3>Or let a bound choose</h3>"),
        controls.row(loss, latency),
        controls.actions(search, show),
        path,
    )


def _columns(costs: LayerCosts) -> list[dict[str, Any]]:
    unit = costs.unit or "score"
    return [
        {"heading": "Layer", "numeric": False},
        {"heading": "Share of noise", "unit": "%", "numeric": True, "hint": "of all layers lowered alone"},
        {"heading": "Alone", "unit": "dB", "numeric": True, "hint": "signal to noise at the outputs, only it lowered"},
        {"heading": "Lost alone", "unit": unit, "numeric": True, "hint": "with only it lowered"},
        {"heading": "Lost by all but it", "unit": unit, "numeric": True, "hint": "with all but it lowered"},
        {"heading": "Saves", "unit": "ms", "numeric": True, "hint": "profiled, of one call"},
        {"heading": "As it is", "unit": "ms", "numeric": True},
        {"heading": "Lowered", "unit": "ms", "numeric": True},
    ]


def rows(costs: LayerCosts) -> list[dict[str, Any]]:
    """Return the layers as rows of a live table, the noisiest first."""
    total = sum(row.alone_nsr for row in costs.rows) or 1.0
    found = []
    for row in costs.rows:
        together = f"measured with {row.group - 1} more" if row.group > 1 else ""
        cells = [
            {"text": row.name, "detail": together, "title": ", ".join(row.nodes)},
            _number(100 * row.alone_nsr / total, ".1f"),
            _number(row.alone_db, ".1f"),
            _number(row.alone_drop, ".3g"),
            _number(row.kept_drop, ".3g"),
            *(_time(seconds) for seconds in (row.saved_seconds, row.seconds, row.quantized_seconds)),
        ]
        found.append({"key": row.name, "mark": False, "cells": cells})
    return found


def _number(value: float | None, form: str) -> dict[str, Any]:
    if value is None or math.isnan(value):
        return {"text": ABSENT}
    return {"text": "exact", "order": 1e9} if math.isinf(value) else {"text": f"{value:{form}}", "order": value}


def _time(seconds: float | None) -> dict[str, Any]:
    return {"text": ABSENT} if seconds is None else {"text": milliseconds(seconds), "order": seconds}


def path_table(found: Found) -> str:
    """Return what a search tried, in order, with what was taken marked in words."""
    lines = []
    for one in found.path:
        data = "measured" if one.measured else "simulated on calibration samples"
        taken = "★ " if one.measured and one.recipe == found.best else ""
        lines.append(
            (
                f"{taken}{escape(one.recipe)}",
                str(len(one.kept)),
                ABSENT if one.drop is None else f"{one.drop:.3g}",
                ABSENT if one.seconds is None else milliseconds(one.seconds),
                "keeps to it" if one.meets else "breaks it",
                data,
            )
        )
    headings = ("Mix", "Layers kept", f"Lost ({escape(found.unit)})", "Latency (ms)", "Bound", "How it is known")
    return markup.table(headings, lines, numbers=(1, 2, 3))
