"""`preview`: what TensorRT would do, without a GPU."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import workbench as wb
from workbench.commands import arguments
from workbench.errors import BuildError


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("preview", help="show what TensorRT makes of a model; needs no GPU (extra rtx)")
    command.add_argument("model", help="as for `run`")
    command.add_argument(
        "--recipes",
        nargs="+",
        default=["fp16", "int8-max"],
        help="names, separated by blanks or commas; the first is what the others are compared with (default: fp16 int8-max)",
    )
    command.add_argument("--target", default="sm89", help="sm75 to sm121, several with commas (default: %(default)s)")
    command.add_argument("--data", help="as for `run`, to calibrate with; random inputs if absent")
    command.add_argument(
        "--calibration", type=arguments.positive, metavar="N", help="take N samples out of the data for calibration"
    )
    command.add_argument("--tokenizer", metavar="FOLDER", help="for text; the model's own folder if absent")
    command.add_argument("--kernels", action="store_true", help="list every kernel")
    command.set_defaults(command=preview)


def preview(options: argparse.Namespace) -> int:
    """Say what TensorRT makes of a model under each recipe, without a GPU."""
    from workbench.study.previews import CANNOT_KNOW

    model = wb.load(options.model)
    first, refused = None, False
    for name in arguments.names(options.recipes):
        try:
            found = wb.preview(model, name, target=options.target, data=arguments.data(options, model))
        except BuildError as error:  # the target may lack one recipe's types and have the next one's
            print(f"{name}: {error}", file=sys.stderr)
            refused = True
            continue
        print(found.summary)
        if first is not None:
            print(f"  {found.against(first)}")
        for note in found.notes:
            print(f"  {note}")
        if options.kernels:
            print(found.table().to_string(index=False))
        first = first or found
    print(CANNOT_KNOW)
    return int(refused)
