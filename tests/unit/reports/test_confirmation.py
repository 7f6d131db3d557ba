"""A rehearsal and its confirmation side by side: which decisions changed, and what is shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import synthetic_study

from workbench.errors import StoreError
from workbench.records import Failure, StudyRecord
from workbench.reports.confirmation import COLUMNS, Sides, changed, html, markdown, rows, write


def sides(confirmed: StudyRecord, best: tuple[str | None, str | None] = ("int8-kl", "int8-kl")) -> Sides:
    return Sides(synthetic_study.study(), confirmed, best, ("A note <b>.",))


def with_result(record: StudyRecord, name: str, **parts: object) -> StudyRecord:
    results = tuple(replace(item, **parts) if item.recipe.name == name else item for item in record.results)  # type: ignore[arg-type]
    return replace(record, results=results)


def test_the_same_study_again_changes_no_decision() -> None:
    found = changed(sides(synthetic_study.study()))
    assert found == ["No decision changed: the recommendation, and every verdict on answers and speed, are the same."]


def test_another_recommendation_is_the_first_that_is_told() -> None:
    assert changed(sides(synthetic_study.study(), ("int8-kl", None)))[0] == (
        "The rehearsal recommends int8-kl, the confirmation nothing."
    )


def test_a_variant_that_fails_on_one_side_only_is_told_with_its_message() -> None:
    failure = Failure("int8-kl", "build", "BuildError", "No kernel.")
    failed = with_result(synthetic_study.study(), "int8-kl", failure=failure)
    assert "int8-kl failed there only: No kernel." in changed(sides(failed))
    back = Sides(failed, synthetic_study.study(), (None, None))
    assert "int8-kl failed in the rehearsal only: No kernel." in changed(back)


def test_verdicts_that_turned_are_told() -> None:
    here = synthetic_study.study()
    kl = next(item for item in here.results if item.recipe.name == "int8-kl")
    fp32 = here.results[0]
    assert kl.accuracy is not None and kl.measurement is not None and fp32.measurement is not None
    worse = replace(kl.accuracy, scores=tuple(0.0 for _ in kl.accuracy.scores))
    slower = replace(kl.measurement, rounds=tuple(
        replace(one, latencies_seconds=tuple(10 * value for value in one.latencies_seconds))
        for one in kl.measurement.rounds
    ))  # fmt: skip
    found = changed(sides(with_result(here, "int8-kl", accuracy=worse, measurement=slower)))
    assert any(sentence.startswith("The answers of int8-kl were") and "worse now" in sentence for sentence in found)
    assert "The speed of int8-kl was faster in the rehearsal and is slower now." in found


def test_every_variant_of_the_rehearsal_has_a_row_also_where_the_other_side_lacks_it() -> None:
    here = synthetic_study.study()
    fewer = replace(here, results=here.results[:2])
    table = rows(sides(fewer))
    assert [row[0] for row in table] == [item.recipe.name for item in here.results]
    assert {len(row) for row in table} == {len(COLUMNS)}
    assert [row[2] for row in table][-1] == "not there"
    unfinished = with_result(here, "fp16", measurement=None)
    assert next(row for row in rows(sides(unfinished)) if row[0] == "fp16")[2] == "not finished"


def test_what_comes_from_outside_is_escaped_and_latencies_of_two_machines_are_not_put_into_one_ratio() -> None:
    hostile = replace(synthetic_study.study(), name="<script>alert(1)</script>|")
    page, text = html(sides(hostile)), markdown(sides(hostile))
    assert "<script" not in page and "&lt;script&gt;" in page and "A note &lt;b&gt;." in page
    assert "<script" not in text
    assert "each machine has its own speed-ups" in page


def test_it_is_written_as_html_or_markdown(tmp_path: Path) -> None:
    both = sides(synthetic_study.study())
    for name in ("new/both.html", "both.md"):
        assert write(both, tmp_path / name).stat().st_size > 500
    with pytest.raises(StoreError, match=r"suffix '.csv'. Take .html or .md"):
        write(both, tmp_path / "both.csv")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Cannot write"):
        write(both, tmp_path / "file" / "both.md")
