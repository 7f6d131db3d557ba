"""The file of a capsule: a zip of named parts with a table of contents, read as if a stranger had made it.

Nothing in it is unpickled or executed. The table of contents says how large each part is and what its sha256 is; no
more is read than it says, and no part may lie outside the folder that it is unpacked into.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from workbench import codec
from workbench.errors import StoreError
from workbench.machine import disk

FORMAT = "trt-workbench capsule"
VERSION = 1
LARGEST_BYTES = 64 << 30
MOST_PARTS = 10_000
_CONTENTS = "capsule.json"
_CHUNK = 1 << 20
_COPY_AGAIN = "Compare its size with the original, and copy it again."
# What zipfile and zlib raise on bytes that they cannot make sense of.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, NotImplementedError, RuntimeError)

Part = Path | bytes


def write(path: Path, contents: Mapping[str, Any], parts: Mapping[str, Part]) -> None:
    """Write a capsule, whole or not at all; a file of that name is replaced.

    Args:
        contents: JSON types; goes into the table of contents.
        parts: name (a relative path with `/`) -> a file or bytes.

    Raises:
        StoreError: the place cannot be written.
    """
    table = {name: {"sha256": _sha256(part), "bytes": _size(part)} for name, part in parts.items()}
    text = json.dumps({"format": FORMAT, "version": VERSION, **contents, "parts": table}, ensure_ascii=True)
    with disk.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
                # An entry made from a name alone is dated 1980: equal capsules are equal files.
                archive.writestr(zipfile.ZipInfo(_CONTENTS), text, zipfile.ZIP_DEFLATED)
                for name, part in parts.items():
                    with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as target:
                        for chunk in _chunks(part):
                            target.write(chunk)
            Path(unfinished).replace(path)
        except BaseException:
            Path(unfinished).unlink(missing_ok=True)
            raise


class Opened:
    """A capsule whose table of contents was read and checked; its parts are checked as they are read.

    Attributes:
        contents: what `write` was given.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self._archive = path, archive
        self.contents, self._parts = _table(path, archive)

    def names(self, folder: str) -> list[str]:
        """Return the names of the parts in a folder such as `model`."""
        return [name for name in self._parts if PurePosixPath(name).parts[0] == folder]

    def size(self, name: str) -> int:
        """Return the bytes of a part.

        Raises:
            StoreError: there is none of this name.
        """
        if name not in self._parts:
            raise _damaged(self.path, f"it has no part {name!r}")
        return int(self._parts[name]["bytes"])

    def read(self, name: str) -> bytes:
        """Return a part.

        Raises:
            StoreError: it is damaged.
        """
        return b"".join(self._read(name))

    def unpack(self, name: str, folder: Path) -> Path:
        """Write a part into a folder, under its own name without the first folder of it.

        Raises:
            StoreError: it is damaged, or the folder cannot be written.
        """
        target = folder.joinpath(*PurePosixPath(name).parts[1:])
        with disk.writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as stream:
                for chunk in self._read(name):
                    stream.write(chunk)
        return target

    def _read(self, name: str) -> Iterator[bytes]:
        left, whole = self.size(name), hashlib.sha256()
        try:
            with self._archive.open(name) as stream:
                while chunk := stream.read(_CHUNK):
                    left -= len(chunk)
                    if left < 0:
                        raise _damaged(self.path, f"{name} is longer than its table of contents says")
                    whole.update(chunk)
                    yield chunk
        except (*_DAMAGE, OSError) as error:
            raise _damaged(self.path, f"{name} cannot be read ({error})") from error
        if left or whole.hexdigest() != self._parts[name]["sha256"]:
            raise _damaged(self.path, f"{name} is not what was put into it")


@contextmanager
def opened(path: Path) -> Iterator[Opened]:
    """Open a capsule for reading.

    Raises:
        StoreError: no file, no capsule, truncated, damaged, of a newer version, too large, or with a path that escapes.
    """
    if not path.is_file():
        raise StoreError(f"There is no file {path}. Give the capsule that study.capsule(path) wrote.")
    try:
        archive = zipfile.ZipFile(path)
    except (*_DAMAGE, OSError) as error:
        size = path.stat().st_size
        raise StoreError(f"{path} ({size} bytes) is no capsule, or is truncated: {error}. {_COPY_AGAIN}") from error
    with archive:
        yield Opened(path, archive)


def _table(path: Path, archive: zipfile.ZipFile) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    entries = archive.infolist()
    if len(entries) > MOST_PARTS:
        raise StoreError(f"{path} has {len(entries)} parts; a capsule has at most {MOST_PARTS}. It is not opened.")
    sizes = {entry.filename: entry.file_size for entry in entries}
    if _CONTENTS not in sizes or len(sizes) != len(entries):
        # A truncated one can end in a zip of its own: that of a calibration table.
        raise StoreError(
            f"{path} is no capsule, or is truncated: it has no {_CONTENTS}, or has one name twice. {_COPY_AGAIN}"
        )
    if sizes[_CONTENTS] > codec.LARGEST_FILE_BYTES or sum(sizes.values()) > LARGEST_BYTES:
        raise StoreError(
            f"{path} unpacks to {sum(sizes.values())} bytes ({sizes[_CONTENTS]} of them its contents), more than the "
            f"{LARGEST_BYTES} ({codec.LARGEST_FILE_BYTES}) that are read. It is not opened."
        )
    try:
        contents = json.loads(archive.read(_CONTENTS))
    except (*_DAMAGE, OSError, RecursionError) as error:
        raise _damaged(path, f"its {_CONTENTS} cannot be read ({error})") from error
    if not isinstance(contents, dict) or contents.pop("format", None) != FORMAT:
        raise StoreError(f"{path} is a zip, and no capsule: its {_CONTENTS} does not say so. Give another file.")
    version = contents.pop("version", None)
    if type(version) is not int or version > VERSION:
        raise StoreError(
            f"{path} is a capsule of version {str(version)[:20]}; this code reads up to {VERSION}. Update trt-workbench."
        )
    return contents, _checked_parts(path, contents.pop("parts", None), sizes)


def _checked_parts(path: Path, parts: Any, sizes: dict[str, int]) -> dict[str, dict[str, Any]]:
    if not isinstance(parts, dict) or set(parts) != set(sizes) - {_CONTENTS}:
        raise _damaged(path, "its parts are not those of its table of contents")
    for name, about in parts.items():
        steps = name.split("/")
        # A drive or a backslash means something on other systems only; nothing that we write has one.
        if len(steps) < 2 or any(step in ("", ".", "..") for step in steps) or any(sign in name for sign in "\\:\0"):
            raise StoreError(
                f"{path} has a part {name!r}, whose path leads out of the folder or is none. Such a capsule is not opened: "
                f"it was not made by study.capsule."
            )
        if not isinstance(about, dict) or about.get("bytes") != sizes[name] or not isinstance(about.get("sha256"), str):
            raise _damaged(path, f"its table of contents is wrong about {name}")
    return parts


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(f"The capsule {path} is damaged: {what}. {_COPY_AGAIN}")


def _chunks(part: Part) -> Iterator[bytes]:
    if isinstance(part, bytes):
        yield part
        return
    with part.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def _sha256(part: Part) -> str:
    whole = hashlib.sha256()
    for chunk in _chunks(part):
        whole.update(chunk)
    return whole.hexdigest()


def _size(part: Part) -> int:
    return len(part) if isinstance(part, bytes) else part.stat().st_size
