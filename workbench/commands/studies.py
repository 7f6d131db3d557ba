"""`studies`: what the store holds."""

from __future__ import annotations

import argparse
from typing import Any

import workbench as wb


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("studies", help="list the studies in the store, latest first")
    command.set_defaults(command=studies)


def studies(options: argparse.Namespace) -> int:
    """List the studies in the store, latest first."""
    found = wb.studies()
    if found.empty:
        print(
            f"There is no study in {wb.Store().root} yet. Run one: python -m workbench run digits_resnet --data digits"
        )
        return 0
    found["date"] = [f"{date:%Y-%m-%d %H:%M}" if date == date else "" for date in found["date"]]
    print(found.fillna("").to_string(index=False))
    return 0
