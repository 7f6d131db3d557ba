"""The sections of a report that explain: why in sentences, and layer by layer with figures. Formats only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from workbench import plots
from workbench.explaining.explanation import Explanation
from workbench.reports import formats

_MOST_ROWS = 10
_Kind = Literal["times", "precision", "roofline", "errors"]
_OF_LAYERS: tuple[tuple[_Kind, str], ...] = (
    ("times", "Both variants' layers side by side, joined by the nodes that they stand for."),
    ("precision", "Each cell is a layer: its colour the type that it computes in, its height its time."),
)
_OF_REASONS: tuple[tuple[_Kind, str], ...] = (
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
    """One explanation as the template shows it: what is said, and what is drawn of it."""

    name: str
    anchor: str
    sentences: tuple[str, ...]
    figures: tuple[WhyFigure, ...]


@dataclass(frozen=True)
class Layers:
    """Both variants' layers as the template shows them: figures, and the rows that matter most.

    Attributes:
        words: what the two stand for, and how much of a call is in them.
    """

    name: str
    baseline: str
    words: str
    figures: tuple[WhyFigure, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def whys(explanations: Sequence[Explanation]) -> list[Why]:
    """Return what is said of each variant that was explained."""
    return [
        Why(found.variant, f"why-{place}", found.sentences, _figures(found, _OF_REASONS))
        for place, found in enumerate(explanations)
    ]


def layers(explanations: Sequence[Explanation]) -> list[Layers]:
    """Return the layers of each variant that was explained, beside the baseline's."""
    return [_layers(found) for found in explanations if found.evidence.variant.layers]


def lines(explanations: Sequence[Explanation]) -> list[tuple[str, tuple[str, ...]]]:
    """Return variant and sentences of each explanation, for Markdown."""
    return [(found.variant, found.sentences) for found in explanations]


def _layers(found: Explanation) -> Layers:
    table = found.against_baseline()
    changed = table["saved ms"].abs().sort_values(ascending=False).head(_MOST_ROWS).index
    shown = table.loc[sorted(changed)]
    ours, theirs = found.evidence.baseline, found.evidence.variant
    times = " and ".join(
        f"{formats.milliseconds(one.layer_seconds)} ms in {formats.count(len(one.layers), 'layer')} of {one.variant}"
        for one in {one.variant: one for one in (ours, theirs)}.values()
    )
    return Layers(
        found.variant,
        ours.variant,
        f"{times}, while they were profiled; profiling slows a call down. The table has what changed most, the "
        f"largest loss first.",
        _figures(found, _OF_LAYERS),
        tuple(str(name) for name in table.columns),
        tuple(tuple(_cell(value) for value in row) for row in shown.itertuples(index=False)),
    )


def _figures(found: Explanation, kinds: Sequence[tuple[_Kind, str]]) -> tuple[WhyFigure, ...]:
    return tuple(_figure(found, key, caption) for key, caption in kinds if _can_draw(found, key))


def _can_draw(found: Explanation, key: str) -> bool:
    if key == "errors":
        return found.evidence.noise is not None and bool(found.evidence.noise.layers)
    return bool(found.evidence.variant.layers) and (key != "roofline" or found.evidence.ceilings is not None)


def _figure(found: Explanation, key: _Kind, caption: str) -> WhyFigure:
    light, dark = (plots.svg(found.figure(key, theme)) for theme in ("light", "dark"))  # type: ignore[arg-type]
    return WhyFigure(key, light, dark, f"{found.variant}: {caption}", caption)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
