"""`compare`: a study against an earlier one, for CI."""

from __future__ import annotations

import argparse
from typing import Any

import workbench as wb
from workbench.errors import StoreError

REGRESSED = 3


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser(
        "compare",
        help="judge a study against an earlier one; for CI",
        epilog="Exit status: 0 not regressed, or nothing to fail on; 1 they cannot be compared; 3 regressed, with --fail-on.",
    )
    command.add_argument(
        "before", help="the earlier study: its name (see `studies`) or a saved .json; alone: the later one"
    )
    command.add_argument(
        "after", nargs="?", help="the later study; absent: the one named is judged against the pinned one"
    )
    command.add_argument("--fail-on", choices=["regression", "nothing"], default="nothing", help="default: %(default)s")
    command.add_argument(
        "--tolerance", type=float, default=0.0, metavar="SHARE", help="that a variant may be slower, such as 0.02"
    )
    command.add_argument("--allow-unlike", action="store_true", help="other devices, backends, shapes, threads too")
    command.set_defaults(command=compare)


def compare(options: argparse.Namespace) -> int:
    """Judge a study against an earlier one, or against the pinned one."""
    from workbench.judging.regression import regression
    from workbench.reports.difference import differences
    from workbench.study.catalog import pinned

    before = options.before if options.after else pinned(wb.Store())
    if before is None:
        raise StoreError(
            "No study is pinned as the reference. Name two studies, or pin one on the app's page `Studies`."
        )
    earlier, later = wb.Study.open(before).record, wb.Study.open(options.after or options.before).record
    found = regression(earlier, later, tolerance=options.tolerance, allow_unlike=options.allow_unlike)
    for row in found.comparison.rows:
        told = [] if row.ratio is None else [row.ratio.words]
        told += [] if row.change is None else [f"score {row.change.words}"]
        print(f"{row.variant}: {'; '.join(told) or 'nothing to compare'}", *row.notes, sep="\n  ")
    for note in found.comparison.notes:
        print(note)
    for what, ours, theirs in differences(earlier, later):
        print(f"not the same: {what}: {ours} -> {theirs}")
    print(f"\n{found.words}")
    return REGRESSED if found.findings and options.fail_on == "regression" else 0
