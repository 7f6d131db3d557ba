"""What a paper takes from a study: a booktabs table, vector figures, and a notebook that runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import synthetic_study

from workbench import notebook as headless
from workbench import reports
from workbench.errors import StoreError
from workbench.reports.latex import escape, latex


def test_the_table_has_a_row_a_variant_and_equally_many_cells_in_each() -> None:
    text = latex(synthetic_study.study())
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    counts = {len(re.findall(r"(?<!\\)&", line)) for line in rows}
    columns = re.search(r"\\begin\{tabular\}\{(l r*|lr*)\}", text)
    assert len(rows) == 1 + 5 and len(counts) == 1
    assert columns is not None and counts == {len(columns.group(1)) - 1}
    assert "int8-smooth (failed:" in text


def test_what_comes_from_outside_is_no_command() -> None:
    hostile = r"\input{/etc/passwd} & 50% $x$ #1 a_b ~ ^ {"
    assert escape(hostile) == (
        r"\textbackslash{}input\{/etc/passwd\} \& 50\% \$x\$ \#1 a\_b \textasciitilde{} \textasciicircum{} \{"
    )
    record = synthetic_study.study()
    text = latex(replace(record, model=replace(record.model, name=hostile)))
    assert r"\input{" not in text
    unescaped = re.sub(r"\\[{}]", "", text)
    assert unescaped.count("{") == unescaped.count("}")


@pytest.mark.parametrize(("name", "start"), [("f.svg", b"<?xml"), ("f.pdf", b"%PDF"), ("f.png", b"\x89PNG")])
def test_the_figure_is_written_as_it_is_asked_for_and_the_same_each_time(
    tmp_path: Path, name: str, start: bytes
) -> None:
    first = reports.write(synthetic_study.study(), tmp_path / name).read_bytes()
    assert first.startswith(start) and len(first) > 5_000
    assert reports.write(synthetic_study.study(), tmp_path / name).read_bytes() == first
    assert [item.name for item in tmp_path.iterdir()] == [name]


def test_text_of_the_figure_can_be_searched(tmp_path: Path) -> None:
    text = reports.write(synthetic_study.study(), tmp_path / "f.svg").read_text()
    assert "int8-kl" in text and "<script" not in text


def test_the_notebook_is_valid_runs_and_shows_the_table_and_the_figure(tmp_path: Path) -> None:
    path = reports.write(synthetic_study.study(), tmp_path / "study.ipynb")
    assert (tmp_path / "study.record.json").is_file()
    written = nbformat.read(path, as_version=4)
    nbformat.validate(written)
    assert not [cell for cell in written.cells if cell.get("outputs")]
    assert ["parameters"] in [cell.metadata.get("tags") for cell in written.cells]
    for cell in written.cells:
        if cell.cell_type == "code":
            compile(cell.source, "cell", "exec")
    told: list[str] = []
    headless.execute(path, told.append)
    assert "int8" in "".join(told)


def test_names_in_the_notebook_stay_text(tmp_path: Path) -> None:
    record = synthetic_study.study()
    hostile = replace(record, model=replace(record.model, name='<img src=x>"\nimport os'))
    written = json.loads(reports.write(hostile, tmp_path / "s.ipynb").read_text())
    assert "<img" not in written["cells"][0]["source"]
    for cell in written["cells"]:
        if cell["cell_type"] == "code":
            assert "import os" not in cell["source"].splitlines()


def test_another_suffix_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no report with the suffix '.docx'.*\.tex.*\.ipynb"):
        reports.write(synthetic_study.study(), tmp_path / "x.docx")
    (tmp_path / "file").write_text("")
    for name in ("x.svg", "x.ipynb", "x.tex"):
        with pytest.raises(StoreError, match="Cannot write"):
            reports.write(synthetic_study.study(), tmp_path / "file" / name)
