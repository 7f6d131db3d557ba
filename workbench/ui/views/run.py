"""The page on which a study is started, watched and cancelled."""

from __future__ import annotations

import ipywidgets as widgets

from workbench.ui.state import State
from workbench.ui.views import controls, markup
from workbench.ui.views.markup import escape, message


def run_page(state: State) -> widgets.Widget:
    """Return the page."""
    session, running, plan = state.session, state.running, state.plan
    start = controls.button(
        session, "Start", running.start, "Start the study, or go on with one cut off", button_style="primary"
    )
    cancel = controls.button(session, "Cancel", running.cancel, "Stop the study; what is finished is kept")
    bar = controls.field(widgets.FloatProgress(description="All variants", min=0.0, max=1.0), "100%")
    table, failed, plan_words = (controls.html() for _ in range(3))
    log = controls.html()
    details = widgets.Accordion([log], titles=("Log of the builds",))

    def show_buttons() -> None:
        controls.write(start, running.start_words, "description")
        controls.write(start, not running.can_start, "disabled")
        controls.write(cancel, not running.can_cancel, "disabled")

    def show_plan() -> None:
        names = ", ".join(recipe.name for recipe in plan.recipes)
        controls.write(plan_words, f"<p>{escape(names)}. {message(plan.estimate)}</p>")

    controls.follow(running, ("start_words", "can_start", "can_cancel"), show_buttons)
    controls.follow(plan, ("recipes", "estimate"), show_plan)
    controls.follow(running, "fraction", lambda: controls.write(bar, running.fraction))
    controls.follow(running, "variants", lambda: controls.write(table, markup.variants(running.variants)))
    controls.follow(running, "variants", lambda: controls.write(failed, markup.failures(running.variants)))
    controls.follow(
        running,
        "log",
        lambda: controls.write(log, f"<pre>{escape(running.log) or 'Nothing yet.'}</pre>"),
    )
    return controls.page(
        controls.html("<h2>Run</h2>"), plan_words, controls.row(start, cancel), bar, table, failed, details
    )
