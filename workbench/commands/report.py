"""`report`: a study for a reader."""

from __future__ import annotations

import argparse
from typing import Any

import workbench as wb
from workbench.commands import arguments


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("report", help="write the report of a study")
    command.add_argument("study", help="its name (see `studies`) or a saved .json")
    command.add_argument("report", metavar="path", help=arguments.REPORTS)
    command.add_argument(
        "--layers", action="store_true", help="profile the best variant beside the baseline, for a section of layers"
    )
    command.add_argument("--reference", help="another study (name or .json): a section says what is unlike it")
    command.set_defaults(command=report)


def report(options: argparse.Namespace) -> int:
    """Write the report of a study that was run before."""
    from workbench.study.why import explain_best

    arguments.report(options)
    study = wb.Study.open(options.study)
    reference = None if options.reference is None else wb.Study.open(options.reference)
    found = explain_best(study, progress="auto") if options.layers else None
    print(study.report(options.report, None if found is None else [found], reference))
    return 0
