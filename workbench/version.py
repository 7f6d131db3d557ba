"""The version of the package, and a fingerprint of its code: what remembered results are keyed by."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
from pathlib import Path

__version__ = "0.2.0"

# What only shows results, or calls what makes them: an edit there changes no result.
_SHOWS = {
    "ui",
    "plots",
    "reports",
    "llm",
    "study",
    "handoff",
    "__init__.py",
    "__main__.py",
    "commands",
    "doctor.py",
    "notebook.py",
    "conversion.py",
    "records/cards.py",
    "records/formats.py",
}
# What makes a variant's file and runs it in exact arithmetic, whichever engine is measured; engines tell their own version.
_LIBRARIES = ("ml_dtypes", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu")


@functools.cache
def libraries() -> dict[str, str]:
    """Return the versions of the libraries here that convert graphs and check what was made of them."""
    found = {}
    for name in _LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@functools.cache
def code_sha256() -> str:
    """Return the sha256 over the code that results depend on, so that an edited step never re-uses what the old one made."""
    package = Path(__file__).resolve().parent
    files = {file.relative_to(package): file for file in package.rglob("*.py")}
    whole = hashlib.sha256()
    for place in sorted(place for place in files if not {place.parts[0], place.as_posix()} & _SHOWS):
        whole.update(place.as_posix().encode() + b"\0" + files[place].read_bytes() + b"\0")
    return whole.hexdigest()
