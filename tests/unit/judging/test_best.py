"""The one rule of what is best: within a budget and without one, ties named, and which limit binds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import synthetic_study

from workbench.judging.best import Budget, choose, recommended
from workbench.judging.standing import Place, Point, Quality
from workbench.study import Study

ACCURACY = Quality("score", "top-1", 100, "%", True)
PERPLEXITY = Quality("score", "perplexity", 1, "", False)


def point(name: str, milliseconds: float, score: float, high: float | None = None) -> Point:
    seconds = Place(milliseconds / 1e3, None, None if high is None else high / 1e3)
    return Point(name, seconds, Place(1.0), Place(score), on_front=True, like_baseline=False)


POINTS = [point("fp32", 10.0, 99.0), point("fp16", 8.0, 98.9), point("int8", 4.0, 98.0), point("int4", 2.0, 80.0)]


@pytest.mark.parametrize(
    ("budget", "best", "words"),
    [
        (Budget(loss=0.5), "fp16", "The accuracy limit binds: int8 is faster but loses 1 points."),
        (Budget(loss=50), "int4", "No limit binds: nothing better is kept out."),
        (Budget(latency_seconds=0.005), "int8", "The latency limit binds: fp16 answers better but takes 8 ms."),
        (Budget(latency_seconds=1.0), "fp32", "No limit binds"),
        (Budget(0.009, 1.0), "int8", "The accuracy limit binds: int4 is faster"),
    ],
)
def test_the_best_within_a_budget_is_found_and_the_binding_limit_named(budget: Budget, best: str, words: str) -> None:
    choice = choose(POINTS, ACCURACY, "fp32", budget)
    assert choice.best == best
    assert words in choice.words


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (Budget(latency_seconds=0.001), "The latency limit binds: the fastest, int4, takes 2 ms."),
        (Budget(0.003, 0.5), "Both limits bind"),
    ],
)
def test_where_nothing_fits_it_says_what_stands_in_the_way(budget: Budget, words: str) -> None:
    choice = choose(POINTS, ACCURACY, "fp32", budget)
    assert choice.best is None
    assert words in choice.words


def test_for_a_score_that_should_be_low_a_higher_one_is_a_loss() -> None:
    points = [point("fp32", 10.0, 26.0), point("int8", 4.0, 26.4), point("int4", 2.0, 40.0)]
    assert choose(points, PERPLEXITY, "fp32", Budget(loss=1.0)).best == "int8"


def test_a_loss_as_large_as_the_budget_is_within_it() -> None:
    # 98.9 is 99.0 - 0.1 in decimal and not in binary; the limit must not turn on the last bit.
    assert choose(POINTS, ACCURACY, "fp32", Budget(loss=0.1)).best == "fp16"


def test_an_interval_that_reaches_over_the_limit_is_said() -> None:
    points = [point("fp32", 10.0, 99.0), point("int8", 4.0, 99.0, high=6.0)]
    assert "reaches over the limit" in choose(points, ACCURACY, "fp32", Budget(latency_seconds=0.005)).words


def test_without_a_budget_nothing_is_said_and_without_a_baseline_no_loss_is_judged() -> None:
    assert choose(POINTS, ACCURACY, "fp32", Budget()).words == ""
    assert "cannot be judged" in choose(POINTS[1:], ACCURACY, "fp32", Budget(loss=1.0)).words


def test_variants_whose_speed_cannot_be_told_apart_are_named_and_the_most_accurate_of_them_is_best() -> None:
    points = [point("fp32", 10.0, 99.0), point("a", 4.0, 98.8), point("b", 4.1, 98.9), point("c", 6.0, 99.0)]
    alike = {frozenset({"a", "b"})}
    choice = choose(points, ACCURACY, "fp32", Budget(loss=0.5), lambda one, other: frozenset({one, other}) in alike)
    assert choice.best == "b" and choice.equals == ("a",)
    assert "cannot be told apart from a" in choice.words


def test_without_a_budget_the_fastest_that_is_not_worse_is_recommended() -> None:
    flags = {"fp16": (True, False), "int8": (True, False), "int4": (True, True), "fp32": (False, False)}
    points = [replace(one, is_faster=flags[one.name][0], is_worse=flags[one.name][1]) for one in POINTS]
    assert recommended(points, ACCURACY).best == "int8"
    assert recommended(points, ACCURACY, lambda one, other: {one, other} == {"int8", "fp16"}).best == "fp16"
    assert recommended([replace(one, is_worse=True) for one in points], ACCURACY).best is None


def test_a_study_names_its_best_variant_with_and_without_a_budget() -> None:
    study = Study(synthetic_study.study(("fp32", "fp16", "int8-kl")))
    assert study.best().best == "int8-kl"
    assert study.best(at_most_seconds=1e-9).best is None
    assert study.best(at_most_lost=100).best == "int8-kl"
    bare = replace(study.record, results=tuple(replace(item, accuracy=None) for item in study.record.results))
    assert "none can be recommended" in Study(bare).best().words
