"""What is unlike between two studies, as rows for a reader: how they were asked for, where they ran, what recipes do."""

from __future__ import annotations

from workbench.records import StudyRecord
from workbench.reports import code, details, formats

Rows = list[tuple[str, str, str]]


def differences(before: StudyRecord, after: StudyRecord) -> Rows:
    """Return (what, before, after) for everything that is not the same; numbers are another matter."""
    rows = [
        ("Model", _model(before), _model(after)),
        ("Data", _data(before), _data(after)),
        ("Backend", before.backend, after.backend),
        ("Protocol", code.literal(before.protocol), code.literal(after.protocol)),
        ("Build options", code.literal(before.options), code.literal(after.options)),
        ("Baseline", before.baseline, after.baseline),
        *_recipes(before, after),
    ]
    ours, theirs = dict(details.environment_rows(before)), dict(details.environment_rows(after))
    rows += [(name, ours.get(name, formats.ABSENT), theirs.get(name, formats.ABSENT)) for name in {**ours, **theirs}]
    return [(name, one, other) for name, one, other in dict.fromkeys(rows) if one != other]


def _recipes(before: StudyRecord, after: StudyRecord) -> Rows:
    ours, theirs = ({item.recipe.name: item.recipe for item in record.results} for record in (before, after))
    rows = [
        (f"Recipe {name}", code.literal(ours[name].steps), code.literal(theirs[name].steps))
        for name in ours
        if name in theirs
    ]
    only = [
        formats.listed([name for name in one if name not in other]) for one, other in ((ours, theirs), (theirs, ours))
    ]
    return [*rows, ("Variants that only one has", only[0] or formats.ABSENT, only[1] or formats.ABSENT)]


def _model(record: StudyRecord) -> str:
    return f"{record.model.name}, sha256 {record.model.sha256[:12]}"


def _data(record: StudyRecord) -> str:
    return f"{record.data.get('name', 'unknown')}, sha256 {str(record.data.get('sha256', ''))[:12]}"
