"""The view of the graph: the network drawn by Graphviz in the browser; a click chooses a box."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from traitlets import Unicode

from workbench.study.node_types import TYPES
from workbench.ui.state import State
from workbench.ui.state.graph import COLOURS, DETAILS
from workbench.ui.views import controls
from workbench.ui.views.markup import escape, message

_EXPORT = "export {\n  widget_default as default\n};"
# Graphviz comes to the browser in the Python package graphviz-anywidget; what it lacks is to tell of a click.
_CLICKS = """
const told = {
  initialize: widget_default.initialize,
  render: async ({ model, el }) => {
    el.classList.add("wb-graph");
    // It scrolls, so the keyboard must reach it; a Box of ipywidgets takes no tab stop.
    Object.assign(el, { tabIndex: 0, role: "region", ariaLabel: "Graph of the network" });
    el.addEventListener("click", (event) => {
      const box = event.target.closest?.("g.node");
      const name = box?.querySelector("title")?.textContent ?? box?.dataset.name;
      if (box) { model.set("clicked", `${name} ${Date.now()}`); model.save_changes(); }
    }, true);
    return widget_default.render({ model, el });
  },
};
export default told;
"""


def graph_view(state: State) -> widgets.Widget:
    """Return menus, the graph and what can be done with a chosen box."""
    session, graph, results = state.session, state.graph, state.results
    variant = controls.menu(session, graph, "Variant", "variants", "variant")
    colour = controls.field(widgets.Dropdown(description="Colour by", options=COLOURS), "320px")
    detail = controls.field(widgets.Dropdown(description="A box is", options=list(DETAILS)), "320px")
    controls.bind(session, graph, "colour", colour)
    controls.bind(session, graph, "detail", detail)
    keep = controls.button(
        session, "Keep in floating point", graph.keep, "Add a recipe that leaves the chosen box as it was"
    )
    only = controls.button(
        session, "Lower this alone", graph.only, "Add a recipe that lowers the chosen box and nothing else"
    )
    kind = controls.field(widgets.Dropdown(description="Type", options=TYPES), "220px")
    give = controls.button(
        session,
        "Give it this type",
        lambda: graph.give(kind.value),
        "Add a recipe in which the chosen box has this type and everything else the one that it has",
    )
    greyed = controls.html("", "wb-quiet")
    wheel = widgets.Checkbox(description="Zoom with the wheel", indent=False, tooltip="Else the wheel scrolls the page")
    words, legend, chosen = controls.html(), controls.html(), controls.html()
    box = controls.field(widgets.Dropdown(description="Box", options=[("none", "")]))
    place = widgets.Box([])
    place.add_class("wb-graph-place")

    def draw() -> None:
        if not graph.dot:
            return
        if not place.children:
            made = _widget()(dot_source=graph.dot, freeze_scroll=True)
            made.observe(lambda change: session.attempt(graph.choose, change["new"].split(" ")[0]), "clicked")
            place.children = (made,)
        controls.write(place.children[0], graph.dot, "dot_source")

    def list_boxes() -> None:
        boxes = () if graph.found is None else graph.found.boxes
        lines = [("none", ""), *((each.label.replace("\n", ", "), str(index)) for index, each in enumerate(boxes))]
        if list(box.options) != lines:
            box.options = lines
        box.value = graph.place if graph.place in [value for _, value in lines] else ""

    def pick(change: Any) -> None:
        if change["new"] and change["new"] != graph.place:
            session.attempt(graph.choose, change["new"])

    def look() -> None:
        if results.view == "Graph" and results.record is not None and graph.found is None:
            session.deliver(graph.draw)

    def zoom(change: Any) -> None:
        if place.children:
            place.children[0].freeze_scroll = not wheel.value

    def tell() -> None:
        controls.write(words, f'<p role="status">{message(graph.words)}</p>')
        kept = f"<p role='status'>Chosen: <b class='wb-name'>{escape(graph.chosen_words)}</b></p>"
        hint = "<p class='wb-quiet'>Click a box to choose it, or take it from the menu; drag to move the graph.</p>"
        controls.write(chosen, kept if graph.chosen_words else hint)
        for button in (keep, only, give):
            controls.write(button, not graph.chosen, "disabled")
        keys = "".join(
            f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for colour, name in graph.legend
        )
        controls.write(legend, f'<div class="wb-legend">{keys}</div>' if keys else "")

    def list_types() -> None:
        refused = graph.refused()
        there = tuple(name for name in TYPES if name not in refused)
        if tuple(kind.options) != there:
            kind.options = there
        controls.write(greyed, controls.greyed_words(refused))

    controls.follow(graph.plan, "reasons", list_types)
    controls.follow(graph, "dot", draw)
    controls.follow(graph, ("found", "place"), list_boxes)
    box.observe(pick, "value")
    controls.follow(graph, ("words", "chosen_words", "chosen", "legend"), tell)
    controls.follow(results, ("view", "record"), look)
    wheel.observe(zoom, "value")
    return controls.page(
        controls.row(variant, colour, detail),
        words,
        legend,
        chosen,
        controls.row(box, wheel),
        controls.row(keep, only, kind, give),
        greyed,
        place,
    )


@functools.cache
def _widget() -> Any:
    """Return Graphviz as a widget that tells which box was clicked: `<place> <moment>`."""
    import graphviz_anywidget

    text = (Path(graphviz_anywidget.__file__).parent / "static" / "widget.js").read_text(encoding="utf-8")
    assert _EXPORT in text, "another release of graphviz-anywidget ends its module in another way"

    class Clickable(graphviz_anywidget.GraphvizAnyWidget):
        """A graph."""

        _esm = text.replace(_EXPORT, _CLICKS)
        clicked = Unicode().tag(sync=True)

    return Clickable
