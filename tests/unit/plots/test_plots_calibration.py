"""Figures about calibration say what they show, leave no count out, and refuse arrays that do not fit."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from workbench import plots
from workbench.errors import DataError


def words(figure: Figure) -> str:
    """Return every text of a figure, whatever its artist."""
    axes = [text for part in figure.axes for text in (*part.texts, part.xaxis.label, part.yaxis.label)]
    ticks = [text for part in figure.axes for text in (*part.get_xticklabels(), *part.get_yticklabels())]
    titles = [part.get_title("left") for part in figure.axes]
    return "\n".join([*titles, *(text.get_text() for text in (*axes, *ticks, *figure.texts))])


def test_a_histogram_names_each_clip_with_its_threshold_and_what_it_clips() -> None:
    counts, edges = np.array([700, 200, 90, 10]), np.linspace(0, 4, 5)
    text = words(plots.histogram(counts, edges, {"max": 4.0, "kl": 3.0}, tensor="relu1"))
    assert "kl: 3 (clips 1.00%)" in text
    assert "max: 4 (clips nothing)" in text
    assert "Activations of relu1" in text
    assert "1,000 values" in text


def test_a_fine_histogram_is_drawn_coarser_without_losing_a_count() -> None:
    counts = np.arange(2048)
    axes = plots.histogram(counts, np.linspace(0, 1, 2049)).axes[0]
    drawn = axes.patches[0].get_data().values
    assert len(drawn) == 256
    assert drawn.sum() == counts.sum()


@pytest.mark.parametrize(("counts", "edges"), [([1, 2], [0, 1]), ([], [0]), ([[1, 2]], [0, 1, 2])])
def test_a_histogram_refuses_edges_that_do_not_fit(counts: list[float], edges: list[float]) -> None:
    with pytest.raises(DataError, match="expected"):
        plots.histogram(counts, edges)


def test_the_kl_curve_marks_the_choice_and_leaves_out_what_is_not_finite() -> None:
    figure = plots.kl_curve([1.0, 2.0, 3.0, 4.0], [np.inf, 0.5, 0.2, 0.4], chosen=3.0)
    assert "chosen: 3" in words(figure)
    assert "0.2 nats" in words(figure)
    assert list(figure.axes[0].lines[0].get_xdata()) == [2.0, 3.0, 4.0]


def test_the_kl_curve_takes_a_log_scale_only_where_values_span_it() -> None:
    assert plots.kl_curve([1, 2], [1.0, 0.001], chosen=2).axes[0].get_yscale() == "log"
    assert plots.kl_curve([1, 2], [1.0, 0.5], chosen=2).axes[0].get_yscale() == "linear"


def test_the_kl_curve_refuses_other_shapes_and_curves_without_a_finite_value() -> None:
    with pytest.raises(DataError, match="must be the same"):
        plots.kl_curve([1, 2], [1.0], chosen=1)
    with pytest.raises(DataError, match="none of the 2"):
        plots.kl_curve([1, 2], [np.inf, np.nan], chosen=1)


def test_convergence_draws_the_tensors_that_moved_most_and_says_how_many_it_leaves_out() -> None:
    tensors = {f"t{i}": [1 + i, 1 + i / 2, 1.0] for i in range(5)}
    figure = plots.convergence([8, 16, 32], tensors, most=2)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["t4", "t3"]
    assert "3 that moved less are not drawn" in words(figure)


def test_convergence_of_a_threshold_that_ends_at_zero_is_drawn_flat() -> None:
    figure = plots.convergence([8, 16], {"dead": [0.0, 0.0]})
    assert list(figure.axes[0].lines[0].get_ydata()) == [1.0, 1.0]


def test_convergence_refuses_nothing_and_unequal_lengths() -> None:
    with pytest.raises(DataError, match="at least one of each"):
        plots.convergence([], {})
    with pytest.raises(DataError, match="'a' has 1 thresholds for 2"):
        plots.convergence([8, 16], {"a": [1.0]})


def test_the_waterfall_marks_the_biggest_drop_and_the_layers_without_error() -> None:
    text = words(plots.sqnr_waterfall([("a", 40.0), ("b", 38.0), ("c", 20.5), ("d", None)]))
    assert "20.5  (17.5 dB lost here)" in text
    assert "no error" in text


def test_the_waterfall_marks_no_drop_where_the_ratio_only_grows() -> None:
    assert "lost here" not in words(plots.sqnr_waterfall([("a", 20.0), ("b", 30.0)]))


def test_the_waterfall_draws_layers_that_all_have_no_error() -> None:
    assert words(plots.sqnr_waterfall([("a", None)])).count("no error") == 1


def test_sensitivity_puts_the_worst_layer_on_top_and_hollows_what_may_be_nothing() -> None:
    figure = plots.sensitivity([("mild", -0.001, -0.004, 0.002), ("bad", -0.02, -0.03, -0.01)], metric="top-1")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["bad", "mild"]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() == dot.get_markeredgecolor() for dot in dots] == [True, False]
    assert "Hollow" in words(figure)


def test_sensitivity_without_intervals_has_no_word_of_them() -> None:
    assert "Hollow" not in words(plots.sensitivity([("a", -0.1)]))


@pytest.mark.parametrize("rows", [[], [("a",)], [("a", 1.0, 2.0)]])
def test_sensitivity_refuses_rows_of_another_form(rows: list[tuple[object, ...]]) -> None:
    with pytest.raises(DataError, match="each"):
        plots.sensitivity(rows)


def test_the_waterfall_refuses_an_empty_list() -> None:
    with pytest.raises(DataError, match="no layer"):
        plots.sqnr_waterfall([])


@pytest.mark.parametrize("name", ["light", "dark"])
def test_an_outlier_channel_of_a_weight_is_marked_along_the_axis_of_outputs(name: str) -> None:
    values = np.random.default_rng(0).normal(size=(6, 4, 3, 3))
    values[2] *= 40
    figure = plots.weight(values, 0, name="conv1", theme=name)  # type: ignore[arg-type]
    assert "channel 2" in words(figure) and "1 of 6 channels" in words(figure)
    assert "No channel is 8 times" in words(plots.weight(values[[0, 1, 3]], 0))
    assert "4 channels" in words(plots.weight(values[0, :, 0, :], 0))
    with pytest.raises(DataError, match="no channels along axis 4"):
        plots.weight(values, 4)


@pytest.mark.parametrize("name", ["light", "dark"])
def test_an_outlier_channel_of_an_activation_is_marked(name: str) -> None:
    maxima = np.array([1.0, 1.2, 30.0, 0.9, 0.0])
    figure = plots.channels(maxima, name="relu1", theme=name)  # type: ignore[arg-type]
    assert "channel 2" in words(figure) and "1 of 5 channels" in words(figure) and "Channels of relu1" in words(figure)
    assert "No channel is 8 times" in words(plots.channels(maxima[:2]))
    with pytest.raises(DataError, match="'relu1' has no channels"):
        plots.channels(np.zeros(0), name="relu1")
