"""The preview on the page of recipes: what TensorRT would make of them, without a GPU."""

from __future__ import annotations

import ipywidgets as widgets

from workbench.study.previews import CANNOT_KNOW
from workbench.ui.state import State
from workbench.ui.views import controls
from workbench.ui.views.markup import message, preview_lines


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
        controls.write(lines, preview_lines(previewing.lines))
        for control in (target, show):
            controls.write(control, bool(previewing.absent), "disabled")

    controls.follow(previewing, ("absent", "words", "lines"), tell)
    return widgets.Accordion(
        [controls.page(controls.row(target, show), words, lines, controls.html(message(CANNOT_KNOW), "wb-quiet"))],
        titles=("What TensorRT would make of them (needs no GPU)",),
    )
