"""Evidence becomes ranked reasons: the rules in their order, then a sort. Pure: the same evidence gives the same reasons."""

from __future__ import annotations

from collections.abc import Callable

from workbench.explaining import time_limits, time_rules
from workbench.explaining.accuracy_rules import accuracy_reasons
from workbench.explaining.evidence import Evidence
from workbench.explaining.reasons import Reason
from workbench.explaining.view import View

# The most specific first: each claims the layers that it explains.
_TIME_RULES: tuple[Callable[[View], Reason | None], ...] = (
    time_rules.emulated,
    time_rules.skip_without_pair,
    time_rules.pair_between,
    time_rules.float_island,
    time_rules.fallback,
    time_rules.concat_scales,
    time_rules.unfused,
    time_rules.layout,
    time_limits.weight_bound,
    time_limits.few_channels,
    time_limits.left_in_float,
    time_limits.slower_in_float,
    time_limits.slow_kernel,
    time_limits.conversions,
    time_limits.launch_bound,
    time_limits.machine_rate,
)
# A smaller part of a call is not worth a sentence.
_LEAST_SHARE = 0.02


def judge(evidence: Evidence) -> tuple[Reason, ...]:
    """Return what costs time and accuracy, the main reason first.

    Reasons for noise come first where answers suffer from it (less than 20 dB, or a score that is distinguishably worse);
    otherwise they are ranked among the others by how far from that they are.
    """
    view = View(evidence)
    timed = [reason for rule in _TIME_RULES if (reason := rule(view)) is not None and reason.share >= _LEAST_SHARE]
    found = [*timed, *accuracy_reasons(evidence)]
    return tuple(sorted(found, key=lambda reason: -reason.score))
