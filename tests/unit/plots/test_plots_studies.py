"""Figures of studies draw every variant or name the one left out, and read on any thread and in both themes."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import threading
from typing import Any

import pytest
import synthetic_study
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from test_plots_calibration import words

from workbench import plots
from workbench.plots import theme
from workbench.plots.distributions import MOST_DRAWN
from workbench.plots.labels import Label, place, shorten
from workbench.records import Protocol, StudyRecord

QUICK = Protocol(rounds=4, min_seconds=0.01)
BARE = dataclasses.replace


@pytest.fixture(scope="module")
def record() -> StudyRecord:
    return synthetic_study.study(protocol=QUICK)


def without(record: StudyRecord, field: str) -> StudyRecord:
    return BARE(record, results=tuple(BARE(result, **{field: None}) for result in record.results))


def dashed(axes: Axes) -> list[Any]:
    return [line for line in axes.lines if line.get_drawstyle() == "steps-post"]


@pytest.mark.parametrize("draw", [plots.front, plots.latencies, plots.rounds, plots.sizes])
@pytest.mark.parametrize("name", ["light", "dark"])
def test_every_figure_draws_in_both_themes_and_names_the_variant_that_failed(
    record: StudyRecord, draw: Any, name: str
) -> None:
    figure = draw(record, theme=name)
    assert "int8-smooth (failed: build)" in words(figure)
    assert figure.get_facecolor() == pytest.approx(theme.new_figure(theme.named(name))[0].get_facecolor())  # type: ignore[arg-type]
    assert plots.png(figure, 50).startswith(b"\x89PNG")


def test_an_unknown_theme_is_refused_with_the_known_ones(record: StudyRecord) -> None:
    with pytest.raises(ValueError, match="light, dark"):
        plots.front(record, theme="sepia")  # type: ignore[arg-type]


@pytest.mark.parametrize("draw", [plots.front, plots.latencies, plots.rounds])
def test_a_study_without_measurements_gives_a_figure_that_says_so(record: StudyRecord, draw: Any) -> None:
    assert "measure" in words(draw(without(record, "measurement"))).lower()


def test_a_study_without_answers_or_engines_gives_figures_that_say_so(record: StudyRecord) -> None:
    assert "checked for accuracy" in words(plots.front(without(record, "accuracy")))
    assert "No variant was built" in words(plots.sizes(without(without(record, "engine"), "variant")))


def test_a_study_without_its_baseline_gives_a_figure_that_says_so(record: StudyRecord) -> None:
    assert "no variant 'gone'" in words(plots.front(BARE(record, baseline="gone")))


def test_the_front_names_axes_with_units_and_every_point(record: StudyRecord) -> None:
    text = words(plots.front(record))
    assert "latency per call of 8 samples (ms, compute), less is better" in text
    assert "top-1 (%), more is better" in text
    for label in ("fp32 (baseline)", "fp16", "int8-kl", "int8-max"):
        assert label in text


def test_the_step_line_of_the_front_never_goes_down() -> None:
    for record in (synthetic_study.study(tuple(synthetic_study._SHAPES), protocol=QUICK),):
        heights = dashed(plots.front(record).axes[0])[0].get_ydata()
        assert all(later >= earlier for earlier, later in itertools.pairwise(heights))


def test_without_labels_the_front_says_that_it_shows_agreement() -> None:
    text = words(plots.front(synthetic_study.study(protocol=QUICK, labels=False)))
    assert "agreement with fp32 (%)" in text
    assert "no labels" in text


def test_without_class_scores_the_front_shows_decibels_and_the_baseline_as_a_line() -> None:
    record = synthetic_study.study(protocol=QUICK, labels=False)
    results = tuple(
        BARE(item, accuracy=item.accuracy and BARE(item.accuracy, predictions=(), parent_predictions=()))
        for item in record.results
    )
    text = words(plots.front(BARE(record, results=results)))
    assert "SQNR against fp32 (dB)" in text
    assert "fp32 (baseline): no error" in text


def test_a_metric_of_which_less_is_better_turns_the_axis_so_that_up_is_better() -> None:
    record = synthetic_study.study(protocol=QUICK)
    results = tuple(
        BARE(item, accuracy=item.accuracy and BARE(item.accuracy, higher_is_better=False, unit="", metric="error"))
        for item in record.results
    )
    figure = plots.front(BARE(record, results=results))
    assert figure.axes[0].yaxis_inverted()
    assert "error, less is better" in words(figure)


def test_budgets_are_drawn_in_the_units_of_the_axes(record: StudyRecord) -> None:
    text = words(plots.front(record, budget_latency=0.002, budget_loss=0.01))
    assert "budget 2 ms" in text
    assert "budget: 1 point lost" in text
    assert "budget 2 ms" in words(plots.front(record, budget_latency=0.002, x="speedup"))


def test_a_variant_like_the_baseline_is_hollow_and_the_footnote_says_what_that_means() -> None:
    record = synthetic_study.study(("fp32", "fp32-basic", "int8-max"), protocol=QUICK)
    figure = plots.front(record)
    faces = [line.get_markerfacecolor() for line in figure.axes[0].lines if line.get_marker() == "s"]
    assert faces == [theme.LIGHT.background]
    assert "Hollow" in words(figure)


def test_a_variant_whose_rounds_are_too_few_to_tell_does_not_look_told_apart() -> None:
    record = synthetic_study.study(("fp32", "fp32-basic"), protocol=dataclasses.replace(QUICK, rounds=1))
    figure = plots.front(record)
    faces = [line.get_markerfacecolor() for line in figure.axes[0].lines if line.get_marker() == "s"]
    assert faces == [theme.LIGHT.background]
    assert "Hollow: not told apart from the baseline" in words(figure)


def test_latencies_say_how_many_calls_and_rounds_there_are(record: StudyRecord) -> None:
    text = words(plots.latencies(record))
    assert "medians of 4 rounds" in text
    assert "all calls (80 a variant" in text


def test_a_study_of_many_draws_those_that_matter_and_says_what_it_leaves_out(record: StudyRecord) -> None:
    measured = [result for result in record.results if result.measurement is not None]
    results = []
    for number in range(MOST_DRAWN + 10):
        one = measured[number % len(measured)]
        name = one.recipe.name if number < len(measured) else f"{one.recipe.name}-{number}"
        recipe, measurement = (
            dataclasses.replace(one.recipe, name=name),
            dataclasses.replace(one.measurement, variant=name),
        )
        results.append(dataclasses.replace(one, recipe=recipe, measurement=measurement))
    many = dataclasses.replace(record, results=tuple(results))
    assert len(plots.latencies(many).axes) == MOST_DRAWN
    for draw in (plots.latencies, plots.rounds):
        assert f"the fastest {MOST_DRAWN - 1} of {MOST_DRAWN + 10} are drawn" in " ".join(words(draw(many)).split())
    named = [text.get_text() for text in plots.rounds(many).axes[0].get_legend().get_texts()]
    assert record.baseline in named and len(named) == MOST_DRAWN
    assert f"smallest {MOST_DRAWN} of {MOST_DRAWN + 10}" in " ".join(words(plots.sizes(many)).split())


def test_one_round_is_drawn_without_an_interval() -> None:
    record = synthetic_study.study(("fp32", "int8-max"), protocol=BARE(QUICK, rounds=1))
    figure = plots.latencies(record)
    assert not [line for axes in figure.axes for line in axes.lines if line.get_linewidth() == 6]
    assert "medians of 1 round," in words(figure)
    plots.front(record)


def test_labels_cover_neither_each_other_nor_points() -> None:
    _, axes = theme.new_figure(theme.LIGHT)
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    labels = [Label(f"variant-{index}", 5 + 0.05 * index, 5 + 0.03 * index) for index in range(8)]
    boxes = [note.get_window_extent() for note in place(axes, labels, theme.LIGHT)]
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    points = axes.transData.transform([(label.x, label.y) for label in labels])
    assert not [box for box in boxes for x, y in points if box.contains(x, y)]


def test_long_names_keep_their_ends() -> None:
    assert shorten("a" * 50 + "_conv2", 20).endswith("_conv2")
    assert len(shorten("x" * 100, 20)) == 20
    assert shorten("short") == "short"


def test_every_variant_has_a_colour_and_marker_of_its_own_up_to_six() -> None:
    names = [f"v{index}" for index in range(7)]
    for colours in (theme.LIGHT, theme.DARK):
        marks = theme.styles(names, "v0", colours)
        assert len({style.colour for style in marks.values()}) == 7
        assert len({style.marker for style in marks.values()}) == 7


def contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2.1."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", [theme.LIGHT, theme.DARK])
def test_text_reaches_the_contrast_that_wcag_asks_for(colours: theme.Theme) -> None:
    assert contrast(colours.ink, colours.background) >= 7
    assert contrast(colours.quiet, colours.background) >= 4.5


def test_svg_is_the_same_text_each_time_but_for_identifiers_and_holds_no_date(record: StudyRecord) -> None:
    text = plots.svg(plots.sizes(record))
    assert text.lstrip().startswith("<?xml")
    assert "<dc:date>" not in text


def test_figures_are_drawn_on_another_thread_without_pyplot(record: StudyRecord) -> None:
    drawn: list[Figure] = []
    thread = threading.Thread(target=lambda: drawn.append(plots.front(record)))
    thread.start()
    thread.join(30)
    assert drawn
    assert "matplotlib.pyplot" not in sys.modules
