"""The page that hands on: code and report."""

from __future__ import annotations

import base64
from pathlib import Path

import ipywidgets as widgets

from workbench.ui.state import State
from workbench.ui.state.export import FORMATS
from workbench.ui.views import controls
from workbench.ui.views.markup import escape


def export_page(state: State) -> widgets.Widget:
    """Return the page of code and report."""
    session, export = state.session, state.export
    show = controls.button(
        session, "Show as code", export.show_code, "Write the cell that does what the app is set to do"
    )
    again = controls.button(
        session,
        "Code of the study shown",
        export.show_study_code,
        "Write the cell that runs the study on Results again",
    )
    of = controls.html("", "wb-quiet")
    controls.follow(
        export,
        "study",
        lambda: controls.write(
            of, f"<p>Of the study on Results: <b class='wb-name'>{escape(export.study) or 'none yet'}</b></p>"
        ),
    )
    code = controls.field(
        widgets.Textarea(description="Code", placeholder="The cell that does the same with the verbs"), "98%"
    )
    controls.follow(export, "code", lambda: controls.write(code, export.code))
    path = controls.field(widgets.Text(description="File", continuous_update=False))
    controls.bind(session, export, "report_path", path)
    kind = controls.field(widgets.Dropdown(description="Format", options=list(FORMATS)))
    controls.bind(session, export, "report_format", kind)
    layers = widgets.Checkbox(
        description="With layers",
        indent=False,
        tooltip="Profile the best variant beside the baseline first, which takes seconds to minutes",
    )
    controls.bind(session, export, "with_layers", layers)
    write = controls.button(session, "Export report", export.export, "Write the report of the study that is shown")
    link = controls.html()
    controls.follow(export, ("written", "report_page", "is_writing"), lambda: controls.write(link, _link(state)))
    return controls.page(
        controls.html("<h2>Code</h2>"),
        controls.row(show, again),
        code,
        controls.html("<h2>Report</h2>"),
        of,
        path,
        kind,
        layers,
        controls.actions(write),
        link,
    )


def _link(state: State) -> str:
    export = state.export
    if export.is_writing:
        return '<p role="status">Writing …</p>'
    if not export.written:
        return ""
    text = f'<p role="status">Written: <span class="wb-name">{escape(export.written)}</span></p>'
    if export.report_page:
        page = base64.b64encode(export.report_page.encode("utf-8")).decode("ascii")
        name = escape(Path(export.written).name, quote=True)
        text += f'<p><a download="{name}" href="data:text/html;base64,{page}">Download the report</a></p>'
    return text
