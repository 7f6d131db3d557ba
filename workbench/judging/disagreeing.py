"""Which samples to show of those on which variants disagree with the baseline: some of each variant. Knows no record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def spread(flipped: Mapping[str, Sequence[int]], most: int) -> list[int]:
    """Return at most so many samples, taken in turns from the variants, so that a broken one does not fill all places.

    Of each variant come first the samples on which the fewest others disagree too: these tell most about it.

    Args:
        flipped: variant -> the samples on which it answers otherwise than the baseline.
    """
    votes: dict[int, int] = {}
    for samples in flipped.values():
        for index in samples:
            votes[index] = votes.get(index, 0) + 1
    # Whoever has least to show comes first, so that its few are there.
    queues = sorted(flipped.values(), key=len)
    waiting = [sorted(set(samples), key=lambda index: (votes[index], index)) for samples in queues]
    chosen: dict[int, None] = {}
    while len(chosen) < most and any(waiting):
        for queue in waiting:
            while queue and queue[0] in chosen:
                queue.pop(0)
            if queue and len(chosen) < most:
                chosen[queue.pop(0)] = None
    return list(chosen)
