"""The page of batches: a heat map of batch and threads or streams, as a table that can be read without its colours."""

from __future__ import annotations

import ipywidgets as widgets

from workbench.records.formats import milliseconds
from workbench.study.batches import Matrix, Place, counted
from workbench.ui.state import State
from workbench.ui.state.batches import OVER
from workbench.ui.state.results import as_number
from workbench.ui.views import controls, markup
from workbench.ui.views.markup import escape, message


def batches_page(state: State) -> widgets.Widget:
    """Return the page."""
    session, batches = state.session, state.batches
    recipe = controls.menu(session, batches, "Recipe", "recipes", "recipe")
    texts = {
        trait: controls.field(widgets.Text(description=words, placeholder=hint, continuous_update=False))
        for trait, words, hint in (
            ("batches_text", "Batches", "1, 2, 4, 8"),
            ("workers_text", "Threads or streams", "1, 2, 4"),
            ("budget_text", "Budget (ms)", "none: a latency to keep to"),
        )
    }
    controls.bind(session, batches, "batches_text", texts["batches_text"])
    controls.bind(session, batches, "workers_text", texts["workers_text"])
    controls.bind(session, batches, "budget_text", texts["budget_text"], batches.set_budget)
    over = controls.field(widgets.Dropdown(description="Those are", options=OVER), "260px")
    controls.bind(session, batches, "over", over)
    measure = controls.button(
        session, "Measure", batches.measure, "Measure every batch under each of the numbers", button_style="primary"
    )
    cancel = controls.button(session, "Stop measuring", batches.cancel, "Stop; what was measured is remembered")
    bar = controls.field(widgets.FloatProgress(description="All places", min=0.0, max=1.0), "100%")
    words, shown = controls.html(), controls.html()

    def tell() -> None:
        controls.write(words, f'<p role="status">{message(batches.words)}</p>{markup.error(batches.error)}')
        controls.write(measure, batches.is_running, "disabled")
        controls.write(bar, batches.fraction)
        for part in (cancel, bar):
            part.layout.display = None if batches.is_running else "none"

    def draw() -> None:
        budget = as_number("latency budget", batches.budget_text)
        controls.write(shown, heat_map(batches.found, batches.spot, None if budget is None else budget / 1e3))

    controls.follow(batches, ("words", "error", "is_running", "fraction"), tell)
    controls.follow(batches, ("found", "spot", "budget_text"), draw)
    return controls.page(
        controls.html(
            "<h2>Batches</h2><p class='wb-quiet'>How many samples a second one recipe gives, by batch and by threads of the CPU "
            "or concurrent streams, and which place is best within a latency.</p>"
        ),
        recipe,
        texts["batches_text"],
        texts["workers_text"],
        over,
        controls.actions(measure, cancel),
        bar,
        texts["budget_text"],
        words,
        shown,
    )


def heat_map(found: Matrix | None, spot: tuple[int, ...], at_most_seconds: float | None = None) -> str:
    """Return the places as a table: the more samples a second, the more colour; what breaks the budget is struck out."""
    if found is None or not found.places:
        return ""
    batches, workers = (
        [*dict.fromkeys(getattr(place, name) for place in found.places)] for name in ("batch", "workers")
    )
    known = {(place.batch, place.workers): place for place in found.places}
    most = max((place.samples_per_second or 0.0 for place in found.places), default=0.0) or 1.0
    rows = []
    for count in workers:
        cells = "".join(_cell(known.get((batch, count)), most, spot, at_most_seconds) for batch in batches)
        rows.append(f'<tr><th scope="row">{counted(count, found.over)}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">batch {batch}</th>' for batch in batches)
    return (
        f'<div class="wb-scroll" tabindex="0" role="region" aria-label="Heat map"><table class="wb-heat"><caption>Samples a '
        f"second, and the latency of a call with its 99 % interval (ms). ★: the sweet spot.</caption><thead><tr><td></td>{head}"
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(place: Place | None, most: float, spot: tuple[int, ...], at_most_seconds: float | None) -> str:
    if place is None:
        return "<td>…</td>"
    if place.summary is None or place.samples_per_second is None:
        why = f'<small class="wb-name">{message(place.failure[:60])}</small>'
        return f'<td title="{escape(place.failure, quote=True)}">failed{why}</td>'
    summary = place.summary
    upper = summary.median if summary.high is None else summary.high
    breaks = at_most_seconds is not None and upper > at_most_seconds
    is_spot = (place.batch, place.workers) == spot
    interval = "" if summary.low is None else f" [{milliseconds(summary.low)}, {milliseconds(upper)}]"
    share = round(70 * place.samples_per_second / most)
    rate = f"{'★ ' if is_spot else ''}{place.samples_per_second:,.0f}"
    words = f"<s>{rate}</s>" if breaks else f"<b>{rate}</b>" if is_spot else rate
    note = "<small>over budget</small>" if breaks else ""
    kind = ' class="wb-spot"' if is_spot else ""
    return (
        f'<td{kind} style="background: color-mix(in srgb, var(--wb-heat) {0 if breaks else share}%, transparent)">{words}'
        f"<small>{milliseconds(summary.median)}{interval}</small>{note}</td>"
    )
