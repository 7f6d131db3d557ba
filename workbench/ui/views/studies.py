"""The page of studies: a table of all in the store, what is said of them, and two of them compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from workbench.reports import formats
from workbench.ui.state import State
from workbench.ui.state.studies import Compared
from workbench.ui.views import controls, markup
from workbench.ui.views.live import Table
from workbench.ui.views.markup import escape, message

_HEADINGS = ("Study", "Date", "Model", "Data", "Backend", "Device", "Variants", "State", "Best", "Tags", "Note")


def studies_page(state: State) -> widgets.Widget:
    """Return the page."""
    session, studies = state.session, state.studies
    table = Table(
        label="Studies in the store",
        search_label="Search studies",
        columns=[{"heading": name, "numeric": name == "Variants"} for name in _HEADINGS],
        hidden=["Device"],
        multiple=True,
    )

    def show() -> None:
        controls.write(table, [_row(row) for row in studies.rows], "rows")

    def choose(change: Any) -> None:
        if tuple(change["new"]) != studies.chosen:
            session.attempt(studies.choose, tuple(change["new"]))

    def look() -> None:
        if session.page == "Studies":
            session.deliver(studies.refresh)

    controls.follow(studies, "rows", show)
    controls.follow(studies, "chosen", lambda: controls.write(table, list(studies.chosen), "selected"))
    table.observe(choose, "selected")
    controls.follow(session, "page", look)
    words, found = controls.html(), controls.html()
    controls.follow(studies, "words", lambda: controls.write(words, f'<p role="status">{message(studies.words)}</p>'))
    controls.follow(studies, "compared", lambda: controls.write(found, comparison(studies.compared)))
    return controls.page(
        controls.html("<h2>Studies</h2>"),
        table,
        *_commands(state),
        words,
        found,
        controls.html("<h3>Yours</h3>"),
        *_said(state),
    )


def _commands(state: State) -> Sequence[widgets.Widget]:
    session, studies = state.session, state.studies
    open_ = controls.button(session, "Open", studies.open, "Show the selected study on the page Results")
    compare = controls.button(
        session, "Compare", studies.compare, "Compare two selected studies, or a selected one with the reference"
    )
    pin = controls.button(session, "Pin as reference", studies.pin, "What other studies are judged against")
    delete = controls.button(
        session, "Delete", studies.delete, "Take the selected studies out of the store; can be undone"
    )
    undo = controls.button(session, "Undo delete", studies.undo, "Bring back the study that was deleted last")

    def show() -> None:
        count = len(studies.chosen)
        is_pinned = studies.chosen == (studies.pinned,)
        controls.write(open_, count != 1, "disabled")
        controls.write(pin, count != 1, "disabled")
        controls.write(pin, "Unpin" if is_pinned else "Pin as reference", "description")
        beside = count == 1 and bool(studies.pinned) and not is_pinned
        controls.write(compare, not (count == 2 or beside), "disabled")
        controls.write(compare, "Compare with reference" if beside else "Compare two", "description")
        controls.write(delete, count == 0, "disabled")
        undo.layout.display = None if studies.deleted else "none"

    controls.follow(studies, ("chosen", "pinned", "deleted"), show)
    return (controls.row(open_, compare, pin, delete, undo),)


def _said(state: State) -> Sequence[widgets.Widget]:
    session, studies = state.session, state.studies
    tags = controls.field(widgets.Text(description="Tags", placeholder="paper, rtx 4090", continuous_update=False))
    note = controls.field(
        widgets.Textarea(description="Note", rows=2, placeholder="What you want to remember"), "700px"
    )
    note.add_class("wb-short")
    keep = controls.button(
        session,
        "Keep tags and note",
        lambda: studies.remark(tags.value, note.value),
        "Keep them with the selected study",
    )
    hint = controls.html("<p class='wb-quiet'>Select one study to write tags and a note for it.</p>")
    box = controls.page(tags, note, controls.actions(keep))

    def show() -> None:
        is_single = len(studies.chosen) == 1
        controls.write(tags, studies.tags)
        controls.write(note, studies.note)
        box.layout.display = None if is_single else "none"
        hint.layout.display = "none" if is_single else None

    controls.follow(studies, ("chosen", "tags", "note"), show)
    return hint, box


def _row(row: dict[str, Any]) -> dict[str, Any]:
    def cell(value: Any, **more: Any) -> dict[str, Any]:
        is_empty = value is None or value != value or value == ""
        return {"text": formats.ABSENT if is_empty else str(value), **more}

    date = row["date"]
    when = None if date is None or date != date else date.timestamp()
    failed = int(row["failed"]) if row["failed"] and row["failed"] == row["failed"] else 0
    return {
        "key": row["name"],
        "mark": bool(row["pinned"]),
        "cells": [
            cell(row["name"], detail="reference" if row["pinned"] else "", title=row["name"]),
            cell(None if when is None else formats.moment(when).removesuffix(" UTC"), title="UTC"),
            *(cell(row[name]) for name in ("model", "data", "backend", "device")),
            cell(
                "" if row["variants"] != row["variants"] else int(row["variants"]),
                detail=f"{failed} failed" if failed else "",
                order=None if row["variants"] != row["variants"] else int(row["variants"]),
            ),
            *(cell(row[name]) for name in ("state", "best", "tags", "note")),
        ],
    }


def comparison(compared: Compared | None) -> str:
    """Return two studies side by side: the verdict stands in the line above."""
    if compared is None:
        return ""
    found = compared.found
    kinds: dict[str, list[str]] = {}
    for finding in compared.found.findings:
        kinds.setdefault(finding.variant, []).append(finding.kind)
    marks = [(escape(name), "▼ " + escape(", ".join(kind))) for name, kind in kinds.items()]
    parts = [f"<h3>{escape(found.after)} against {escape(found.before)}</h3>"]
    parts += [markup.table(("Variant", "Regressed"), marks)] if marks else []
    parts += [markup.comparison(found.comparison)]
    if compared.differences:
        rows = [tuple(f'<span class="wb-name">{escape(part)}</span>' for part in row) for row in compared.differences]
        parts += [
            "<h3>What else is not the same</h3>",
            markup.wrapped(("", escape(found.before), escape(found.after)), rows),
        ]
    else:
        parts += ["<p>Model, data, protocol, recipes and environment are the same.</p>"]
    return "".join(parts)
