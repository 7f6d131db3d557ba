"""NVTX ranges around what takes long, which nsys shows on its timeline; nothing where the package `nvtx` is not installed.

A range costs a function call while no profiler listens. None is opened inside a call that is timed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from contextlib import AbstractContextManager
from typing import Any

DOMAIN = "workbench"
_NOTHING = contextlib.nullcontext()


def opened(name: str) -> AbstractContextManager[Any]:
    """Return a context manager that opens a range of this name, on this thread."""
    annotate = _annotate()
    return _NOTHING if annotate is None else annotate(name, domain=DOMAIN)


@functools.cache
def _annotate() -> Any | None:
    try:
        return importlib.import_module("nvtx").annotate
    except (ImportError, AttributeError):  # not here, or something else of that name
        return None
