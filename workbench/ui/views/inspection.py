"""The calibration view, and what became of a file's nodes."""

from __future__ import annotations

import ipywidgets as widgets

from workbench.ui.state import State
from workbench.ui.views import controls, markup
from workbench.ui.views.markup import message

_FUSION_TITLE = "What became of the nodes of the second variant's file (fused, added, folded away)"


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
        inspection, "words", lambda: controls.write(words, f'<p role="status">{message(inspection.words)}</p>')
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
        *_channels(state),
        *_weights(state),
    )


def _channels(state: State) -> tuple[widgets.Widget, ...]:
    """Return what shows the channels of the tensor."""
    session, channels, inspection = state.session, state.channels, state.inspection
    observe = controls.button(
        session,
        "Observe channels",
        channels.observe_channels,
        "Run the calibration samples through the model once more, or read what was observed before",
    )
    words, worst = controls.html(), controls.html()
    controls.follow(channels, "words", lambda: controls.write(words, f'<p role="status">{message(channels.words)}</p>'))
    controls.follow(channels, "outlying", lambda: controls.write(worst, markup.outlying(channels.outlying)))
    picture = controls.picture_pair(
        channels, "light", "dark", lambda: f"Largest magnitude of each channel of {inspection.tensor}."
    )
    return controls.html("<h3>Channels</h3>"), controls.row(observe), words, picture, worst


def _weights(state: State) -> tuple[widgets.Widget, ...]:
    """Return what shows the weights of a layer."""
    session, inspection = state.session, state.inspection
    read = controls.button(
        session, "Read weights", inspection.read_weights, "List the layers that have constant weights"
    )
    layer = controls.menu(session, inspection, "Layer", "weights", "weight", command=inspection.show_weight)
    layer.layout.width = "700px"
    words = controls.html()
    controls.follow(
        inspection,
        "weight_words",
        lambda: controls.write(words, f'<p role="status">{message(inspection.weight_words)}</p>'),
    )
    picture = controls.picture_pair(
        inspection,
        "weight_light",
        "weight_dark",
        lambda: f"Histogram of the weight of {inspection.weight}, and the largest magnitude of each output channel.",
    )
    return controls.html("<h3>Weights</h3>"), controls.row(read), layer, words, picture


def fusion_box(state: State) -> widgets.Accordion:
    """Return the folded part of the view of layers: what became of the nodes of the second variant's file, without times."""
    session, inspection, results, layers = state.session, state.inspection, state.results, state.layers
    words, shown = controls.html(), controls.html()
    box = widgets.Accordion([controls.page(words, shown)], titles=(_FUSION_TITLE,))

    def look() -> None:
        is_seen = results.view == "Layers" and box.selected_index is not None
        if is_seen and results.record is not None and layers.second in results.variants:
            session.deliver(inspection.show_layers, results.record, layers.second)

    controls.follow(results, ("view", "record"), look)
    controls.follow(layers, "second", look)
    box.observe(lambda change: look(), "selected_index")
    controls.follow(
        inspection,
        "fusion_words",
        lambda: controls.write(words, f'<p role="status">{message(inspection.fusion_words)}</p>'),
    )
    controls.follow(
        inspection,
        ("fusion", "before"),
        lambda: controls.write(shown, markup.layers(inspection.before, inspection.fusion)),
    )
    return box
