"""How many more rounds would tell two variants apart in speed, from the interval of their ratio; measures nothing.

An interval narrows with the square root of the rounds. How many it takes is therefore known only roughly, and only if the
difference that was seen is the real one; where it is tiny, no number of rounds is worth its time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workbench.judging import statistics
from workbench.records import Measurement

# More rounds than these are not worth telling such a difference: it is smaller than what moves between two machines.
MOST_MORE = 200
# Up to this difference two variants are called equally fast, where no reasonable number of rounds tells them apart.
ALIKE = 0.05


@dataclass(frozen=True)
class Separation:
    """What it takes to tell the speed of two variants apart.

    Attributes:
        more_rounds: of each; None where more than `MOST_MORE` would be needed.
        within: the largest difference that their interval allows, as a share (0.02 = 2 %); None where there is no interval.
    """

    one: str
    other: str
    more_rounds: int | None
    within: float | None


Apart = Callable[[str, str], "Separation | None"]


def separation(one: Measurement, other: Measurement) -> Separation | None:
    """Return what it takes to tell two measurements apart; None where they are told apart already.

    Raises:
        DataError: a measurement has no latencies.
    """
    found = statistics.ratio(one, other)
    if found.verdict in ("faster", "slower"):
        return None
    if found.low is None or found.high is None:
        return Separation(one.variant, other.variant, found.more_rounds, None)
    value, low, high = (math.log(edge) for edge in (found.value, found.low, found.high))
    within = math.expm1(max(-low, high))
    reach = value - low if value > 0 else high - value
    needed = math.inf if value == 0 else found.rounds * (reach / abs(value)) ** 2
    more = needed - found.rounds
    # At the very edge one more round decides nothing: at least one is needed where the interval touches no difference.
    return Separation(one.variant, other.variant, max(1, math.ceil(more)) if more <= MOST_MORE else None, within)


def words(best: str, equals: Sequence[str], apart: Apart) -> str:
    """Say what would tell the best from those that cannot be told apart from it, the cheapest first; empty for none."""
    found = [part for name in equals if (part := apart(best, name)) is not None]
    near = sorted((part for part in found if part.more_rounds is not None), key=lambda part: part.more_rounds or 0)
    never = [part for part in found if part.more_rounds is None]
    said = []
    if near:
        first, last = near[0], near[-1]
        least, most = _rounds(first.more_rounds or 0), _rounds(last.more_rounds or 0)
        whom = first.other if len(near) == 1 else f"{first.other} and {most} from all {len(near)}"
        whom = whom if least != most or len(near) == 1 else f"all of {', '.join(part.other for part in near)}"
        said.append(f"About {least} would tell {best} from {whom}, if the differences stay as they are.")
    if never:
        widest = max(part.within or 0.0 for part in never)
        names = ", ".join(part.other for part in never)
        what = (
            f"within {100 * widest:.2g} % they are equally fast."
            if widest <= ALIKE
            else f"they may still differ by up to {100 * widest:.2g} %, so take some more rounds before you call them alike."
        )
        said.append(
            f"It would take more than {MOST_MORE} more rounds to tell {best} from {names} if they differ as little as "
            f"it looks; {what}"
        )
    return " ".join(said)


def _rounds(count: int) -> str:
    return "one more round" if count == 1 else f"{count} more rounds"
