"""A study rendered for a reader: HTML, Markdown, CSV, JSON and a DataFrame. Pure formatting, nothing is measured."""

from __future__ import annotations

from workbench.reports.files import json, report, write
from workbench.reports.page import html
from workbench.reports.plain import csv, frame, markdown, table

__all__ = ["csv", "frame", "html", "json", "markdown", "report", "table", "write"]
