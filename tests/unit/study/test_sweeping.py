"""Many models, recipes and backends: one study each, here or on the machines of a Ray cluster, of which one may die."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_nets import net, values

import workbench as wb
from workbench.errors import BackendMissing, Cancelled, DataError
from workbench.machine.store import Store
from workbench.records import Progress
from workbench.study import ray_cluster, ray_reports, sweeping

PROTOCOL = wb.Protocol(batch=2, rounds=2, min_seconds=0.01, warmup_seconds=0.01)
RECIPES = ["fp32", "fp16"]


def model(folder: Path, name: str, seed: int) -> Path:
    import onnx

    proto = net("(float[N,4] x) => (float[N,4] y) { [m] a = MatMul(x, w) [r] y = Relu(a) }", w=values((4, 4), seed))
    onnx.save(proto, folder / f"{name}.onnx")
    return folder / f"{name}.onnx"


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    return [model(tmp_path, name, seed) for seed, name in enumerate(("first", "second"))]


@pytest.fixture
def data() -> wb.datasets.Dataset:
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    return wb.datasets.arrays(x, metric=None)


def test_each_pair_is_a_study_and_a_second_call_only_reads(models: list[Path], data: Any, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    options: dict[str, Any] = {"data": data, "protocol": PROTOCOL, "store": store, "progress": None}
    found = wb.sweep(models, RECIPES, ["onnxruntime-cpu"], **options)
    assert [study.name for study in found.studies] == ["sweep first onnxruntime-cpu", "sweep second onnxruntime-cpu"]
    table = found.table()
    assert list(table["Model"]) == ["first", "first", "second", "second"]
    assert set(table["Backend"]) == {"onnxruntime-cpu"} and table["Machine"].str.len().min() > 3
    again = wb.sweep(models, RECIPES, ["onnxruntime-cpu"], **options)
    assert [study.record for study in again.studies] == [study.record for study in found.studies]


def test_a_study_that_fails_is_told_and_the_others_go_on(
    models: list[Path], data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sweeping.run

    def failing(given: Any, *arguments: Any, **options: Any) -> Any:
        if given.name == "first":
            raise DataError("the baseline failed")
        return real(given, *arguments, **options)

    monkeypatch.setattr(sweeping, "run", failing)
    told: list[Progress] = []
    found = wb.sweep(
        models, RECIPES, ["onnxruntime-cpu"], data={"second": data}, protocol=PROTOCOL, store=Store(tmp_path / "store"),
        progress=told.append,
    )  # fmt: skip
    assert found.failures == (("sweep first onnxruntime-cpu", "the baseline failed"),)
    assert [study.name for study in found.studies] == ["sweep second onnxruntime-cpu"]
    assert told[-1].fraction == 1.0 and [each.fraction for each in told] == sorted(each.fraction for each in told)


def test_what_cannot_be_asked_is_said_before_anything_runs(models: list[Path], data: Any, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for arguments, options, words in (
        ((models, RECIPES, ["onnxruntime-cpu"]), {"on": "moon"}, "local or ray"),
        (("digits_resnet",), {}, "list of models"),
        (([],), {}, "list of models"),
        ((models, RECIPES, "onnxruntime-cpu"), {}, "list of backends"),
        (([models[0], models[0]], RECIPES), {}, "Several models are called first"),
        ((models, RECIPES), {"data": {"third": data}}, "no such model"),
    ):
        with pytest.raises(DataError, match=words):
            wb.sweep(*arguments, store=store, progress=None, **options)
    with pytest.raises(BackendMissing, match="no backend 'onnx'"):
        wb.sweep(models, RECIPES, ["onnx"], on="ray", store=store, progress=None)
    with pytest.raises(BackendMissing, match="cannot be used here"):
        wb.sweep(models, RECIPES, ["tensorrt"], store=store, progress=None)
    assert not store.keys("study")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two machines in one: a head that runs nothing, and two others."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "theirs"))
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    made = started(lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}))
    yield made
    made.shutdown()


def started(start: Callable[[], Any]) -> Any:
    """Start a part of a cluster; Ray gives its own helpers 15 seconds, which a busy machine may need for imports alone."""
    for _ in range(2):
        try:
            return start()
        except Exception:  # noqa: BLE001 - Ray raises nothing narrower
            time.sleep(5.0)
    return start()


@pytest.mark.ray
def test_a_cluster_of_which_a_machine_is_killed_finishes_everything_and_refuses_what_none_has(
    cluster: Any, models: list[Path], data: Any, tmp_path: Path
) -> None:
    nodes = [started(lambda: cluster.add_node(num_cpus=1)) for _ in range(2)]
    cluster.wait_for_nodes()
    store = Store(tmp_path / "store")
    out: list[str] = []
    doing: dict[str, set[str]] = {}
    fractions: list[float] = []
    killed = threading.Event()

    def watch(progress: Progress) -> None:
        fractions.append(progress.fraction)
        where, _, what = progress.message.partition(": ")
        if what:
            doing.setdefault(progress.variant, set()).add(what.split()[0])
        elif where.startswith("on "):
            out.append(progress.variant)
        if len(out) == 2 and not killed.is_set():  # a study is out on each
            killed.set()
            threading.Thread(
                target=lambda: (time.sleep(1.0), cluster.remove_node(nodes[0], allow_graceful=False))
            ).start()

    found = wb.sweep(
        models, RECIPES, ["onnxruntime-cpu", "tensorrt"], data=data, protocol=PROTOCOL, on="ray", address=cluster.address,
        store=store, progress=watch,
    )  # fmt: skip
    assert [study.name for study in found.studies] == ["sweep first onnxruntime-cpu", "sweep second onnxruntime-cpu"]
    assert [name for name, _ in found.failures] == ["sweep first tensorrt", "sweep second tensorrt"]
    assert all("No machine of the cluster can run tensorrt" in message for _, message in found.failures), found.failures
    assert killed.is_set() and fractions == sorted(fractions)
    for study in found.studies:
        # Each said from its machine what it was at; how many stages are seen depends on how long they took.
        assert doing[study.name] and doing[study.name] <= {"transform", "build", "check", "measure", "finished"}
        assert wb.Study.open(study.name, store).frame()["variant"].tolist() == RECIPES


def test_without_ray_it_is_said_how_to_get_it(models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendMissing, match=r"trt-workbench\[ray\]"):
        next(ray_cluster.spread([], None, lambda name, where, progress: None, lambda: False))


class Silent:
    """Reports of which none ever comes."""

    board = None

    def new(self) -> dict[str, Progress]:
        return {}


class Lost:
    """A cluster of one machine, of which the worker dies each time."""

    class exceptions:  # noqa: N801
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            pass

        class TaskUnschedulableError(RayError):
            pass

    def __init__(self) -> None:
        self.sent = 0

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "a", "Alive": True, "Resources": {"CPU": 1.0}, "NodeManagerHostname": "here"}]

    def wait(self, references: list[int], timeout: float) -> tuple[list[int], list[int]]:
        return references, []

    def get(self, reference: int) -> Any:
        raise self.exceptions.RayError("the worker died")

    def cancel(self, reference: int, force: bool) -> None:
        self.sent -= 100


def test_a_study_that_is_lost_again_and_again_is_given_up_and_cancel_stops_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from collections import deque

    lost = Lost()

    def sent(ray: Any, item: Any, place: str, board: Any) -> int:
        lost.sent += 1
        return lost.sent

    monkeypatch.setattr(ray_cluster, "_sent", sent)
    work = ray_cluster.Work("one", Path(), "onnxruntime-cpu")
    (answer,) = ray_cluster._dispatched(
        lost, Silent(), deque([work]), lambda name, where, progress: None, lambda: False
    )
    assert answer.record is None and "lost 3 times" in answer.message and lost.sent == 3
    asked = iter([False, True])
    monkeypatch.setattr(lost, "wait", lambda references, timeout: ([], references))
    with pytest.raises(Cancelled):
        list(
            ray_cluster._dispatched(
                lost, Silent(), deque([work]), lambda name, where, progress: None, lambda: next(asked)
            )
        )
    assert lost.sent < 0, "what was out is stopped"


def test_what_a_study_does_is_told_with_its_machine_and_that_of_one_that_ended_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from collections import deque

    lost = Lost()
    lost.get = lambda reference: {"record": "{}"}  # type: ignore[method-assign]
    waits = iter([([], [1]), ([1], [])])
    lost.wait = lambda references, timeout: next(waits)  # type: ignore[method-assign]
    monkeypatch.setattr(ray_cluster, "_sent", lambda ray, item, place, board: 1)
    measuring = Progress("measure", "fp32", 0.5, "round 1")
    reports = Silent()
    reports.new = lambda: {"one": measuring, "another": measuring}  # type: ignore[method-assign]
    told: list[tuple[str, str, Progress | None]] = []
    work = deque([ray_cluster.Work("one", Path(), "onnxruntime-cpu")])
    list(ray_cluster._dispatched(lost, reports, work, lambda *each: told.append(each), lambda: False))
    assert told == [("one", "here", None), ("one", "here", measuring), ("one", "here", measuring)]


def test_a_sweep_tells_what_its_studies_do_and_takes_no_progress_back() -> None:
    told: list[Progress] = []
    account = sweeping._Account(told.append, 2, 0)
    account.told("one", "here", None)
    account.told("one", "here", Progress("build", "fp32", 0.5))
    account.told("one", "there", None)  # the first machine was lost
    account.told("two", "", Progress("measure", "fp32", 0.2, "round 1"))
    account.ended("one", "done")
    assert [each.message for each in told] == [
        "on here",
        "on here: build fp32",
        "on there",
        "measure fp32 round 1",
        "done",
    ]
    assert [each.fraction for each in told] == [0.0, 0.25, 0.25, 0.25, 0.6]


def test_reports_come_from_a_board_that_is_never_waited_for_and_may_be_lost() -> None:
    board = ray_reports.Board()
    answers: list[Any] = []

    class Remote:
        """A method of an actor: what it gives is there at once, or raises where it is gone."""

        def __init__(self, call: Callable[..., Any]) -> None:
            self.call = call

        def remote(self, *arguments: Any) -> Any:
            answers.append(self.call(*arguments))
            return len(answers) - 1

    ready, actor = [True], SimpleNamespace(put=Remote(board.put), taken=Remote(board.taken))
    ray = SimpleNamespace(
        exceptions=Lost.exceptions,
        get=lambda reference: answers[reference],
        wait=lambda references, timeout: (references if ready[0] else [], []),
    )
    reports = ray_reports.Reports(ray, actor)
    tell = ray_reports.Teller(actor, "one")
    building = Progress("build", "fp32", 0.1)
    for progress in (building, Progress("build", "fp32", 0.2), Progress("check", "fp32", 0.3)):
        tell(progress)  # the second says nothing new so soon after the first
    assert len(answers) == 3 and reports.new() == {} and reports.new() == {"one": Progress("check", "fp32", 0.3)}
    tell(Progress("measure", "fp32", 0.4))
    ready[0] = False
    assert reports.new() == {}
    ready[0] = True

    def gone(reference: int) -> Any:
        raise Lost.exceptions.RayError("the board's process died")

    ray.get = gone
    assert reports.new() == {}
    ray_reports.Teller(None, "one")(building)  # nobody listens: the study goes on


def test_a_machine_that_is_gone_is_not_asked_again_and_that_is_no_fault_of_the_study(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from collections import deque

    lost = Lost()
    nodes = [{"NodeID": name, "Alive": True, "Resources": {"CPU": 1.0}, "NodeManagerHostname": name} for name in "ab"]
    lost.nodes = lambda: [*nodes, {"NodeID": "head", "Alive": True, "Resources": {}}]  # type: ignore[method-assign]
    places: list[str] = []

    def got(reference: int) -> Any:
        if places[-1] == "a":
            raise Lost.exceptions.TaskUnschedulableError("gone")
        return {"record": "{}"}

    lost.get = got  # type: ignore[method-assign]
    monkeypatch.setattr(ray_cluster, "_sent", lambda ray, item, place, board: places.append(place) or len(places))
    work = deque(
        [ray_cluster.Work("one", Path(), "onnxruntime-cpu"), ray_cluster.Work("two", Path(), "onnxruntime-cpu")]
    )
    for item in work:
        item.lost = 2  # once more would be too often
    answers = list(ray_cluster._dispatched(lost, Silent(), work, lambda name, where, progress: None, lambda: False))
    assert [answer.record for answer in answers] == ["{}", "{}"] and places.count("a") == 1 and "head" not in places


def test_a_cluster_without_machines_is_given_up_and_one_without_gpus_refuses_what_needs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from collections import deque

    monkeypatch.setattr(ray_cluster, "_ASK_SECONDS", 0.01)
    monkeypatch.setattr(ray_cluster, "_LONGEST_EMPTY_SECONDS", 0.03)
    lost = Lost()
    work = deque([ray_cluster.Work("one", Path(), "tensorrt")])
    (answer,) = ray_cluster._dispatched(lost, Silent(), deque(work), lambda name, where, progress: None, lambda: False)
    assert answer.record is None and "here has no GPU" in answer.message
    lost.nodes = lambda: []  # type: ignore[method-assign]
    work[0].refused.clear()
    (answer,) = ray_cluster._dispatched(lost, Silent(), work, lambda name, where, progress: None, lambda: False)
    assert answer.record is None and "no machine with a processor" in answer.message
