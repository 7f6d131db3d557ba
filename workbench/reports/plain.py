"""A study as Markdown, CSV and a DataFrame: the same table for a pull request, a spreadsheet and a notebook.

Markdown is for reading and has words; CSV is for computing and has raw numbers in seconds and bytes.
"""

from __future__ import annotations

import csv as csv_module
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.explaining.explanation import Explanation
from workbench.judging import statistics
from workbench.judging.accuracy import agreement, lowest_sqnr_db
from workbench.judging.comparison import Comparison, Row
from workbench.judging.standing import compared
from workbench.plots.distributions import size_bytes
from workbench.records import StudyRecord, VariantResult
from workbench.reports import why
from workbench.reports.code import reproduce
from workbench.reports.details import environment_rows, facts, notes, title
from workbench.reports.methods import methods
from workbench.reports.reference import Reference, against
from workbench.reports.rows import main_table
from workbench.reports.verdict import verdict

if TYPE_CHECKING:
    import pandas

# A spreadsheet runs a cell that starts with one of these as a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def markdown(
    record: StudyRecord,
    comparison: Comparison | None = None,
    explanations: Sequence[Explanation] = (),
    reference: StudyRecord | None = None,
) -> str:
    """Return the study as Markdown (GitHub's dialect), everything from outside escaped; see `workbench.reports.html`."""
    refusal = ""
    if comparison is None:
        comparison, refusal = compared(record)
    table = main_table(record, comparison)
    lines = [f"# {escape(title(record))}", "", escape(" · ".join(facts(record))), ""]
    for sentence in verdict(record, comparison, refusal):
        lines += [escape(sentence), ""]
    lines += ["## Results", ""]
    lines.append(_row([column.line for column in table.columns]))
    lines.append("|" + "|".join([" :--- ", *[" ---: "] * (len(table.columns) - 1)]) + "|")
    for row in table.rows:
        tag = " (baseline)" if row.is_baseline else ""
        lines.append(_row([row.cells[0].text + tag, *(cell.line for cell in row.cells[1:])]))
    lines += ["", *(f"- {escape(note)}" for note in table.footnotes), ""]
    for note in notes(record, comparison):
        lines += [f"> **Note:** {escape(note)}", ""]
    lines += _failures(record)
    for variant, sentences in why.lines(explanations):
        lines += [f"## Why: {escape(variant)}", "", *(f"1. {escape(text)}" for text in sentences), ""]
    lines += ["## How it was measured", ""]
    for paragraph in methods(record):
        lines += [escape(paragraph), ""]
    lines += ["## Where it was measured", "", "| | |", "| :--- | :--- |"]
    lines += [_row([key, value]) for key, value in environment_rows(record)]
    lines += [] if reference is None else _reference(against(record, reference))
    lines += ["", "## Do it again", "", *_fenced(reproduce(record), "python"), ""]
    return "\n".join(lines)


def csv(record: StudyRecord, comparison: Comparison | None = None) -> str:
    """Return one line a variant with raw numbers (seconds, bytes, shares); an empty field where there is no value."""
    if comparison is None:
        comparison, _ = compared(record)
    rows = {} if comparison is None else {row.variant: row for row in comparison.rows}
    lines = [_raw(record, result, rows.get(result.recipe.name)) for result in record.results]
    buffer = io.StringIO()
    writer = csv_module.DictWriter(buffer, list(lines[0]) if lines else ["variant"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def table(record: StudyRecord, comparison: Comparison | None = None) -> pandas.DataFrame:
    """Return the main table with formatted entries, one row a variant, to be shown in a notebook."""
    import pandas

    if comparison is None:
        comparison, _ = compared(record)
    found = main_table(record, comparison)
    entries = [[cell.line for cell in row.cells] for row in found.rows]
    return pandas.DataFrame(entries, columns=[column.line for column in found.columns])


def frame(record: StudyRecord, comparison: Comparison | None = None) -> pandas.DataFrame:
    """Return one row a variant with raw numbers: seconds, bytes, shares from 0 to 1; NaN where nothing is known."""
    import pandas

    if comparison is None:
        comparison, _ = compared(record)
    rows = {} if comparison is None else {row.variant: row for row in comparison.rows}
    found = pandas.DataFrame([_raw(record, result, rows.get(result.recipe.name)) for result in record.results])
    numeric = [name for name in found if all(_is_number(value) for value in found[name])]
    return found.astype(dict.fromkeys(numeric, float))


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def escape(text: str) -> str:
    """Return the text so that Markdown shows it as it is: no markup, no HTML, no new line, no table border."""
    flat = " ".join(text.split())
    for sign in ("\\", "`", "*", "_", "[", "]", "|", "#", "!"):
        flat = flat.replace(sign, "\\" + sign)
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"


def _reference(found: Reference) -> list[str]:
    lines = ["", "## Beside the reference", "", escape(f"The reference is {found.name} of {found.date}. {found.words}")]
    if found.rows:
        lines += ["", _row(["Not the same", "Reference", "This study"]), "| :--- | :--- | :--- |"]
    return [*lines, *(_row(list(row)) for row in found.rows)]


def _failures(record: StudyRecord) -> list[str]:
    failures = [result.failure for result in record.results if result.failure is not None]
    if not failures:
        return []
    lines = ["## What failed", ""]
    for failure in failures:
        lines += [f"**{escape(failure.variant)}** during {failure.stage} ({escape(failure.error)}): "
                  f"{escape(failure.message)}", ""]  # fmt: skip
        if failure.log:
            lines += [*_fenced("\n".join(failure.log.splitlines()[-20:]), "text"), ""]
    return lines


def _fenced(text: str, language: str) -> list[str]:
    """Fence text with more backticks than it holds in a row."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [f"{fence}{language}", text, fence]


def _raw(record: StudyRecord, result: VariantResult, row: Row | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"variant": _harmless(result.recipe.name), "is_baseline": _is(result, record)}
    entry |= _raw_speed(record, result, row) | _raw_answers(result, row)
    peaks = [] if result.measurement is None else [part.peak_memory_bytes for part in result.measurement.rounds]
    entry["size_bytes"] = size_bytes(result)
    entry["peak_memory_bytes"] = max((peak for peak in peaks if peak is not None), default=None)
    entry["build_seconds"] = None if result.engine is None else result.engine.build_seconds
    entry["calibration_seconds"] = None if result.variant is None else result.variant.calibration_seconds
    entry["on_front"] = None if row is None else row.on_front
    entry["failed_at"] = None if result.failure is None else result.failure.stage
    entry["failure"] = None if result.failure is None else _harmless(result.failure.message)
    return entry


def _raw_speed(record: StudyRecord, result: VariantResult, row: Row | None) -> dict[str, Any]:
    found = None if result.measurement is None else statistics.summary(result.measurement)
    ratio = None if row is None else row.ratio
    return {
        "boundary": record.protocol.boundary,
        "batch": record.protocol.batch,
        "rounds": None if found is None else found.rounds,
        "calls": None if found is None else found.samples,
        **{f"latency_{key}_seconds": getattr(found, key, None) for key in ("median", "low", "high", "p90", "p95", "p99")},
        "queries_per_second": None if found is None else found.queries_per_second,
        **{name: getattr(ratio, key, None) for name, key in
           (("speedup_ratio", "value"), ("speedup_low", "low"), ("speedup_high", "high"), ("speed_verdict", "verdict"))},
    }  # fmt: skip


def _raw_answers(result: VariantResult, row: Row | None) -> dict[str, Any]:
    check = result.accuracy
    score = None if check is None else statistics.score_interval(check)
    change = None if row is None else row.change
    share = None if check is None else agreement(check)
    return {
        "metric": None if check is None or check.metric is None else _harmless(check.metric),
        "samples": None if check is None else check.samples,
        "score": getattr(score, "value", None),
        "score_low": getattr(score, "low", None),
        "score_high": getattr(score, "high", None),
        "change": getattr(change, "difference", None),
        "change_low": getattr(change, "low", None),
        "change_high": getattr(change, "high", None),
        "change_p_value": getattr(change, "p_value", None),
        "change_verdict": getattr(change, "verdict", None),
        "agreement": getattr(share, "value", None),
        "sqnr_db": None if check is None else lowest_sqnr_db(check),
    }


def _is(result: VariantResult, record: StudyRecord) -> bool:
    return result.recipe.name == record.baseline


def _harmless(text: str) -> str:
    # Blanks and line breaks before it are skipped by some.
    return f"'{text}" if text.startswith(_FORMULA_STARTS) or text.lstrip().startswith(_FORMULA_STARTS) else text
