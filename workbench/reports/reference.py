"""A study beside the one that it is judged against: the verdict in words, and all that is unlike. Formats only."""

from __future__ import annotations

from dataclasses import dataclass

from workbench.errors import CompareError
from workbench.judging.regression import regression
from workbench.records import StudyRecord
from workbench.reports import difference, formats


@dataclass(frozen=True)
class Reference:
    """What the template shows of the reference.

    Attributes:
        words: whether the study has regressed against it, or why that cannot be said.
        rows: (what, reference, this study) for everything that is not the same.
    """

    name: str
    date: str
    words: str
    rows: tuple[tuple[str, str, str], ...]


def against(record: StudyRecord, reference: StudyRecord) -> Reference:
    """Return what stands in the report of a study of its reference."""
    try:
        words = regression(reference, record, allow_unlike=True).words
    except CompareError as error:
        words = str(error)
    rows = tuple(difference.differences(reference, record))
    return Reference(reference.name, formats.moment(reference.created_at), words, rows)
