"""The main table as LaTeX with booktabs, to be put into a paper with `\\input`. Pure text."""

from __future__ import annotations

from workbench.judging.standing import compared
from workbench.records import StudyRecord
from workbench.reports.details import title
from workbench.reports.rows import main_table

# What fits the width of a page; the other reports have the rest.
_LEFT_OUT = ("Status", "Arithmetic", "Memory", "Build", "Calibration", "Calls a second")
_SIGNS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "≈": r"$\approx$", "▲": r"$\uparrow$", "▼": r"$\downarrow$", "·": r"$\cdot$", "\u00d7": r"$\times$", "\u2013": "--",
    "“": "``", "”": "''", "\u2019": "'", '"': r"\textquotedbl{}",
}  # fmt: skip


def latex(record: StudyRecord) -> str:
    """Return a `table` environment; the preamble needs `booktabs` and the T1 font encoding.

    Failed variants have a row that says where they failed. The caption says what was measured, on what and how.
    """
    found = main_table(record, compared(record)[0])
    kept = [place for place, column in enumerate(found.columns) if not column.heading.startswith(_LEFT_OUT)]
    head = " & ".join(escape(found.columns[place].line) for place in kept)
    lines = [
        r"% \usepackage{booktabs} \usepackage[T1]{fontenc}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(_caption(record))}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(kept) - 1)}}}",
        r"\toprule",
        rf"{head} \\",
        r"\midrule",
    ]
    failed = {item.recipe.name: item.failure.stage for item in record.results if item.failure is not None}
    for row in found.rows:
        cells = [escape(row.cells[place].line) for place in kept]
        if row.variant in failed:
            cells[0] += f" ({escape(f'failed: {failed[row.variant]}')})"
        lines.append(rf"{' & '.join(cells)} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def escape(text: str) -> str:
    """Return the text so that LaTeX sets it as it is: no command, no comment, one line."""
    return "".join(_SIGNS.get(sign, sign) for sign in " ".join(text.split()))


def _caption(record: StudyRecord) -> str:
    devices = dict.fromkeys(item.measurement.device for item in record.results if item.measurement is not None)
    return (
        f"{title(record)}: {record.backend} on {', '.join(devices) or 'no device'}, batch {record.protocol.batch}, boundary "
        f"{record.protocol.boundary}, {record.protocol.rounds} rounds of fresh processes. Brackets: 99 % intervals of speed, "
        f"95 % of scores."
    )
