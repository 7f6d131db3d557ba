"""Conditions on sizes are read as data, and an engine refuses what its file was not exported for."""

from __future__ import annotations

import pytest

from workbench.engines.feeding import check_limits
from workbench.engines.limits import axes, broken, parsed, shown
from workbench.errors import RunError
from workbench.records import TensorSpec


@pytest.mark.parametrize(
    ("limit", "kept", "not_kept"),
    [
        ("L['x'][1] <= 64", (3, 64), (3, 65)),
        ("L['x'][0] % 2 == 0", (4, 1), (3, 1)),
        ("L['x'][1] // (L['x'][1] // 4) == 4", (1, 8), (1, 3)),  # a division by zero is not kept either
        ("not L['x'][0] > 3 or L['x'][1] == 2", (4, 2), (4, 3)),
        ("max(1, L['x'][0]) - -1 == L['x'][1]", (2, 3), (2, 2)),
        ("L['x'][0] >= 2 and L['x'][1] != 7", (2, 2), (1, 2)),
    ],
)
def test_a_condition_is_kept_or_not(limit: str, kept: tuple[int, int], not_kept: tuple[int, int]) -> None:
    assert broken([limit], {"x": kept}) == []
    assert broken([limit], {"x": not_kept}) == [shown(limit)]


def test_words_name_inputs_as_people_do() -> None:
    assert shown("L['x'][1] <= L[\"tokens.mask\"][0]") == "x[1] <= tokens.mask[0]"
    assert axes(parsed("L['x'][1] <= L['y'][0]")) == {("x", 1), ("y", 0)}


def test_a_condition_on_an_input_that_is_not_there_is_not_judged() -> None:
    assert broken(["L['y'][0] == 1", "L['x'][5] == 1"], {"x": (2,)}) == []


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "L['x']",
        "L['x'][-1] > 1",
        "x[0] < 3",
        "1.5 < L['x'][0]",
        "L['x'][0] <",
        "open('f')",
        "2 ** 99999",
    ],
)
def test_anything_else_is_no_condition(text: str) -> None:
    with pytest.raises(ValueError, match="not a condition"):
        parsed(text)


def test_an_engine_refuses_sizes_beyond_its_limits() -> None:
    specs = (TensorSpec("x", "float32", (None, None), ("L['x'][1] <= 64",)),)
    check_limits(specs, {"x": (1, 64)})
    with pytest.raises(RunError, match=r"exported for sizes with x\[1\] <= 64, and got x \(1, 65\)"):
        check_limits(specs, {"x": (1, 65)})
