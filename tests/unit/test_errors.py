"""In a notebook an error of the workbench is its message and the caller's own line; every other error is left as it is."""

from __future__ import annotations

import nbclient
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output


@pytest.fixture(scope="module")
def shell() -> InteractiveShell:
    made = InteractiveShell.instance()
    made.colors = "nocolor"
    made.run_cell("import workbench as wb")
    return made


def shown(shell: InteractiveShell, cell: str) -> str:
    with capture_output() as captured:
        shell.run_cell(cell)
    return captured.stdout + captured.stderr


def test_a_mistake_shows_the_message_and_the_line_of_the_cell(shell) -> None:
    text = shown(shell, "x = 1\nmodel = wb.load('no_such_model.onnx')")
    assert "line 2: model = wb.load('no_such_model.onnx')" in text
    assert "LoadError: There is no file" in text and "WORKBENCH_TRACEBACK=1" in text
    assert len(text.splitlines()) < 8 and "workbench/models" not in text


def test_a_mistake_in_a_function_of_the_users_names_the_line_that_called_us(shell) -> None:
    shell.run_cell("def mine(name):\n    return wb.load(name)")
    assert "line 2: return wb.load(name)" in shown(shell, "mine('no_such_model.onnx')")


def test_all_of_it_is_shown_where_that_is_asked_for(shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKBENCH_TRACEBACK", "1")
    text = shown(shell, "wb.load('no_such_model.onnx')")
    assert "Traceback" in text and "onnx_file.py" in text


def test_other_errors_keep_their_traceback(shell) -> None:
    assert "ZeroDivisionError" in shown(shell, "1 / 0")
    assert "WORKBENCH_TRACEBACK" not in shown(shell, "1 / 0")


@pytest.mark.parametrize(
    ("cell", "line"),
    [
        ("x = 1\nwb.load('resnet50')", "line 2: wb.load('resnet50')"),
        ("def mine(name):\n    return wb.load(name)\nmine('resnet50')", "line 2: return wb.load(name)"),
        ("%%time\nwb.load('resnet50')", None),
    ],
)
def test_a_kernel_sends_the_message_and_the_line_of_the_cell_alone(cell: str, line: str | None) -> None:
    first, second = (nbformat.v4.new_code_cell(source) for source in ("import workbench as wb", cell))
    notebook = nbformat.v4.new_notebook(cells=[first, second])
    nbclient.NotebookClient(notebook, allow_errors=True, timeout=120, kernel_name="python3").execute()
    (error,) = [output for output in notebook.cells[1].outputs if output.output_type == "error"]
    lines = "\n".join(error.traceback).splitlines()
    assert error.ename == "LoadError" and lines[-1] == "(all of the traceback: set WORKBENCH_TRACEBACK=1)"
    assert lines[-2].startswith("LoadError: Cannot load 'resnet50'")
    # A magic compiles the cell itself, so that no line of it can be shown.
    assert lines[:-2] == ([] if line is None else [line, ""])
