"""Advice about how a variant is called: measured beside the study's own calls, a sample against a sample."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import pytest
from small_nets import net, values

import workbench as wb
from workbench import datasets
from workbench.datasets import Dataset
from workbench.errors import Cancelled, RunError
from workbench.explaining.explanation import Explanation
from workbench.explaining.reasons import Advice, Reason
from workbench.machine.handle import Handle
from workbench.machine.store import Store
from workbench.measuring import latency
from workbench.records import Engine, Protocol, Round
from workbench.study import call_advice
from workbench.study.study import Study

QUICK = wb.Protocol(batch=2, rounds=6, min_seconds=0.01, min_runs=10, warmup_seconds=0.0, warmup_runs=4)
LARGER = Advice("Feed more samples a call.", "batch", value="4")
GRAPH = Advice("Replay the calls.", "cuda_graph")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def data() -> Dataset:
    return datasets.arrays(values((5, 512), 3), np.arange(5) % 4)


WIDE = "(float[N,512] x) => (float[N,4] y) { [wide] a = MatMul(x, w) [head] y = MatMul(a, v) }"


def study_of(
    text: str,
    data: Dataset,
    store: Store,
    folder: object,
    protocol: Protocol = QUICK,
    inputs: int = 512,
    width: int = 2048,
) -> Study:
    path = folder / "net.onnx"  # type: ignore[operator]
    onnx.save(net(text, w=values((inputs, width), 0, 0.1), v=values((width, 4), 1)), str(path))
    return wb.run(
        wb.load(path), data, ["fp32"], backend="onnxruntime-cpu", protocol=protocol, store=store, progress=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def study(data: Dataset, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return study_of(WIDE, data, store, tmp_path_factory.mktemp("model"))


class Machine:
    """Takes a round as an engine would whose calls cost a fixed time, and some more a sample."""

    def __init__(self, refusal: str | None = None) -> None:
        self.refusal, self.asked = refusal, []

    def __call__(
        self, engine: Engine, feeds: Mapping[str, np.ndarray], protocol: Protocol, index: int, *, handle: Handle
    ) -> Round:
        self.asked.append((index, protocol))
        samples = len(next(iter(feeds.values())))
        assert samples == protocol.batch
        fixed = 0.1e-3 if protocol.cuda_graph else 1e-3
        seconds = (fixed + 0.1e-3 * samples) * (1 + 0.01 * np.sin(7 * index + samples))
        conditions = {"cuda_graph_refused": self.refusal} if protocol.cuda_graph and self.refusal else {}
        return Round(index, (seconds,) * 3, 0.0, float(index), None, conditions)


def explanation_with(study: Study, *advised: Advice) -> Explanation:
    evidence: object = None  # nothing of it is looked at here
    return Explanation("s", evidence, (Reason("launch_bound", "time", 1.0, 1.0, "told", advice=advised),))  # type: ignore[arg-type]


def tried(study: Study, data: Dataset, store: Store, *advised: Advice, handle: Handle | None = None):
    bound = data.bound_to(study.record.model)
    found = explanation_with(study, *advised)
    return call_advice.tried(study.record, study["fp32"], found, bound, store=store, handle=handle or Handle())


def test_a_larger_batch_is_judged_by_the_sample(study, data, store, monkeypatch) -> None:
    machine = Machine()
    monkeypatch.setattr(latency, "take_round", machine)
    (trial,), left = tried(study, data, store, LARGER)
    assert (trial.recipe, left) == ("fp32 at batch 8", ())
    # 1.2 ms for 2 samples, 1.8 ms for 8.
    assert trial.ratio == pytest.approx((1.2 / 2) / (1.8 / 8), rel=0.02) and trial.improves
    assert "at batch 8 instead of 2" in trial.words and re.search(
        r"a call takes 1\.[78]\d ms instead of 1\.[12]", trial.words
    )
    assert trial.words.endswith("An improvement.")
    turns = [index for index, _ in machine.asked]
    assert turns == sorted(turns) and len(turns) == 12, "both in every turn"
    larger = next(protocol for _, protocol in machine.asked if protocol.batch == 8)
    assert (larger.min_runs, larger.warmup_runs) == (5, 2), "not four times the work"


def test_a_cuda_graph_is_judged_by_the_call(study, data, store, monkeypatch) -> None:
    monkeypatch.setattr(latency, "take_round", Machine())
    (trial,), _ = tried(study, data, store, GRAPH)
    assert trial.recipe == "fp32 in a CUDA graph"
    assert trial.ratio == pytest.approx(1.2 / 0.3, rel=0.02) and trial.improves


def test_a_graph_that_the_engine_refused_is_no_trial(study, data, store, monkeypatch) -> None:
    monkeypatch.setattr(latency, "take_round", Machine("it synchronises"))
    trials, left = tried(study, data, store, GRAPH, LARGER)
    assert [trial.recipe for trial in trials] == ["fp32 at batch 8"], "one does not stop the other"
    assert left == ("Not tried: Replay the calls. The engine refused the graph: it synchronises.",)


def test_each_way_is_tried_once_the_main_reasons_first(study, data, store, monkeypatch) -> None:
    monkeypatch.setattr(latency, "take_round", Machine())
    trials, _ = tried(study, data, store, LARGER, replace(LARGER, value="16"), Advice("Leave it.", "keep", ("head",)))
    assert [trial.recipe for trial in trials] == ["fp32 at batch 8"]


def test_a_model_of_one_batch_is_told(data, store, tmp_path) -> None:
    text = "(float[2,512] x) => (float[2,4] y) { [wide] a = MatMul(x, w) [head] y = MatMul(a, v) }"
    trials, left = tried(study_of(text, data, store, tmp_path), data, store, LARGER)
    assert trials == ()
    assert left == ("Not tried: Feed more samples a call. The model takes batches of 2 only (input 'x').",)


def test_what_fails_is_told_and_a_stop_stops(study, data, store, monkeypatch) -> None:
    def broken(*given: object, **options: object) -> None:
        raise RunError("it broke")

    monkeypatch.setattr(latency, "take_round", broken)
    assert tried(study, data, store, LARGER)[1] == ("Not tried: Feed more samples a call. it broke",)
    unbuilt = replace(study.record.results[0], engine=None)
    bound = data.bound_to(study.record.model)
    _, left = call_advice.tried(
        study.record, unbuilt, explanation_with(study, LARGER), bound, store=store, handle=Handle()
    )
    assert left == ("Not tried: Feed more samples a call. 'fp32' was not built.",)
    monkeypatch.undo()
    with pytest.raises(Cancelled):
        tried(study, data, store, LARGER, handle=Handle(lambda: True))


def test_weights_that_bound_a_call_are_read_once_for_more_samples(store, tmp_path) -> None:
    """Through `explain`, on this machine: the whole path, and verdicts that agree with their intervals."""
    data = datasets.arrays(values((5, 3072), 3), np.arange(5) % 4)
    # 38 MB of weights, more than the caches of a core hold.
    study = study_of(WIDE.replace("512", "3072"), data, store, tmp_path, replace(QUICK, batch=1, rounds=3), 3072, 3072)
    found = wb.explain(study, "fp32", data, try_advice=True, layers=False, store=store)
    advised = [advice for advice in found.advice if advice.change == "batch"]
    assert advised and int(advised[0].value) in (2, 4, 8, 16)
    (trial,) = [trial for trial in found.trials if trial.recipe.startswith("fp32 at batch ")]
    assert trial.words in found.sentences and advised[0].words in trial.words
    assert trial.improves is (trial.low is not None and trial.low > 1)
