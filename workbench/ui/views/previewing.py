"""The preview on the page of recipes: what TensorRT would make of them, without a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets as widgets

from workbench.engines.tensorrt import kernels
from workbench.reports import formats
from workbench.study.previews import CANNOT_KNOW
from workbench.ui.state import State
from workbench.ui.state.previewing import Line
from workbench.ui.views import controls
from workbench.ui.views.layers import type_class, type_style
from workbench.ui.views.markup import escape, message, preview_lines, table


def preview_box(state: State) -> widgets.Widget:
    """Return the folded part of the page."""
    session, previewing = state.session, state.previewing
    target = controls.menu(session, previewing, "For the GPU", "targets", "target")
    show = controls.button(
        session,
        "Preview",
        previewing.show,
        "Build every recipe of the study with TensorRT's builder, and list its kernels",
    )
    words, lines = controls.html(), controls.html()

    def tell() -> None:
        greyed = controls.greyed_words({"preview": previewing.absent}) if previewing.absent else ""
        controls.write(
            words, greyed or (f'<p role="status">{message(previewing.words)}</p>' if previewing.words else "")
        )
        controls.write(lines, preview_lines(previewing.lines) + kernel_lists(previewing.lines))
        for control in (target, show):
            controls.write(control, bool(previewing.absent), "disabled")

    controls.follow(previewing, ("absent", "words", "lines"), tell)
    return widgets.Accordion(
        [controls.page(controls.row(target, show), words, lines, controls.html(message(CANNOT_KNOW), "wb-quiet"))],
        titles=("What TensorRT would make of them (needs no GPU)",),
    )


def kernel_lists(lines: Sequence[Line]) -> str:
    """Return the kernels of each recipe in the order of execution, folded; the colour is the type that a kernel reads."""
    parts = []
    for line in lines:
        if line.found is None:
            continue
        rows = []
        for layer in line.found.layers:
            reads = next((tensor.precision or "" for tensor in layer.inputs), "")
            types = kernels.operands(layer) if layer.kind in kernels.COMPUTING else reads or "?"
            writes = next((tensor.precision or "?" for tensor in layer.outputs), "?")
            mark = f'<i class="wb-type wb-t-{type_class(reads)}{" wb-added" if layer.is_reformat else ""}"></i>'
            made_from = " ".join(layer.modules) or " ".join(layer.nodes) or layer.name
            size = sum(tensor.size_bytes or 0 for tensor in layer.constants)
            cells = (mark + escape(layer.kind), escape(f"{types} → {writes}"), escape(made_from))
            rows.append((*cells, formats.size(size) if size else ""))
        listed = table(("Kernel", "Types", "Made from", "Weights"), rows, numbers=(3,))
        parts.append(
            f"<details><summary>Kernels of <b>{escape(line.recipe)}</b>: {len(rows)}</summary>{listed}</details>"
        )
    return f"<style>{type_style()}</style>{''.join(parts)}" if parts else ""
