"""`serve`: variants of a language model for clients that speak OpenAI's format."""

from __future__ import annotations

import argparse
from typing import Any

import workbench as wb
from workbench.commands import arguments
from workbench.errors import EngineError, LoadError


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("serve", help="serve variants of a language model in OpenAI's format (extra serve)")
    command.add_argument("study", help="its name (see `studies`) or a saved .json")
    command.add_argument("variants", nargs="+", metavar="variant")
    command.add_argument("--model", help="the folder or id that the study's model was loaded from; default: as it says")
    command.add_argument("--port", type=int, default=0, help="default: any that is free")
    command.add_argument("--token", help="what clients must send as API key; default: a new one")
    command.set_defaults(command=serve)


def serve(options: argparse.Namespace) -> int:
    """Serve variants of a language model's study on this machine, in OpenAI's format, until interrupted."""
    study = wb.Study.open(options.study)
    built = {name: arguments.variant(study, name).engine for name in options.variants}
    if absent := [name for name, engine in built.items() if engine is None]:
        raise EngineError(
            f"{absent[0]!r} was not built: {study.failures.get(absent[0], 'the study was stopped before')}."
        )
    language = wb.llm.load(options.model or study.record.model.origin.reference)
    if language.model.sha256 != study.record.model.sha256:
        raise LoadError(
            f"{language.model.name} is not the model of the study {study.name!r}. Name the folder or id that the study's "
            f"model was loaded from: --model FOLDER."
        )
    engines = {name: engine for name, engine in built.items() if engine is not None}
    with wb.llm.Endpoint(language, engines, port=options.port, token=options.token) as endpoint:
        print(f"base URL {endpoint.url}\nAPI key  {endpoint.token}\nmodels   {', '.join(engines)}", flush=True)
        endpoint.wait()
    return 0
