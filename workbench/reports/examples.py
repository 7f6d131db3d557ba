"""The evaluation samples on which variants disagree, ready to be shown: picture or text, label, who answered what.

Pictures come from a stored record, so they are checked like any other input before they become PNG bytes.
"""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench.judging.accuracy import NO_PREDICTION, flips
from workbench.records import StudyRecord
from workbench.reports import formats

_MOST_CARDS = 24
_LARGEST_SIDE = 1024
_LONGEST_TEXT = 1200


@dataclass(frozen=True)
class Answer:
    """One answer and the variants that gave it; `verdict` is `right`, `wrong`, or empty where there is no label."""

    answer: str
    variants: tuple[str, ...]
    verdict: str = ""


@dataclass(frozen=True)
class Card:
    """One sample: a picture as a data URI or a text, its label, and the answers."""

    index: int
    image: str
    text: str
    label: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Examples:
    """A sentence on how often variants disagree, and cards for those samples that the record can show."""

    summary: str
    cards: tuple[Card, ...]


def examples(record: StudyRecord) -> Examples | None:
    """Return the disagreements of a study, or None where no variant has predictions to compare."""
    checks = [result.accuracy for result in record.results if result.accuracy is not None]
    checks = [check for check in checks if check.predictions]
    if not checks:
        return None
    differing = {int(index) for check in checks for index in flips(check)}
    shown = sorted(int(key) for key in record.samples if str(key).isdecimal() and str(int(key)) == key)
    cards = tuple(_card(record, index) for index in shown[:_MOST_CARDS])
    return Examples(_summary(len(differing), checks[0].samples, len(cards)), cards)


def image_uri(value: Any) -> str | None:
    """Return a PNG data URI for an image given as nested lists of 0..255, shape (H, W) or (H, W, 3); None for others."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    grey, colour = array.ndim == 2, array.ndim == 3 and array.shape[-1] == 3
    if not (grey or colour) or array.size == 0 or max(array.shape) > _LARGEST_SIDE:
        return None
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 255:
        return None
    return "data:image/png;base64," + base64.b64encode(_png(array.astype(np.uint8))).decode("ascii")


def _card(record: StudyRecord, index: int) -> Card:
    sample = record.samples[str(index)]
    sample = sample if isinstance(sample, dict) else {"value": sample}
    image = image_uri(sample.get("value")) if sample.get("kind") == "image" else None
    text = ""
    if image is None:
        value = sample.get("value")
        text = value[:_LONGEST_TEXT] if isinstance(value, str) else "(This sample cannot be shown.)"
    label = sample.get("label")
    return Card(index, image or "", text, "" if label is None else str(label), _answers(record, index))


def _answers(record: StudyRecord, index: int) -> tuple[Answer, ...]:
    """Group the variants by what they answered; right or wrong is the metric's word, not a comparison of labels."""
    who: dict[int, list[str]] = {}
    right: dict[int, float] = {}
    for result in record.results:
        check = result.accuracy
        # With several predictions a sample (tokens) there is no one answer to name.
        if check is None or len(check.predictions) != check.samples or index >= check.samples:
            continue
        answer = check.predictions[index]
        who.setdefault(answer, []).append(result.recipe.name)
        if len(check.scores) == check.samples:
            right[answer] = check.scores[index]
    words = {1.0: "right", 0.0: "wrong"}
    return tuple(
        Answer(
            "no answer" if answer == NO_PREDICTION else str(answer),
            tuple(names),
            words.get(right.get(answer, -1.0), ""),
        )
        for answer, names in who.items()
    )


def _summary(differing: int, samples: int, cards: int) -> str:
    if not differing:
        return f"Every variant gave the FP32 parent's answer on all {formats.count(samples, 'sample')}."
    words = (
        f"On {differing:,} of {formats.count(samples, 'sample')} at least one variant answers otherwise than the "
        f"FP32 parent."
    )
    if cards >= differing:
        return words + " All of them are shown here."
    if cards:
        return words + f" {formats.count(cards, 'of them is', 'of them are')} shown here."
    return words + " The record holds no pictures or texts of them."


def _png(array: np.ndarray) -> bytes:
    """Encode 8-bit grey (H, W) or RGB (H, W, 3) as PNG (RFC 2083): signature, header, one deflated block, end."""
    height, width = array.shape[:2]
    kind = 0 if array.ndim == 2 else 2
    lines = np.concatenate([np.zeros((height, 1), np.uint8), array.reshape(height, -1)], axis=1)

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9))
        + chunk(b"IEND", b"")
    )
