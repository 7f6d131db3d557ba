"""`doctor`: what this machine has and lacks."""

from __future__ import annotations

import argparse
from typing import Any

import workbench as wb

_MARKS = {"ok": "ok   ", "note": "note ", "wrong": "WRONG"}


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("doctor", help="say what this machine has and lacks, and what mends it")
    command.add_argument(
        "--measure", action="store_true", help="measure what the machine can do at most, where that is not known yet"
    )
    command.add_argument("--backend", default="auto", help="that is measured; default: the fastest that is here")
    command.set_defaults(command=doctor)


def doctor(options: argparse.Namespace) -> int:
    """Say what this machine has and lacks."""
    from workbench.doctor import examine

    if options.measure:
        wb.ceilings(options.backend)
    findings = examine()
    width = max(len(finding.topic) for finding in findings)
    for finding in findings:
        print(f"{_MARKS[finding.state]} {finding.topic:<{width}}  {finding.text}")
        if finding.remedy:
            print(f"{'':<{width + 6}}  -> {finding.remedy}")
    return int(any(finding.state == "wrong" for finding in findings))
