"""Records to JSON and back, every type checked on the way in: a stored file is input that can be damaged or hostile.

Works from the type hints of the dataclasses, so a new record needs no code here.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import types
import typing
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar, Union

from workbench import recipes
from workbench.errors import StoreError
from workbench.records import SCHEMA_VERSION

Record = TypeVar("Record")

# Raw samples of a hundred variants take some MB.
LARGEST_FILE_BYTES = 1 << 28
# Fields of records that name a place on the disk of the machine where they were made.
_PLACES = ("path", "folder")
# Where engines write such places into what they say.
_TEXTS = ("log", "message")


def to_plain(record: Any) -> Any:
    """Return the record as dicts, lists, strings, numbers, booleans and None (ready for `json.dumps`)."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {item.name: to_plain(getattr(record, item.name)) for item in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(key): to_plain(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_plain(value) for value in record]
    return record


def to_json(record: Any, indent: int | None = None) -> str:
    """Return the record as JSON text; keys keep their order, floats their exact value."""
    text = json.dumps(to_plain(record), indent=indent, ensure_ascii=False, allow_nan=True)
    if text.isascii() or _is_text(text):
        return text
    return json.dumps(to_plain(record), indent=indent, allow_nan=True)


def _is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: names of files need not be."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def portable(record: Record) -> Record:
    """Return a copy for other machines and other eyes: of places on this disk only the last name is left, in logs too."""
    return _without_places(record, sorted(_places(record), key=len, reverse=True))


def _without_places(record: Record, places: list[str]) -> Record:
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        kept: dict[str, Any] = {}
        for item in dataclasses.fields(record):
            value = getattr(record, item.name)
            if isinstance(value, str) and item.name in _PLACES:
                kept[item.name] = PurePath(value).name
            elif isinstance(value, str) and item.name in _TEXTS:
                for place in places:
                    value = value.replace(place, PurePath(place).name)
                kept[item.name] = value
            else:
                kept[item.name] = _without_places(value, places)
        return dataclasses.replace(record, **kept)
    if isinstance(record, tuple):
        return typing.cast(Record, tuple(_without_places(value, places) for value in record))
    return record


def _places(record: Any) -> set[str]:
    """Return the places on this disk that a record names: more than a bare name, or they would be found in any text."""
    if isinstance(record, tuple):
        return set().union(*map(_places, record))
    if not dataclasses.is_dataclass(record):
        return set()
    found: set[str] = set()
    for item in dataclasses.fields(record):
        value = getattr(record, item.name)
        if item.name in _PLACES and isinstance(value, str):
            found |= {value} if PurePath(value).name != value and PurePath(value).name else set()
        else:
            found |= _places(value)
    return found


def from_json(kind: type[Record], text: str) -> Record:
    """Read a record from JSON text.

    Raises:
        StoreError: the text is not JSON, lacks a field, has one of another type, or a newer schema_version.
    """
    try:
        plain = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"Cannot read a {kind.__name__}: the text is not JSON ({error}). Was the file truncated?"
        ) from error
    return from_plain(kind, plain)


def from_file(kind: type[Record], path: Path) -> Record:
    """Read a record from a JSON file, or from one that gzip packed (`.gz`).

    Raises:
        StoreError: there is no such file, it is too large to be a record, packed or not, or what `from_json` refuses.
    """
    try:
        size = size_of(path)
        if size > LARGEST_FILE_BYTES:
            raise StoreError(
                f"{path} has {size} bytes, and a record has at most {LARGEST_FILE_BYTES}. Is it another file?"
            )
        text = _unpacked(path) if path.suffix == ".gz" else path.read_text(encoding="utf-8")
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise StoreError(f"Cannot read {path}: {error}. Give the .json file that save or a report wrote.") from error
    return from_json(kind, text)


def size_of(path: Path) -> int:
    """Return the bytes of a file.

    Raises:
        OSError: there is none, or it is a pipe or a device, which has no size and may never end.
    """
    if path.exists() and not path.is_file():
        raise OSError("it is no file, but a folder, a pipe or a device")
    return path.stat().st_size


def _unpacked(path: Path) -> str:
    """Read a packed text; a few bytes can hold gigabytes."""
    with gzip.open(path) as file:
        data = file.read(LARGEST_FILE_BYTES + 1)
    if len(data) > LARGEST_FILE_BYTES:
        raise StoreError(
            f"{path} unpacks to more than {LARGEST_FILE_BYTES} bytes, the most of a record. Is it another file?"
        )
    return data.decode("utf-8")


def from_plain(kind: type[Record], plain: Any) -> Record:
    """Build a record from what `to_plain` gave; checks every type on the way.

    Raises:
        StoreError: a field is missing, unknown or of another type, or schema_version is newer than this code's.
    """
    found = plain.get("schema_version", 0) if isinstance(plain, dict) else 0
    if isinstance(found, (int, float)) and found > SCHEMA_VERSION:
        raise StoreError(
            f"{kind.__name__} has schema_version {found}; this code reads up to {SCHEMA_VERSION}. Update trt-workbench."
        )
    try:
        return typing.cast(Record, _decode(kind, plain, getattr(kind, "__name__", "record")))
    except (TypeError, ValueError, KeyError, RecursionError, OverflowError) as error:
        raise StoreError(
            f"Cannot read a {getattr(kind, '__name__', 'record')}: {error}. The file was damaged or written by something else."
        ) from error


def _decode(kind: Any, plain: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return plain
    if kind is recipes.Step:
        step = recipes.STEP_TYPES.get(str(plain.get("kind"))) if isinstance(plain, dict) else None
        if step is None:
            raise TypeError(f"{where} is no known step: {plain!r}")
        return _decode_dataclass(step, plain, where)
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, plain, where)
    if origin is Literal:
        if plain not in arguments:
            raise TypeError(f"{where} is {plain!r}, expected one of {arguments}")
        return plain
    if origin is tuple:
        if not isinstance(plain, list):
            raise TypeError(f"{where} is {type(plain).__name__}, expected a list")
        return tuple(_decode(arguments[0], value, f"{where}[{index}]") for index, value in enumerate(plain))
    if origin is dict:
        if not isinstance(plain, dict):
            raise TypeError(f"{where} is {type(plain).__name__}, expected an object")
        return {key: _decode(arguments[1], value, f"{where}.{key}") for key, value in plain.items()}
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(typing.cast(type, kind), plain, where)
    return _decode_scalar(kind, plain, where)


def _decode_union(choices: tuple[Any, ...], plain: Any, where: str) -> Any:
    if plain is None and type(None) in choices:
        return None
    failures = []
    for choice in choices:
        if choice is type(None):
            continue
        try:
            return _decode(choice, plain, where)
        except TypeError as error:
            failures.append(str(error))
    raise TypeError("; ".join(failures) or f"{where} must not be {plain!r}")


def _decode_dataclass(kind: type, plain: Any, where: str) -> Any:
    if not isinstance(plain, dict):
        raise TypeError(f"{where} is {type(plain).__name__}, expected an object")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(plain) - set(hints))
    if unknown:
        raise TypeError(f"{where} has unknown fields {', '.join(unknown)}")
    return kind(**{key: _decode(hints[key], value, f"{where}.{key}") for key, value in plain.items()})


def _decode_scalar(kind: Any, plain: Any, where: str) -> Any:
    if kind is float and isinstance(plain, int) and not isinstance(plain, bool):
        return float(plain)
    if not isinstance(plain, kind) or (isinstance(plain, bool) and kind is not bool):
        raise TypeError(f"{where} is {plain!r}, expected {kind.__name__}")
    return plain
