"""How the app looks: one file a page, each a function from state to widgets; and the frame around the pages."""

from __future__ import annotations

import ipywidgets as widgets

from workbench.ui.state import PAGES, State
from workbench.ui.views import controls, markup
from workbench.ui.views.batches import batches_page
from workbench.ui.views.export import export_page
from workbench.ui.views.model import model_page
from workbench.ui.views.recipes import recipes_page
from workbench.ui.views.results import results_page
from workbench.ui.views.run import run_page
from workbench.ui.views.studies import studies_page
from workbench.ui.views.style import CSS
from workbench.ui.views.tuning import tuning_page


def frame(state: State) -> widgets.VBox:
    """Return the whole app: navigation, the line that says where the study stands, errors, and the page."""
    session = state.session
    status, error = controls.html("", "wb-status"), controls.html()
    makers = (model_page, recipes_page, run_page, results_page, tuning_page, batches_page, export_page, studies_page)
    pages = controls.tabs(
        session, session, "page", "Page", {name: make(state) for name, make in zip(PAGES, makers, strict=True)}
    )
    # What went wrong with a button is told beside it.
    controls.follow(
        session,
        ("error", "place"),
        lambda: controls.write(error, markup.error(session.error if session.place is None else "")),
    )
    controls.follow(
        state.running,
        "words",
        lambda: controls.write(
            status, f'<span role="status" aria-live="polite">{markup.message(state.running.words)}</span>'
        ),
    )
    app = widgets.VBox([controls.html(f"<style>{CSS}</style>"), status, error, pages])
    app.add_class("workbench")
    return app
