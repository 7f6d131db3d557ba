"""Widgets whose browser side is ours: a table to work in, and a front that answers. What they show is decided elsewhere."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import anywidget
from traitlets import Bool, Bytes, Dict, List, Unicode

_STATIC = Path(__file__).resolve().parent / "static"


class Table(anywidget.AnyWidget):
    """A table that is sorted by its headings, searched, and in which rows are selected.

    Attributes:
        label, search_label: what it is, for who cannot see it.
        columns: {heading, unit, numeric, hint}; the first one stays in sight.
        rows: {key, mark, cells: [{text, detail, mood, order, title}]}; a cell for each column.
        hidden: headings of columns that are not shown.
        sort: {heading, descending}; no heading keeps the rows' own order.
        multiple, selected: whether several rows can be selected, and the keys of those that are.
    """

    _esm = (_STATIC / "table.js").read_text(encoding="utf-8")

    label = Unicode().tag(sync=True)
    search_label = Unicode("Search in the table").tag(sync=True)
    columns: Any = List().tag(sync=True)
    rows: Any = List().tag(sync=True)
    hidden: Any = List().tag(sync=True)
    sort = Dict({"heading": "", "descending": False}).tag(sync=True)
    multiple = Bool(False).tag(sync=True)
    selected: Any = List().tag(sync=True)

    def show(self, columns: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
        """Show other columns and rows, both at once."""
        with self.hold_sync():
            if self.columns != columns:
                self.columns = columns
            if self.rows != rows:
                self.rows = rows


class Front(anywidget.AnyWidget):
    """Accuracy against latency, drawn in the browser.

    Attributes:
        library: the code of plotly.js, sent once: when the browser has painted the app and asks for it, or with the first figure.
        figure: {data, layout}, see `workbench.ui.live_front`; empty shows nothing.
        words: what it shows, for who cannot see it.
        selected: the variant that was clicked.
    """

    _esm = (_STATIC / "front.js").read_text(encoding="utf-8")

    library = Bytes().tag(sync=True)
    figure = Dict().tag(sync=True)
    words = Unicode().tag(sync=True)
    selected = Unicode().tag(sync=True)

    def __init__(self, **traits: Any) -> None:
        super().__init__(**traits)
        self.on_msg(lambda widget, asked, buffers: self._send_library())

    def draw(self, figure: dict[str, Any], words: str) -> None:
        """Show a figure."""
        self._send_library()
        self.words = words
        self.figure = figure

    def _send_library(self) -> None:
        if not self.library:
            self.library = _plotly()


@functools.cache
def _plotly() -> bytes:
    """Return plotly.js as the Python package brings it: nothing is fetched from a network."""
    spec = importlib.util.find_spec("plotly")
    assert spec is not None and spec.submodule_search_locations is not None
    return (Path(spec.submodule_search_locations[0]) / "package_data" / "plotly.min.js").read_bytes()
