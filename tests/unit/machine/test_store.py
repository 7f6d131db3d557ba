from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from workbench.errors import StoreError
from workbench.machine import store as store_module
from workbench.machine.store import Store, digest, write_text


def test_records_are_kept_replaced_listed_and_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.get("study", "a") is None
    store.put("study", "a", "1")
    store.put("study", "b", "2")
    store.put("study", "a", "3")
    assert Store(tmp_path).get("study", "a") == "3"
    assert store.keys("study") == ["a", "b"]
    assert store.keys("study", prefix="b") == ["b"]
    store.delete("study", "a")
    assert store.keys("study") == ["b"]


def test_the_same_content_is_kept_once_and_found_by_its_hash(tmp_path: Path) -> None:
    store = Store(tmp_path)
    places = []
    for _ in range(2):
        with store.scratch() as scratch:
            (scratch / "model").mkdir()
            (scratch / "model" / "model.onnx").write_bytes(b"weights")
            sha256, place = store.add(scratch / "model")
            places.append(place)
    assert places[0] == places[1]
    assert store.holds(sha256, places[0])
    assert (places[0] / "model.onnx").read_bytes() == b"weights"


def test_a_damaged_artefact_is_noticed_and_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def add() -> tuple[str, Path]:
        with store.scratch() as scratch:
            (scratch / "plan").write_bytes(b"good")
            return store.add(scratch / "plan")

    sha256, place = add()
    place.write_bytes(b"evil")
    assert not store.holds(sha256, place)
    assert add() == (sha256, place)
    assert store.holds(sha256, place)


def test_an_artefact_outside_the_store_is_not_held(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"x")
    assert not Store(tmp_path / "store").holds(digest(outside), outside)


def test_a_folder_hash_depends_on_names_and_contents(tmp_path: Path) -> None:
    for name, inner in (("one", "a"), ("two", "a"), ("three", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / inner).write_bytes(b"x")
    assert digest(tmp_path / "one") == digest(tmp_path / "two") != digest(tmp_path / "three")


def test_a_damaged_index_says_what_to_do(tmp_path: Path) -> None:
    Store(tmp_path).put("study", "a", "1")
    (tmp_path / "index.sqlite").write_bytes(b"this is no database, whatever its name says" * 100)
    with pytest.raises(StoreError, match="move it away"):
        Store(tmp_path)


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    write_text(path, "old")

    def full(self: Path, *arguments: object, **options: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreError, match="disk is full"):
        write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_a_folder_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="WORKBENCH_HOME"):
        Store(tmp_path / "file" / "store")


def test_adding_to_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with store.scratch() as scratch:
        (scratch / "plan").write_bytes(b"x")
        monkeypatch.setattr(store_module.shutil, "move", full)
        with pytest.raises(StoreError, match="disk is full"):
            store.add(scratch / "plan")


def test_a_writer_killed_in_the_middle_leaves_a_store_that_works(tmp_path: Path) -> None:
    code = f"""
        import os, signal
        from pathlib import Path
        from workbench.machine.store import Store
        store = Store({str(tmp_path)!r})
        store.put("study", "a", "1")
        with store.scratch() as scratch:
            (scratch / "plan").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert killed.returncode == -9
    assert Store(tmp_path).get("study", "a") == "1"
    assert list((tmp_path / "artefacts").iterdir()) == []


def test_the_default_place_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    assert Store().root == tmp_path / "home"
    monkeypatch.delenv("WORKBENCH_HOME")
    monkeypatch.chdir(tmp_path)
    assert store_module.default_root() == tmp_path / ".workbench"


@pytest.mark.parametrize("byte", [b"9", b"\xff", b"\x00"])
def test_one_bad_byte_costs_one_record(tmp_path: Path, byte: bytes) -> None:
    store = Store(tmp_path)
    store.put("round", "a", '{"seconds": 0.0052}')
    store.put("round", "b", '{"seconds": 0.0061}')
    file = tmp_path / "index.sqlite"
    content = file.read_bytes()
    file.write_bytes(content.replace(b"0.0052", b"0." + byte + b"052"))
    assert store.get("round", "a") is None and store.damaged == {("round", "a")}
    assert store.get("round", "b") == '{"seconds": 0.0061}'
    assert store.keys("round") == ["b", "a"]
    store.put("round", "a", "new")
    assert Store(tmp_path).get("round", "a") == "new"


def test_a_damaged_number_starts_anew(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert [store.next_number("turn") for _ in range(2)] == [0, 1]
    with contextlib.closing(sqlite3.connect(tmp_path / "index.sqlite")) as index, index:
        index.execute("UPDATE records SET text = 'x' WHERE kind = 'number'")
    assert store.next_number("turn") == 0


def test_an_index_without_room_is_named(tmp_path: Path) -> None:
    """A real limit on the size of files, as a quota sets it; SQLite and the store's own files alike."""
    code = f"""
        import resource, signal
        from pathlib import Path
        from workbench.errors import StoreError
        from workbench.machine.store import Store, write_text
        store = Store({str(tmp_path / "store")!r})
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        text = "x" * 40_000
        for write in (lambda: store.put("study", "a", text), lambda: write_text(Path({str(tmp_path)!r}) / "t", text)):
            try:
                write()
            except StoreError as error:
                print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        store.put("study", "a", text)
        print(len(store.get("study", "a")))
    """
    told = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True)
    first, second, last = told.stdout.splitlines()
    assert "disk is full while writing" in first and "index.sqlite" in first
    assert "disk is full while writing" in second and "MiB are free there" in second
    assert last == "40000"
