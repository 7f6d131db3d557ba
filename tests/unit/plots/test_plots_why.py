"""Figures of explanations: what is drawn, what is left out and said, in both themes."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex

from workbench.errors import DataError
from workbench.judging.roofline import Ceilings
from workbench.plots import png, why
from workbench.plots.theme import DARK, LIGHT

MACHINE = Ceilings(
    "onnxruntime-cpu", "1", "a CPU", 1, {"fp32": 1e11, "int8": 4e11}, (1 << 16, 1 << 26), (1e11, 4e10), 1e-6, 1e-7, 0.0
)  # fmt: skip
POINTS = [
    why.LayerPoint("stem", "fp32", 2e-4, 1e7, 2e6),
    why.LayerPoint("same place", "int8", 1e-4, 2e7, 1e5),
    why.LayerPoint("same place too", "int8", 1e-4, 2e7, 1e5),
    why.LayerPoint("relu", "weird", 1e-5, 0.0, 1e5, weighs=False),
]


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize(("theme", "colours"), [("light", LIGHT), ("dark", DARK)])
def test_the_roofline_has_a_roof_for_each_type_and_labels_one_place_once(theme, colours) -> None:
    figure = why.roofline(POINTS, MACHINE, name="int8-max", theme=theme)
    said = texts(figure)
    assert {"FP32 100", "INT8 400", "caches 100 GB/s", "memory 40 GB/s"} <= set(said)
    assert "same place +1" in said and "same place too" not in said
    assert "1 layers without counted operations are not drawn" in figure._supxlabel.get_text().replace("\n", " ")
    assert to_hex(figure.get_facecolor()) == colours.background
    assert png(figure).startswith(b"\x89PNG")


def test_layers_without_operations_have_no_place_under_a_roof() -> None:
    figure = why.roofline(POINTS[3:], MACHINE)
    assert any("has a place under a roof" in text for text in texts(figure))


def test_bars_say_what_is_gained_added_and_gone() -> None:
    rows = [("a", 4e-3, 1e-3), ("b", 1e-3, 2e-3), ("c", 0.0, 1e-3), ("d", 1e-3, 0.0), ("e", 1e-3, 1.01e-3)]
    assert texts(why.time_bars(rows, ("fp32", "int8"))) == ["4x", "2x slower", "added", "gone", "alike"]


def test_many_layers_are_summed_into_others() -> None:
    rows = [(f"layer{index}", 1e-3 * (index + 1), 1e-3) for index in range(20)]
    figure = why.time_bars(rows, ("fp32", "int8"))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[-1] == "4 others" and names[0] == "layer4"


def test_the_strip_has_a_cell_for_each_layer_as_high_as_its_time() -> None:
    figure = why.precision_strip(POINTS, name="int8-max")
    bars = [bar for bar in figure.axes[0].patches if bar.get_width() < 1]
    np.testing.assert_allclose([bar.get_height() for bar in bars], [1e3 * point.seconds for point in POINTS])
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["FP32", "INT8", "WEIRD"]
    many = why.precision_strip(POINTS * 30)
    assert all(bar.get_hatch() is None for bar in many.axes[0].patches)


def test_errors_are_drawn_alone_and_kept_and_the_rest_is_counted() -> None:
    rows = [(f"layer{index}", 30.0 + index, 25.0 if index < 3 else None) for index in range(20)]
    figure = why.error_by_layer([*rows, ("free", np.inf, None)])
    marks = [line for line in figure.axes[0].lines if len(line.get_xdata())]
    assert len(marks) == 16 + 3
    assert "5 layers with less noise are not drawn" in figure._supxlabel.get_text()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: why.roofline([], MACHINE),
        lambda: why.time_bars([], ("a", "b")),
        lambda: why.precision_strip([]),
        lambda: why.error_by_layer([]),
    ],
)
def test_nothing_to_draw_is_refused(draw) -> None:
    with pytest.raises(DataError, match="there is no layer to draw"):
        draw()
