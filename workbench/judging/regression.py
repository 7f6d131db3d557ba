"""Whether a study is worse than an earlier one: slower, less accurate, or with variants that no longer get through.

Only what is distinguishable counts. Formats nothing but the sentences that say it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from workbench.errors import CompareError
from workbench.judging.comparison import Comparison, Row, compare_studies
from workbench.records import StudyRecord

_DOUBTS = {
    "Unlike conditions": "measured under unlike conditions",
    "not measured in turns": "not measured in turns, so that what the machine did between the two looks like a difference",
}
Kind = Literal["slower", "worse", "failed", "gone"]


@dataclass(frozen=True)
class Finding:
    """One regression.

    Attributes:
        words: with the interval, where there is one.
    """

    variant: str
    kind: Kind
    words: str


@dataclass(frozen=True)
class Regression:
    """What an earlier study and a later one say of a change between them.

    Attributes:
        findings: what is distinguishably worse; empty where nothing is.
        unknown: variants of which too little was measured to say.
        doubts: why a difference may come from something else than a change of the code, a clause each.
    """

    before: str
    after: str
    comparison: Comparison
    findings: tuple[Finding, ...]
    unknown: tuple[str, ...]
    doubts: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """The verdict in one sentence."""
        if self.findings:
            listed = "; ".join(finding.words for finding in self.findings)
            doubt = f" But they were {' and '.join(self.doubts)}." if self.doubts else ""
            return f"{self.after} has regressed against {self.before}: {listed}.{doubt}"
        told = (
            f"{self.after} has not regressed against {self.before}: nothing is distinguishably slower or less accurate."
        )
        few = f" Of {', '.join(self.unknown)} too little was measured to tell." if self.unknown else ""
        return told + few


def regression(
    before: StudyRecord, after: StudyRecord, *, tolerance: float = 0.0, allow_unlike: bool = False
) -> Regression:
    """Judge a later study against an earlier one.

    Args:
        tolerance: share by which a variant may have become slower, such as 0.02; a regression is surely beyond it.
        allow_unlike: judge other devices, backends, shapes and thread counts too; the notes then say so.

    Raises:
        CompareError: the studies share no variant, or were measured under unlike conditions; a tolerance below 0.
    """
    if not 0 <= tolerance < float("inf"):
        raise CompareError(f"The tolerance is {tolerance!r}; it must be 0 or more, such as 0.02 for two percent.")
    comparison = compare_studies(before, after, allow_unlike=allow_unlike)
    findings: list[Finding] = []
    unknown = []
    failed = {item.recipe.name: item.failure for item in after.results if item.failure is not None}
    earlier = {item.recipe.name for item in before.results if item.failure is None}
    for row in comparison.rows:
        if row.variant in failed:
            if row.variant in earlier:
                stage = failed[row.variant].stage
                findings.append(Finding(row.variant, "failed", f"{row.variant} fails at {stage}, and did not before"))
            continue
        findings += _findings(row, tolerance)
        if row.ratio is None or row.ratio.verdict == "no interval":
            unknown.append(row.variant)
    present = {item.recipe.name for item in after.results}
    findings += [Finding(name, "gone", f"{name} is gone") for name in sorted(earlier - present)]
    notes = " ".join(note for row in comparison.rows for note in row.notes)
    doubts = [words for mark, words in _DOUBTS.items() if mark in notes]
    return Regression(before.name, after.name, comparison, tuple(findings), tuple(unknown), tuple(doubts))


def _findings(row: Row, tolerance: float) -> Sequence[Finding]:
    found = []
    ratio, change = row.ratio, row.change
    if ratio is not None and ratio.verdict == "slower" and ratio.high is not None and ratio.high < 1 / (1 + tolerance):
        found.append(Finding(row.variant, "slower", f"{row.variant} is {ratio.words}"))
    if change is not None and change.verdict == "worse":
        found.append(Finding(row.variant, "worse", f"the score of {row.variant} is {change.words}"))
    return found
