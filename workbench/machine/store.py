"""The workbench's place on disk: content-addressed artefacts and an SQLite index of JSON records.

Everything is written atomically (temporary name in the same file system, then rename), so a kill at any moment
leaves the old state or the new one. A record carries a checksum: one that was changed behind our back counts as
absent. Knows nothing of what the records mean.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from workbench import codec, version
from workbench.errors import StoreError
from workbench.machine import disk, leftovers

Made = TypeVar("Made")

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
    """Write a text file whole or not at all; what is no text (half of a file name outside UTF-8) becomes an escape.

    Raises:
        StoreError: the folder is missing, read-only or full.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; errors as for `write_text`."""
    with disk.whole_file(path) as unfinished:
        unfinished.write_bytes(data)


def write_record(path: str | Path, record: object) -> Path:
    """Write a record as JSON that `codec.from_file` reads, without a path of this machine; packed where it ends in `.gz`."""
    text, path = codec.to_json(codec.portable(record)), Path(path)
    if path.suffix == ".gz":
        write_bytes(path, gzip.compress(text.encode(), mtime=0))
    else:
        write_text(path, text)
    return path


def key_of(parts: Sequence[object]) -> str:
    """Return the sha256 of what a result depends on, with the package's own code."""
    plain = [version.code_sha256(), *(codec.to_plain(part) for part in parts)]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


class Store:
    """Artefacts by their sha256 and records by (kind, key), under one folder.

    Args:
        root: the folder, made if absent; None takes `default_root()`.

    Attributes:
        damaged: (kind, key) of records that were asked for and are not what was written; they count as absent.

    Raises:
        StoreError: the folder cannot be made or written, or the index in it is damaged.
    """

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root).resolve() if root is not None else default_root()
        try:
            for name in ("artefacts", "caches", "scratch"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk.explained(error, self.root) from error
        leftovers.sweep(self.root / "scratch")
        self.damaged: set[tuple[str, str]] = set()
        self._index = self.root / "index.sqlite"
        with self._connect() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS records (kind TEXT, key TEXT, text TEXT NOT NULL, written_at REAL NOT NULL,"
                " sha256 TEXT, PRIMARY KEY (kind, key))"
            )
            if "sha256" not in {row[1] for row in connection.execute("PRAGMA table_info(records)")}:
                connection.execute("ALTER TABLE records ADD COLUMN sha256 TEXT")  # a store of version 0.1

    def get(self, kind: str, key: str) -> str | None:
        """Return the record's text; None where there is none, or where it is not what was written."""
        with self._connect() as connection:
            query = "SELECT text, sha256 FROM records WHERE kind = ? AND key = ?"
            row = connection.execute(query, (kind, key)).fetchone()
        if row is None:
            return None
        text, sha256 = row
        if isinstance(text, str) and (sha256 is None or sha256 == _checksum(kind, key, text)):
            return text
        self.damaged.add((kind, key))
        return None

    def put(self, kind: str, key: str, text: str) -> None:
        """Write a record, replacing one of the same kind and key."""
        with self._connect() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO records (kind, key, text, written_at, sha256) VALUES (?, ?, ?, ?, ?)",
                (kind, key, text, time.time(), _checksum(kind, key, text)),
            )

    def append(self, kind: str, key: str, text: str) -> None:
        """Write a record that must never be replaced: raw samples.

        Raises:
            StoreError: there is a record of this kind and key already.
        """
        with self._connect() as connection:
            added = connection.execute(
                "INSERT OR IGNORE INTO records (kind, key, text, written_at, sha256) VALUES (?, ?, ?, ?, ?)",
                (kind, key, text, time.time(), _checksum(kind, key, text)),
            )
            if not added.rowcount:
                raise StoreError(
                    f"There is a {kind} record {key!r} already, and it is not replaced. Is another run at work?"
                )

    def next_number(self, series: str) -> int:
        """Return 0, 1, 2, ...: the next number of a series, which no other process gets."""
        with self._connect() as connection:
            connection.execute("BEGIN IMMEDIATE")
            row = connection.execute("SELECT text FROM records WHERE kind = 'number' AND key = ?", (series,)).fetchone()
            number = int(row[0]) if row and str(row[0]).isdecimal() else 0
            connection.execute(
                "INSERT OR REPLACE INTO records (kind, key, text, written_at) VALUES ('number', ?, ?, ?)",
                (series, str(number + 1), time.time()),
            )
        return number

    def remember(
        self,
        kind: type[Made],
        parts: Sequence[object],
        make: Callable[[], Made],
        valid: Callable[[Made], bool] = lambda made: True,
    ) -> Made:
        """Return what was made of the same parts before; else make it, and keep it.

        Args:
            kind: of record, as `workbench.codec` reads and writes it.
            parts: everything that the result depends on, records or JSON types. The package's own code is added to
                them: what an edited step makes is never taken from before the edit.
            make: makes it.
            valid: whether a remembered one can still be used; False makes it again.
        """
        key, name = key_of(parts), kind.__name__.lower()
        text = self.get(name, key)
        if text is not None:
            try:
                found = codec.from_json(kind, text)
                if valid(found):
                    return found
            except StoreError:
                pass  # from a damaged store or another version: make it again
        made = make()
        self.put(name, key, codec.to_json(made))
        return made

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
                with leftovers.working(self.root / "scratch") as waiting:
                    shutil.move(str(source), str(waiting / source.name))
                    home.mkdir(exist_ok=True)
                    if place.is_dir():
                        shutil.rmtree(place)
                    (waiting / source.name).replace(place)
        except OSError as error:
            raise disk.explained(error, place) from error
        return sha256, place

    def holds(self, sha256: str, path: Path | str) -> bool:
        """Whether the artefact at `path` lies in this store and still has that sha256."""
        place = Path(path)
        return place.is_relative_to(self.root) and place.exists() and digest(place) == sha256

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give an empty folder in the store's file system, removed at the end."""
        with contextlib.ExitStack() as stack:
            try:
                folder = stack.enter_context(leftovers.working(self.root / "scratch"))
            except OSError as error:
                raise disk.explained(error, self.root) from error
            yield folder

    def cache_folder(self, name: str) -> Path:
        """Return a folder that outlives runs, for a backend's own caches."""
        folder = self.root / "caches" / name
        with disk.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _home(self, sha256: str) -> Path:
        return self.root / "artefacts" / sha256[:2] / sha256

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(sqlite3.connect(self._index, timeout=_BUSY_SECONDS)) as connection, connection:
                # A damaged byte must not make a whole query fail: the checksum tells which record it is in.
                connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
                yield connection
        except sqlite3.DatabaseError as error:
            # A limit on the size of files (a quota) is an I/O error to SQLite.
            if "is full" in str(error) or "disk I/O" in str(error):
                raise disk.full(self._index, str(error)) from error
            raise StoreError(
                f"The index {self._index} cannot be used: {error}. The artefacts beside it are untouched. If the folder "
                f"is read-only, set WORKBENCH_HOME; if the file is damaged, move it away and the index starts anew."
            ) from error


def _checksum(kind: str, key: str, text: str) -> str:
    return hashlib.sha256(f"{kind}\0{key}\0{text}".encode("utf-8", "surrogatepass")).hexdigest()
