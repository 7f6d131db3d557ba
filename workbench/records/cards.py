"""How a record shows itself where it is the last expression of a cell: a line of text, or a small card.

A record can hold megabytes; a card has what a person asks first, and says where the rest is. Knows no record.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Sized
from typing import Protocol

# Of a long list so many are shown, and then how many more there are.
MOST = 8
_LONGEST_LINE = 160
_LONGEST_FACT = 600
Facts = Iterator[tuple[str, str]]


class _Spec(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def shape(self) -> tuple[int | None, ...]: ...


class Card:
    """What a record inherits to be shown short; it says its headline and its facts."""

    def _headline(self) -> str:
        """Return the record in a line, without its type."""
        raise NotImplementedError

    def _facts(self) -> Facts:
        """Yield what a card lists, in order: name and text; an empty text is left out."""
        yield from ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({short(self._headline())})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><th style="text-align: left; white-space: nowrap">{html.escape(name)}</th>'
            f'<td style="text-align: left; overflow-wrap: anywhere">{html.escape(short(text, _LONGEST_FACT))}</td></tr>'
            for name, text in self._facts()
            if text
        )
        title = f"<b>{html.escape(type(self).__name__)}</b> {html.escape(short(self._headline(), _LONGEST_FACT))}"
        return f'<div style="max-width: 60em"><p>{title}</p><table>{rows}</table></div>'


def short(text: str, longest: int = _LONGEST_LINE) -> str:
    """Return a text in one line, cut where it is longer."""
    line = " ".join(text.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def more(values: Sized) -> str:
    """Return ` and 5 more` where not all of these are shown."""
    rest = len(values) - MOST
    return f" and {rest} more" if rest > 0 else ""


def specs(found: Iterable[_Spec]) -> str:
    """Return inputs or outputs with type and shape: `image float32 any x 3 x 16 x 16`."""
    told = []
    for spec in found:
        axes = " x ".join("any" if axis is None else str(axis) for axis in spec.shape)
        told.append(f"{spec.name} {spec.dtype} {axes}".strip())
    return ", ".join(told[:MOST]) + more(told)
