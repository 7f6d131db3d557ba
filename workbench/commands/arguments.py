"""What several commands take or print: data, names, a study's table and its variants."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import workbench as wb
from workbench.errors import DataError, RecipeError, StoreError
from workbench.records import Model, VariantResult

_SHIPPED_DATA = {"digits": lambda: wb.datasets.digits(), "stdlib_text": lambda: wb.datasets.stdlib_text()}
REPORTS = ".html, .md, .csv, .json, or a folder for all four; .tex, .svg, .pdf, .png, .ipynb"
_LAST_PORT = 65_535
_WIDE_COLUMNS = ("p9", "SQNR", "Agreement", "Memory", "Build", "Calibration", "Status")


def positive(text: str) -> int:
    """Return a whole number of at least 1; what argparse takes as a type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def port(text: str) -> int:
    """Return the number of a port, 0 to 65535; what argparse takes as a type."""
    if not text.isdecimal() or int(text) > _LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; those are 0 to {_LAST_PORT}")
    return int(text)


def names(parts: Sequence[str]) -> list[str]:
    """Return names that were separated by blanks or commas.

    Raises:
        RecipeError: there is none, as where a shell's variable is empty.
    """
    found = [name.strip() for part in parts for name in part.split(",") if name.strip()]
    if not found:
        raise RecipeError("--recipes names none. Name some, such as --recipes fp32 int8-max, or leave it out.")
    return found


def report(options: argparse.Namespace) -> None:
    """Refuse a report of a kind that there is not, before anything is measured for it.

    Raises:
        StoreError: its suffix is none that is written.
    """
    from workbench.reports import files  # here: the start of every command would wait for it

    if options.report:
        files.refuse_unknown(Path(options.report))


def data(options: argparse.Namespace, model: Model | None) -> wb.datasets.Dataset | None:
    """Return the data that the options name, or None.

    Raises:
        DataError: they cannot be read, or a text came without a tokenizer.
    """
    if options.data is None:
        return None
    if options.data in _SHIPPED_DATA:
        found = _SHIPPED_DATA[options.data]()
    else:
        path = Path(options.data)
        if path.is_dir():
            found = wb.datasets.image_folder(path, None if model is None else _preprocessing(model))
        elif path.suffix.lower() in (".txt", ".jsonl"):
            found = wb.datasets.text(path, _tokenizer(options))
        else:
            found = wb.datasets.npz(path)
    return found if options.calibration is None else found.split_off(options.calibration)


def table(study: wb.Study) -> str:
    """Return a study's table without what only fits a wide page; the report has it all."""
    shown = study.table()
    wide = [name for name in shown.columns if name.startswith(_WIDE_COLUMNS)]
    return str(shown.drop(columns=wide).to_string(index=False))


def variant(study: wb.Study, name: str) -> VariantResult:
    """Return what is known of a variant.

    Raises:
        StoreError: the study has none of that name.
    """
    try:
        return study[name]
    except KeyError as error:
        raise StoreError(str(error.args[0])) from error


def _preprocessing(model: Model) -> wb.datasets.ImagePreprocessing | None:
    """The default one at the model's own size; a grey channel is only scaled. The report states it."""
    shape = model.inputs[0].shape
    if len(shape) != 4 or shape[1] not in (1, 3) or shape[2] is None or shape[3] is None:
        return None
    if shape[1] == 3:
        return wb.datasets.ImagePreprocessing(shape[2], shape[3])
    return wb.datasets.ImagePreprocessing(shape[2], shape[3], "L", mean=(0.0,), std=(1.0,))


def _tokenizer(options: argparse.Namespace) -> str:
    if options.tokenizer is not None:
        return str(options.tokenizer)
    model = vars(options).get("model") or vars(options).get("source")
    if model is not None and Path(model).is_dir():
        return str(model)
    raise DataError(f"The text {options.data} needs a tokenizer. Pass --tokenizer FOLDER, one with a tokenizer.json.")
