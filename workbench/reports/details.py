"""What stands below the main table: notes, what each recipe did to the graph, failures, the environment.

Turns records into short texts; escaping and layout are the business of whoever shows them.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from statistics import median
from typing import Any

from workbench import codec
from workbench.errors import StoreError
from workbench.judging import roofline
from workbench.judging.comparison import Comparison
from workbench.judging.intervals import FEWEST_ROUNDS
from workbench.records import StepReport, StudyRecord, VariantResult
from workbench.reports import formats, gpu_state

_LONGEST_LOG_LINES = 200
_MOST_NAMES = 200
_LONGEST_FACT = 400


@dataclass(frozen=True)
class Step:
    """One step of a recipe: what it did, which nodes it changed, what it left alone (reason -> names)."""

    heading: str
    summary: str
    facts: tuple[tuple[str, str], ...]
    changed: tuple[str, ...]
    skipped: tuple[tuple[str, tuple[str, ...]], ...]
    skipped_count: int


@dataclass(frozen=True)
class VariantDetail:
    """All that is known of one variant beside its row in the table."""

    anchor: str
    name: str
    summary: str
    notes: tuple[str, ...]
    steps: tuple[Step, ...]
    facts: tuple[tuple[str, str], ...]
    log: str


@dataclass(frozen=True)
class FailureDetail:
    """A failure with the end of its log."""

    anchor: str
    variant: str
    stage: str
    error: str
    message: str
    log: str
    log_lines: int


def title(record: StudyRecord) -> str:
    """Return the study's name, or model and data in words where the name was derived from their hashes."""
    derived = re.fullmatch(re.escape(record.model.name) + "-[0-9a-f]{8}", record.name)
    if derived is None or not record.data.get("name"):
        return record.name
    return f"{record.model.name} on {record.data['name']}"


def facts(record: StudyRecord) -> list[str]:
    """Return the line under the title: model, data, backend, device, boundary, date."""
    devices = sorted({result.measurement.device for result in record.results if result.measurement is not None})
    protocol = record.protocol
    found = [record.model.name]
    if record.data.get("name"):
        found.append(f"{record.data['name']} ({record.data.get('kind', 'unknown')} data)")
    found += [record.backend, *devices]
    found += [f"boundary {protocol.boundary}", f"batch {protocol.batch}", formats.moment(record.created_at)]
    return found if title(record) == record.name else [*found, f"study {record.name}"]


def notes(record: StudyRecord, comparison: Comparison | None) -> list[str]:
    """Return what must be read with the results, what touches most of it first; notes of variants once, with who."""
    taken = "One round was" if record.protocol.rounds == 1 else f"{record.protocol.rounds} rounds were"
    few = f"{taken} measured: there are no intervals, and so no verdicts. Set Protocol(rounds=5) or more."
    own = [few] if record.protocol.rounds < FEWEST_ROUNDS else []
    by_note: dict[str, list[str]] = {}
    for result in record.results:
        for note in _variant_notes(result):
            by_note.setdefault(note, []).append(result.recipe.name)
    for row in () if comparison is None else comparison.rows:
        failed = next(result.failure for result in record.results if result.recipe.name == row.variant) is not None
        for note in () if failed else row.notes:
            by_note.setdefault(note, [])
    everyone = [result.recipe.name for result in record.results]
    shared = [_whose(note, names, everyone) for note, names in by_note.items()]
    # What touches every number comes first: too few rounds, a slowed device, disturbances.
    measured = (*own, *gpu_state.notes(record), *_disturbances(record))
    return list(dict.fromkeys([*measured, *record.notes, *record.model.origin.notes, *shared]))


def variant_details(record: StudyRecord) -> list[VariantDetail]:
    """Return the details of every variant that was at least transformed."""
    return [
        VariantDetail(
            anchor=f"variant-{place}",
            name=result.recipe.name,
            summary=_summary(result),
            notes=tuple(dict.fromkeys(_variant_notes(result))),
            steps=tuple(_step(report) for report in result.variant.reports),
            facts=tuple(_variant_facts(result)),
            log="" if result.engine is None else _end(result.engine.log),
        )
        for place, result in enumerate(record.results)
        if result.variant is not None
    ]


def failures(record: StudyRecord) -> list[FailureDetail]:
    """Return the failures, each with the last lines of its log."""
    return [
        FailureDetail(
            anchor=f"failure-{place}",
            variant=result.failure.variant,
            stage=result.failure.stage,
            error=result.failure.error,
            message=result.failure.message,
            log=_end(result.failure.log),
            log_lines=min(len(result.failure.log.splitlines()), _LONGEST_LOG_LINES),
        )
        for place, result in enumerate(record.results)
        if result.failure is not None
    ]


def environment_rows(record: StudyRecord) -> list[tuple[str, str]]:
    """Return the environment as names and values, with what measurements add to the study's (threads) or contradict."""
    rows = [("model", f"{record.model.name}, opset {record.model.opset}, {record.model.parameters:,} parameters")]
    rows.append(("model sha256", record.model.sha256))
    if record.data.get("sha256"):
        rows.append(("data sha256", str(record.data["sha256"])))
    for key, name in (("evaluation_samples", "evaluation samples"), ("calibration_samples", "calibration samples")):
        if key in record.data:
            rows.append((name, formats.plain(record.data[key])))
    rows += [(_label(key), _environment_value(key, value)) for key, value in record.environment.items()]
    for key, values in _measured_environments(record).items():
        rows.append((_label(key), " or ".join(values)))
    return [*rows, *gpu_state.rows(record)]


def _measured_environments(record: StudyRecord) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for result in record.results:
        for key, value in () if result.measurement is None else result.measurement.environment.items():
            if record.environment.get(key, ...) != value:
                found.setdefault(key, []).append(_environment_value(key, value))
    return {key: list(dict.fromkeys(values)) for key, values in found.items()}


def _environment_value(key: str, value: Any) -> str:
    if key == roofline.KIND:
        with contextlib.suppress(StoreError):  # of a file that was edited: shown as it stands
            return codec.from_plain(roofline.Ceilings, value).words()
    if key.endswith("_bytes") and isinstance(value, int):
        return formats.size(value)
    return formats.plain(value)


def _label(key: str) -> str:
    return key.removesuffix("_bytes").replace("_", " ")


def _variant_notes(result: VariantResult) -> list[str]:
    found: list[str] = [] if result.variant is None else list(result.variant.notes)
    found += [] if result.engine is None else result.engine.notes
    found += [] if result.accuracy is None else result.accuracy.notes
    found += _waiting_for_the_host(result)
    return found


def _waiting_for_the_host(result: VariantResult) -> list[str]:
    """Say that launches, not the device's work, were measured, where an engine found so in most rounds."""
    rounds = () if result.measurement is None else result.measurement.rounds
    states = [item.conditions.get("device", {}) for item in rounds]
    bound = [state["host_launch_seconds"] for state in states if state.get("launch_bound")]
    if not bound or 2 * len(bound) <= len(rounds):
        return []
    return [
        f"Launching its operators takes the host {formats.milliseconds(median(bound))} ms, nearly all of the time measured: the "
        f"device waits for the host, so faster kernels cannot show. Measure it in a CUDA graph, compiled, or at a larger "
        f"batch."
    ]


def _disturbances(record: StudyRecord) -> list[str]:
    """Say how many rounds were disturbed, one note a kind: the notes of rounds differ only in their numbers."""
    kinds: dict[str, list[str]] = {}
    rounds = 0
    for result in record.results:
        for part in () if result.measurement is None else result.measurement.rounds:
            rounds += 1
            found = part.conditions.get("notes", ())
            for note in found if isinstance(found, (list, tuple)) else ():
                kinds.setdefault(re.sub(r"[\d.,]+", "#", str(note)), []).append(f"{result.recipe.name}: {note}")
    return [f"In {len(told)} of {formats.count(rounds, 'round')}, such as one of {told[0]}" for told in kinds.values()]


def _whose(note: str, names: list[str], everyone: list[str]) -> str:
    unique = list(dict.fromkeys(names))
    if not unique or any(name in note for name in unique):
        return note
    return f"{'All variants' if unique == everyone and len(unique) > 1 else formats.listed(unique)}: {note}"


def _summary(result: VariantResult) -> str:
    steps = [step.kind.replace("_", " ") for step in result.recipe.steps]
    counts = [len(report.skipped) for report in result.variant.reports] if result.variant is not None else []
    left = f"; {formats.count(sum(counts), 'node')} left alone" if sum(counts) else ""
    return (formats.listed(steps) or "no steps") + left


def _step(report: StepReport) -> Step:
    reasons: dict[str, list[str]] = {}
    for item in report.skipped:
        reasons.setdefault(item.reason, []).append(item.name)
    return Step(
        heading=report.kind.replace("_", " ").capitalize(),
        summary=f"{formats.count(len(report.changed), 'change')} in {formats.seconds(report.seconds)}",
        facts=tuple((_label(key), _fact(value)) for key, value in report.details.items()),
        changed=_some(report.changed),
        skipped=tuple((reason, _some(names)) for reason, names in reasons.items()),
        skipped_count=len(report.skipped),
    )


def _variant_facts(result: VariantResult) -> list[tuple[str, str]]:
    variant = result.variant
    if variant is None:
        return []
    found = [("Q/DQ dialect", variant.dialect), ("opset", str(variant.opset)), ("variant sha256", variant.sha256)]
    if variant.calibration_sha256:
        found.append(("calibration sha256", variant.calibration_sha256))
    if result.engine is not None:
        found.append(("engine", f"{result.engine.backend} {result.engine.backend_version} on {result.engine.device}"))
        found.append(("fusion in the engine", result.engine.fusion))
        found.append(("threads", formats.plain(result.engine.options.threads)))
    check = result.accuracy
    for name, values, unit in (
        ("SQNR", {} if check is None else check.sqnr_db, " dB"),
        ("cosine similarity", {} if check is None else check.cosine, ""),
        ("largest error", {} if check is None else check.largest_error, ""),
    ):
        words = [
            f"{key}: "
            + ("no error" if value is None else formats.significant(value, 6 if name[0] == "c" else 3) + unit)
            for key, value in values.items()
        ]
        if words:
            found.append((name, "; ".join(words)))
    return found


def _some(names: tuple[str, ...] | list[str]) -> tuple[str, ...]:
    rest = len(names) - _MOST_NAMES
    return (*names[:_MOST_NAMES], f"… and {rest} more, in the JSON") if rest > 0 else tuple(names)


def _fact(value: Any) -> str:
    if isinstance(value, (dict, list, tuple)):
        text = json.dumps(value, ensure_ascii=False, default=str)
        return text if len(text) <= _LONGEST_FACT else f"{text[:_LONGEST_FACT]}… (all of it is in the JSON)"
    return f"{value:.6g}" if isinstance(value, float) else formats.plain(value)


def _end(log: str) -> str:
    return "\n".join(log.splitlines()[-_LONGEST_LOG_LINES:])
