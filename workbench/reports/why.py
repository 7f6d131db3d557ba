"""The section of a report that says why: explanations as sentences, a table and figures. Formats only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workbench import plots
from workbench.explaining.explanation import Explanation

_MOST_ROWS = 10
_FIGURES: tuple[tuple[Literal["times", "precision", "roofline", "errors"], str], ...] = (
    ("times", "Both variants' layers side by side, joined by the nodes that they stand for."),
    ("precision", "Each cell is a layer: its colour the type that it computes in, its height its time."),
    ("roofline", "How near each layer is to what this machine can do."),
    ("errors", "What each layer loses at the output, lowered alone and left out."),
)


@dataclass(frozen=True)
class WhyFigure:
    """A figure in both themes as SVG text."""

    key: str
    light: str
    dark: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Why:
    """One explanation as the template shows it."""

    name: str
    anchor: str
    sentences: tuple[str, ...]
    figures: tuple[WhyFigure, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def whys(explanations: Sequence[Explanation]) -> list[Why]:
    """Return what the template shows of explanations."""
    return [_why(found, place) for place, found in enumerate(explanations)]


def lines(explanations: Sequence[Explanation]) -> list[tuple[str, tuple[str, ...]]]:
    """Return variant and sentences of each explanation, for Markdown."""
    return [(found.variant, found.sentences) for found in explanations]


def _why(found: Explanation, place: int) -> Why:
    table = found.against_baseline().head(_MOST_ROWS)
    rows = tuple(tuple(_cell(value) for value in row) for row in table.itertuples(index=False))
    return Why(
        found.variant,
        f"why-{place}",
        found.sentences,
        tuple(_figure(found, key, caption) for key, caption in _FIGURES if _can_draw(found, key)),
        tuple(str(name) for name in table.columns),
        rows,
    )


def _can_draw(found: Explanation, key: str) -> bool:
    if key == "errors":
        return found.evidence.noise is not None and bool(found.evidence.noise.layers)
    return bool(found.evidence.variant.layers) and (key != "roofline" or found.evidence.ceilings is not None)


def _figure(found: Explanation, key: Literal["times", "precision", "roofline", "errors"], caption: str) -> WhyFigure:
    light, dark = (plots.svg(found.figure(key, theme)) for theme in ("light", "dark"))  # type: ignore[arg-type]
    alt = f"{found.variant}: {caption} The ten largest losses are in the table below."
    return WhyFigure(key, light, dark, re.sub(r"\s+", " ", alt), caption)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
