"""Studies spread over the machines of a Ray cluster: each where its backend is, one at a time, again elsewhere if lost.

A study travels as a capsule and comes back as its record. What a machine builds and measures stays in its own store, so a
study that went on there before goes on where it stopped.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench import codec
from workbench.errors import BackendMissing, Cancelled, WorkbenchError
from workbench.records import Progress
from workbench.study.ray_reports import Reports, Teller, started

# A study whose machine was lost so often is not sent out again: it may be what takes machines down.
_MOST_LOST = 3
_ASK_SECONDS = 0.5
_LONGEST_EMPTY_SECONDS = 60.0
# Told of a study: its name, its machine, and what it does there.
Told = Callable[[str, str, Progress | None], None]
# Backends that need a GPU of their own while they measure.
_ON_GPUS = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-tensorrt", "torch-cudagraph")


@dataclass
class Work:
    """A study to be run somewhere.

    Attributes:
        capsule: the file that travels; it is read when it is sent.
    """

    name: str
    capsule: Path
    backend: str
    lost: int = 0
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What became of it: its record as JSON and no message, or why there is none."""

    name: str
    record: str | None
    message: str = ""


def spread(work: list[Work], address: str | None, told: Told, cancel: Callable[[], bool]) -> Iterator[Answer]:
    """Run all studies on the cluster and yield each as it ends.

    Args:
        told: called with the name of a study, where it is, and what it does there; None when it was just sent.

    Raises:
        BackendMissing: Ray is not installed, or no cluster is at that address.
        Cancelled: `cancel` said so; the studies that are out are stopped.
    """
    ray = _ray()
    owned = not ray.is_initialized()
    if owned:
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False, include_dashboard=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise BackendMissing(f"No Ray cluster could be reached at {address or 'this machine'}: {error}") from error
    try:
        yield from _dispatched(ray, Reports(ray, started(ray)), deque(work), told, cancel)
    finally:
        if owned:
            ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise BackendMissing('Ray is not installed. Run: pip install "trt-workbench[ray]"') from error
    return ray


def _dispatched(
    ray: Any, reports: Reports, waiting: deque[Work], told: Told, cancel: Callable[[], bool]
) -> Iterator[Answer]:
    out: dict[Any, tuple[Work, str]] = {}
    names: dict[str, str] = {}
    gone: set[str] = set()
    empty = 0.0
    try:
        while waiting or out:
            if cancel():
                raise Cancelled("The sweep was cancelled; what is finished is in the store.")
            # A head without processors only leads; a machine that is gone may be listed for a while.
            machines = {
                node["NodeID"]: node
                for node in ray.nodes()
                if node["Alive"] and node["Resources"].get("CPU", 0) >= 1 and node["NodeID"] not in gone
            }
            names |= {place: machine["NodeManagerHostname"] for place, machine in machines.items()}
            empty = 0.0 if machines else empty + _ASK_SECONDS
            if empty > _LONGEST_EMPTY_SECONDS:
                for item in waiting:
                    yield Answer(item.name, None, "The cluster has no machine with a processor any more.")
                waiting.clear()
            for item in [*waiting]:
                for place, machine in machines.items():
                    if item.backend in _ON_GPUS and machine["Resources"].get("GPU", 0) < 1:
                        item.refused[place] = f"{names[place]} has no GPU"
                if machines.keys() <= item.refused.keys() and machines:
                    waiting.remove(item)
                    said = "; ".join(sorted(set(item.refused.values())))
                    yield Answer(item.name, None, f"No machine of the cluster can run {item.backend}: {said}")
                    continue
                place = _free(item, machines, out)
                if place is not None:
                    waiting.remove(item)
                    out[_sent(ray, item, place, reports.board)] = (item, place)
                    told(item.name, names[place], None)
            if not out:
                time.sleep(_ASK_SECONDS if waiting else 0.0)
            done, _ = ray.wait(list(out), timeout=_ASK_SECONDS) if out else ([], [])
            doing = reports.new()
            for item, place in out.values():
                if item.name in doing:
                    told(item.name, names[place], doing[item.name])
            for reference in done:
                item, place = out.pop(reference)
                answer = _received(ray, reference, item, place, gone)
                if answer is None:
                    waiting.append(item)
                else:
                    yield answer
    finally:
        for reference in out:
            ray.cancel(reference, force=True)


def _free(item: Work, machines: dict[str, Any], out: dict[Any, tuple[Work, str]]) -> str | None:
    """Return a machine that may have the backend and room for a study, or None."""
    busy = Counter(place for _, place in out.values())
    for place, machine in machines.items():
        room = int(machine["Resources"]["GPU"]) if item.backend in _ON_GPUS and place not in item.refused else 1
        if place not in item.refused and busy[place] < room:
            return place
    return None


def _sent(ray: Any, item: Work, place: str, board: Any) -> Any:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    gpus = 1 if item.backend in _ON_GPUS else 0
    # No soft affinity, no retries of Ray's own: where it runs again is decided here.
    job = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(study_job)
    job = job.options(scheduling_strategy=NodeAffinitySchedulingStrategy(place, soft=False))
    return job.remote(item.capsule.read_bytes(), item.name, item.backend, board)


def _received(ray: Any, reference: Any, item: Work, place: str, gone: set[str]) -> Answer | None:
    """Return the answer, or None where the study is to go to another machine."""
    try:
        found = ray.get(reference)
    except ray.exceptions.TaskUnschedulableError:
        gone.add(place)  # it was never begun: no fault of the study
        return None
    except ray.exceptions.RayTaskError as error:
        return Answer(item.name, None, f"The machine's program failed: {str(error).splitlines()[-1]}")
    except ray.exceptions.RayError as error:
        item.lost += 1
        if item.lost < _MOST_LOST:
            return None
        return Answer(item.name, None, f"Its machine was lost {item.lost} times, the last time with: {error}")
    if found.get("missing"):
        item.refused[place] = found["message"]
        return None
    return Answer(item.name, found.get("record"), found.get("message", ""))


def study_job(capsule: bytes, name: str, backend: str, board: Any) -> dict[str, Any]:
    """Be the worker: run the study of a capsule in this machine's own store; return its record, or why there is none."""
    from workbench.study.confirming import confirm

    try:
        with tempfile.TemporaryDirectory(prefix="workbench-sweep-") as folder:
            place = Path(folder) / "study.zip"
            place.write_bytes(capsule)
            study = confirm(place, backend=backend, name=name, progress=Teller(board, name)).study
    except BackendMissing as error:
        return {"missing": True, "message": str(error)}
    except WorkbenchError as error:
        return {"message": str(error)}
    return {"record": codec.to_json(codec.portable(study.record))}
