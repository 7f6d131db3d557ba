from __future__ import annotations

import io
import sys

import pytest

from workbench.records import Progress
from workbench.study import progress


def test_a_bar_shows_stage_variant_and_share(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "stdout", stream)
    bar = progress.Bar()
    bar(Progress("build", "int8-kl", 0.5))
    assert "build" in stream.getvalue() and "int8-kl" in stream.getvalue() and "50%" in stream.getvalue()
    bar(Progress("finished", "", 1.0))
    assert bar._bar is None


def test_auto_is_silent_where_nobody_looks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    progress.listener("auto")(Progress("build", "int8-kl", 0.5))
    progress.listener(None)(Progress("build", "int8-kl", 0.5))
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == ""


def test_auto_shows_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_somebody_looks", lambda: True)
    assert isinstance(progress.listener("auto"), progress.Bar)


def test_a_function_of_ones_own_is_taken_as_it_is() -> None:
    seen: list[Progress] = []
    progress.listener(seen.append)(Progress("build", "x", 0.1))
    assert seen == [Progress("build", "x", 0.1)]
