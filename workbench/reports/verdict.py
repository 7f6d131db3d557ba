"""What a study found, in a sentence or three: what to take, who is faster, who answers worse, and what did not work.

Both axes come first. Takes verdicts from the comparison; a difference that cannot be told from none is never called one.
"""

from __future__ import annotations

from workbench.judging import separating, standing
from workbench.judging.accuracy import lowest_sqnr_db
from workbench.judging.best import recommended
from workbench.judging.comparison import Comparison, Row
from workbench.judging.statistics import Change, few_rounds
from workbench.records import Accuracy, StudyRecord
from workbench.reports import formats
from workbench.reports.rows import change_words, speed_words


def verdict(record: StudyRecord, comparison: Comparison | None, refusal: str = "") -> list[str]:
    """Return the finding as sentences for the top of a report, the most important first."""
    if comparison is None:
        return [refusal, *_failures(record)]
    candidates = [row for row in comparison.rows if row.ratio is not None]
    best, ties = _best(record, comparison)
    first, named = _first(record, comparison, candidates, best)
    others = _others(comparison, candidates, named)
    return [first, *ties, *_worse(record, comparison, candidates, named), *others, *_failures(record)]


def _first(
    record: StudyRecord, comparison: Comparison, candidates: list[Row], best: Row | None
) -> tuple[str, Row | None]:
    """Return what to take, and the candidate whose cost the sentence names."""
    base = comparison.baseline
    faster = [row for row in candidates if row.ratio is not None and row.ratio.verdict == "faster"]
    if not candidates:
        return f"There is nothing to compare: only {record.baseline} was measured.", None
    if best is not None:
        return f"Take {best.variant}: it is {_speed(best)} than {base} {_cost(record, best)}.", best
    if faster:
        fastest = max(faster, key=_times)
        return (
            f"Keep {base}: every faster variant answers distinguishably worse. {fastest.variant} is {_speed(fastest)} "
            f"{_cost(record, fastest)}.",
            fastest,
        )
    if all(row.ratio is not None and row.ratio.verdict == "no interval" for row in candidates):
        rounds = min(row.ratio.rounds for row in candidates if row.ratio is not None)
        more = max(row.ratio.more_rounds for row in candidates if row.ratio is not None)
        return f"Nothing can be said of speed yet ({few_rounds(rounds, more)}).", None
    return f"Keep {base}: no variant is distinguishably faster than it.", None


def _best(record: StudyRecord, comparison: Comparison) -> tuple[Row | None, list[str]]:
    shown = standing.quality(record, comparison)
    if shown is None:
        faster = [
            row for row in comparison.rows if row.ratio is not None and row.ratio.verdict == "faster" and row.on_front
        ]
        return max(faster, key=_times, default=None), []
    points, _ = standing.points(record, comparison, shown)
    choice = recommended(points, shown, standing.alike_in_speed(record))
    if choice.best is None:
        return None, []
    ties = []
    if choice.equals:
        told = separating.words(choice.best, choice.equals, standing.apart_in_speed(record))
        ties.append(f"In speed it cannot be told apart from {formats.listed(list(choice.equals))}. {told}".strip())
    return comparison[choice.best], ties


def _worse(record: StudyRecord, comparison: Comparison, candidates: list[Row], named: Row | None) -> list[str]:
    """Say who answers worse, fast or slow: the other half of every verdict."""
    worse = [row for row in candidates if row is not named and row.change is not None and row.change.verdict == "worse"]
    amounts = [f"{row.variant} ({_loss(record, row)})" for row in worse]
    if amounts:
        return [f"Answers distinguishably worse than {comparison.baseline}: {formats.listed(amounts)}."]
    shares = sorted((row.agreement.value, row.variant) for row in candidates if row.agreement is not None)
    if len(shares) > 1 and all(row.change is None for row in candidates):
        (low, least), (high, most) = shares[0], shares[-1]
        return [f"Same answers as {comparison.baseline}: from {low:.2%} ({least}) to {high:.2%} ({most})."]
    return []


def _loss(record: StudyRecord, row: Row) -> str:
    check = _check(record, row.variant)
    if check is None or row.change is None:
        return "unknown"
    amount, _ = change_words(row.change, check.unit == "share")
    return f"{amount} points" if check.unit == "share" else amount


def _times(row: Row) -> float:
    return 0.0 if row.ratio is None else row.ratio.value


def _speed(row: Row) -> str:
    if row.ratio is None:
        return "not measured"
    words, interval = speed_words(row.ratio)
    return f"{words} {interval}".strip()


def _cost(record: StudyRecord, row: Row) -> str:
    check = _check(record, row.variant)
    if check is None:
        return "; its answers were not checked"
    if row.change is not None and row.change.difference is not None:
        return _change(check, row.change, row.change.difference)
    if row.agreement is not None:
        return f"and gives the same answer on {row.agreement.value:.2%} of the samples (no labels, so no accuracy)"
    decibels = lowest_sqnr_db(check)
    return (
        "with the very same outputs"
        if decibels is None
        else f"with {decibels:.1f} dB of signal over error in its outputs"
    )


def _change(check: Accuracy, change: Change, difference: float) -> str:
    share = check.unit == "share"
    if difference == 0 and change.p_value is not None and change.p_value >= 1:
        return f"at the same {check.metric}"
    amount = f"{abs(difference) * 100:.2f} points" if share else formats.significant(abs(difference))
    direction = "more" if difference > 0 else "less"
    certain = "" if change.verdict in ("better", "worse") else "not distinguishable"
    test = "" if change.p_value is None else f"p = {change.p_value:.2g}"
    if test and share:
        test = f"McNemar {test}"
    aside = ", ".join(part for part in (certain, test) if part)
    return f"at {amount} {direction} {check.metric}" + (f" ({aside})" if aside else "")


def _others(comparison: Comparison, candidates: list[Row], named: Row | None) -> list[str]:
    groups: dict[str, list[str]] = {"faster": [], "not distinguishable": [], "slower": [], "no interval": []}
    for row in candidates:
        if row is not named and row.ratio is not None:
            groups[row.ratio.verdict].append(f"{row.variant} ({speed_words(row.ratio)[0].split()[0]})")
    names = {key: [name.partition(" (")[0] for name in group] for key, group in groups.items()}
    parts = []
    if groups["faster"]:
        parts.append(f"Also faster: {formats.listed(groups['faster'])}")
    if groups["slower"]:
        parts.append(f"Slower: {formats.listed(groups['slower'])}")
    if names["not distinguishable"]:
        speed = f"Not distinguishable from {comparison.baseline} in speed"
        parts.append(f"{speed}: {formats.listed(names['not distinguishable'])}")
    if names["no interval"]:
        parts.append(f"Too few rounds to tell, so without a verdict: {formats.listed(names['no interval'])}")
    return [". ".join(parts) + "."] if parts else []


def _failures(record: StudyRecord) -> list[str]:
    failures = [result.failure for result in record.results if result.failure is not None]
    if not failures:
        return []
    words = [f"{failure.variant} during {failure.stage} ({failure.error})" for failure in failures]
    return [f"Failed: {formats.listed(words)}."]


def _check(record: StudyRecord, name: str) -> Accuracy | None:
    return next((result.accuracy for result in record.results if result.recipe.name == name), None)
