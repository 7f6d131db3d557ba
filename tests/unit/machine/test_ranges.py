"""NVTX ranges: nothing without the package, and the package's own where it is there."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from workbench.machine import ranges


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    ranges._annotate.cache_clear()
    yield
    ranges._annotate.cache_clear()


@pytest.mark.parametrize("found", [None, SimpleNamespace()])
def test_without_nvtx_nothing_is_opened(monkeypatch: pytest.MonkeyPatch, found: object) -> None:
    monkeypatch.setitem(sys.modules, "nvtx", found)
    with ranges.opened("build fp32") as opened, ranges.opened("inside"):
        assert opened is None


def test_with_nvtx_a_range_has_its_name_and_our_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []

    @contextlib.contextmanager
    def annotate(message: str, domain: str) -> Iterator[None]:
        said.append((message, domain))
        yield
        said.append("closed")

    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=annotate))
    with ranges.opened("build fp32"):
        pass
    assert said == [("build fp32", "workbench"), "closed"]
