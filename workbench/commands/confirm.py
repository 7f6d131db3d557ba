"""`confirm`: the study of a capsule, here."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import workbench as wb
from workbench.commands import arguments


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("confirm", help="run the study of a capsule here, and compare")
    command.add_argument("capsule", help="the .zip that study.capsule wrote")
    command.add_argument("--backend", default="auto", help="see `doctor`; default: the fastest that is here")
    command.add_argument("--data", help="as for `run`, where the capsule holds the hash of the data alone")
    command.add_argument("--calibration", type=arguments.positive, metavar="N", help="as it was for the rehearsal")
    command.add_argument("--tokenizer", metavar="FOLDER", help="for text")
    command.add_argument("--name", help="of the study; default: the rehearsal's, and the backend")
    command.add_argument("--store", metavar="FOLDER", help="default: $WORKBENCH_HOME, or .workbench here")
    command.add_argument("--report", help="where to write both side by side: .html or .md")
    command.set_defaults(command=confirm)


def confirm(options: argparse.Namespace) -> int:
    """Run the study of a capsule here, and print both side by side."""
    from workbench.reports import confirmation  # here: the start of every command would wait for it

    if options.report:
        confirmation.refuse_unknown(Path(options.report))
    found = wb.confirm(
        options.capsule,
        backend=options.backend,
        data=arguments.data(options, None),
        name=options.name,
        store=None if options.store is None else wb.Store(options.store),
    )
    print(arguments.table(found.study))
    print(f"\nstudy: {found.study.name}\n")
    for sentence in (*found.notes, *found.changed):
        print(sentence)
    if options.report:
        print(f"report: {found.report(options.report)}")
    for name, message in found.study.failures.items():
        print(f"failed: {name}: {message}", file=sys.stderr)
    return int(bool(found.study.failures))
