"""What a killed process left behind is removed by the next; what a living one works in is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from workbench.machine import disk, leftovers
from workbench.machine.store import Store, write_text

WORK = """
import sys, time
from pathlib import Path
from workbench.machine.store import Store
with Store(sys.argv[1]).scratch() as folder:
    (folder / "half.onnx").write_bytes(b"half")
    print(folder.name, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def worker(tmp_path: Path):
    """A process at work in a store's scratch folder, and the folder's name."""
    process = subprocess.Popen([sys.executable, "-c", WORK, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    yield process, process.stdout.readline().strip()
    process.kill()
    process.wait()


def test_the_folder_of_a_killed_process_goes_when_the_store_is_opened(worker, tmp_path: Path) -> None:
    process, name = worker
    Store(tmp_path)
    assert (tmp_path / "scratch" / name / "half.onnx").exists(), "its owner lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    Store(tmp_path)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_number_that_was_given_again_is_another_process(tmp_path: Path) -> None:
    with leftovers.working(tmp_path) as mine:
        host, pid, began = mine.name.split("-")[1:4]
        other = tmp_path / f"workbench-{host}-{pid}-{int(began) - 1000}-abcd"
        other.mkdir()
        assert leftovers.sweep(tmp_path) == [other.name]
        assert mine.exists()
    assert not mine.exists()


def test_folders_of_other_hosts_other_names_and_links_stay(tmp_path: Path) -> None:
    dead = max(psutil.pids()) + 100_000
    mine = "workbench-" + leftovers._host()
    kept = [tmp_path / f"workbench-elsewhere-{dead}-1-a", tmp_path / "workbench-mine", tmp_path / f"{mine}-x-1-a"]
    for folder in kept:
        folder.mkdir()
    link = tmp_path / f"{mine}-{dead}-1-link"
    link.symlink_to(kept[0])
    (tmp_path / f"{mine}-{dead}-1-file").write_text("a file is nobody's folder")
    assert leftovers.sweep(tmp_path) == []
    assert all(folder.exists() for folder in (*kept, link))
    assert leftovers.sweep(tmp_path / "nowhere") == []


def test_a_process_of_somebody_else_counts_as_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / f"workbench-{leftovers._host()}-{os.getpid()}-1-a"
    folder.mkdir()

    def denied(pid: int) -> int:
        raise psutil.AccessDenied(pid)

    monkeypatch.setattr(leftovers, "_began", denied)
    assert leftovers.sweep(tmp_path) == []


def test_temporary_folders_are_swept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / f"workbench-{leftovers._host()}-{max(psutil.pids()) + 100_000}-1-a"
    left.mkdir()
    with disk.temporary() as folder:
        assert folder.parent == tmp_path and not left.exists()
    assert list(tmp_path.iterdir()) == []


WRITE = """
import sys, time
from pathlib import Path
from workbench.machine import store
Path.replace = lambda *names: (print("written", flush=True), time.sleep(60))
store.write_text(Path(sys.argv[1]) / "report.html", "half of a report")
"""


def test_what_a_killed_writer_left_beside_a_report_goes_with_the_next_write_there(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "written\n"
        (left,) = tmp_path.iterdir()
        assert leftovers.sweep(tmp_path, ".") == [] and left.exists(), "its owner lives"
    finally:
        process.kill()
        process.wait()
    (tmp_path / ".mine.tmp").write_text("mine")
    write_text(tmp_path / "report.html", "a report")
    assert {item.name for item in tmp_path.iterdir()} == {"report.html", ".mine.tmp"}
    assert (tmp_path / "report.html").read_text() == "a report"
