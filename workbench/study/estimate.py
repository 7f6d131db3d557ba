"""How long a study will take, before it starts. Plain arithmetic; knows nothing of jobs or widgets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby, pairwise

from workbench.errors import DataError, expect
from workbench.records import Progress, Protocol

# Until something was seen here: digits_resnet in ONNX Runtime on two cores of an AMD EPYC (a fresh process for each round,
# 539 samples to check; data/studies/digits_resnet-cpu-avx2.json has its rounds). The first study replaces both.
_ROUND_OVERHEAD_SECONDS = 0.7
ANSWER_SECONDS = 2.0
_LEAST_SECONDS = 0.05


@dataclass(frozen=True)
class Pace:
    """What a variant's stages took, in seconds; None where nothing was seen yet.

    Attributes:
        answer_seconds: transform, build and check together.
        round_overhead_seconds: of one round beyond the time its protocol asks for.
    """

    answer_seconds: float | None = None
    round_overhead_seconds: float | None = None

    @property
    def is_seen(self) -> bool:
        """Whether it comes from a study that ran here."""
        return self.answer_seconds is not None or self.round_overhead_seconds is not None


def study_seconds(variants: int, protocol: Protocol | None = None, pace: Pace | None = None) -> float:
    """Return how long that many variants take under a protocol.

    Args:
        protocol: None takes the defaults of `Protocol`.
        pace: of an earlier study; None takes what a small network took on two cores.

    Raises:
        DataError: they are something else.
    """
    protocol, pace = protocol or Protocol(), pace or Pace()
    expect(variants, int, "study_seconds", "Pass how many variants there are.", DataError)
    expect(protocol, Protocol, "study_seconds", "Pass workbench.Protocol(...), or nothing.", DataError)
    expect(pace, Pace, "study_seconds", "Pass what workbench.study.estimate.pace(...) gave, or nothing.", DataError)
    answer = ANSWER_SECONDS if pace.answer_seconds is None else pace.answer_seconds
    return variants * (answer + protocol.rounds * round_seconds(protocol, pace))


def round_seconds(protocol: Protocol, pace: Pace) -> float:
    """Return how long one round of one variant takes."""
    overhead = _ROUND_OVERHEAD_SECONDS if pace.round_overhead_seconds is None else pace.round_overhead_seconds
    return overhead + _asked_seconds(protocol)


def pace(ticks: Iterable[tuple[float, Progress]], protocol: Protocol) -> Pace:
    """Return the pace of a study from its progress.

    Args:
        ticks: (seconds, progress) in the order in which they came. What was in the store already took no time and
            does not count.
    """
    answers: dict[str, float] = {}
    rounds: list[float] = []
    # A stage, or a round, tells more than once how far it is.
    steps = [next(group) for _, group in groupby(ticks, lambda tick: _step(tick[1]))]
    for (start, before), (end, _) in pairwise(steps):
        seconds = end - start
        if seconds < _LEAST_SECONDS or not before.variant:
            continue
        if before.stage == "measure":
            rounds.append(seconds)
        else:
            answers[before.variant] = answers.get(before.variant, 0.0) + seconds
    return Pace(
        sum(answers.values()) / len(answers) if answers else None,
        max(0.0, sum(rounds) / len(rounds) - _asked_seconds(protocol)) if rounds else None,
    )


def words(seconds: float) -> str:
    """Say a duration as roughly as it is known."""
    if seconds < 1:
        return "less than 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _step(progress: Progress) -> tuple[str, str, str]:
    return progress.stage, progress.variant, progress.message if progress.stage == "measure" else ""


def _asked_seconds(protocol: Protocol) -> float:
    return protocol.warmup_seconds + protocol.min_seconds
