"""The version of the package, and a fingerprint of its code: what remembered results are keyed by."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

__version__ = "0.2.0"


@functools.cache
def code_sha256() -> str:
    """Return the sha256 over the package's Python files, so that an edited step never re-uses what the old one made."""
    package = Path(__file__).resolve().parent
    whole = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        whole.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return whole.hexdigest()
