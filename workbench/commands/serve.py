"""`serve`: variants of a language model for clients that speak OpenAI's format, of a study or with slots."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import workbench as wb
from workbench.commands import arguments
from workbench.errors import DataError, EngineError, LoadError
from workbench.recipes import named
from workbench.records import Engine

_WINDOWS = 256  # of a text, at most, on which the scales of an 8-bit cache are found


def add(commands: Any) -> None:
    """Add the command to the parser."""
    command = commands.add_parser("serve", help="serve variants of a language model in OpenAI's format (extra serve)")
    command.add_argument(
        "source",
        help="a study's name (see `studies`) or a saved .json; for slots a folder that write_slots wrote, or with --slots a "
        "language model's folder, id or shipped name",
    )
    command.add_argument(
        "variants", nargs="+", metavar="variant", help="of the study; for slots a recipe, such as fp32"
    )
    command.add_argument("--model", help="the folder or id that the study's model was loaded from; default: as it says")
    command.add_argument(
        "--slots", type=arguments.positive, help="keep the cache in slots of a fixed length: requests at once"
    )
    command.add_argument(
        "--columns",
        type=arguments.positive,
        nargs="+",
        help="with --slots, lengths of the cache, for engines of fixed sizes (TensorRT); prompts may be as long",
    )
    command.add_argument("--backend", help="with slots, what to build for; default: onnxruntime-cpu")
    command.add_argument(
        "--cache", choices=["int8", "fp8"], help="with --slots, keep keys and values in 8 bits; needs --data"
    )
    command.add_argument(
        "--data", help="with --cache, the text on which its scales are found: stdlib_text, a .txt or a .jsonl"
    )
    command.add_argument("--tokenizer", metavar="FOLDER", help="of --data; the model's own folder if absent")
    command.add_argument("--port", type=arguments.port, default=0, help="default: any that is free")
    command.add_argument("--token", help="what clients must send as API key; default: a new one")
    command.set_defaults(command=serve, calibration=None)


def serve(options: argparse.Namespace) -> int:
    """Serve variants of a language model on this machine, in OpenAI's format, until interrupted."""
    language, engines = _with_slots(options) if _has_slots(options) else _of_study(options)
    with wb.llm.Endpoint(language, engines, port=options.port, token=options.token, slots=options.slots) as endpoint:
        print(f"base URL {endpoint.url}\nAPI key  {endpoint.token}\nmodels   {', '.join(engines)}", flush=True)
        endpoint.wait()
    return 0


def _has_slots(options: argparse.Namespace) -> bool:
    found = options.slots is not None or _is_slot_folder(options.source)
    if not found and (options.columns or options.backend or options.cache or options.data):
        raise DataError(
            "--columns, --cache and --backend are for slots, and --data is for --cache: a study's engines are built already. "
            "Pass --slots with a language model, or a folder that write_slots wrote."
        )
    return found


def _is_slot_folder(source: str) -> bool:
    from workbench.llm.slot_loading import MANIFEST  # here: every command's start would wait for onnx

    return (Path(source) / MANIFEST).is_file()


def _with_slots(options: argparse.Namespace) -> tuple[wb.llm.LanguageModel, Mapping[str, Sequence[Engine]]]:
    if options.model:
        raise DataError("--model is for studies: with slots the first argument names the language model.")
    for name in options.variants:
        named(name)  # before the export, which takes longer than reading why there is no such recipe
    if _is_slot_folder(options.source):
        if options.columns or options.cache or options.data:
            raise DataError(
                f"{options.source} has graphs already, so --columns and --cache cannot change them. Leave them out."
            )
        language = wb.llm.open_slot_folder(options.source)
    else:
        sizes: list[wb.llm.GraphSize] = []
        for columns in options.columns or ():
            sizes += [wb.llm.GraphSize("prefill", 1, columns), wb.llm.GraphSize("step", options.slots, columns)]
        free = [wb.llm.GraphSize("prefill"), wb.llm.GraphSize("step")]
        language = wb.llm.load_slots(options.source, sizes or free, cache=options.cache, samples=_samples(options))
    backend = options.backend or "onnxruntime-cpu"
    return language, {name: wb.llm.build_slots(language, name, backend) for name in options.variants}


def _samples(options: argparse.Namespace) -> np.ndarray | None:
    """Return token ids (N, T) for the scales of an 8-bit cache; a text of the user's own has no part for calibration."""
    if (options.cache is None) != (options.data is None):
        raise DataError(
            "--cache and --data go together: the scales of an 8-bit cache are found on a text. Pass --cache int8 --data "
            "stdlib_text, or a .txt of what the model will read."
        )
    found = arguments.data(options, None)
    if found is None:
        return None
    split = found.calibration or found.evaluation
    tokens: np.ndarray = next(iter(split.inputs.values()))[:_WINDOWS]
    return tokens


def _of_study(options: argparse.Namespace) -> tuple[wb.llm.LanguageModel, Mapping[str, Engine]]:
    study = wb.Study.open(options.source)
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
    return language, {name: engine for name, engine in built.items() if engine is not None}
