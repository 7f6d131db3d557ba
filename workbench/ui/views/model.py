"""The page on which a model and its data are chosen and looked at."""

from __future__ import annotations

import ipywidgets as widgets

from workbench.ui.state import State
from workbench.ui.state.subject import GIVEN, IMAGES, NPZ, RANDOM, SHIPPED
from workbench.ui.views import controls, markup
from workbench.ui.views.markup import escape


def model_page(state: State) -> widgets.Widget:
    """Return the page."""
    desk, subject = state.desk, state.subject
    source = controls.menu(desk, subject, "Source", "sources", "source")
    shipped = controls.menu(desk, subject, "Shipped model", "shipped_names", "shipped")
    path = controls.field(widgets.Text(description="Path", placeholder="models/net.onnx, or a folder"))
    controls.bind(desk, subject, "path", path)
    load = controls.button(desk, "Load", subject.load, "Load the chosen model and look at it", button_style="primary")
    busy = controls.html("", "wb-quiet")
    card = controls.html()

    def show_fields() -> None:
        shipped.layout.display = None if subject.source == SHIPPED else "none"
        path.layout.display = None if subject.source not in (SHIPPED, GIVEN) else "none"

    def show_card() -> None:
        text = "" if subject.model is None else markup.model_card(subject.model, subject.cost, subject.lacks)
        absent = {name: why for name, why in subject.backends.items() if why is not None}
        missing = "".join(
            f'<p class="wb-quiet">Not here: {escape(name)}. {escape(str(why))}</p>' for name, why in absent.items()
        )
        controls.write(card, (text or "<p>No model is loaded yet. Choose one and press Load.</p>") + missing)

    controls.follow(subject, "source", show_fields)
    controls.follow(subject, "busy", lambda: controls.write(busy, f"{escape(subject.busy)} …" if subject.busy else ""))
    controls.follow(subject, ("model", "cost", "lacks"), show_card)
    return controls.page(
        controls.html("<h2>Model</h2>"), source, shipped, path, controls.actions(load, busy), *_data(state), card
    )


def _data(state: State) -> tuple[widgets.Widget, ...]:
    desk, subject = state.desk, state.subject
    source = controls.menu(desk, subject, "Data", "data_sources", "data_source")
    path = controls.field(widgets.Text(description="Data path", placeholder="data.npz, or a folder of images"))
    controls.bind(desk, subject, "data_path", path)
    use = controls.button(desk, "Use data", subject.use_data, "Fit the chosen data to the model")
    count = controls.field(widgets.BoundedIntText(description="Samples to move", min=1, max=10**9, value=64), "260px")
    split = controls.button(
        desk,
        "Split off",
        lambda: subject.split_off(count.value),
        "Move samples from the evaluation data into calibration",
    )
    splitting = controls.row(count, split)
    words = controls.html()

    def show_fields() -> None:
        path.layout.display = None if subject.data_source in (NPZ, IMAGES) else "none"

    def show_words() -> None:
        data = subject.data
        controls.write(words, "" if data is None else _data_words(state))
        splitting.layout.display = "none" if data is None or data.calibration is not None else None

    controls.follow(subject, "data_source", show_fields)
    controls.follow(subject, "data", show_words)
    return source, path, controls.actions(use), words, splitting


def _data_words(state: State) -> str:
    data = state.subject.data
    if data is None:
        return ""
    calibration = "no calibration samples" if data.calibration is None else f"{len(data.calibration)} to calibrate"
    metric = "no metric, so no accuracy is claimed" if data.metric is None else f"metric {escape(data.metric.name)}"
    notes = "".join(f'<br><span class="wb-quiet">{escape(note)}</span>' for note in data.notes)
    kind = "" if data.kind != RANDOM else " (random)"
    return (
        f"<p>{escape(data.name)}{kind}: {len(data.evaluation)} samples to evaluate, {calibration}; {metric}.{notes}</p>"
    )
