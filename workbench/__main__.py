"""The command line: `python -m workbench app | doctor | run | confirm | preview | report | explain | studies | compare |
serve | demo`."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from workbench.commands import app, compare, confirm, demo, doctor, explain, preview, report, run, serve, studies
from workbench.errors import Cancelled, WorkbenchError

_COMMANDS = (app, doctor, run, preview, confirm, compare, report, explain, studies, serve, demo)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 0 good, 1 it found or met a problem, 2 unknown options, 3 a study has regressed
    (`compare --fail-on regression`), 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        with _ended_gently():
            return int(options.command(options))
    except WorkbenchError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 130 if isinstance(error, Cancelled) else 1
    except KeyboardInterrupt:
        print("\nInterrupted. What was finished is kept; the same command goes on from there.", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _ended_gently() -> Iterator[None]:
    """Let SIGTERM, which ends a job on a cluster, do what Ctrl-C does: what is finished is kept, and children end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m workbench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for command in _COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
