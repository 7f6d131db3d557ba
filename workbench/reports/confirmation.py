"""A rehearsal and its confirmation on another machine, side by side: what was predicted, what was measured, what changed.

Pure formatting; latencies of two machines are never put into one ratio.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape as html_escape
from pathlib import Path

from workbench.errors import StoreError
from workbench.judging.comparison import Comparison, Row
from workbench.judging.standing import compared
from workbench.machine.store import write_text
from workbench.records import StudyRecord, VariantResult
from workbench.reports.formats import ABSENT, listed
from workbench.reports.plain import escape
from workbench.reports.rows import change_words, speed_words


@dataclass(frozen=True)
class Sides:
    """Two studies of one model.

    Attributes:
        recommended: what each recommends, or None.
        notes: what did not travel, was not taken over, and so on.
    """

    rehearsal: StudyRecord
    confirmed: StudyRecord
    recommended: tuple[str | None, str | None]
    notes: tuple[str, ...] = ()


COLUMNS = (
    "Variant", "Status", "Status, confirmed", "Change of score, predicted", "Change of score, measured",
    "Agreement, predicted", "Agreement, measured", "Speed-up, rehearsal", "Speed-up, confirmed",
)  # fmt: skip


def rows(sides: Sides) -> list[tuple[str, ...]]:
    """Return one row a variant, cells as in COLUMNS."""
    both = [_rows(sides.rehearsal), _rows(sides.confirmed)]
    found = []
    for item in sides.rehearsal.results:
        name = item.recipe.name
        there = _result(sides.confirmed, name)
        pairs = [(_status(item), _status(there))]
        for cell in (_change, _agreement, _speed):
            results = (item, there)
            pairs.append(tuple(cell(side.get(name), result) for side, result in zip(both, results, strict=True)))  # type: ignore[arg-type]
        found.append((name, *(text for pair in pairs for text in pair)))
    return found


def changed(sides: Sides) -> list[str]:
    """Return which decisions changed, one sentence each; one sentence where none did."""
    before, after = sides.recommended
    found = []
    if before != after:
        found.append(f"The rehearsal recommends {before or 'nothing'}, the confirmation {after or 'nothing'}.")
    old, new = _rows(sides.rehearsal), _rows(sides.confirmed)
    for item in sides.rehearsal.results:
        name, there = item.recipe.name, _result(sides.confirmed, item.recipe.name)
        if (item.failure is None) != (there is None or there.failure is None):
            failed = "there" if there is not None and there.failure is not None else "in the rehearsal"
            message = (there.failure if failed == "there" else item.failure).message  # type: ignore[union-attr]
            found.append(f"{name} failed {failed} only: {message}")
        for what, verdict in (("answers", _answers_verdict), ("speed", _speed_verdict)):
            ours, theirs = verdict(old.get(name)), verdict(new.get(name))
            if ours is not None and theirs is not None and ours != theirs:
                found.append(f"The {what} of {name} were {ours} in the rehearsal and are {theirs} now."
                             if what == "answers" else
                             f"The speed of {name} was {ours} in the rehearsal and is {theirs} now.")  # fmt: skip
    return found or ["No decision changed: the recommendation, and every verdict on answers and speed, are the same."]


def write(sides: Sides, path: Path) -> Path:
    """Write both side by side and return where.

    Args:
        path: `.html` or `.md`; replaced at once or not at all.

    Raises:
        StoreError: another suffix, or a place that cannot be written.
    """
    refuse_unknown(path)
    writer = html if path.suffix.lower() == ".html" else markdown
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"Cannot write {path}: {error}. Choose a place that can be written.") from error
    write_text(path, writer(sides))
    return path


def refuse_unknown(path: Path) -> None:
    """Refuse a place whose suffix says a kind of report that is not written.

    Raises:
        StoreError: it does.
    """
    if path.suffix.lower() not in (".html", ".md"):
        raise StoreError(f"There is no report of a confirmation with the suffix {path.suffix!r}. Take .html or .md.")


def markdown(sides: Sides) -> str:
    """Return both as Markdown, everything from outside escaped."""
    lines = [f"# {escape(_title(sides))}", "", *(f"{escape(line)}\n" for line in _facts(sides)), "## What changed", ""]
    lines += [f"- {escape(sentence)}" for sentence in changed(sides)]
    lines += ["", "## Side by side", "", _markdown_row(COLUMNS), "|" + " --- |" * len(COLUMNS)]
    lines += [_markdown_row(row) for row in rows(sides)]
    return "\n".join(lines) + "\n"


def html(sides: Sides) -> str:
    """Return both as an HTML page that needs nothing else, everything from outside escaped."""
    head = "".join(f"<th>{html_escape(name)}</th>" for name in COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{html_escape(cell)}</td>" for cell in row) + "</tr>" for row in rows(sides))
    listing = "".join(f"<li>{html_escape(sentence)}</li>" for sentence in changed(sides))
    facts = "".join(f"<p>{html_escape(line)}</p>" for line in _facts(sides))
    title = html_escape(_title(sides))
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;margin:2em;max-width:80em}table{border-collapse:collapse}"
        "th,td{padding:.3em .7em;border-bottom:1px solid #ccc;text-align:left;vertical-align:top}"
        "@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}}"
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{policy}"><title>{title}</title><style>{style}</style></head><body><h1>{title}</h1>{facts}'
        f"<h2>What changed</h2><ul>{listing}</ul><h2>Side by side</h2><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></body></html>\n"
    )


def _title(sides: Sides) -> str:
    return f"{sides.rehearsal.model.name}: rehearsal and confirmation"


def _facts(sides: Sides) -> list[str]:
    found = []
    for label, record in (("Rehearsal", sides.rehearsal), ("Confirmation", sides.confirmed)):
        devices = dict.fromkeys(item.measurement.device for item in record.results if item.measurement is not None)
        found.append(f"{label}: study {record.name!r}, {record.backend} on {listed(list(devices)) or 'no device'}.")
    found.append(
        "Accuracy is predicted by the rehearsal; speed is not: each machine has its own speed-ups, side by side."
    )
    return [*found, *sides.notes]


def _rows(record: StudyRecord) -> dict[str, Row]:
    comparison: Comparison | None = compared(record)[0]
    return {} if comparison is None else {row.variant: row for row in comparison.rows}


def _result(record: StudyRecord, name: str) -> VariantResult | None:
    return next((item for item in record.results if item.recipe.name == name), None)


def _status(result: VariantResult | None) -> str:
    if result is None:
        return "not there"
    if result.failure is not None:
        return f"failed: {result.failure.stage}"
    return "done" if result.measurement is not None and result.accuracy is not None else "not finished"


def _change(row: Row | None, result: VariantResult | None) -> str:
    if row is None or row.change is None or result is None or result.accuracy is None:
        return ABSENT
    amount, interval = change_words(row.change, result.accuracy.unit == "share")
    return f"{amount} {interval} {row.change.verdict}".strip()


def _agreement(row: Row | None, result: VariantResult | None) -> str:
    return ABSENT if row is None or row.agreement is None else f"{row.agreement.value:.2%}"


def _speed(row: Row | None, result: VariantResult | None) -> str:
    return ABSENT if row is None or row.ratio is None else " ".join(speed_words(row.ratio)).strip()


def _answers_verdict(row: Row | None) -> str | None:
    return None if row is None or row.change is None or row.change.verdict == "unknown" else row.change.verdict


def _speed_verdict(row: Row | None) -> str | None:
    return None if row is None or row.ratio is None or row.ratio.verdict == "no interval" else row.ratio.verdict


def _markdown_row(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"
