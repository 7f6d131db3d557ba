"""Jobs: one thread, progress, cancel, states that stay."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from workbench.errors import BuildError, Cancelled
from workbench.records import Progress
from workbench.ui.jobs import PULSE_SECONDS, Job, Queue, Snapshot

SOON = 10.0


class Gate:
    """Work that waits where the test wants it to, and asks whether it was cancelled, as long work does."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, job: Job[str]) -> str:
        self.reached.set()
        while not self.open.wait(0.005):
            if job.cancelled():
                raise Cancelled("Stopped as asked.")
        return "through"


@pytest.fixture
def queue() -> Iterator[Queue]:
    queue = Queue("test")
    yield queue
    queue.stop()


def test_a_job_returns_what_its_work_returned(queue: Queue) -> None:
    job = queue.start(Job("sum", lambda job: 2 + 3))
    assert job.result(SOON) == 5
    assert job.snapshot.state == "done"


def test_a_job_raises_what_its_work_raised_and_keeps_the_message(queue: Queue) -> None:
    def work(job: Job[None]) -> None:
        raise BuildError("no kernel for Foo")

    job = queue.start(Job("build", work))
    with pytest.raises(BuildError, match="no kernel for Foo"):
        job.result(SOON)
    assert (job.snapshot.state, job.snapshot.error) == ("failed", "no kernel for Foo")


def test_waiting_for_a_result_that_does_not_come_says_that_the_job_goes_on(queue: Queue) -> None:
    gate = Gate()
    job = queue.start(Job("slow", gate))
    with pytest.raises(TimeoutError, match="slow has not ended"):
        job.result(0.01)
    gate.open.set()
    assert job.result(SOON) == "through"


def test_cancel_stops_running_work_and_the_state_stays(queue: Queue) -> None:
    gate = Gate()
    job = queue.start(Job("slow", gate))
    assert gate.reached.wait(SOON)
    job.cancel()
    with pytest.raises(Cancelled):
        job.result(SOON)
    assert job.snapshot.state == "cancelled"
    gate.open.set()
    job.cancel()
    job.run()
    assert job.snapshot.state == "cancelled"


def test_cancelling_a_finished_job_changes_nothing(queue: Queue) -> None:
    job = queue.start(Job("sum", lambda job: 5))
    job.result(SOON)
    job.cancel()
    assert (job.snapshot.state, job.result()) == ("done", 5)


def test_a_lane_runs_one_job_at_a_time_in_order(queue: Queue) -> None:
    gate, order = Gate(), []
    first = queue.start(Job("first", lambda job: (gate(job), order.append(1))))
    second = queue.start(Job("second", lambda job: order.append(2)))
    assert gate.reached.wait(SOON)
    assert (queue.running, second.snapshot.state) == (first, "waiting")
    gate.open.set()
    second.result(SOON)
    assert order == [1, 2]


def test_a_job_cancelled_while_it_waits_never_begins(queue: Queue) -> None:
    gate, began = Gate(), threading.Event()
    queue.start(Job("first", gate))
    second = queue.start(Job("second", lambda job: began.set()))
    second.cancel()
    gate.open.set()
    with pytest.raises(Cancelled, match="before it began"):
        second.result(SOON)
    queue.stop()
    assert not began.is_set()


def test_a_later_job_of_the_same_key_replaces_one_that_waits(queue: Queue) -> None:
    gate = Gate()
    queue.start(Job("busy", gate))
    older = queue.start(Job("older", lambda job: "older", key="plot"))
    newer = queue.start(Job("newer", lambda job: "newer", key="plot"))
    gate.open.set()
    assert newer.result(SOON) == "newer"
    assert older.snapshot.state == "cancelled"
    assert queue.find("plot") is newer


def test_a_running_and_a_finished_job_are_found_by_their_key_until_forgotten(queue: Queue) -> None:
    gate = Gate()
    job = queue.start(Job("study", gate, key=("model", "data")))
    assert queue.find(("model", "data")) is job
    queue.forget(("model", "data"))
    assert queue.find(("model", "data")) is job, "a running job is not forgotten"
    gate.open.set()
    job.result(SOON)
    assert queue.find(("model", "data")) is job
    queue.forget(("model", "data"))
    assert queue.find(("model", "data")) is None


def test_listeners_hear_of_progress_and_of_the_end_and_no_more_after_unlisten(queue: Queue) -> None:
    seen: list[Snapshot] = []
    heard = threading.Event()
    gate = Gate()

    def work(job: Job[str]) -> str:
        job.report(Progress("build", "int8-kl", 0.25))
        job.publish("half a record")
        job.say("opening")
        job.say("ready")
        return gate(job)

    job = Job("study", work)

    def listener() -> None:
        seen.append(job.snapshot)
        if job.snapshot.progress is not None:
            heard.set()

    job.listen(listener)
    queue.start(job)
    assert heard.wait(SOON)
    assert seen[-1].state == "running"
    assert (job.snapshot.partial, job.snapshot.log) == ("half a record", "opening\nready")
    gate.open.set()
    job.result(SOON)
    assert seen[-1].state == "done", "the end is told before result() returns"
    job.unlisten(listener)
    count = len(seen)
    job._tell_all()
    assert len(seen) == count


def test_a_thousand_reports_are_told_a_few_times_only(queue: Queue) -> None:
    calls: list[float] = []

    def work(job: Job[None]) -> None:
        for index in range(1000):
            job.report(Progress("measure", "fp32", index / 1000))
            time.sleep(0.0005)

    job = Job("study", work)
    job.listen(lambda: calls.append(time.monotonic()))
    queue.start(job)
    job.result(SOON)
    seconds = job.snapshot.elapsed_seconds
    # One at once, one a pulse, one at the end; and one more for a pulse that was under way.
    assert len(calls) <= seconds / PULSE_SECONDS + 3


def test_the_remaining_time_is_what_the_work_said_less_the_time_since_then(queue: Queue) -> None:
    gate = Gate()

    def work(job: Job[str]) -> str:
        job.report(Progress("check", "fp32", 0.1))
        assert job.snapshot.remaining_seconds is None, "the work has not seen enough of itself to say"
        job.report(Progress("measure", "fp32", 0.75, remaining_seconds=9.0))
        return gate(job)

    job = queue.start(Job("study", work))
    assert gate.reached.wait(SOON)
    first = job.snapshot.remaining_seconds
    time.sleep(0.02)
    second = job.snapshot.remaining_seconds
    assert first is not None and second is not None and second < first <= 9.0
    gate.open.set()
    job.result(SOON)
    assert job.snapshot.remaining_seconds is None


@pytest.mark.expects_callback_error
def test_a_listener_that_fails_is_logged_and_the_job_goes_on(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise KeyError("no such trait")

    job = Job("study", lambda job: 1)
    job.listen(broken)
    queue.start(job)
    assert job.result(SOON) == 1
    assert "A listener of the job study failed" in caplog.text


def test_a_lane_has_no_thread_once_it_has_no_work(queue: Queue) -> None:
    queue.start(Job("sum", lambda job: 1)).result(SOON)
    queue.settle()
    assert not [thread for thread in threading.enumerate() if thread.name == "workbench-test"]
    assert queue.start(Job("again", lambda job: 2)).result(SOON) == 2
    queue.settle()
