"""`app`: the workbench in a browser."""

from __future__ import annotations

import argparse
from typing import Any

import workbench as wb
from workbench.commands import arguments


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("app", help="open the app in a browser, as a page of its own (extra lab)")
    command.add_argument("--port", type=arguments.port, help="default: any that is free")
    command.add_argument("--no-browser", action="store_true", help="only print the address")
    command.add_argument("--dark", action="store_true", help="on a dark ground")
    command.set_defaults(command=app)


def app(options: argparse.Namespace) -> int:
    """Open the app in a browser, as a page of its own."""
    from workbench.ui import alone

    return alone.serve(wb.Store(), port=options.port, browser=not options.no_browser, dark=options.dark)
