"""Arrays by name in one `.npz` file, whatever the names are and in every element type that models use.

`numpy.savez` takes names as its own arguments, so that a tensor called `file` ends in an error and one called
`allow_pickle` vanishes; and it forgets bfloat16 and its like. Files written here can be read with `numpy.load` too.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_ENDING = ".npy"


def save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays, uncompressed."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in arrays.items():
            array = np.asanyarray(value)
            entry = zipfile.ZipInfo(name + _ENDING)
            # The format knows types outside of numpy by their size only; the name of the type goes beside it.
            entry.comment = array.dtype.name.encode() if array.dtype.kind == "V" else b""
            with archive.open(entry, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def load(path: Path) -> dict[str, np.ndarray]:
    """Read what `save` wrote."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as stream:
                array = np.lib.format.read_array(stream, allow_pickle=False)
            if entry.comment:
                import ml_dtypes

                array = array.view(getattr(ml_dtypes, entry.comment.decode()))
            found[entry.filename.removesuffix(_ENDING)] = array
    return found


def dtype_of(name: str) -> np.dtype[Any]:
    """Return the element type of a name, of those that numpy knows only with ml_dtypes too.

    Raises:
        AttributeError: there is no such type.
    """
    try:
        return np.dtype(name)
    except TypeError:  # bfloat16, float8 and int4
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
