"""The page on which a model and its data are chosen and looked at."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets as widgets

from workbench.ui.state import State
from workbench.ui.state.browsing import Browsing
from workbench.ui.state.selection import FOLDER, GIVEN, IMAGES, NPZ, RANDOM, SHIPPED
from workbench.ui.state.session import Session
from workbench.ui.views import controls, markup
from workbench.ui.views.markup import escape, message

_NPZ_LAYOUT = (
    "An .npz holds one array a model input under the input's name (or `input` where there is one), samples on the first axis; "
    "`labels` for a score; and `calibration_` before an input's name for the samples to calibrate with."
)


def model_page(state: State) -> widgets.Widget:
    """Return the page."""
    session, selection = state.session, state.selection
    source = controls.menu(session, selection, "Source", "sources", "source")
    shipped = controls.menu(session, selection, "Shipped model", "shipped_names", "shipped")
    path = controls.field(widgets.Text(description="Path", placeholder="models/net.onnx, or a folder"))
    controls.bind(session, selection, "path", path)
    load = controls.button(
        session, "Load", selection.load, "Load the chosen model and look at it", button_style="primary"
    )
    busy = controls.html("", "wb-quiet")
    card = controls.html()

    browse = _browser(session, selection.model_files, "Browse", lambda: selection.source == FOLDER)

    def show_fields() -> None:
        shipped.layout.display = None if selection.source == SHIPPED else "none"
        for part in (path, browse):
            part.layout.display = None if selection.source not in (SHIPPED, GIVEN) else "none"
        selection.model_files.is_open = False

    def show_card() -> None:
        text = "" if selection.model is None else markup.model_card(selection.model, selection.cost, selection.lacks)
        absent = {name: why for name, why in selection.backends.items() if why is not None}
        missing = "".join(
            f'<p class="wb-quiet">Not here: {escape(name)}. {message(str(why))}</p>' for name, why in absent.items()
        )
        controls.write(card, (text or "<p>No model is loaded yet. Choose one and press Load.</p>") + missing)

    controls.follow(selection, "source", show_fields)
    controls.follow(
        selection, "busy", lambda: controls.write(busy, f"{escape(selection.busy)} …" if selection.busy else "")
    )
    controls.follow(selection, ("model", "cost", "lacks"), show_card)
    return controls.page(
        controls.html("<h2>Model</h2>"),
        source,
        shipped,
        path,
        browse,
        controls.actions(load, busy),
        *_data(state),
        card,
    )


def _data(state: State) -> tuple[widgets.Widget, ...]:
    session, selection = state.session, state.selection
    source = controls.menu(session, selection, "Data", "data_sources", "data_source")
    path = controls.field(widgets.Text(description="Data path", placeholder="data.npz, or a folder of images"))
    controls.bind(session, selection, "data_path", path)
    use = controls.button(session, "Use data", selection.use_data, "Fit the chosen data to the model")
    count = controls.field(widgets.BoundedIntText(description="Samples to move", min=1, max=10**9, value=64), "260px")
    split = controls.button(
        session,
        "Split off",
        lambda: selection.split_off(count.value),
        "Move samples from the evaluation data into calibration",
    )
    splitting = controls.row(count, split)
    words = controls.html()

    browse = _browser(session, selection.data_files, "Browse data", lambda: selection.data_source == IMAGES)
    layout = controls.html(f"<p class='wb-quiet'>{message(_NPZ_LAYOUT)}</p>")

    def show_fields() -> None:
        for part in (path, browse):
            part.layout.display = None if selection.data_source in (NPZ, IMAGES) else "none"
        layout.layout.display = None if selection.data_source == NPZ else "none"
        selection.data_files.is_open = False

    def show_words() -> None:
        data = selection.data
        controls.write(words, "" if data is None else _data_words(state))
        splitting.layout.display = "none" if data is None or data.calibration is not None else None

    controls.follow(selection, "data_source", show_fields)
    controls.follow(selection, "data", show_words)
    return source, path, layout, browse, controls.actions(use), words, splitting


def _browser(session: Session, files: Browsing, words: str, wants_folder: Callable[[], bool]) -> widgets.Widget:
    """Return a button that opens a list of files and folders, and the list."""
    toggle = controls.button(session, words, files.toggle, "Choose the path from a list of files and folders")
    found = controls.field(widgets.Select(description="Files", rows=8), "700px")
    enter = controls.button(
        session,
        "Open folder or take file",
        lambda: files.choose(found.value),
        "Go into the selected folder, or take the file",
    )
    take = controls.button(session, "Take this folder", files.use_folder, "Take the folder that is listed")
    where = controls.html("", "wb-quiet")
    box = controls.page(where, found, controls.actions(enter, take))

    def show() -> None:
        found.options, found.value = list(files.entries), None
        controls.write(where, f"<p class='wb-name'>{message(files.words)}</p>")
        box.layout.display = None if files.is_open else "none"
        take.layout.display = None if wants_folder() else "none"

    controls.follow(files, ("is_open", "entries", "words"), show)
    return controls.page(controls.actions(toggle), box)


def _data_words(state: State) -> str:
    data = state.selection.data
    if data is None:
        return ""
    calibration = "no calibration samples" if data.calibration is None else f"{len(data.calibration)} to calibrate"
    metric = "no metric, so no accuracy is claimed" if data.metric is None else f"metric {escape(data.metric.name)}"
    notes = "".join(f'<br><span class="wb-quiet">{message(note)}</span>' for note in data.notes)
    kind = "" if data.kind != RANDOM else " (random)"
    return (
        f"<p>{escape(data.name)}{kind}: {len(data.evaluation)} samples to evaluate, {calibration}; {metric}.{notes}</p>"
    )
