"""A report's table as the plain columns and rows of a live table. Pure."""

from __future__ import annotations

from typing import Any

from workbench.reports.rows import Cell, Table


def columns(table: Table) -> list[dict[str, Any]]:
    """Return the headings; a column with something to sort by is one of numbers."""
    numeric = [any(row.cells[place].order is not None for row in table.rows) for place in range(len(table.columns))]
    return [
        {"heading": column.heading, "unit": column.unit, "numeric": is_number, "hint": column.group}
        for column, is_number in zip(table.columns, numeric, strict=True)
    ]


def rows(table: Table, best: str) -> list[dict[str, Any]]:
    """Return the rows; the best one of the budget is marked, in words too."""
    made = []
    for row in table.rows:
        is_best = row.variant == best
        name = f"{'★ ' if is_best else ''}{row.variant}{' (baseline)' if row.is_baseline else ''}"
        first = {"text": name, "detail": "best in budget" if is_best else "", "title": row.variant}
        made.append({"key": row.variant, "mark": is_best, "cells": [first, *map(_cell, row.cells[1:])]})
    return made


def _cell(cell: Cell) -> dict[str, Any]:
    return {"text": cell.text, "detail": cell.detail, "mood": cell.mood, "order": cell.order}
