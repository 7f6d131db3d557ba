"""The workbench's place on disk: content-addressed artefacts and an SQLite index of JSON records.

Everything is written atomically (temporary name in the same file system, then rename), so a kill at any moment
leaves the old state or the new one. Knows nothing of what the records mean.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from workbench.errors import StoreError

_HASH_CHUNK_BYTES = 1 << 20
# Two processes may write at once (a notebook and a shell); SQLite makes the second one wait this long.
_BUSY_SECONDS = 30.0


def default_root() -> Path:
    """Return `$WORKBENCH_HOME`, or `.workbench` in the current folder."""
    return Path(os.environ.get("WORKBENCH_HOME") or ".workbench").resolve()


def digest(path: Path) -> str:
    """Return the sha256 of a file, or of a folder's files with their names in sorted order."""
    whole = hashlib.sha256()
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    for item in files:
        if item != path:
            whole.update(item.relative_to(path).as_posix().encode() + b"\0")
        with item.open("rb") as stream:
            while chunk := stream.read(_HASH_CHUNK_BYTES):
                whole.update(chunk)
    return whole.hexdigest()


def size_bytes(path: Path) -> int:
    """Return the size of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all.

    Raises:
        StoreError: the folder is missing, read-only or full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _explain(error, path) from error


class Store:
    """Artefacts by their sha256 and records by (kind, key), under one folder.

    Args:
        root: the folder, made if absent; None takes `default_root()`.

    Raises:
        StoreError: the folder cannot be made or written, or the index in it is damaged.
    """

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root).resolve() if root is not None else default_root()
        try:
            for name in ("artefacts", "caches", "scratch"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _explain(error, self.root) from error
        self._index = self.root / "index.sqlite"
        with self._connect() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS records (kind TEXT, key TEXT, text TEXT NOT NULL, written_at REAL NOT NULL,"
                " PRIMARY KEY (kind, key))"
            )

    def get(self, kind: str, key: str) -> str | None:
        """Return the record's text, or None where there is none."""
        with self._connect() as connection:
            row = connection.execute("SELECT text FROM records WHERE kind = ? AND key = ?", (kind, key)).fetchone()
        return None if row is None else str(row[0])

    def put(self, kind: str, key: str, text: str) -> None:
        """Write a record, replacing one of the same kind and key."""
        with self._connect() as connection:
            connection.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)", (kind, key, text, time.time()))

    def delete(self, kind: str, key: str) -> None:
        """Forget a record; nothing happens where there is none."""
        with self._connect() as connection:
            connection.execute("DELETE FROM records WHERE kind = ? AND key = ?", (kind, key))

    def keys(self, kind: str, prefix: str = "") -> list[str]:
        """Return the keys of a kind that start with `prefix`, latest written first."""
        with self._connect() as connection:
            rows = connection.execute(
                "SELECT key FROM records WHERE kind = ? AND substr(key, 1, ?) = ? ORDER BY written_at DESC, rowid DESC",
                (kind, len(prefix), prefix),
            )
            return [str(row[0]) for row in rows]

    def add(self, source: Path) -> tuple[str, Path]:
        """Move a file, or a folder, into the artefacts.

        Args:
            source: consumed; best made in `scratch()`, where the move is a rename.

        Returns:
            Its sha256 and its place: `artefacts/<2 digits>/<sha256>/<name of source>`. The same content is kept once.
        """
        sha256 = digest(source)
        home = self._home(sha256)
        place = home / source.name
        try:
            if not place.exists() or digest(place) != sha256:
                home.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=self.root / "scratch") as waiting:
                    shutil.move(str(source), str(Path(waiting) / source.name))
                    home.mkdir(exist_ok=True)
                    if place.is_dir():
                        shutil.rmtree(place)
                    (Path(waiting) / source.name).replace(place)
        except OSError as error:
            raise _explain(error, place) from error
        return sha256, place

    def holds(self, sha256: str, path: Path | str) -> bool:
        """Whether the artefact at `path` lies in this store and still has that sha256."""
        place = Path(path)
        return place.is_relative_to(self.root) and place.exists() and digest(place) == sha256

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give an empty folder in the store's file system, removed at the end."""
        try:
            folder = tempfile.mkdtemp(dir=self.root / "scratch")
        except OSError as error:
            raise _explain(error, self.root) from error
        try:
            yield Path(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def cache_folder(self, name: str) -> Path:
        """Return a folder that outlives runs, for a backend's own caches."""
        folder = self.root / "caches" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _home(self, sha256: str) -> Path:
        return self.root / "artefacts" / sha256[:2] / sha256

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(sqlite3.connect(self._index, timeout=_BUSY_SECONDS)) as connection, connection:
                yield connection
        except sqlite3.DatabaseError as error:
            raise StoreError(
                f"The index {self._index} cannot be used: {error}. The artefacts beside it are untouched. If the disk "
                f"is full, free some space; if the file is damaged, move it away and the index starts anew."
            ) from error


def _explain(error: OSError, path: Path) -> StoreError:
    if error.errno == errno.ENOSPC:
        return StoreError(f"The disk is full while writing {path}. Free some and run again; what was finished is kept.")
    return StoreError(
        f"Cannot write {path}: {error.strerror or error}. Is the folder writable? "
        f"Set WORKBENCH_HOME, or pass store=Store(folder), to use another place."
    )
