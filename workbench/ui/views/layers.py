"""The view of layers: two variants' times as bars by module, coloured by type, and a list in which a click selects."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets as widgets

from workbench.plots.why import type_colours
from workbench.records.formats import milliseconds
from workbench.ui.layer_rows import NO_MODULE, LayerRow, Side, by_module
from workbench.ui.state import State
from workbench.ui.views import controls
from workbench.ui.views.inspection import fusion_box
from workbench.ui.views.markup import error, escape, message

# A browser lays out so many bars at once without a pause; the slowest are shown, and the rest is said.
MOST_BARS = 500
_UNKNOWN = "type not told"


def layers_view(state: State) -> widgets.Widget:
    """Return menus, bars, list and sentences."""
    session, layers = state.session, state.layers
    first = controls.menu(session, layers, "First", "variants", "first")
    second = controls.menu(session, layers, "Second", "variants", "second")
    profile = controls.button(
        session,
        "Profile",
        layers.profile,
        "Time every layer of both variants, in fresh processes",
        button_style="primary",
    )
    cancel = controls.button(session, "Cancel profiling", layers.cancel, "Stop profiling")
    words, bars, reasons = controls.html(), controls.html(), controls.html()

    def tell() -> None:
        controls.write(words, f'<p role="status">{message(layers.words)}</p>{error(layers.error)}')
        controls.write(profile, layers.is_running, "disabled")
        cancel.layout.display = None if layers.is_running else "none"

    def draw() -> None:
        controls.write(bars, layer_bars(layers.shown, layers.names, [layers.rows[place] for place in layers.selected]))

    def say() -> None:
        items = "".join(f"<li>{message(text)}</li>" for text in layers.sentences)
        controls.write(reasons, f"<h3>Why</h3><ol>{items}</ol>" if items else "")

    controls.follow(layers, ("words", "error", "is_running"), tell)
    controls.follow(layers, ("shown", "names", "selected"), draw)
    controls.follow(layers, "sentences", say)
    chosen = _chosen(state)
    return controls.page(
        controls.row(first, second), controls.actions(profile, cancel), words, reasons, *chosen, bars, fusion_box(state)
    )


def _chosen(state: State) -> tuple[widgets.Widget, ...]:
    session, layers = state.session, state.layers
    query = controls.field(
        widgets.Text(
            description="Filter", placeholder="words of a layer, module, node or type", continuous_update=False
        )
    )
    controls.bind(session, layers, "query", query, layers.search)
    found = controls.field(widgets.SelectMultiple(description="Layers", rows=8), "700px")
    keep = controls.button(
        session,
        "Keep in floating point",
        layers.keep,
        "Add a recipe to the study that leaves the chosen layers of the second variant as they were",
    )
    box = controls.page(found, controls.actions(keep))

    def show() -> None:
        places = {id(row): place for place, row in enumerate(layers.rows)}
        found.options = [(_line(row), places[id(row)]) for row in layers.shown]
        box.layout.display = None if layers.rows else "none"
        query.layout.display = None if layers.rows else "none"

    controls.follow(layers, "shown", show)
    controls.bind(session, layers, "selected", found)
    return query, box


def _line(row: LayerRow) -> str:
    before, after = (milliseconds(side.seconds) for side in (row.first, row.second))
    where = row.name if row.module == NO_MODULE else f"{row.module}: {row.name.partition(': ')[2]}"
    return f"{where}  ({before} → {after} ms, {row.second.precision or '-'})"


def layer_bars(rows: Sequence[LayerRow], names: Sequence[str], selected: Sequence[LayerRow] = ()) -> str:
    """Return the rows as bars, grouped by module; empty where there are none."""
    if not rows:
        return ""
    slowest = sorted(rows, key=lambda row: -max(row.first.seconds, row.second.seconds))[:MOST_BARS]
    kept = {id(row) for row in slowest}
    longest = max(slowest[0].first.seconds, slowest[0].second.seconds) or 1.0
    chosen = {id(row) for row in selected}
    parts = []
    for module, group in by_module([row for row in rows if id(row) in kept]).items():
        before, after = (sum(getattr(row, side).seconds for row in group) for side in ("first", "second"))
        body = "".join(_bar(row, names, longest, id(row) in chosen) for row in group)
        parts.append(
            f"<details open><summary><b>{escape(module)}</b> {milliseconds(before)} → {milliseconds(after)} ms</summary>"
            f'<div class="wb-layers">{body}</div></details>'
        )
    rest = len(rows) - len(slowest)
    note = (
        f"<p class='wb-quiet'>The {MOST_BARS} slowest are shown; {rest} more match. Filter to see them.</p>"
        if rest
        else ""
    )
    return f"<style>{type_style()}</style>{_legend(rows, names)}{note}{''.join(parts)}"


def _bar(row: LayerRow, names: Sequence[str], longest: float, is_chosen: bool) -> str:
    sides = "".join(_side(side, name, longest) for side, name in zip((row.first, row.second), names, strict=True))
    nodes = ", ".join(row.nodes) or "added by the engine"
    title = f"{row.module}\nnodes: {nodes}\nwrites: {row.shape or 'not told'}"
    kind = " wb-chosen" if is_chosen else ""
    mark = "▸ " if is_chosen else ""
    label = f'<span class="wb-name">{mark}{escape(row.name)}</span>'
    return f'<div class="wb-layer{kind}" title="{escape(title)}">{label}{sides}</div>'


def _side(side: Side, name: str, longest: float) -> str:
    if not side.layers:
        return f'<span class="wb-bar" title="{escape(name)} runs nothing here"><small>-</small></span>'
    words = side.precision or _UNKNOWN
    title = f"{name}: {', '.join(side.layers)}\n{words}, {milliseconds(side.seconds)} ms, {side.share:.1%} of the call"
    hatch = " wb-added" if side.is_added else ""
    width = 100 * side.seconds / longest
    return (
        f'<span class="wb-bar" title="{escape(title)}"><i class="wb-t-{type_class(side.precision)}{hatch}" '
        f'style="width:{width:.2f}%"></i><small>{milliseconds(side.seconds)} ms {escape(side.precision)}</small></span>'
    )


def _legend(rows: Sequence[LayerRow], names: Sequence[str]) -> str:
    types = dict.fromkeys(
        side.precision.split(" ")[0] for row in rows for side in (row.first, row.second) if side.layers
    )
    keys = "".join(f'<span><i class="wb-t-{type_class(kind)}"></i>{escape(kind) or _UNKNOWN}</span>' for kind in types)
    added = '<span><i class="wb-t-none wb-added"></i>only changes type or layout</span>'
    heads = "".join(f"<b>{escape(name)}</b>" for name in names)
    return f'<div class="wb-legend">{keys}{added}</div><div class="wb-layer wb-heads"><b>Layer</b>{heads}</div>'


def type_class(precision: str) -> str:
    """Return what the colour of a type is called in the style; `none` for one that has none."""
    known = precision.split(" ")[0]
    return known if known in type_colours() and known else "none"


def type_style() -> str:
    """Return the colours of types as style rules, for light and dark."""
    light, dark = (
        {name or "none": colour for name, colour in type_colours(theme).items()} for theme in ("light", "dark")
    )
    rules = [f".workbench .wb-t-{name} {{ background-color: {colour}; }}" for name, colour in light.items()]
    rules += [
        f'[data-jp-theme-light="false"] .workbench .wb-t-{name} {{ background-color: {colour}; }}'
        for name, colour in dark.items()
    ]
    return "\n".join(rules)
