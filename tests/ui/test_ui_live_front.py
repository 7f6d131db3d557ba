"""The live front as plain JSON: what is drawn where, what is said of a point, and what far points may not do."""

from __future__ import annotations

import json

import pytest

from workbench.judging.standing import Place, Point, Quality
from workbench.ui.live_front import Look, Series, figure

TOP1 = Quality("score", "top-1", 100, "%", True)


def point(name: str, milliseconds: float, share: float, **more: bool) -> Point:
    seconds = Place(milliseconds / 1e3, 0.98 * milliseconds / 1e3, 1.02 * milliseconds / 1e3)
    made = {"on_front": False, "like_baseline": False, **more}
    return Point(name, seconds, Place(1.0), Place(share, share - 0.2, share + 0.2), **made)


POINTS = (
    point("fp32", 10.0, 99.0, on_front=True),
    point("fp16", 9.0, 98.9, like_baseline=True),
    point("int8", 5.0, 98.5, on_front=True),
    point("broken", 5.2, 49.5),
)
SERIES = Series("study: cpu", "fp32", POINTS, {"int8": "2.00x faster [1.9, 2.1]"})


def drawn(look: Look, points: tuple[Point, ...] = POINTS) -> dict[str, dict]:
    made = figure([Series(SERIES.name, "fp32", points, SERIES.verdicts)], TOP1, "8 samples", look)
    json.dumps(made)  # plain: it goes to the browser
    return {**{trace["name"]: trace for trace in made["data"]}, "layout": made["layout"]}


def test_a_far_point_does_not_flatten_the_others_and_is_shown_at_the_edge_with_its_value() -> None:
    found = drawn(Look())
    low, high = found["layout"]["yaxis"]["range"]
    assert low > 97.0 and high < 101.0
    edge = found["beyond the axes"]
    assert edge["customdata"] == ["broken"] and edge["y"] == [low] and edge["text"] == ["broken: 49.5 %"]
    low, _ = drawn(Look(is_whole=True))["layout"]["yaxis"]["range"]
    assert low < 49.5


def test_hovering_tells_name_interval_and_verdict() -> None:
    words = drawn(Look())["int8"]["hovertext"][0]
    assert "<b>int8</b>" in words and "latency 5 ms [4.9, 5.1]" in words and "98.5 % [98.3, 98.7]" in words
    assert "2.00x faster" in words and "on the Pareto front" in words


def test_the_baseline_the_indistinguishable_the_best_and_the_selected_are_told_apart() -> None:
    found = drawn(Look(best="int8", selected="fp16"))
    assert found["fp32"]["marker"]["symbol"] == ["diamond"] and found["fp16"]["marker"]["symbol"] == ["circle-open"]
    assert found["int8"]["text"] == ["★ int8"] and found["selected"]["x"] == [pytest.approx(9.0)]
    assert found["Pareto front"]["x"][:2] == [pytest.approx(5.0), pytest.approx(10.0)]


def test_budgets_are_lines_and_latency_can_be_logarithmic() -> None:
    layout = drawn(Look(is_log=True, latency_seconds=0.006, least_quality=98.7))["layout"]
    assert layout["xaxis"]["type"] == "log" and layout["xaxis"]["range"][0] < 0.7
    assert [shape.get("x0") for shape in layout["shapes"]] == [pytest.approx(6.0), 0]


def test_of_many_points_only_those_that_matter_are_named() -> None:
    many = tuple(point(f"v{number}", 5.0 + number / 10, 98.0, on_front=number == 0) for number in range(40))
    (trace, *_) = figure([Series("many", "v39", many, {})], TOP1, "8 samples", Look(selected="v7"))["data"]
    assert [name for name in trace["text"] if name] == ["v0", "v7", "v39 (baseline)"]


def test_names_from_outside_are_text_and_never_markup() -> None:
    hostile = (point("<img src=x>", 1.0, 99.0), *POINTS[:1])
    assert "<img" not in json.dumps(drawn(Look(), hostile)["layout"])
    assert all(
        "<img" not in trace.get("hovertext", [""])[0]
        for trace in figure([Series("a", "fp32", hostile, {})], TOP1, "1", Look())["data"]
        if trace.get("hovertext")
    )


def test_without_points_there_is_no_figure() -> None:
    assert figure([Series("a", "fp32", (), {})], TOP1, "8 samples", Look()) == {}
