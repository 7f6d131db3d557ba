from __future__ import annotations

from workbench.judging.disagreeing import spread


def test_a_broken_variant_does_not_fill_all_places() -> None:
    flipped = {"broken": list(range(500)), "int8-kl": [700, 701], "fp16": [900]}
    chosen = spread(flipped, 24)
    assert len(chosen) == len(set(chosen)) == 24 and {700, 701, 900} <= set(chosen)


def test_each_variant_has_its_share_and_samples_of_its_own_come_first() -> None:
    chosen = spread({"a": [1, 2, 3, 4], "b": [3, 4, 5, 6]}, 4)
    assert chosen == [1, 5, 2, 6]


def test_few_disagreements_are_all_shown_once() -> None:
    assert sorted(spread({"a": [2, 1], "b": [1, 2], "c": []}, 24)) == [1, 2]
    assert spread({}, 24) == [] and spread({"a": [1]}, 0) == []
