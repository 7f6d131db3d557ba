"""The calibration view and the fusion view."""

from __future__ import annotations

import ipywidgets as widgets

from workbench.ui.state import State
from workbench.ui.views import controls, markup
from workbench.ui.views.markup import escape


def calibration_view(state: State) -> widgets.Widget:
    """Return histogram, clips and KL curve of a tensor."""
    session, inspection = state.session, state.inspection
    collect = controls.button(
        session,
        "Collect",
        inspection.collect,
        "Run the calibration samples through the model, or read what a study collected",
    )
    tensor = controls.menu(session, inspection, "Tensor", "tensors", "tensor", command=inspection.show_tensor)
    tensor.layout.width = "700px"
    words, clips = controls.html(), controls.html()
    controls.follow(
        inspection, "words", lambda: controls.write(words, f'<p role="status">{escape(inspection.words)}</p>')
    )
    controls.follow(inspection, "clips", lambda: controls.write(clips, markup.clips(inspection.clips)))
    return controls.page(
        controls.row(collect),
        tensor,
        words,
        controls.picture_pair(
            inspection,
            "histogram_light",
            "histogram_dark",
            lambda: f"Histogram of {inspection.tensor} with clip thresholds.",
        ),
        clips,
        controls.picture_pair(
            inspection, "curve_light", "curve_dark", lambda: f"KL divergence of {inspection.tensor} by threshold."
        ),
    )


def fusion_view(state: State) -> widgets.Widget:
    """Return the layers of a variant's runtime and the nodes behind them."""
    session, inspection, results = state.session, state.inspection, state.results
    variant = controls.field(widgets.Dropdown(description="Variant"))
    show_button = controls.button(
        session,
        "Show layers",
        lambda: inspection.show_layers(results.record, str(variant.value)),
        "Map the runtime's layers to the nodes of the file",
    )
    words, layers = controls.html(), controls.html()

    def show_variants() -> None:
        if tuple(variant.options) != results.variants:
            variant.options = results.variants
            variant.value = results.variants[-1] if results.variants else None

    controls.follow(results, "variants", show_variants)
    controls.follow(
        inspection,
        "fusion_words",
        lambda: controls.write(words, f'<p role="status">{escape(inspection.fusion_words)}</p>'),
    )
    controls.follow(
        inspection,
        ("fusion", "before"),
        lambda: controls.write(layers, markup.layers(inspection.before, inspection.fusion)),
    )
    return controls.page(controls.row(variant, show_button), words, layers)
