"""`explain`: why a variant is not faster, or not as accurate."""

from __future__ import annotations

import argparse
from typing import Any

import workbench as wb
from workbench.commands import arguments


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("explain", help="say why a variant of a study is not faster, or not as accurate")
    command.add_argument("study", help="its name (see `studies`)")
    command.add_argument("variant", help="the name of one of its recipes")
    command.add_argument("--try-advice", action="store_true", help="build and measure what the evidence suggests")
    command.add_argument("--report", help="where to write the study's report with the explanation in it")
    command.set_defaults(command=explain)


def explain(options: argparse.Namespace) -> int:
    """Say why a variant takes the time it takes and loses what it loses."""
    arguments.report(options)
    study = wb.Study.open(options.study)
    arguments.variant(study, options.variant)
    found = wb.explain(study, options.variant, try_advice=options.try_advice, progress="auto")
    for number, sentence in enumerate(found.sentences, 1):
        print(f"{number}. {sentence}")
    print(f"\n{found.against_baseline().head(10).to_string(index=False, float_format='{:.3g}'.format)}")
    if options.report:
        print(f"\nreport: {study.report(options.report, [found])}")
    return 0
