"""The file of a calibration table: one .npz, written at once, read as if a stranger had made it.

Knows members, types, shapes and sizes; not what the numbers mean (`calibration_table.py` and `histogram.py` check that).

A hostile archive can claim any size, so every size is checked before memory is taken: the text member gives the
number of tensors, that gives the exact shape and byte count of every other member, and no more is ever read. Nothing
is unpickled. (`numpy.load` takes the memory that a member's header claims before it reads the data, so it is not used.)
"""

from __future__ import annotations

import io
import json
import os
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.calibration.histogram import BINS
from workbench.errors import CalibrationError

FORMAT_VERSION = 1
MOST_TENSORS = 16384
MOST_SNAPSHOTS = 256
_MOST_TEXT_BYTES = 16 * 2**20
_MOST_HEADER_BYTES = 1024
# Member -> element type and shape; T tensors, S snapshots.
_MEMBERS: dict[str, tuple[str, tuple[str | int, ...]]] = {
    "counts": ("<i8", ("T", BINS)),
    "extrema": ("<f8", ("T", 2)),
    "tallies": ("<i8", ("T", 4)),
    "snapshot_samples": ("<i8", ("S",)),
    "snapshot_abs_max": ("<f8", ("S", "T")),
    "snapshot_thresholds": ("<f8", ("S", "T")),
}
# What zipfile and numpy's header parser raise on bytes they cannot make sense of (found by fuzzing both).
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    SyntaxError,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
)

Arrays = Mapping[str, NDArray[Any]]


def write_table_file(path: Path, text: str, arrays: Arrays) -> None:
    """Write a table file; a file of that name is replaced whole or left alone.

    Args:
        path: the file; its folder must exist.
        text: JSON; holds `version` and `tensors`.
        arrays: the six members; they are written in little-endian order.
    """
    members = {name: arrays[name].astype(dtype) for name, (dtype, _) in _MEMBERS.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in {"text": np.frombuffer(text.encode(), np.uint8), **members}.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            # A ZipInfo made from a name alone is dated 1980: equal tables make equal files.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(buffer.getvalue())
        Path(part).replace(path)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def read_table_file(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read a table file.

    Returns:
        The decoded text (`version` and `tensors` checked) and the arrays, of the right types and shapes.

    Raises:
        CalibrationError: the file cannot be read or is not laid out as a table file; the message names the member.
    """
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file, but a folder, a pipe or a device")
        with zipfile.ZipFile(path) as archive:
            found, wanted = sorted(archive.namelist()), sorted(f"{name}.npy" for name in ("text", *_MEMBERS))
            if found != wanted:
                raise _damaged(path, f"it holds {found[:12]} instead of {wanted}")
            text = _read_text(path, archive)
            sizes = {"T": len(text["tensors"]), "S": _snapshots(path, archive)}
            arrays = {
                name: _read_array(path, archive, name, dtype, tuple(sizes.get(str(axis), axis) for axis in shape))
                for name, (dtype, shape) in _MEMBERS.items()
            }
    except _DAMAGE as error:
        # The first line only: numpy goes on to suggest that the file be trusted.
        cause = (str(error).splitlines() or [""])[0]
        raise _damaged(path, f"it cannot be read ({type(error).__name__}: {cause})") from error
    return text, arrays


def _read_text(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    shape = _header(path, archive, "text", "|u1")
    if len(shape) != 1 or shape[0] > _MOST_TEXT_BYTES:
        raise _damaged(path, f"member 'text' has shape {shape}, expected at most {_MOST_TEXT_BYTES} bytes")
    raw = _read_array(path, archive, "text", "|u1", shape).tobytes()
    try:
        text = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"member 'text' is not JSON ({type(error).__name__}: {error})") from error
    if not isinstance(text, dict) or text.get("version") != FORMAT_VERSION:
        version = text.get("version") if isinstance(text, dict) else None
        raise _damaged(path, f"its version is {version!r}, this code reads version {FORMAT_VERSION}")
    names = text.get("tensors")
    if not isinstance(names, list) or len(names) > MOST_TENSORS:
        raise _damaged(path, f"'tensors' is not a list of at most {MOST_TENSORS} names")
    return text


def _snapshots(path: Path, archive: zipfile.ZipFile) -> int:
    shape = _header(path, archive, "snapshot_samples", "<i8")
    if len(shape) != 1 or shape[0] > MOST_SNAPSHOTS:
        raise _damaged(
            path, f"member 'snapshot_samples' has shape {shape}, expected at most {MOST_SNAPSHOTS} snapshots"
        )
    return shape[0]


def _header(path: Path, archive: zipfile.ZipFile, name: str, dtype: str) -> tuple[int, ...]:
    with archive.open(f"{name}.npy") as file:
        return _read_header(path, file, name, dtype)


def _read_header(path: Path, file: Any, name: str, dtype: str) -> tuple[int, ...]:
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise _damaged(path, f"member {name!r} is in .npy format {version}, expected (1, 0)")
    header = np.lib.format.read_array_header_1_0(file, max_header_size=_MOST_HEADER_BYTES)
    shape, fortran_order, found = header
    if fortran_order or found != np.dtype(dtype) or min(shape, default=0) < 0:
        raise _damaged(path, f"member {name!r} has type {found}, expected {np.dtype(dtype)} in C order")
    return tuple(shape)


def _read_array(path: Path, archive: zipfile.ZipFile, name: str, dtype: str, shape: tuple[Any, ...]) -> NDArray[Any]:
    """Read one member; takes memory for `shape` only, whatever the archive claims."""
    size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    with archive.open(f"{name}.npy") as file:
        found = _read_header(path, file, name, dtype)
        if found != shape:
            raise _damaged(path, f"member {name!r} has shape {found}, expected {shape}")
        raw = file.read(size_bytes)
        surplus = file.read(1)
    if len(raw) != size_bytes or surplus:
        more = "more" if surplus else f"{len(raw)}"
        raise _damaged(path, f"member {name!r} holds {more} bytes, expected {size_bytes}")
    return np.frombuffer(raw, dtype).astype(np.dtype(dtype).newbyteorder("=")).reshape(shape)


def _damaged(path: Path, what: str) -> CalibrationError:
    return CalibrationError(f"Not a calibration table: {path}: {what}. Calibrate again, or restore the file.")
