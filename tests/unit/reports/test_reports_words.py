"""The words and numbers of reports: verdicts, notes, cells, formats, Markdown, CSV and the DataFrame."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import pytest
import synthetic_study

import workbench as wb
from workbench import codec, reports
from workbench.errors import StoreError
from workbench.judging.standing import compared
from workbench.recipes import Recipe
from workbench.records import Failure, Protocol, StudyRecord, VariantResult
from workbench.reports import details, formats
from workbench.reports.examples import examples
from workbench.reports.methods import methods
from workbench.reports.rows import main_table
from workbench.reports.verdict import verdict

QUICK = Protocol(rounds=4, min_seconds=0.01)
GOLDEN = Path(__file__).parent / "golden"
replace = dataclasses.replace


@pytest.fixture(scope="module")
def record() -> StudyRecord:
    return synthetic_study.study(protocol=QUICK)


def only(*names: str, **options: object) -> StudyRecord:
    return synthetic_study.study(names, protocol=QUICK, **options)  # type: ignore[arg-type]


def said(record: StudyRecord) -> str:
    return " ".join(verdict(record, *compared(record)))


def cells(record: StudyRecord, variant: str) -> dict[str, str]:
    table = main_table(record, compared(record)[0])
    row = next(row for row in table.rows if row.variant == variant)
    return {column.heading: cell.line for column, cell in zip(table.columns, row.cells, strict=True)}


def test_the_verdict_names_the_more_accurate_of_two_that_are_equally_fast() -> None:
    assert said(only("fp32", "int8-kl", "int8-max")).startswith("Take int8-max: it is 2.")


def test_the_verdict_says_when_nothing_is_faster() -> None:
    words = said(only("fp32", "fp16", "fp32-basic"))
    assert words.startswith("Keep fp32: no variant is distinguishably faster than it.")
    assert "Slower: fp16 (1.3" in words
    assert "Not distinguishable from fp32 in speed: fp32-basic" in words


def test_the_verdict_does_not_praise_what_answers_distinguishably_worse() -> None:
    record = only("fp32", "int8-kl")
    base, bad = record.results
    assert bad.accuracy is not None
    wrong = (0.0,) * 60 + bad.accuracy.scores[60:]
    record = replace(record, results=(base, replace(bad, accuracy=replace(bad.accuracy, scores=wrong))))
    words = said(record)
    assert words.startswith("Keep fp32: every faster variant answers distinguishably worse. int8-kl is 2.")
    assert "points less top-1 (McNemar p =" in words and "Also faster" not in words


def broken(result: VariantResult, wrong: int) -> VariantResult:
    assert result.accuracy is not None
    scores = (0.0,) * wrong + result.accuracy.scores[wrong:]
    return replace(result, accuracy=replace(result.accuracy, scores=scores))


def test_the_verdict_names_whoever_answers_worse_fast_or_slow() -> None:
    base, slow, fast = only("fp32", "fp16", "int8-max").results
    words = said(replace(only("fp32", "fp16", "int8-max"), results=(base, broken(slow, 267), fast)))
    assert words.startswith("Take int8-max")
    assert "Answers distinguishably worse than fp32: fp16 (-4" in words and " points)" in words


def test_the_verdict_says_the_range_of_answers_kept_where_there_are_no_labels() -> None:
    words = said(only("fp32", "fp16", "int8-max", "int8-kl", labels=False))
    assert "Same answers as fp32: from 9" in words and "% (fp16)" in words


def test_the_verdict_names_the_ties_of_what_to_take_and_what_would_tell_them_apart() -> None:
    words = said(only("fp32", "int8-kl", "int8-max"))
    assert "cannot be told apart from int8-kl" in words and "more round" in words


def test_the_verdict_of_a_lone_baseline_compares_nothing() -> None:
    assert said(only("fp32")) == "There is nothing to compare: only fp32 was measured."


def test_the_verdict_without_labels_speaks_of_agreement() -> None:
    words = said(only("fp32", "int8-max", labels=False))
    assert "gives the same answer on 99.63% of the samples (no labels, so no accuracy)" in words


def test_the_verdict_without_class_scores_speaks_of_decibels() -> None:
    record = only("fp32", "int8-max", labels=False)
    results = tuple(
        replace(item, accuracy=item.accuracy and replace(item.accuracy, predictions=(), parent_predictions=()))
        for item in record.results
    )
    assert "with 27.3 dB of signal over error in its outputs" in said(replace(record, results=results))


def test_the_verdict_says_when_answers_were_not_checked() -> None:
    record = only("fp32", "int8-max")
    results = tuple(replace(item, accuracy=None) for item in record.results)
    assert "its answers were not checked" in said(replace(record, results=results))


def test_the_verdict_at_equal_scores_says_the_same_score() -> None:
    record = only("fp32", "int8-max")
    base, fast = record.results
    assert base.accuracy is not None and fast.accuracy is not None
    same = replace(fast, accuracy=replace(fast.accuracy, scores=base.accuracy.scores))
    assert "at the same top-1" in said(replace(record, results=(base, same)))


def test_one_round_gives_no_verdict_and_says_so() -> None:
    record = synthetic_study.study(("fp32", "int8-max"), protocol=replace(QUICK, rounds=1))
    assert said(record).startswith("Nothing can be said of speed yet (one round: too few to tell, 2 more")
    assert "so without a verdict: int8-max" in said(record)
    assert cells(record, "int8-max")["Speed-up"].endswith(
        "x (one round: too few to tell, 2 more are needed for an interval)"
    )
    assert any("One round was measured" in note for note in details.notes(record, None))


def test_two_rounds_show_both_medians_and_no_interval() -> None:
    record = synthetic_study.study(("fp32", "int8-max"), protocol=replace(QUICK, rounds=2))
    shown = cells(record, "int8-max")["Latency"]
    assert "rounds: " in shown and " and " in shown and "[" not in shown
    assert "; too few to tell, 1 more is needed for an interval" in shown
    assert "so without a verdict: int8-max" in said(record)
    assert any("2 rounds were measured" in note for note in details.notes(record, None))


def unsteady(record: StudyRecord, rounds: int) -> StudyRecord:
    """The study on a machine where a process takes up to eight times as long as another."""
    factors = [(1.0, 8.0, 3.0)[place % 3] for place in range(rounds)]

    def made(shift: int, result: VariantResult) -> VariantResult:
        assert result.measurement is not None
        parts = tuple(
            replace(
                one,
                latencies_seconds=tuple(value * factors[(place + shift) % rounds] for value in one.latencies_seconds),
            )
            for place, one in enumerate(result.measurement.rounds)
        )
        return replace(result, measurement=replace(result.measurement, rounds=parts))

    return replace(record, results=tuple(made(*one) for one in enumerate(record.results)))


@pytest.mark.parametrize(("rounds", "shown"), [(3, "rounds: "), (6, "rounds from ")])
def test_rounds_that_spread_too_far_show_their_medians_and_tell_nothing_anywhere(rounds: int, shown: str) -> None:
    names = ("fp32", "int8-max", "int8-kl")
    record = unsteady(synthetic_study.study(names, protocol=replace(QUICK, rounds=rounds)), rounds)
    comparison, _ = compared(record)
    assert comparison is not None and [row.variant for row in comparison.rows if row.on_front] == list(names)
    words = said(record)
    assert words.startswith(f"Nothing can be said of speed yet ({rounds} rounds: too few to tell, about ")
    assert "so without a verdict: int8-max and int8-kl" in words
    row = cells(record, "int8-max")
    assert shown in row["Latency"] and "; too few to tell, about " in row["Latency"] and "[" not in row["Latency"]
    assert f"({rounds} rounds: too few to tell, about " in row["Speed-up"]


def test_notes_of_rounds_are_counted_not_repeated(record: StudyRecord) -> None:
    first, *rest = record.results
    assert first.measurement is not None
    rounds = tuple(
        replace(part, conditions={"notes": [f"{part.index + 3} % of the CPU time was taken by others."]})
        for part in first.measurement.rounds
    )
    first = replace(first, measurement=replace(first.measurement, rounds=rounds))
    found = [note for note in details.notes(replace(record, results=(first, *rest)), None) if "taken by others" in note]
    assert found == ["In 4 of 16 rounds, such as one of fp32: 3 % of the CPU time was taken by others."]


def test_a_name_made_of_hashes_gives_way_to_model_and_data_in_the_title(record: StudyRecord) -> None:
    derived = replace(record, name="digits_resnet-0123abcd")
    assert details.title(derived) == "digits_resnet on digits"
    assert "study digits_resnet-0123abcd" in details.facts(derived)
    assert details.title(replace(record, name="mine")) == "mine"


def test_a_note_that_all_variants_share_is_told_once() -> None:
    record = only("fp32", "int8-max", labels=False)
    found = [note for note in details.notes(record, None) if "Random inputs" in note]
    assert found == ["All variants: Random inputs: no accuracy is claimed."]


def test_percentiles_without_enough_calls_are_left_out_with_a_footnote() -> None:
    record = synthetic_study.study(("fp32", "int8-max"), protocol=Protocol(rounds=4, min_seconds=0.001))  # 80 calls
    table = main_table(record, compared(record)[0])
    assert not {"p95", "p99"} & {column.heading for column in table.columns}
    notes = " ".join(table.footnotes)
    assert "p95 needs 130 calls" in notes
    assert "p99 needs 662 calls" in notes


def test_throughput_shows_calls_a_second_only_where_it_was_the_boundary(record: StudyRecord) -> None:
    assert "Calls a second" not in cells(record, "fp32")
    protocol = replace(QUICK, boundary="throughput", streams=2)
    measured = synthetic_study.study(("fp32", "int8-max"), protocol=protocol)
    results = []
    for item in measured.results:
        assert item.measurement is not None
        rounds = tuple(replace(part, conditions={"queries_per_second": 1234.0}) for part in item.measurement.rounds)
        results.append(replace(item, measurement=replace(item.measurement, rounds=rounds)))
    assert cells(replace(measured, results=tuple(results)), "fp32")["Calls a second"] == "1,234"


def test_status_says_how_far_a_variant_came(record: StudyRecord) -> None:
    assert cells(record, "int8-smooth")["Status"] == "failed: build"
    assert cells(record, "int8-max")["Status"] == "on the Pareto front"
    first, second, *_ = record.results
    half = replace(record, results=(first, replace(second, measurement=None, accuracy=None)))
    assert cells(half, "fp16")["Status"] == "no accuracy or measurement"


def test_examples_are_none_without_predictions_and_say_when_all_agree(record: StudyRecord) -> None:
    bare = tuple(replace(item, accuracy=None) for item in record.results)
    assert examples(replace(record, results=bare)) is None
    alike = examples(only("fp32", "fp16"))
    assert alike is not None
    assert alike.summary == "Every variant gave the FP32 parent's answer on all 540 samples."


def test_a_sample_that_is_damaged_is_named_and_not_shown(record: StudyRecord) -> None:
    damaged = {"12": {"kind": "image", "value": "no picture"}, "13": 7, "not a number": {}}
    found = examples(replace(record, samples=damaged))
    assert found is not None
    assert [(card.index, card.image, card.text) for card in found.cards] == [
        (12, "", "no picture"),
        (13, "", "(This sample cannot be shown.)"),
    ]


def test_tokens_have_no_single_answer_to_name(record: StudyRecord) -> None:
    first, *_ = record.results
    assert first.accuracy is not None
    tokens = replace(
        first.accuracy,
        samples=270,
        scores=first.accuracy.scores[:270],
        parent_scores=first.accuracy.parent_scores[:270],
    )
    found = examples(replace(record, results=(replace(first, accuracy=tokens),)))
    assert found is not None
    assert all(card.answers == () for card in found.cards)


@pytest.mark.parametrize(
    ("boundary", "words"), [("compute", "device events"), ("end_to_end", "waits"), ("throughput", "3 streams")]
)
def test_methods_name_and_explain_the_boundary(record: StudyRecord, boundary: str, words: str) -> None:
    protocol = replace(QUICK, boundary=boundary, streams=3 if boundary == "throughput" else 1)
    text = " ".join(methods(replace(record, protocol=protocol)))
    assert f"“{boundary}”" in text
    assert words in text


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0"), (1234.5, "1,234"), (0.00123456, "0.00123"), (float("inf"), "inf"), (-2.5, "-2.50")]
)
def test_significant_digits(value: float, words: str) -> None:
    assert formats.significant(value) == words


def test_formats_have_units() -> None:
    assert formats.size(999) == "999 B"
    assert formats.size(1_500_000) == "1.50 MB"
    assert formats.size(None) == formats.milliseconds(None) == formats.seconds(None) == "-"
    assert formats.seconds(150) == "2.5 min"
    assert formats.seconds(0.0074) == "7.4 ms"
    assert formats.between(1.00001, 1.00002, 3) == "[1.00, 1.00]"  # they differ in the sixth digit
    assert formats.between(1.001, 1.002) == "[1.001, 1.002]"
    assert formats.listed(["a", "b", "c"]) == "a, b and c"
    assert formats.plain({"a": None, "b": [True, 1]}) == "a unknown, b yes, 1"


def test_the_data_frame_has_one_row_a_variant(record: StudyRecord) -> None:
    frame = reports.table(record)
    assert list(frame["Variant"]) == ["fp32", "fp16", "int8-kl", "int8-max", "int8-smooth"]
    assert frame["Speed-up (vs fp32)"][3].startswith("▲ 2.")


def test_markdown_is_as_it_was_when_last_read_by_a_person() -> None:
    assert reports.markdown(golden_record()) == (GOLDEN / "report.md").read_text(encoding="utf-8")


def test_csv_is_as_it_was_when_last_read_by_a_person() -> None:
    found = list(csv.reader(io.StringIO(reports.csv(golden_record()))))
    expected = list(csv.reader(io.StringIO((GOLDEN / "report.csv").read_text(encoding="utf-8"))))
    assert [len(row) for row in found] == [len(row) for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            # Numbers of the last digits may differ with the platform's exponential function.
            assert one == other or float(one) == pytest.approx(float(other), rel=1e-9)


def golden_record() -> StudyRecord:
    """A study without noise, so that its text hangs on how numbers are written and not on how they are resampled."""
    record = only("fp32", "int8-max", "int8-smooth")
    results = []
    for item, seconds in zip(record.results, (2.4e-3, 1.2e-3, 0.0), strict=True):
        if item.measurement is not None:
            rounds = tuple(replace(part, latencies_seconds=(seconds,) * 200) for part in item.measurement.rounds)
            item = replace(item, measurement=replace(item.measurement, rounds=rounds))
        results.append(item)
    return replace(record, results=tuple(results))


def test_markdown_shows_hostile_text_as_text(record: StudyRecord) -> None:
    nasty = "<script>x</script> | # ![x](http://a.b) `y`\n# Heading"
    failure = Failure("int8-smooth", "build", "BuildError", nasty, "````\n```")
    results = tuple(replace(item, failure=failure) if item.failure else item for item in record.results)
    text = reports.markdown(replace(record, name=nasty, notes=(nasty,), results=results))
    assert "<script>" not in text
    assert "\n# Heading" not in text
    assert "![x](" not in text
    assert "`````text" in text


def test_a_spreadsheet_does_not_take_a_name_for_a_formula(record: StudyRecord) -> None:
    first, *rest = record.results
    renamed = replace(first, recipe=Recipe("=HYPERLINK(1)"))
    text = reports.csv(replace(record, results=(renamed, *rest)))
    assert "\n'=HYPERLINK(1)," in text


@pytest.mark.parametrize("suffix", [".md", ".csv", ".json"])
def test_a_file_is_written_by_its_suffix(record: StudyRecord, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new folder" / f"report{suffix}"
    assert reports.write(record, path) == path
    assert [item.name for item in path.parent.iterdir()] == [path.name]
    assert path.stat().st_size > 500


def test_a_folder_gets_all_four_and_its_json_is_the_study(tmp_path: Path) -> None:
    record = golden_record()
    folder = reports.report(record, tmp_path / "out")
    assert sorted(item.name for item in folder.iterdir()) == ["report.csv", "report.html", "report.md", "study.json"]
    assert json.loads((folder / "study.json").read_text(encoding="utf-8"))["name"] == record.name
    assert wb.Study.open(folder / "study.json").record == codec.portable(record)


def test_an_unknown_suffix_is_refused_with_the_known_ones(record: StudyRecord, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"Take \.html, \.md, \.csv or \.json"):
        reports.write(record, tmp_path / "report.docx")


def test_a_place_that_cannot_be_written_is_an_error_that_says_so(record: StudyRecord, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(StoreError, match="Cannot write"):
        reports.write(record, tmp_path / "file" / "report.csv")


def test_a_report_that_fails_leaves_the_earlier_one(record: StudyRecord, tmp_path: Path) -> None:
    path = reports.write(record, tmp_path / "report.csv")
    before = path.read_text(encoding="utf-8")
    broken = replace(record, results=(replace(record.results[0], recipe=None),))  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        reports.write(broken, path)
    assert path.read_text(encoding="utf-8") == before


@pytest.mark.parametrize(("bound", "said"), [(5, True), (3, True), (2, False), (0, False)])
def test_a_device_that_waits_for_the_host_is_said_where_most_rounds_did(bound: int, said: bool) -> None:
    record = synthetic_study.study()
    result = next(item for item in record.results if item.measurement is not None)
    assert result.measurement is not None
    state = {"host_launch_seconds": 6.3e-3}
    rounds = tuple(
        dataclasses.replace(
            result.measurement.rounds[0], conditions={"device": {**state, "launch_bound": place < bound}}
        )
        for place in range(5)
    )
    waiting = dataclasses.replace(result, measurement=dataclasses.replace(result.measurement, rounds=rounds))
    results = tuple(waiting if item is result else item for item in record.results)
    told = [note for note in details.notes(dataclasses.replace(record, results=results), None) if "waits" in note]
    assert bool(told) is said
    assert all("6.3" in note and "CUDA graph" in note for note in told)
