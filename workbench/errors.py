"""Every exception that the workbench raises on purpose.

A message says what happened with the values, why, and what to do next. Knows nothing of any other module.
"""

from __future__ import annotations

import difflib
import os
import traceback
from collections.abc import Iterable
from pathlib import Path

_PACKAGE = Path(__file__).parent


class WorkbenchError(Exception):
    """Base of all errors raised on purpose; catching it catches nothing that is a bug."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it in a notebook: the message and the caller's line, not forty of ours.

        `WORKBENCH_TRACEBACK=1` shows all of them; `traceback.print_exc()` and `%debug` do in any case.
        """
        if os.environ.get("WORKBENCH_TRACEBACK"):
            return traceback.format_exception(type(self), self, self.__traceback__)
        shown = []
        for frame in traceback.extract_tb(self.__traceback__):
            if Path(frame.filename).is_relative_to(_PACKAGE):
                break
            if "IPython" not in Path(frame.filename).parts:
                shown.append(frame)
        # What a magic such as %%time runs has no lines that could be shown.
        where = f"line {shown[-1].lineno}: {shown[-1].line}\n\n" if shown and shown[-1].line else ""
        return [f"{where}{type(self).__name__}: {self}", "(all of the traceback: set WORKBENCH_TRACEBACK=1)"]


class LoadError(WorkbenchError):
    """A model source cannot be read: not ONNX, truncated, external data missing, hub out of reach."""


class ExportError(LoadError):
    """A PyTorch module cannot be exported to ONNX by any exporter."""


class DataError(WorkbenchError):
    """Data do not fit: wrong names, shapes or dtypes, no samples, overlapping splits."""


class RecipeError(WorkbenchError):
    """A recipe or a step is unknown, or its steps contradict each other."""


class CalibrationError(WorkbenchError):
    """Calibration cannot give thresholds: no samples, NaN or infinite activations, a damaged table."""


class TransformError(WorkbenchError):
    """A graph step cannot be applied to this model."""


class BackendMissing(WorkbenchError):
    """The asked-for backend is not installed or has no device here; the message holds the line that mends it."""


class BuildError(WorkbenchError):
    """A backend cannot build an engine from a variant; `log` holds what the backend said."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class UnsupportedOperator(BuildError):
    """The backend lacks an operator of the model."""


class OutOfMemory(BuildError):
    """Building or running needed more memory than there was."""


class EngineError(WorkbenchError):
    """A built engine cannot be opened: other device, other version, damaged file."""


class RunError(WorkbenchError):
    """Inference failed: feeds do not match the engine, or the backend reported an error."""


class LostAnswers(WorkbenchError):
    """A variant's answers are NaN or infinite where its parent's are not."""


class ChildKilled(WorkbenchError):
    """A child process ended without an answer (killed, crashed); `log` holds its last words."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(message)
        self.log = log


class Cancelled(WorkbenchError):
    """The user asked to stop; all that was finished before is kept."""


class StoreError(WorkbenchError):
    """The store on disk cannot be read or written: damaged, full, not ours."""


class CompareError(WorkbenchError):
    """Two measurements must not be compared: other device, shape, boundary or backend."""


def expect(value: object, kind: type, verb: str, remedy: str, error: type[WorkbenchError]) -> None:
    """Refuse an argument of another kind in one sentence.

    Args:
        verb: what takes it.
        remedy: what to pass instead.
        error: its class.
    """
    if not isinstance(value, kind):
        raise error(f"{verb} takes a {kind.__name__}, got a {type(value).__name__} ({repr(value)[:60]}). {remedy}")


def nearest(wrong: str, known: Iterable[str]) -> str:
    """Return a sentence that suggests the known name closest to `wrong` and lists them all."""
    names = sorted(known)
    close = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    hint = f"Did you mean {close[0]!r}? " if close else ""
    return f"{hint}Known: {', '.join(names)}."
