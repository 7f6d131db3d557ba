"""A study as a notebook that lives: it opens the record beside it, draws everything anew, and measures again on demand.

Written as JSON of the notebook format 4.5 (https://nbformat.readthedocs.io), so that nothing needs to be installed to
write it. Outputs are left out: they come from running it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.records import StudyRecord
from workbench.reports.code import literal, reproduce
from workbench.reports.details import facts, title
from workbench.reports.plain import escape


def record_name(path: Path) -> str:
    """Return the name of the record that lies beside a notebook."""
    return f"{path.stem}.record.json"


def notebook(record: StudyRecord, record_file: str) -> str:
    """Return the notebook.

    Args:
        record_file: name of the record that the notebook opens, in its own folder.
    """
    again = "\n".join(f"    {line}" for line in reproduce(record).splitlines() if not line.startswith("study.report"))
    cells = [
        _text(
            f"# {escape(title(record))}\n\n{escape(' · '.join(facts(record)))}\n\nEverything below comes from the record "
            f"{escape(record_file)}, raw samples included. To measure again on this machine, set `measure_again`, after "
            f"naming your model and data in the last cell but one."
        ),
        _code("import workbench as wb"),
        _code(f"record = {literal(record_file)}\nmeasure_again = False", tags=["parameters"]),
        _code("study = wb.Study.open(record)\nstudy.table()"),
        _code("study.plot()"),
        _code("print(study.best().words)"),
        _code(f"if measure_again:\n{again}"),
        _code("assert study.record.results, 'the record holds no variant'"),
    ]
    for index, cell in enumerate(cells):
        cell["id"] = f"cell-{index}"
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1)


def _text(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": source}


def _code(source: str, tags: list[str] | None = None) -> dict[str, Any]:
    metadata = {} if tags is None else {"tags": tags}
    return {"cell_type": "code", "execution_count": None, "metadata": metadata, "outputs": [], "source": source}
