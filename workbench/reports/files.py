"""Where a report goes: a file by its suffix, or a folder with all four."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from workbench import codec, plots
from workbench.errors import StoreError, expect, nearest
from workbench.explaining.explanation import Explanation
from workbench.machine import disk
from workbench.machine.store import Store, write_text
from workbench.records import StudyRecord
from workbench.reports import living
from workbench.reports.latex import latex
from workbench.reports.page import html
from workbench.reports.plain import csv, markdown


def json(record: StudyRecord) -> str:
    """Return the study itself as JSON, raw samples included; `Study.open` reads it."""
    return codec.to_json(codec.portable(record), indent=1)


_WRITERS: dict[str, Callable[..., str]] = {
    ".html": html,
    ".htm": html,
    ".md": markdown,
    ".csv": csv,
    ".json": json,
    ".tex": latex,
}
_FIGURES = (".svg", ".pdf", ".png")
_IN_A_FOLDER = ("report.html", "report.md", "report.csv", "study.json")


def write(
    record: StudyRecord,
    path: str | Path,
    explanations: Sequence[Explanation] = (),
    reference: StudyRecord | None = None,
) -> Path:
    """Write a report and return where it is; a file that was there is replaced at once or not at all.

    Args:
        explanations: from `workbench.explain`, for sections of `.html` and `.md`; the others have no place for them.
        reference: another study, for a section of both that says what is unlike it.
        path: a file `.html`, `.md`, `.csv` or `.json`; `.tex` (a booktabs table); `.svg`, `.pdf` or `.png` (the figure);
            `.ipynb` (a notebook that draws from the record, which is written beside it as `<name>.record.json`); or a folder
            (no suffix, or one that exists), made where it is missing, which gets the first four.

    Raises:
        StoreError: the suffix is none of these, or the place cannot be written.
    """
    path = Path(path)
    if path.is_dir() or not path.suffix:
        for name in _IN_A_FOLDER:
            write(record, path / name, explanations, reference)
        return path
    refuse_unknown(path)
    suffix = path.suffix.lower()
    told = {"explanations": explanations, "reference": reference} if suffix in (".html", ".htm", ".md") else {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if suffix in _FIGURES:
            _draw(record, path)
        elif suffix == ".ipynb":
            write_text(path.with_name(living.record_name(path)), json(record))
            write_text(path, living.notebook(record, living.record_name(path)))
        else:
            write_text(path, _WRITERS[suffix](record, **told))
    except OSError as error:
        raise StoreError(f"Cannot write {path}: {error}. Choose a place that can be written.") from error
    return path


def refuse_unknown(path: Path) -> None:
    """Refuse a place whose suffix says a kind of report that is not written; a folder, there or not yet, is no such place.

    Raises:
        StoreError: it does.
    """
    if path.is_dir() or path.suffix.lower() in ("", *_WRITERS, *_FIGURES, ".ipynb"):
        return
    raise StoreError(
        f"There is no report with the suffix {path.suffix!r} ({path.name}). Take .html, .md, .csv or .json, or a "
        f"folder for all four; .tex, .svg, .pdf or .png for a paper; .ipynb for a notebook."
    )


def _draw(record: StudyRecord, path: Path) -> None:
    """Write the figure of accuracy against latency, whole or not at all; text stays text that can be searched."""
    import matplotlib as mpl

    kind = path.suffix.lower().removeprefix(".")
    # No date: the same study makes the same file.
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
    with (
        disk.whole_file(path) as unfinished,
        mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": record.name, "pdf.fonttype": 42}),
    ):
        plots.front(record).savefig(unfinished, format=kind, metadata=metadata, bbox_inches="tight")


def report(study: Any, path: str | Path = "report.html", explanations: Sequence[Explanation] = ()) -> Path:
    """Write a study for a reader: `.html`, `.md`, `.csv`, `.json`, or a folder with all four; or for a paper, see `write`.

    Args:
        study: a Study, its StudyRecord, or its name in the default store.
        path, explanations: see `write`.

    Raises:
        StoreError: the suffix is none of these, the place cannot be written, or there is no such study.
    """
    record = _stored(study) if isinstance(study, str) else getattr(study, "record", study)
    expect(record, StudyRecord, "report", "Open one with workbench.Study.open(name), or pass its name.", StoreError)
    return write(record, path, explanations)


def _stored(name: str) -> StudyRecord:
    store = Store()
    text = store.get("study", name)
    if text is None:
        raise StoreError(f"There is no study {name!r} in {store.root}. {nearest(name, store.keys('study'))}")
    return codec.from_json(StudyRecord, text)
