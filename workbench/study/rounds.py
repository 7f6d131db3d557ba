"""The rounds that were measured, on disk: kept one by one, never replaced, and found again for the same engines.

Engines of one model that were measured on the same inputs under the same protocol share a series of turns, whichever
study asked for them: rounds with the same number ran next to each other. Measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from workbench import codec
from workbench.errors import StoreError
from workbench.machine.store import Store, key_of
from workbench.records import Engine, Protocol, Round
from workbench.study.stages import identity_of


class Rounds:
    """All rounds in a store that were measured on the same inputs under the same protocol."""

    def __init__(self, store: Store, model_sha256: str, data_sha256: str, protocol: Protocol) -> None:
        self._store = store
        # However many rounds are asked for, a round is the same round.
        self._series = key_of([model_sha256, data_sha256, replace(protocol, rounds=1)])

    def next_turn(self) -> int:
        """Return the number of a new turn; no other process gets it, and no round has it, even if the count was damaged."""
        keys = self._store.keys("round", prefix=f"{self._series}/")
        taken = {int(number) for key in keys if (number := key.rpartition("/")[2]).isdecimal()}
        while (turn := self._store.next_number(f"turn/{self._series}")) in taken:
            pass
        return turn

    def keep(self, engine: Engine, taken: Round) -> None:
        """Write a round down, for good."""
        self._store.append("round", f"{self._prefix(engine)}{taken.index:06d}", codec.to_json(taken))

    def of(self, engine: Engine) -> list[Round]:
        """Return the rounds of this very engine, the earliest turn first; a damaged one counts as absent."""
        found = []
        for key in self._store.keys("round", prefix=self._prefix(engine)):
            try:
                found.append(codec.from_json(Round, self._store.get("round", key) or ""))
            except StoreError:
                continue
        return sorted(found, key=lambda taken: taken.index)

    def _prefix(self, engine: Engine) -> str:
        return f"{self._series}/{key_of(identity_of(engine))}/"


def selected(
    baseline: Sequence[Round],
    others: Mapping[str, Sequence[Round]],
    wanted: int,
    pinned: Mapping[str, Sequence[Round]],
    baseline_name: str,
) -> dict[str, tuple[Round, ...]]:
    """Choose the rounds that a study shows, out of all that were measured.

    A variant gets its earliest rounds in turns that the baseline took too; the baseline gets those turns, and more of
    its own up to the wanted number. What a study has shown before (`pinned`) stays in it.

    Args:
        baseline: all rounds of the baseline, the earliest first.
        others: variant -> all its rounds, the earliest first.
        wanted: rounds of each.
    """
    turns = {taken.index for taken in baseline}
    found: dict[str, tuple[Round, ...]] = {}
    needed: set[int] = set()
    for name, rounds in others.items():
        kept = {taken.index: taken for taken in pinned.get(name, ())}
        for taken in rounds:
            if len(kept) < wanted and taken.index in turns:
                kept.setdefault(taken.index, taken)
        needed |= set(kept)
        found[name] = _in_order(kept)
    kept = {taken.index: taken for taken in pinned.get(baseline_name, ())}
    kept |= {taken.index: taken for taken in baseline if taken.index in needed and taken.index not in kept}
    for taken in baseline:
        if len(kept) < wanted:
            kept.setdefault(taken.index, taken)
    return {baseline_name: _in_order(kept), **found}


def _in_order(rounds: Mapping[int, Round]) -> tuple[Round, ...]:
    return tuple(rounds[index] for index in sorted(rounds))
