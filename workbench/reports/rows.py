"""The main table of a study as cells with words: one row a variant, made once and shown as HTML, Markdown or a DataFrame.

Statistics come from `workbench.judging.statistics` and `workbench.judging.comparison`; here they only become words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from workbench.judging import statistics
from workbench.judging.accuracy import agreement, lowest_sqnr_db
from workbench.judging.comparison import Comparison, Row
from workbench.judging.intervals import ACCURACY_CONFIDENCE, CONFIDENCE, required_samples
from workbench.judging.statistics import Change, Ratio, Summary
from workbench.plots.distributions import size_bytes
from workbench.records import Accuracy, Measurement, Protocol, StudyRecord, VariantResult
from workbench.reports import formats, gpu_state

# Of more rounds the ends say what the list would.
_MOST_LISTED = 5


@dataclass(frozen=True)
class Cell:
    """One entry.

    Attributes:
        detail: an interval or a p-value, in smaller type or in brackets.
        mood: `better`, `worse`, `same`, or empty; the text says the same in words.
        order: what to sort by, or None.
    """

    text: str = formats.ABSENT
    detail: str = ""
    mood: str = ""
    order: float | None = None

    @property
    def line(self) -> str:
        """The entry in one line."""
        aside = self.detail if not self.detail or self.detail.startswith("[") else f"({self.detail})"
        return f"{self.text} {aside}".strip()


@dataclass(frozen=True)
class Column:
    """A heading with its unit, and the group it stands under."""

    heading: str
    unit: str = ""
    group: str = ""

    @property
    def line(self) -> str:
        """Heading and unit in one line."""
        return f"{self.heading} ({self.unit})" if self.unit else self.heading


@dataclass(frozen=True)
class TableRow:
    """The cells of one variant, in the order of the columns."""

    variant: str
    is_baseline: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Columns that have something to say, rows, and what must be read with them."""

    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    footnotes: tuple[str, ...]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Runs of columns under the same group: its name and how many."""
        runs: list[tuple[str, int]] = []
        for column in self.columns:
            if runs and runs[-1][0] == column.group:
                runs[-1] = (column.group, runs[-1][1] + 1)
            else:
                runs.append((column.group, 1))
        return runs


def main_table(record: StudyRecord, comparison: Comparison | None) -> Table:
    """Return the main table; columns in which every cell is absent are left out, percentiles with a footnote."""
    rows = {} if comparison is None else {row.variant: row for row in comparison.rows}
    columns, makers = zip(*_columns(record), strict=True)
    cells = [[make(result, rows.get(result.recipe.name)) for make in makers] for result in record.results]
    kept = [
        place for place in range(len(columns)) if place == 0 or any(row[place].text != formats.ABSENT for row in cells)
    ]
    table_rows = tuple(
        TableRow(result.recipe.name, result.recipe.name == record.baseline, tuple(row[place] for place in kept))
        for result, row in zip(record.results, cells, strict=True)
    )
    return Table(tuple(columns[place] for place in kept), table_rows, tuple(_footnotes(record, comparison)))


_Maker = Callable[[VariantResult, Row | None], Cell]


def _columns(record: StudyRecord) -> list[tuple[Column, _Maker]]:
    check = next((result.accuracy for result in record.results if result.accuracy is not None), None)
    metric = (check.metric if check is not None else None) or "score"
    is_share = check is not None and check.unit == "share"
    unit = "%" if is_share else (check.unit if check is not None else "")
    throughput = record.protocol.boundary == "throughput"
    return [
        (Column("Variant"), lambda result, row: _name(result, record)),
        (Column("Status"), status),
        (Column("Latency", "ms", "Speed"), _latency),
        (Column("Speed-up", f"vs {record.baseline}", "Speed"), lambda result, row: _speedup(row)),
        (Column("Calls a second", "", "Speed"), lambda result, row: _rate(result) if throughput else Cell()),
        (Column("p95", "ms", "Speed"), lambda result, row: _percentile(result, "p95")),
        (Column("p99", "ms", "Speed"), lambda result, row: _percentile(result, "p99")),
        (Column(metric, unit, "Answers"), lambda result, row: _score(result, is_share)),
        (Column("Change", "points" if is_share else unit, "Answers"), lambda result, row: _change(row, is_share)),
        (Column("Agreement", "%", "Answers"), lambda result, row: _agreement(result)),
        (Column("SQNR", "dB", "Answers"), lambda result, row: _sqnr(result, record)),
        (Column("Arithmetic", "", "Cost"), lambda result, row: _arithmetic(result, record)),
        (Column("Size", "", "Cost"), lambda result, row: _size(result, row)),
        (Column("Memory", "peak", "Cost"), lambda result, row: _memory(result)),
        (Column("Build", "", "Cost"), lambda result, row: _build(result)),
        (Column("Calibration", "", "Cost"), lambda result, row: _calibration(result)),
    ]


def coverage(result: VariantResult) -> dict[str, dict[str, float]] | None:
    """Return in which formats a variant multiplies and keeps its weights, as shares; None where nothing was lowered."""
    reports = () if result.variant is None else result.variant.reports
    return next((report.details["coverage"] for report in reports if "coverage" in report.details), None)


def _arithmetic(result: VariantResult, record: StudyRecord) -> Cell:
    """The format of most multiplications and its share; the other formats as the detail."""
    found = coverage(result)
    shares = {} if found is None else found["flops"]
    if not isinstance(shares, dict):  # studies of before 0.2 have the share that was lowered, without its format
        return Cell(f"{_percent(shares)} lowered", order=shares)
    lowered = record.model.lowered_before is not None or any(step.kind != "fuse" for step in result.recipe.steps)
    if found is None and result.variant is not None and not lowered:
        shares = {record.model.stored_as: 1.0}
    words = [f"{name.upper()} {_percent(share)}" for name, share in shares.items()]
    return Cell(words[0], ", ".join(words[1:]), order=next(iter(shares.values()))) if words else Cell()


def _percent(share: float) -> str:
    return "100 %" if share == 1 else f"{100 * min(share, 0.999):.1f} %"  # what is not all is never called all


def speed_words(ratio: Ratio) -> tuple[str, str]:
    """Return a speed-up in words (`2.19x faster`, `1.34x slower`, `not distinguishable`) and its interval."""
    words, _, interval = ratio.words.partition(" [")
    return words, f"[{interval}" if interval else ""


def change_words(change: Change, is_share: bool) -> tuple[str, str]:
    """Return a change of the score with its sign, and its interval; shares in points."""
    if change.difference is None:
        return formats.ABSENT, change.words
    scale, form = (100, "+.2f") if is_share else (1, "+.3g")
    amount = "0" if change.difference == 0 else f"{change.difference * scale:{form}}"
    if change.low is None or change.high is None:
        return amount, "no interval"
    return amount, f"[{change.low * scale:{form}}, {change.high * scale:{form}}]"


def score_text(value: float, is_share: bool) -> str:
    """Return a score as shown in the table, without its unit."""
    return f"{value * 100:.2f}" if is_share else formats.significant(value, 4)


def status(result: VariantResult, row: Row | None) -> Cell:
    """Say how far a variant came, and whether it is on the Pareto front."""
    if result.failure is not None:
        return Cell(f"failed: {result.failure.stage}", mood="worse")
    missing = [name for name in ("engine", "accuracy", "measurement") if getattr(result, name) is None]
    if missing:
        return Cell(f"no {formats.listed(missing, 'or')}", mood="same")
    return Cell("on the Pareto front" if row is not None and row.on_front else "done")


def _name(result: VariantResult, record: StudyRecord) -> Cell:
    """The recipe's name; with it what the file was before, where the recipe left it so and that is not FP32."""
    before = record.model.lowered_before
    as_it_was = all(step.kind == "fuse" for step in result.recipe.steps)
    return Cell(f"{result.recipe.name} (file: {before})" if before and as_it_was else result.recipe.name)


def _latency(result: VariantResult, row: Row | None) -> Cell:
    if result.measurement is None:
        return Cell()
    found = statistics.summary(result.measurement)
    if found.low is None or found.high is None:
        return Cell(formats.milliseconds(found.median), _rounds(result.measurement, found), order=found.median)
    return Cell(
        formats.milliseconds(found.median), formats.milliseconds_between(found.low, found.high), order=found.median
    )


def _rounds(measurement: Measurement, found: Summary) -> str:
    """Show the medians of rounds that are too few for an interval; one alone is the latency itself."""
    medians = sorted(float(np.median(item.latencies_seconds)) for item in measurement.rounds)
    if len(medians) == 1:
        return ""
    shown = [formats.milliseconds(seconds) for seconds in medians]
    rounds = f": {formats.listed(shown)}" if len(shown) <= _MOST_LISTED else f" from {shown[0]} to {shown[-1]}"
    return f"rounds{rounds}; {statistics.too_few(found.rounds, found.more_rounds)}"


def _speedup(row: Row | None) -> Cell:
    if row is None or row.ratio is None:
        return Cell()
    words, interval = speed_words(row.ratio)
    if row.ratio.verdict == "no interval":
        return Cell(
            f"{row.ratio.value:.2f}x",
            statistics.few_rounds(row.ratio.rounds, row.ratio.more_rounds),
            "same",
            row.ratio.value,
        )
    marks = {"faster": ("▲", "better"), "slower": ("▼", "worse")}
    mark, mood = marks.get(row.ratio.verdict, ("≈", "same"))
    return Cell(f"{mark} {words}", interval, mood, row.ratio.value)


def _rate(result: VariantResult) -> Cell:
    rate = None if result.measurement is None else statistics.summary(result.measurement).queries_per_second
    return Cell() if rate is None else Cell(formats.significant(rate), order=rate)


def _percentile(result: VariantResult, name: str) -> Cell:
    value = None if result.measurement is None else getattr(statistics.summary(result.measurement), name)
    return Cell() if value is None else Cell(formats.milliseconds(value), order=value)


def _score(result: VariantResult, is_share: bool) -> Cell:
    score = None if result.accuracy is None else statistics.score_interval(result.accuracy)
    if score is None:
        return Cell()
    interval = ""
    if score.low is not None and score.high is not None:
        interval = f"[{score_text(score.low, is_share)}, {score_text(score.high, is_share)}]"
    return Cell(score_text(score.value, is_share), interval, order=score.value)


def _change(row: Row | None, is_share: bool) -> Cell:
    if row is None or row.change is None:
        return Cell()
    amount, interval = change_words(row.change, is_share)
    marks = {"better": ("▲", "better"), "worse": ("▼", "worse"), "not distinguishable": ("≈", "same")}
    mark, mood = marks.get(row.change.verdict, ("", ""))
    verdict = row.change.verdict if mark else ""
    detail = "; ".join(part for part in (interval, verdict) if part)
    return Cell(f"{mark} {amount}".strip(), detail, mood, row.change.difference)


def _agreement(result: VariantResult) -> Cell:
    share = None if result.accuracy is None else agreement(result.accuracy)
    return Cell() if share is None else Cell(f"{share.value * 100:.2f}", order=share.value)


def _sqnr(result: VariantResult, record: StudyRecord) -> Cell:
    check: Accuracy | None = result.accuracy
    if check is None or not check.sqnr_db:
        return Cell()
    if result.recipe.name == record.baseline and record.model.lowered_before:
        return Cell("reference", order=1e9)  # compared with itself, which says nothing of FP32
    decibels = lowest_sqnr_db(check)
    return Cell("exact", order=1e9) if decibels is None else Cell(f"{decibels:.1f}", order=decibels)


def _size(result: VariantResult, row: Row | None) -> Cell:
    size = size_bytes(result)
    if size is None:
        return Cell()
    share = "" if row is None or row.size_ratio is None or row.ratio is None else f"{row.size_ratio:.0%} of baseline"
    return Cell(formats.size(size), share, order=size)


def _memory(result: VariantResult) -> Cell:
    peaks = [] if result.measurement is None else [part.peak_memory_bytes for part in result.measurement.rounds]
    known = [peak for peak in peaks if peak is not None]
    return Cell(formats.size(max(known)), order=max(known)) if known else Cell()


def _build(result: VariantResult) -> Cell:
    if result.engine is None:
        return Cell()
    return Cell(formats.seconds(result.engine.build_seconds), order=result.engine.build_seconds)


def _calibration(result: VariantResult) -> Cell:
    value = None if result.variant is None else result.variant.calibration_seconds
    return Cell() if value is None else Cell(formats.seconds(value), order=value)


def _footnotes(record: StudyRecord, comparison: Comparison | None) -> list[str]:
    notes = [
        f"Brackets: {CONFIDENCE:.0%} interval for latency and speed-up, {ACCURACY_CONFIDENCE:.0%} for scores and their "
        f"changes. “Not distinguishable”: the interval of the difference includes no difference."
    ]
    notes += _percentile_notes(record)
    if any(result.variant is not None and result.variant.calibration_seconds for result in record.results):
        notes.append("The calibration time is that of collecting the statistics once; recipes of one study share them.")
    if any(result.measurement is not None for result in record.results):
        host = " on the host" if gpu_state.has_gpu(record) else ""
        gpu = "; the GPU's stands under “Where it was measured”" if host else ""
        notes.append(
            f"Peak memory is that of the whole process that measures{host}{_python_words(record.protocol)}{gpu}."
        )
    return [*notes, *(comparison.notes if comparison is not None else ())]


def _python_words(protocol: Protocol) -> str:
    return ", Python and the engine's library included" + (", all streams together" if protocol.streams > 1 else "")


def _percentile_notes(record: StudyRecord) -> list[str]:
    short = []
    for name, quantile in (("p95", 0.95), ("p99", 0.99)):
        missing = [
            result.recipe.name
            for result in record.results
            if result.measurement is not None and getattr(statistics.summary(result.measurement), name) is None
        ]
        if missing:
            measured = sum(result.measurement is not None for result in record.results)
            whom = "any variant" if len(missing) == measured else formats.listed(missing)
            short.append(
                f"{name} needs {required_samples(quantile)} calls to be known at {CONFIDENCE:.0%}; not shown for "
                f"{whom}. A larger Protocol.min_runs or rounds gives more."
            )
    return short
