"""`demo`: the quickstart notebook."""

from __future__ import annotations

import argparse
import os
from typing import Any

import workbench as wb
from workbench import zoo
from workbench.commands import arguments
from workbench.errors import LoadError


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("demo", help="execute the quickstart notebook")
    command.set_defaults(command=demo)


def demo(options: argparse.Namespace) -> int:
    """Execute the quickstart notebook, print its table and say where the report is."""
    from workbench.notebook import execute

    path = zoo.data_folder().parent / "notebooks" / "00_quickstart.ipynb"
    if not path.is_file():
        raise LoadError(
            f"The notebooks are not part of an installed package (there is no {path}). Run the demo from a checkout of the "
            f"repository, or the same study here: python -m workbench run digits_resnet --data digits --report report.html"
        )
    # The kernel works in the notebook's folder; its studies go where this command's would.
    os.environ["WORKBENCH_HOME"] = str(wb.Store().root)
    print(f"executing {path.name}", flush=True)
    execute(path, lambda text: print(text, end="", flush=True))
    study = wb.Study.open(wb.Store().keys("study")[0])
    print(f"\n{arguments.table(study)}")
    print(f"\nreport: {path.parent / 'out' / 'quickstart.html'}")
    return 0
