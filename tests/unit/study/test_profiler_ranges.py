"""Every stage of a study opens a range for profilers, in the process that does the work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from workbench.engines import jobs
from workbench.machine import ranges
from workbench.measuring import latency
from workbench.recipes import NAMED
from workbench.records import BuildOptions, Protocol
from workbench.study.stages import Stages


def test_stages_open_ranges_by_their_names_and_timed_calls_open_none(
    model, data, store, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    @contextlib.contextmanager
    def annotate(message: str, domain: str) -> Iterator[None]:
        opened.append(message)
        yield

    monkeypatch.setattr(ranges, "_annotate", lambda: annotate)
    bound = data.bound_to(model)
    variant = Stages(store, model, bound, "onnxruntime-cpu", BuildOptions(), 8).variant(NAMED["int8-max"])
    engine, _ = jobs.build_job(jobs.BuildJob(variant, "onnxruntime-cpu", BuildOptions(), str(store.root), None), {})
    feeds = {name: array[:8] for name, array in bound.evaluation.inputs.items()}
    jobs.infer_job(jobs.InferJob(engine, 8, None, {}), feeds)
    jobs.profile_job(jobs.ProfileJob(engine, 2), feeds)
    protocol = Protocol(batch=8, rounds=1, min_seconds=0.0, min_runs=5, warmup_seconds=0.0, warmup_runs=1)
    latency.measure_job(latency.RoundJob(engine, protocol, 0, None), feeds)
    assert opened == [
        "calibrate int8-max", "transform int8-max", "build int8-max", "check int8-max", "profile int8-max",
        "round 0 of int8-max",
    ]  # fmt: skip
