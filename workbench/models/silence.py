"""Keep torch's exporters from talking: they log, warn, print and write to stderr by turns.

Only the exporting thread is silenced, because others may be printing to the same notebook meanwhile.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

_TALKATIVE = ("torch.onnx", "torch.export", "torch._dynamo", "torch.fx", "onnxscript", "onnx_ir")
# Replacing a stream twice at once would leave one of the replacements in place for ever.
_one_at_a_time = threading.Lock()


class _Muted:
    """A stream that swallows what one thread writes and hands on everything else."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._thread = threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else int(self._stream.write(text) or 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def silenced() -> Iterator[list[warnings.WarningMessage]]:
    """Silence the exporters while this thread runs the block; one thread at a time.

    Yields:
        A list that warnings are gathered in.
    """
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    with _one_at_a_time, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        levels = [logger.level for logger in loggers]
        streams = sys.stdout, sys.stderr
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        sys.stdout, sys.stderr = _Muted(sys.stdout), _Muted(sys.stderr)
        try:
            yield caught
        finally:
            sys.stdout, sys.stderr = streams
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
