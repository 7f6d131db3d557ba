"""The explanations that a study keeps: they travel with its record, and are shown where nothing can be profiled.

Each is kept with the engines that it is of; of others it says nothing, and counts as absent.
"""

from __future__ import annotations

from dataclasses import replace

from workbench import codec
from workbench.errors import StoreError
from workbench.explaining.explanation import Explanation
from workbench.records import StudyRecord


def keep(record: StudyRecord, found: Explanation) -> StudyRecord:
    """Return the record with an explanation in it, in the place of an earlier one of the same variant."""
    entry = {"engines": _engines(record, found.variant), "explanation": codec.to_plain(found)}
    return replace(record, explanations={**record.explanations, found.variant: entry})


def kept(record: StudyRecord) -> dict[str, Explanation]:
    """Return variant -> its explanation; one that is damaged, or of engines that the study no longer holds, is left out."""
    found = {}
    for name, entry in record.explanations.items():
        if not isinstance(entry, dict) or entry.get("engines") != _engines(record, name):
            continue
        try:
            found[name] = codec.from_plain(Explanation, entry.get("explanation"))
        except StoreError:
            continue
    return found


def _engines(record: StudyRecord, variant: str) -> list[list[str]]:
    """What tells the engines of the baseline and of a variant from others."""
    return [
        [result.engine.variant_sha256, result.engine.sha256 or ""]
        for name in (record.baseline, variant)
        for result in record.results
        if result.recipe.name == name and result.engine is not None
    ]
