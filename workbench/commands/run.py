"""`run`: a study."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import workbench as wb
from workbench.commands import arguments
from workbench.errors import DataError
from workbench.machine import device


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("run", help="run a study: load, transform, build, check, measure")
    command.add_argument("model", help="a shipped model, an .onnx file, a transformers folder or id, torchvision:NAME")
    command.add_argument(
        "--data",
        help="digits, stdlib_text, an .npz (input, labels, calibration_input), a folder of images (one folder a class), "
        "or a .txt or .jsonl with a tokenizer; random inputs if absent",
    )
    command.add_argument(
        "--calibration", type=arguments.positive, metavar="N", help="take N samples out of the data for calibration"
    )
    command.add_argument("--tokenizer", metavar="FOLDER", help="for text; the model's own folder if absent")
    command.add_argument(
        "--recipes",
        nargs="+",
        default=["fp32", "fp16", "int8-kl"],
        help="names, separated by blanks or commas (default: fp32 fp16 int8-kl)",
    )
    command.add_argument("--backend", default="auto", help="see `doctor`; default: the fastest that is here")
    command.add_argument("--boundary", default="compute", choices=["compute", "end_to_end", "throughput"])
    command.add_argument("--batch", type=arguments.positive, default=8, help="samples a call (default: %(default)s)")
    command.add_argument(
        "--rounds", type=arguments.positive, default=9, help="fresh processes a variant (default: %(default)s)"
    )
    command.add_argument("--threads", type=arguments.positive, default=1, help="of the CPU (default: %(default)s)")
    command.add_argument("--name", help="of the study; run again under the same name to go on")
    command.add_argument("--report", help=f"where to write the report: {arguments.REPORTS}")
    command.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Run a study and print its table."""
    arguments.report(options)
    if options.threads > device.cores():
        raise DataError(
            f"--threads is {options.threads}, and this process may use {device.cores()} cores: more threads than cores wait "
            f"for each other. Pass {device.cores()} at most."
        )
    recipes = arguments.names(options.recipes)
    model = wb.load(options.model)
    protocol = wb.Protocol(boundary=options.boundary, batch=options.batch, rounds=options.rounds)
    study = wb.run(
        model,
        arguments.data(options, model),
        recipes,
        backend=options.backend,
        protocol=protocol,
        options=wb.BuildOptions(threads=options.threads),
        name=options.name,
        progress="auto",
    )
    print(arguments.table(study))
    print(f"\nstudy: {study.name}")
    if options.report:
        print(f"report: {study.report(options.report)}")
    for name, message in study.failures.items():
        print(f"failed: {name}: {message}", file=sys.stderr)
    return int(bool(study.failures))
