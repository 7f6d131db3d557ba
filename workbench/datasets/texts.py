"""Text files cut into windows of token ids, to measure perplexity with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from workbench import codec
from workbench.datasets.metrics import perplexity
from workbench.datasets.split import Array, Dataset, Split
from workbench.errors import DataError

LARGEST_TEXT_BYTES = 1 << 30


def text(
    path: Path | str,
    tokenizer: Any,
    length: int = 128,
    *,
    samples: int | None = None,
    input_name: str = "input_ids",
    name: str | None = None,
) -> Dataset:
    """Cut a text into windows of `length` token ids; no window crosses a document's end, no window comes twice.

    Args:
        path: a text file (one document), or .jsonl with one `{"text": ...}` a line (a document each).
        tokenizer: a folder or file with a `tokenizer.json`, a `tokenizers.Tokenizer`, or a transformers tokenizer.
        length: token ids in a window, at least 2; what is left at a document's end is dropped.
        samples: the first windows only; None takes all.

    Returns:
        A dataset without calibration data (see `split_off`): int64 ids (N, length) as input and as labels.

    Raises:
        DataError: a file that cannot be read, no tokenizer, or too little text for one window.
    """
    if length < 2:
        raise DataError(f"length is {length}; a window needs at least 2 tokens, one to predict from the other.")
    encode, decode = _codec(tokenizer)
    file = Path(path)
    windows: dict[bytes, Array] = {}
    dropped = 0
    for document in _documents(file):
        ids = np.asarray(encode(document), np.int64)
        whole = len(ids) // length
        dropped += len(ids) - whole * length
        for window in ids[: whole * length].reshape(whole, length):
            windows.setdefault(window.tobytes(), window)
    if not windows:
        raise DataError(f"{file} has no document of {length} tokens or more. Pass a smaller length or more text.")
    chosen = np.stack(list(windows.values())[:samples])
    notes = (f"{len(windows)} different windows of {length} tokens; {dropped} tokens at the ends were dropped.",)
    return Dataset(
        name or file.stem,
        "user",
        Split({input_name: chosen}, chosen),
        metric=perplexity(),
        show=lambda index: {"kind": "text", "value": decode(chosen[index].tolist()), "label": None},
        notes=notes,
    )


def read_tokenizer(place: Path) -> Any:
    """Return the `tokenizers.Tokenizer` of a folder or `tokenizer.json`; it runs no code from there.

    Raises:
        DataError: the tokenizers package or the file is missing, or the file is damaged.
    """
    file = place / "tokenizer.json" if place.is_dir() else place
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise DataError("Reading a tokenizer needs the tokenizers package. Run: pip install tokenizers") from error
    if not file.is_file():
        raise DataError(f"There is no tokenizer at {file}. Pass a folder with a tokenizer.json, or a tokenizer object.")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for everything
        raise DataError(f"Cannot read the tokenizer {file}: {error}. Save it again as tokenizer.json.") from error


def _codec(tokenizer: Any) -> tuple[Callable[[str], list[int]], Callable[[list[int]], str]]:
    chosen = read_tokenizer(Path(tokenizer)) if isinstance(tokenizer, (str, Path)) else tokenizer
    if not (callable(getattr(chosen, "encode", None)) and callable(getattr(chosen, "decode", None))):
        raise DataError(
            f"A {type(tokenizer).__name__} is no tokenizer: it lacks encode or decode. Pass a folder with a "
            "tokenizer.json, a tokenizers.Tokenizer or a transformers tokenizer."
        )

    def encode(document: str) -> list[int]:
        try:
            encoded = chosen.encode(document)
        except Exception as error:  # the library raises bare Exception for everything
            raise DataError(f"The tokenizer cannot read the text: {error}. Take the model's own.") from error
        return list(getattr(encoded, "ids", encoded))

    return encode, lambda ids: str(chosen.decode(ids))


def _documents(file: Path) -> Iterator[str]:
    try:
        size = codec.size_of(file)
        if size > LARGEST_TEXT_BYTES:
            raise DataError(f"{file} has {size} bytes; at most {LARGEST_TEXT_BYTES} are read. Pass a part of it.")
        content = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Cannot read {file} as UTF-8 text: {error}. Check the path and the encoding.") from error
    if file.suffix.lower() != ".jsonl":
        yield content
        return
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f'Line {number} of {file} is no {{"text": ...}} object ({error!r}). Correct it.') from error
        if not isinstance(document, str):
            raise DataError(f'Line {number} of {file}: "text" is a {type(document).__name__}, expected a string.')
        if any(
            "\ud800" <= letter <= "\udfff" for letter in document
        ):  # JSON can write half a letter; no tokenizer reads it
            raise DataError(f'Line {number} of {file}: "text" holds half of a letter (a lone surrogate). Correct it.')
        yield document
