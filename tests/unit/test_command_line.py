"""The command line, in this process but with real work: `run`, `report`, `studies`, `doctor`, and their bad input."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import synthetic_study

from workbench import codec, doctor, notebook
from workbench.__main__ import main
from workbench.errors import RunError
from workbench.machine import device
from workbench.machine.store import Store
from workbench.study import catalog
from workbench.zoo import data_folder

SMALL_STUDY = ["run", "digits_resnet", "--data", "digits", "--recipes", "fp32,int8-max", "--rounds", "1"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORKBENCH_HOME", str(tmp_path / "home"))
    return tmp_path


def test_run_report_and_studies_do_the_main_job(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL_STUDY, "--name", "mine"]
    assert main([*arguments, "--report", str(home / "report.html")]) == 0
    output = capsys.readouterr().out
    assert "int8-max" in output and "study: mine" in output
    assert (home / "report.html").stat().st_size > 10_000
    assert main(["report", "mine", str(home / "report.md")]) == 0
    assert "int8-max" in (home / "report.md").read_text()
    assert main(["studies"]) == 0
    assert "mine" in capsys.readouterr().out


def test_run_takes_arrays_from_a_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    np.savez(home / "mine.npz", input=rng.normal(size=(8, 1, 32, 32)).astype(np.float32), labels=rng.integers(0, 10, 8))
    arguments = ["run", "digits_resnet", "--data", str(home / "mine.npz"), "--recipes", "fp32", "--rounds", "1"]
    assert main(arguments) == 0, capsys.readouterr().err


def test_run_reads_a_folder_of_images_at_the_models_size_and_takes_calibration_samples_from_it(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for index in range(12):
        place = home / "images" / str(index % 3)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24), np.uint8)).save(place / f"{index}.png")
    arguments = ["run", "digits_resnet", "--data", str(home / "images"), "--calibration", "4", "--rounds", "1"]
    assert main([*arguments, "--recipes", "fp32, int8-max", "--report", str(home / "r.md")]) == 0, (
        capsys.readouterr().err
    )
    assert "L, 32x32" in (home / "r.md").read_text()


def test_run_reads_text_with_a_tokenizer_and_asks_for_one(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "mine.txt").write_text("def add(left, right):\n    return left + right\n" * 60)
    arguments = ["run", "stdlib_llama", "--data", str(home / "mine.txt"), "--recipes", "fp32", "--rounds", "1"]
    assert main(arguments) == 1
    assert "--tokenizer FOLDER" in capsys.readouterr().err
    assert main([*arguments, "--tokenizer", str(data_folder() / "models" / "stdlib_llama")]) == 0, (
        capsys.readouterr().err
    )
    assert "perplexity" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--rounds", "--batch", "--threads", "--calibration"])
def test_numbers_below_one_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "digits_resnet", option, "0"])
    assert "'0' is not a whole number of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["app"], ["serve", "stdlib_llama", "fp32"]])
@pytest.mark.parametrize("port", ["99999", "-1", "80x"])
def test_what_is_no_port_is_refused(command: list[str], port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command, f"--port={port}"])
    assert f"'{port}' is not a port; those are 0 to 65535" in capsys.readouterr().err


def test_a_failed_variant_makes_the_command_fail(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A file without calibration samples: static quantization cannot work.
    np.savez(home / "mine.npz", input=np.ones((8, 1, 32, 32), np.float32))
    arguments = ["run", "digits_resnet", "--data", str(home / "mine.npz"), "--recipes", "fp32,int8-kl", "--rounds", "1"]
    assert main(arguments) == 1
    assert "failed: int8-kl" in capsys.readouterr().err


@pytest.mark.flaky(reruns=2)  # it measures, layers and ceilings among them
def test_a_variant_is_explained(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL_STUDY, "--name", "why"]
    assert main(arguments) == 0
    capsys.readouterr()
    assert main(["explain", "why", "int8-max", "--report", str(home / "why.html")]) == 0
    assert main(["report", "why", str(home / "all.html"), "--layers", "--reference", "why"]) == 0
    page = (home / "all.html").read_text(encoding="utf-8")
    assert '<h2 id="layers">' in page and "The reference is why" in page
    output = capsys.readouterr().out
    assert "1. INT8 covers " in output and "saved ms" in output
    assert '<h2 id="why">' in (home / "why.html").read_text(encoding="utf-8")
    assert main(["explain", "why", "int8-mix"]) == 1
    assert "no variant 'int8-mix'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "digits_resnot"], "Did you mean 'digits_resnet'"),
        (["run", "digits_resnet", "--recipes", "int8kl"], "Did you mean 'int8-kl'"),
        (["run", "digits_resnet", "--recipes", ""], "--recipes names none"),
        (["preview", "digits_resnet", "--recipes", ","], "--recipes names none"),
        (["run", "no model is looked for", "--report", "x.docx"], "no report with the suffix '.docx'"),
        (["explain", "nothing", "int8-max", "--report", "x.docx"], "no report with the suffix '.docx'"),
        (["report", "nothing", "x.docx", "--layers"], "no report with the suffix '.docx'"),
        (["confirm", "nothing.zip", "--report", "x.csv"], "no report of a confirmation with the suffix '.csv'"),
        (["report", "nothing", "x.html"], "no study 'nothing'"),
        (["run", "no model is looked for", "--threads", "100000"], "more threads than cores wait for each other"),
    ],
)
def test_errors_are_one_line_and_a_status(arguments, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_an_interrupt_says_that_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    assert main(["doctor"]) == 130
    assert "is kept" in capsys.readouterr().err


def test_the_doctor_finds_this_machine_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    output = capsys.readouterr().out
    assert "onnxruntime-cpu" in output and "WRONG" not in output


def test_the_doctor_finds_both_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "version", lambda name: "1.0")
    wrong = [finding for finding in doctor.examine() if finding.state == "wrong"]
    assert any("overwrite" in finding.text and "pip uninstall" in finding.remedy for finding in wrong)


def test_the_doctor_finds_what_is_missing_and_what_mends_it(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(device, "version", lambda name: None)
    monkeypatch.setattr(device, "cpu_flags", lambda: ())
    monkeypatch.setattr(sys, "version_info", (3, 9, 0))
    monkeypatch.setenv("WORKBENCH_DATA", str(home / "nowhere"))
    (home / "file").write_text("")
    monkeypatch.setenv("WORKBENCH_HOME", str(home / "file" / "home"))
    found = {finding.topic: finding for finding in doctor.examine()}
    assert found["python"].state == "wrong"
    assert found["cpu"].state == "note" and "no faster" in found["cpu"].text
    assert "pip install" in found["torch"].remedy
    assert found["store"].state == "wrong"


@pytest.mark.parametrize(
    ("flags", "machine", "state", "said"),
    [
        (("avx2",), "x86_64", "note", "ort-cpu-7bit"),
        (("avx2", "avx512f"), "x86_64", "note", "saturate"),
        (("avx2", "avx512_vnni"), "x86_64", "ok", "in hardware"),
        (("avx2", "avx_vnni"), "x86_64", "ok", "in hardware"),
        (("asimddp", "i8mm"), "aarch64", "ok", "in hardware"),
        ((), "aarch64", "note", "no faster"),
    ],
)
def test_the_doctor_says_how_int8_is_computed_here(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], machine: str, state: str, said: str
) -> None:
    monkeypatch.setattr(device, "cpu_flags", lambda: flags)
    monkeypatch.setattr(device.platform, "machine", lambda: machine)
    found = next(finding for finding in doctor.examine() if finding.topic == "cpu")
    assert found.state == state and said in found.text
    assert ("7 bits" in found.text) is (machine == "x86_64" and state == "note")


def test_a_notebook_is_executed_with_its_output_shown_as_it_comes(home: Path) -> None:
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_markdown_cell("# A title"), nbformat.v4.new_code_cell("print(6 * 7)")]
    nbformat.write(book, home / "book.ipynb")
    shown: list[str] = []
    notebook.execute(home / "book.ipynb", shown.append)
    assert "A title" in shown[0] and any("42" in text for text in shown)


def test_a_notebook_that_raises_is_an_error_with_the_cell(home: Path) -> None:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    nbformat.write(book, home / "book.ipynb")
    with pytest.raises(RunError, match="ZeroDivisionError"):
        notebook.execute(home / "book.ipynb", lambda text: None)


def test_the_demo_finds_its_notebook() -> None:
    assert (data_folder().parent / "notebooks" / "00_quickstart.ipynb").exists()


def test_the_doctor_s_remedies_never_put_one_onnxruntime_over_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"onnxruntime": "1.32.0"}
    monkeypatch.setattr(device, "version", installed.get)
    remedies = [finding.remedy for finding in doctor.examine() if "[gpu]" in finding.remedy]
    assert remedies or not sys.platform.startswith("linux")
    assert all(remedy.startswith("pip uninstall -y onnxruntime && ") for remedy in remedies)


def test_compare_judges_two_studies_or_one_against_the_pinned_one_and_can_fail(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store()
    before = dataclasses.replace(synthetic_study.study(("fp32", "int8-kl")), name="before")
    gone = dataclasses.replace(before, name="after", results=before.results[:1])
    for record in (before, gone):
        store.put("study", record.name, codec.to_json(record))
    assert main(["compare", "before", "before", "--fail-on", "regression"]) == 0
    assert "has not regressed" in capsys.readouterr().out
    assert main(["compare", "before", "after"]) == 0, "it is told, and nothing fails unless that is asked for"
    assert "int8-kl is gone" in capsys.readouterr().out
    assert main(["compare", "before", "after", "--fail-on", "regression"]) == 3
    assert "not the same: Variants that only one has: int8-kl -> " in capsys.readouterr().out
    assert main(["compare", "after"]) == 1
    assert "No study is pinned" in capsys.readouterr().err
    catalog.pin("before", store)
    assert main(["compare", "after", "--fail-on", "regression"]) == 3
    assert main(["compare", "before", "nothing"]) == 1
