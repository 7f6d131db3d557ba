"""A later study against an earlier one: what counts as a regression, and what does not."""

from __future__ import annotations

import dataclasses

import pytest
import synthetic_study

from workbench.errors import CompareError
from workbench.judging.regression import regression
from workbench.records import Round, StudyRecord

NAMES = ("fp32", "int8-kl")


def slower(record: StudyRecord, variant: str, factor: float) -> StudyRecord:
    """The same study in which a variant takes longer, measured in turns of its own."""

    def changed(taken: Round) -> Round:
        latencies = tuple(factor * value for value in taken.latencies_seconds)
        return dataclasses.replace(taken, latencies_seconds=latencies, started_at=taken.started_at + 1e4)

    results = []
    for item in record.results:
        if item.recipe.name == variant:
            rounds = tuple(map(changed, item.measurement.rounds))
            item = dataclasses.replace(item, measurement=dataclasses.replace(item.measurement, rounds=rounds))
        results.append(item)
    return dataclasses.replace(record, name="after", results=tuple(results))


@pytest.fixture
def before() -> StudyRecord:
    return dataclasses.replace(synthetic_study.study(NAMES), name="before")


def test_the_same_numbers_are_no_regression(before: StudyRecord) -> None:
    found = regression(before, dataclasses.replace(before, name="after"))
    assert found.findings == () and "after has not regressed against before" in found.words


def test_a_variant_that_is_surely_slower_is_one_with_its_interval_unless_it_is_tolerated(before: StudyRecord) -> None:
    after = slower(before, "int8-kl", 1.3)
    found = regression(before, after)
    assert [(one.variant, one.kind) for one in found.findings] == [("int8-kl", "slower")]
    assert "int8-kl is 1.3" in found.words and "slower [" in found.words
    assert regression(before, after, tolerance=0.5).findings == ()
    assert regression(after, dataclasses.replace(before, name="again")).findings == (), "faster is none"
    with pytest.raises(CompareError, match="tolerance is -1"):
        regression(before, after, tolerance=-1)


def test_answers_that_are_surely_worse_are_one(before: StudyRecord) -> None:
    item = before.results[1]
    wrong = tuple(0.0 for _ in item.accuracy.scores)
    worse = dataclasses.replace(item, accuracy=dataclasses.replace(item.accuracy, scores=wrong))
    after = dataclasses.replace(before, name="after", results=(before.results[0], worse))
    assert [one.kind for one in regression(before, after).findings] == ["worse"]


def test_a_variant_that_fails_now_or_is_gone_is_one(before: StudyRecord) -> None:
    failed = synthetic_study.failed("int8-kl")
    after = dataclasses.replace(before, name="after", results=(before.results[0], failed))
    assert [one.kind for one in regression(before, after).findings] == ["failed"]
    gone = dataclasses.replace(before, name="after", results=before.results[:1])
    assert [one.kind for one in regression(before, gone).findings] == ["gone"]


def test_unlike_conditions_are_refused_unless_they_are_asked_for(before: StudyRecord) -> None:
    item = before.results[0]
    other = dataclasses.replace(item, measurement=dataclasses.replace(item.measurement, device="another CPU"))
    after = dataclasses.replace(before, name="after", results=(other, *before.results[1:]))
    with pytest.raises(CompareError, match="another CPU"):
        regression(before, after)
    found = regression(before, slower(after, "fp32", 2.0), allow_unlike=True)
    assert "But they were measured under unlike conditions" in found.words
