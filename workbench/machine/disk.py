"""Writing to a disk that may be full: one error that names the place, says why and what to do."""

from __future__ import annotations

import contextlib
import errno
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from workbench.errors import StoreError
from workbench.machine import leftovers

# No room left, a quota that is used up, a limit on the size of one file.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def explained(error: OSError, path: Path | str) -> StoreError:
    """Return what to raise where a file or folder could not be written."""
    if error.errno in FULL:
        return full(path, error.strerror or str(error))
    return StoreError(
        f"Cannot write {path}: {error.strerror or error}. Is the folder writable? "
        f"Set WORKBENCH_HOME, or pass store=Store(folder), to use another place (TMPDIR for temporary files)."
    )


def full(path: Path | str, reason: str) -> StoreError:
    """Return what to raise where there is no room for a file."""
    return StoreError(
        f"The disk is full while writing {path} ({reason}; {_free(Path(path))}). Free some and run again; what was "
        f"finished is kept. Or use another place: WORKBENCH_HOME for the store, TMPDIR for temporary files."
    )


@contextlib.contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Turn an error of the operating system in this block into one that a reader can act on.

    Raises:
        StoreError: the block could not write.
    """
    try:
        yield
    except OSError as error:
        raise explained(error, error.filename or path) from error


def folder(path: Path, *, exist_ok: bool = False) -> Path:
    """Make a folder and return it.

    Raises:
        StoreError: it cannot be made.
    """
    with writing(path):
        path.mkdir(exist_ok=exist_ok)
    return path


@contextlib.contextmanager
def temporary() -> Iterator[Path]:
    """Give an empty temporary folder, removed at the end.

    Raises:
        StoreError: there is no place for one.
    """
    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(leftovers.working())
        except OSError as error:
            raise explained(error, tempfile.tempdir or "the temporary folder") from error
        yield place


def _free(path: Path) -> str:
    """Say how much is free where a path would lie."""
    place = next((item for item in (path, *path.absolute().parents) if item.exists()), None)
    if place is None:
        return "free space unknown"
    return f"{shutil.disk_usage(place).free / 2**20:.0f} MiB are free there"


def refuse_existing(folder: Path) -> None:
    """Raise before long work where a folder that is to be made is there already.

    Raises:
        StoreError: it is.
    """
    if folder.exists():
        raise StoreError(f"{folder} exists already, and is not written over. Name a folder that does not exist.")


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder to be filled, which becomes the target when all went well: there is never half of one.

    Raises:
        StoreError: the disk is full, or the place cannot be written.
    """
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with leftovers.working(target.parent) as scratch:
            made = scratch / target.name
            made.mkdir()
            yield made
            made.replace(target)


@contextlib.contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Give a path to write to, which becomes the target when all went well: there is never half of a file.

    Raises:
        StoreError: the folder is missing, read-only or full.
    """
    try:
        # Beside its place, where a rename is one step; what a kill leaves is removed by the next that writes there.
        with leftovers.working(target.parent, ".") as scratch:
            yield scratch / target.name
            (scratch / target.name).replace(target)
    except OSError as error:
        raise explained(error, target) from error
