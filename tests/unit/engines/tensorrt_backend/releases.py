"""Marks for tests of a fact that holds for some releases alone; the fixture `machine` is then of those."""

from __future__ import annotations

import pytest

only_8 = pytest.mark.parametrize("machine", ["8.6.0"], indirect=True)
only_10 = pytest.mark.parametrize("machine", ["10.16.1"], indirect=True)
from_10 = pytest.mark.parametrize("machine", ["10.16.1", "11.4.0"], indirect=True)
only_11 = pytest.mark.parametrize("machine", ["11.4.0"], indirect=True)
