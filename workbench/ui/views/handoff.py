"""The pages that hand on: code and report; and the history of studies."""

from __future__ import annotations

import base64

import ipywidgets as widgets

from workbench.ui.state import State
from workbench.ui.state.handoff import FORMATS
from workbench.ui.views import controls, markup
from workbench.ui.views.markup import escape


def handoff_page(state: State) -> widgets.Widget:
    """Return the page of code and report."""
    desk, handoff = state.desk, state.handoff
    show = controls.button(desk, "Show as code", handoff.show_code, "Write the cell that does the same")
    code = widgets.Textarea(
        description="Code",
        placeholder="The cell that does the same with the verbs",
        layout=widgets.Layout(width="98%"),
    )
    code.style.description_width = "60px"
    controls.follow(handoff, "code", lambda: controls.write(code, handoff.code))
    path = controls.field(widgets.Text(description="File", continuous_update=False))
    controls.bind(desk, handoff, "report_path", path)
    kind = controls.field(widgets.Dropdown(description="Format", options=list(FORMATS)))
    controls.bind(desk, handoff, "report_format", kind)
    export = controls.button(desk, "Export report", handoff.export, "Write the report of the study that is shown")
    link = controls.html()
    controls.follow(handoff, ("written", "report_page"), lambda: controls.write(link, _link(state)))
    return controls.page(
        controls.html("<h2>Code</h2>"),
        controls.row(show),
        code,
        controls.html("<h2>Report</h2>"),
        path,
        kind,
        controls.actions(export),
        link,
    )


def history_page(state: State) -> widgets.Widget:
    """Return the page of earlier studies."""
    desk, history = state.desk, state.history
    query = controls.field(widgets.Text(description="Search", placeholder="words of a study's name"))
    controls.bind(desk, history, "query", query, history.search)
    names = controls.field(widgets.SelectMultiple(description="Studies", rows=8), "700px")
    open_ = controls.button(desk, "Open", history.open, "Show the selected study on the page Results")
    compare = controls.button(
        desk, "Compare two", history.compare, "Compare the later of two selected with the earlier"
    )
    words, table = controls.html(), controls.html()

    def show_names() -> None:
        if tuple(names.options) != history.names:
            names.options = history.names

    controls.follow(history, "names", show_names)
    controls.bind(desk, history, "chosen", names, history.choose)
    controls.follow(history, "words", lambda: controls.write(words, f'<p role="status">{escape(history.words)}</p>'))
    controls.follow(history, "comparison", lambda: controls.write(table, markup.comparison(history.comparison)))
    controls.follow(desk, "page", lambda: list_again(state))
    return controls.page(
        controls.html("<h2>Earlier studies</h2>"), query, names, controls.actions(open_, compare), words, table
    )


def list_again(state: State) -> None:
    """Look for studies anew when the page of them is opened."""
    if state.desk.page == "History":
        state.history.search(state.history.query)


def _link(state: State) -> str:
    handoff = state.handoff
    if not handoff.written:
        return ""
    text = f'<p role="status">Written: <span class="wb-name">{escape(handoff.written)}</span></p>'
    if handoff.report_page:
        page = base64.b64encode(handoff.report_page.encode("utf-8")).decode("ascii")
        text += f'<p><a download="report.html" href="data:text/html;base64,{page}">Download the report</a></p>'
    return text
