"""The small trained models and data sets that come with the workbench: where they are, and whether they are whole.

Knows nothing of ONNX, PyTorch or what is in the files; `workbench.load` and `workbench.datasets` read them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.errors import LoadError, nearest

# Every data folder has this file; it tells ours from a folder that happens to be called `data`.
_CHECKSUMS = "checksums.json"


@dataclass(frozen=True)
class Card:
    """What is known of a shipped model, as its training script measured it.

    Attributes:
        name: what `workbench.load` takes.
        entry: the ONNX file, or the transformers folder, relative to the data folder.
        parameters: number of weights.
        metrics: metric name -> number, or a dict with the value, its counts and its interval.
        files: file (relative to the data folder) -> bytes.
        details: the rest of the card: script, training options, versions, machine.
    """

    name: str
    entry: str
    parameters: int
    metrics: dict[str, Any] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


def models() -> dict[str, Card]:
    """Return the shipped models by name.

    Raises:
        LoadError: the data folder is missing, or a card in it is damaged.
    """
    root = data_folder()
    cards = (card for file in sorted((root / "models").glob("*.card.json")) for card in _cards(root, file))
    return {card.name: card for card in cards}


def path(name: str) -> Path:
    """Return the ONNX file or the transformers folder of a shipped model, its checksums compared.

    Raises:
        LoadError: no such model, or one of its files is missing or differs from its checksum.
    """
    known = models()
    if name not in known:
        raise LoadError(f"No shipped model is called {name!r}. {nearest(name, known)}")
    entry = data_folder() / known[name].entry
    for file in [entry] if entry.is_file() else sorted(entry.iterdir()):
        data_file(file.relative_to(data_folder()).as_posix())
    return entry


def data_file(relative: str) -> Path:
    """Return a file of the data folder after comparing its sha256 with `checksums.json`.

    Args:
        relative: such as `digits.npz` or `models/digits_resnet.onnx`.

    Raises:
        LoadError: the file is missing, is not in the list, or differs from it.
    """
    root = data_folder()
    file = root / relative
    expected = _read_json(root / _CHECKSUMS).get(relative)
    if expected is None:
        raise LoadError(f"{relative} is not listed in {root / _CHECKSUMS}, so it cannot be trusted. Use a listed file.")
    if not file.is_file():
        raise LoadError(
            f"{file} is missing although it is listed. Check out `data/` again, or reinstall trt-workbench."
        )
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        raise LoadError(
            f"{file} is damaged or was changed: sha256 {found[:12]}..., expected {str(expected)[:12]}.... "
            "Check out `data/` again, or reinstall trt-workbench."
        )
    return file


def data_folder() -> Path:
    """Return `$WORKBENCH_DATA` where set, else `data/` of the checkout, else the copy inside the installed package.

    Raises:
        LoadError: none of them holds the workbench's data.
    """
    package = Path(__file__).resolve().parents[0]
    chosen = os.environ.get("WORKBENCH_DATA")
    places = [Path(chosen)] if chosen else [package.parent / "data", package / "_data"]
    for place in places:
        if (place / _CHECKSUMS).is_file():
            return place
    looked = " and ".join(str(place) for place in places)
    raise LoadError(
        f"The shipped models and data are not here: looked for {_CHECKSUMS} in {looked}. Reinstall trt-workbench, "
        "or set WORKBENCH_DATA to the `data` folder of a checkout."
    )


def _cards(root: Path, file: Path) -> Iterator[Card]:
    """One card a model; a folder of several ONNX files (`digits_captions`) gives `digits_captions/image_tower` etc."""
    content = _read_json(file)
    name = file.name.removesuffix(".card.json")
    home = root / "models" / name
    if (entry := home.with_name(f"{name}.onnx")).is_file():
        entries = {name: entry}
    elif (home / "config.json").is_file():
        entries = {name: home}
    else:
        entries = {f"{name}/{entry.stem}": entry for entry in sorted(home.glob("*.onnx"))}
    shown = ("name", "parameters", "metrics", "files")
    for entry_name, entry in entries.items():
        yield Card(
            name=entry_name,
            entry=entry.relative_to(root).as_posix(),
            parameters=int(content.get("parameters", 0)),
            metrics=dict(content.get("metrics", {})),
            files=dict(content.get("files", {})),
            details={key: value for key, value in content.items() if key not in shown},
        )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"Cannot read {file}: {error}. Check out `data/` again, or reinstall trt-workbench.") from error
    if not isinstance(content, dict):
        raise LoadError(f"{file} holds a {type(content).__name__}, expected an object. Check out `data/` again.")
    return content
