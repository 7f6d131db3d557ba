"""Real child processes that answer, fail, crash and are stopped. Their jobs are in `workbench.child_jobs_for_tests`,
a module that exists only on the path given to these tests' children."""

from __future__ import annotations

import os
import signal
import socket
import textwrap
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

import workbench
from workbench import doctor
from workbench.errors import BuildError, Cancelled, ChildKilled, DataError, OutOfMemory, WorkbenchError
from workbench.machine import child, network, process
from workbench.machine.handle import Handle

JOBS = """
    import os, signal, sys, time
    from workbench.errors import BuildError, DataError

    def double(job, arrays):
        print("working", flush=True)
        return {"factor": job["factor"]}, {name: array * job["factor"] for name, array in arrays.items()}

    def refuse(job, arrays):
        raise BuildError("no such layer", log="line 1")

    def mistake(job, arrays):
        print("about to fail", flush=True)
        return {}[0], {}

    def crash(job, arrays):
        print("last words", flush=True)
        os.kill(os.getpid(), getattr(signal, job["signal"]))
        time.sleep(10)

    def leave(job, arrays):
        os._exit(7)

    def grow(job, arrays):
        held = [b"x" * (1 << 20) for _ in range(400)]
        time.sleep(60)

    calls = []

    def count(job, arrays):
        calls.append(job)
        os.write(1, f"call {len(calls)}\\n".encode())
        return {"pid": os.getpid(), "calls": len(calls)}, arrays

    def swell(job, arrays):
        calls.append(b"x" * (job["mebibytes"] << 20))
        return {"pid": os.getpid()}, {}

    def environment(job, arrays):
        return dict(os.environ), {}

    def connect(job, arrays):
        import socket, subprocess
        code = f"import socket; socket.create_connection(({job['host']!r}, {job['port']}), 5)"
        found = {"grandchild": subprocess.run([sys.executable, "-c", code], capture_output=True).returncode}
        for name, call in (
            ("tcp", lambda: socket.create_connection((job["host"], job["port"]), 5)),
            ("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", (job["host"], job["port"]))),
            ("tcp6", lambda: socket.socket(socket.AF_INET6)),
            ("unix", lambda: socket.socketpair()),
        ):
            try:
                call()
            except OSError as error:
                found[name] = type(error).__name__
        return found, {}

    def sleep(job, arrays):
        with open(job["path"], "w") as file:
            file.write(str(os.getpid()))
        time.sleep(60)
"""


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Names a function of JOBS, in a module that children find as `workbench.jobs_for_tests`."""
    package = tmp_path / "extra"
    package.mkdir()
    (package / "jobs_for_tests.py").write_text(textwrap.dedent(JOBS))
    # A sitecustomize in the child's path adds the folder to the package.
    (tmp_path / "sitecustomize.py").write_text(f"import workbench; workbench.__path__.append({str(package)!r})")
    (tmp_path / "workbench").symlink_to(Path(workbench.__file__).parent)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return lambda name: f"workbench.jobs_for_tests:{name}"


def test_a_job_gets_its_arrays_and_its_answer_comes_back(target) -> None:
    lines: list[str] = []
    answer = child.call(target("double"), {"factor": 2}, {"x": np.arange(3)}, handle=Handle(on_line=lines.append))
    assert answer.record == {"factor": 2}
    np.testing.assert_array_equal(answer.arrays["x"], [0, 2, 4])
    assert "working" in lines and "working" in answer.log


def test_a_workbench_error_comes_back_as_itself_with_its_log(target) -> None:
    with pytest.raises(BuildError, match="no such layer") as caught:
        child.call(target("refuse"), {})
    assert caught.value.log == "line 1"


def test_any_other_exception_is_named_with_its_kind(target) -> None:
    with pytest.raises(WorkbenchError, match="KeyError"):
        child.call(target("mistake"), {})


@pytest.mark.parametrize(("name", "hint"), [("SIGKILL", "out-of-memory"), ("SIGSEGV", "crash inside the engine")])
def test_a_killed_child_is_an_error_that_names_the_signal_and_keeps_its_words(target, name: str, hint: str) -> None:
    with pytest.raises(ChildKilled, match=f"{name}.*{hint}") as caught:
        child.call(target("crash"), {"signal": name})
    assert "last words" in caught.value.log


def test_a_child_that_leaves_without_an_answer_is_an_error(target) -> None:
    with pytest.raises(ChildKilled, match="exit status 7"):
        child.call(target("leave"), {})


def test_cancelling_ends_the_child(target, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pytest.raises(Cancelled):
        child.call(target("sleep"), {"path": str(path)}, handle=Handle(cancelled=path.exists))
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text() or "0") or 2**22, 0)


def test_an_interrupt_ends_the_child_and_goes_on_upwards(target, tmp_path: Path) -> None:
    path = tmp_path / "pid"

    def interrupt() -> bool:
        if path.exists() and path.read_text():
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        child.call(target("sleep"), {"path": str(path)}, handle=Handle(cancelled=interrupt))
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text()), 0)


def test_a_file_in_the_current_folder_is_not_imported(target, tmp_path: Path, monkeypatch) -> None:
    here = tmp_path / "notebook"
    here.mkdir()
    for name in ("numpy", "json", "typing", "psutil"):
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", str(tmp_path)]))
    assert child.call(target("double"), {"factor": 2}, {"x": np.arange(3)}).record == {"factor": 2}
    assert not (tmp_path / "ran").exists()


def test_a_child_that_takes_more_memory_than_it_may_is_ended(target, monkeypatch) -> None:
    monkeypatch.setenv("WORKBENCH_CHILD_MEMORY_BYTES", str(300 << 20))
    with pytest.raises(OutOfMemory, match=r"took 0\.\d\d GiB of memory and was ended; it may take 0\.29 GiB"):
        child.call(target("grow"), {})


def test_the_memory_of_a_child_follows_from_the_machine(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WORKBENCH_CHILD_MEMORY_BYTES", raising=False)
    monkeypatch.setattr(process, "_CGROUP_LIMITS", (tmp_path / "absent",))
    whole = psutil.virtual_memory().total
    assert process.memory_limit_bytes() == int(0.75 * whole)
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "some").write_text("4000000\n")
    monkeypatch.setattr(process, "_CGROUP_LIMITS", (tmp_path / "max", tmp_path / "some"))
    assert process.memory_limit_bytes() == 3_000_000
    monkeypatch.setenv("WORKBENCH_CHILD_MEMORY_BYTES", "no number")
    assert process.memory_limit_bytes() == 3_000_000


def test_a_child_inherits_what_engines_need_and_no_secrets(target, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_TOKEN", "hush")
    monkeypatch.setenv("WORKBENCH_TOKEN", "hush")
    monkeypatch.setenv("AWS_PROFILE", "mine")
    seen = child.call(target("environment"), {}).record
    assert seen["OMP_NUM_THREADS"] == "1" and seen["PATH"] == os.environ["PATH"]
    assert not {"HF_TOKEN", "WORKBENCH_TOKEN", "AWS_PROFILE"} & set(seen)


@pytest.mark.parametrize("kept", [None, "builds"])
def test_a_child_has_no_network(kept: str | None, target, no_process_is_left) -> None:
    if not network.can_close():
        pytest.skip("this system cannot refuse a process its network")
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        found = child.call(target("connect"), {"host": host, "port": port}, kept=kept).record
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()
    assert found == {"grandchild": 1, "tcp": "PermissionError", "udp": "PermissionError", "tcp6": "PermissionError"}


def test_the_network_stays_where_it_cannot_be_closed_or_was_not_tried(monkeypatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(network.sys, "platform", "darwin")
        assert not network.can_close() and not network.close()
    with monkeypatch.context() as patch:
        patch.setattr(network.platform, "machine", lambda: "riscv64")
        assert not network.can_close() and not network.close()
    monkeypatch.setattr(network, "_NVIDIA_DRIVER", (tmp_path,))
    assert not network.can_close() and not network.close()
    assert doctor._children().state == "note"


def test_functions_outside_the_workbench_are_not_run() -> None:
    with pytest.raises(ChildKilled) as caught:
        child.call("os:getcwd", {})
    assert "only functions of the workbench" in caught.value.log


def test_a_child_does_not_outlive_a_parent_that_is_killed(target, tmp_path: Path) -> None:
    import subprocess
    import sys

    path = tmp_path / "pid"
    code = f"from workbench.machine import child; child.call({target('sleep')!r}, {{'path': {str(path)!r}}})"
    parent = subprocess.Popen([sys.executable, "-c", code])
    reached = threading.Event()
    while not (path.exists() and path.read_text()):
        assert parent.poll() is None
        reached.wait(0.05)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    pid = int(path.read_text())
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]:
            break
        reached.wait(0.05)
    else:
        pytest.fail(f"the child {pid} lives on")


def test_a_data_error_class_is_known_in_the_parent() -> None:
    error = child.raised({"error": "DataError", "message": "no samples", "log": ""}, "")
    assert isinstance(error, DataError)


@pytest.fixture
def no_process_is_left():
    yield
    child.end_idle()


def test_jobs_of_one_name_share_a_process_and_each_has_a_log_of_its_own(target, no_process_is_left) -> None:
    lines: list[str] = []
    first = child.call(target("count"), {}, {"x": np.arange(2)}, kept="builds")
    second = child.call(target("count"), {}, kept="builds", handle=Handle(on_line=lines.append))
    other = child.call(target("count"), {}, kept="others")
    assert first.record["pid"] == second.record["pid"] != other.record["pid"]
    assert (first.record["calls"], second.record["calls"], other.record["calls"]) == (1, 2, 1)
    assert first.log == "call 1\n" and second.log == "call 2\n" and lines == ["call 2"]
    np.testing.assert_array_equal(first.arrays["x"], [0, 1])


def test_idle_processes_end_when_asked(target, no_process_is_left) -> None:
    pid = child.call(target("count"), {}, kept="builds").record["pid"]
    child.end_idle()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert child.call(target("count"), {}, kept="builds").record["calls"] == 1


def test_a_refusal_leaves_a_kept_process_alive_and_a_crash_makes_way_for_a_new_one(target, no_process_is_left) -> None:
    pid = child.call(target("count"), {}, kept="builds").record["pid"]
    with pytest.raises(BuildError, match="no such layer"):
        child.call(target("refuse"), {}, kept="builds")
    assert child.call(target("count"), {}, kept="builds").record == {"pid": pid, "calls": 2}
    with pytest.raises(ChildKilled, match="SIGSEGV") as caught:
        child.call(target("crash"), {"signal": "SIGSEGV"}, kept="builds")
    assert "last words" in caught.value.log
    assert child.call(target("count"), {}, kept="builds").record["calls"] == 1


def test_a_kept_process_that_died_while_it_idled_is_replaced(target, no_process_is_left) -> None:
    pid = child.call(target("count"), {}, kept="builds").record["pid"]
    os.kill(pid, signal.SIGKILL)
    psutil.Process(pid).wait(5) if psutil.pid_exists(pid) else None
    assert child.call(target("count"), {}, kept="builds").record["calls"] == 1


def test_cancelling_ends_a_kept_process(target, tmp_path: Path, no_process_is_left) -> None:
    path = tmp_path / "pid"
    with pytest.raises(Cancelled):
        child.call(target("sleep"), {"path": str(path)}, kept="builds", handle=Handle(cancelled=path.exists))
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text() or "0") or 2**22, 0)


def test_a_process_that_has_grown_is_not_kept(target, monkeypatch, no_process_is_left) -> None:
    monkeypatch.setenv("WORKBENCH_CHILD_MEMORY_BYTES", str(1 << 30))
    first = child.call(target("swell"), {"mebibytes": 300}, kept="builds").record["pid"]
    assert child.call(target("swell"), {"mebibytes": 1}, kept="builds").record["pid"] != first
