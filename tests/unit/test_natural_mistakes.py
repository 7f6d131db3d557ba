"""What a person naturally passes: it works where the meaning is clear, else one sentence says what to pass."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import onnx
import pytest

import workbench as wb
from workbench import errors
from workbench.__main__ import main


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def model():
    return wb.load("digits_resnet")


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return next(iter(wb.datasets.digits().calibration.inputs.values()))[:16]


@pytest.fixture(scope="module")
def variant(model):
    return wb.transform(model, "fp32")


@pytest.fixture(scope="module")
def engine(variant):
    return wb.build(variant)


def test_a_name_or_path_will_do_for_a_model(model, x, variant) -> None:
    assert wb.transform("digits_resnet", "fp32").sha256 == variant.sha256
    assert wb.transform(Path(model.path), "fp32").sha256 == variant.sha256
    assert wb.load(model) is model
    assert wb.calibrate("digits_resnet", x).table.samples == 16
    app = wb.Workbench("digits_resnet", x)
    assert app.state.selection.model.name == "digits_resnet"
    assert app.state.selection.data.evaluation.inputs
    app.close()


def test_completion_offers_what_is_public_and_nothing_else() -> None:
    assert dir(wb) == sorted([*wb.__all__, "__version__"])
    assert not {"Any", "importlib", "TYPE_CHECKING", "annotations"} & set(dir(wb))


def test_arrays_will_do_for_samples(model, x) -> None:
    by_array = wb.calibrate(model, x, "int8-max")
    by_name = wb.calibrate(model, {model.inputs[0].name: x}, "int8-max")
    assert by_array.table.sha256 == by_name.table.sha256


def test_a_parsed_file_can_be_loaded(model) -> None:
    proto = onnx.load(model.path)
    loaded = wb.load(proto, name="mine")
    assert (loaded.name, loaded.operators) == ("mine", model.operators)
    assert any("no effect" in note for note in wb.load(proto, opset=13).origin.notes)


MISTAKES = {
    "run(protocol)": (lambda m, v, e, x: wb.run(m, None, ["fp32"], protocol=5), r"takes a Protocol, got a int .5."),
    "run(options)": (lambda m, v, e, x: wb.run(m, None, ["fp32"], options=5), "takes a BuildOptions"),
    "run(data)": (lambda m, v, e, x: wb.run(m, x, ["fp32"]), r"takes a Dataset, got a ndarray.*datasets\.arrays"),
    "run(model)": (lambda m, v, e, x: wb.run(5), "run takes a Model, got a int"),
    "run(step)": (lambda m, v, e, x: wb.run(m, None, wb.Quantize()), r"workbench\.Recipe\('mine', \(step,\)\)"),
    "run(unknown)": (lambda m, v, e, x: wb.run("digits_resnett"), "Did you mean 'digits_resnet'"),
    "Study": (lambda m, v, e, x: wb.Study("name"), r"Study\.open\(name\)"),
    "open_runner": (lambda m, v, e, x: wb.open_runner(v), "open_runner takes a Engine, got a Variant"),
    "build": (lambda m, v, e, x: wb.build(m), r"build takes a Variant, got a Model .*transform\(model, 'fp32'\)"),
    "check(model)": (lambda m, v, e, x: wb.check(m, e, wb.datasets.digits()), "check takes a Engine, got a Model"),
    "check(parent)": (lambda m, v, e, x: wb.check(e, m, wb.datasets.digits()), "check takes a Engine, got a Model"),
    "check(data)": (lambda m, v, e, x: wb.check(e, e, x), "check takes a Dataset, got a ndarray"),
    "measure": (lambda m, v, e, x: wb.measure([v], {}), "measure takes a Engine, got a Variant"),
    "measure(protocol)": (lambda m, v, e, x: wb.measure(e, {}, 5), "takes a Protocol, got a int"),
    "compare": (lambda m, v, e, x: wb.compare("a", "b"), r"takes a VariantResult, got a str .'a'.*study\.comparison"),
    "report(name)": (lambda m, v, e, x: wb.report("name"), "There is no study 'name'"),
    "report(number)": (lambda m, v, e, x: wb.report(5), "report takes a StudyRecord, got a int"),
    "layer_costs": (
        lambda m, v, e, x: wb.layer_costs("digits_resnet", x),
        "layer_costs takes a Dataset, got a ndarray",
    ),
    "optimize": (lambda m, v, e, x: wb.optimize("digits_resnet", x, at_most_lost=1), "optimize takes a Dataset"),
    "calibrate": (lambda m, v, e, x: wb.calibrate(m, "samples"), "calibrate takes a Dataset, got a str"),
    "layer_times": (lambda m, v, e, x: wb.layer_times(v, {}), "layer_times takes a Engine, got a Variant"),
    "Workbench": (lambda m, v, e, x: wb.Workbench(x), "Workbench takes a Model, got a ndarray"),
    "load(list)": (lambda m, v, e, x: wb.load([1]), "Cannot load a list"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_cannot_be_meant_is_one_sentence_with_a_remedy(name: str, model, variant, engine, x) -> None:
    call, words = MISTAKES[name]
    with pytest.raises(errors.WorkbenchError, match=words) as caught:
        call(model, variant, engine, x)
    assert "damaged" not in str(caught.value)


FROM_A_MODEL = {
    "run": lambda m, x: wb.run(m, None, ["fp32"]),
    "transform": lambda m, x: wb.transform(m, "fp32"),
    "calibrate": lambda m, x: wb.calibrate(m, x),
    "layer_costs": lambda m, x: wb.layer_costs(m, wb.datasets.digits(), "int8-max"),
    "optimize": lambda m, x: wb.optimize(m, wb.datasets.digits(), at_most_lost=1),
    "preview": lambda m, x: wb.preview(m, "fp32"),
    "ceiling": lambda m, x: wb.ceiling(m, device_name="NVIDIA H200"),
    "for_orin": lambda m, x: wb.for_orin(m, wb.datasets.digits(), "fp32", "never made"),
    "Workbench": lambda m, x: wb.Workbench(m),
}


@pytest.mark.parametrize("state", ["gone", "another model's"])
@pytest.mark.parametrize("verb", FROM_A_MODEL)
def test_a_model_whose_file_is_no_longer_what_was_loaded_is_refused(verb, state, model, x, tmp_path: Path) -> None:
    file = tmp_path / "exported.onnx"
    file.write_bytes(Path(model.path).read_bytes())
    loaded = wb.load(file)
    wb.transform(loaded, "fp32")
    if state == "gone":
        file.unlink()
    else:
        file.write_bytes(Path(wb.load("digits_vit").path).read_bytes())
    with pytest.raises(
        errors.LoadError, match=r"exported\.onnx\) is gone, or was changed since it was loaded. Load it again"
    ):
        FROM_A_MODEL[verb](loaded, x)


def test_one_engine_and_one_candidate_will_do_for_lists(engine, x) -> None:
    protocol = wb.Protocol(batch=4, rounds=1, min_seconds=0.001, min_runs=2, warmup_seconds=0, warmup_runs=1)
    found = wb.measure(engine, {engine.inputs[0].name: x[:4]}, protocol)
    assert list(found) == ["fp32"]


def test_a_model_of_a_library_is_suggested_with_it(monkeypatch) -> None:
    from workbench.models import sources

    with pytest.raises(errors.LoadError, match=r"Did you mean .*'torchvision:resnet50"):
        wb.load("resnet50")
    with pytest.raises(errors.LoadError) as caught:
        wb.load("no_such_network")
    assert "torchvision:no_such_network" not in str(caught.value)

    class Library:
        @staticmethod
        def list_models() -> list[str]:
            return ["strange_net"]

    monkeypatch.setattr(sources.importlib, "import_module", lambda name: Library)
    assert "'torchvision:strange_net' or 'timm:strange_net'" in sources.suggestions("strange_net")


def test_recipes_on_the_command_line_may_stand_apart(capsys) -> None:
    assert main(["run", "digits_resnet", "--data", "digits", "--recipes", "fp32", "no_such,recipe"]) == 1
    assert "There is no recipe 'no_such'" in capsys.readouterr().err


def test_the_demo_of_an_installed_package_says_where_it_is(tmp_path: Path, monkeypatch, capsys) -> None:
    from workbench import zoo

    monkeypatch.setattr(zoo, "data_folder", lambda: tmp_path / "data")
    assert main(["demo"]) == 1
    assert "python -m workbench run digits_resnet" in capsys.readouterr().err


def test_a_study_that_is_told_to_end_ends_like_one_that_is_interrupted(tmp_path: Path) -> None:
    environment = {**os.environ, "WORKBENCH_HOME": str(tmp_path), "WORKBENCH_TURN_FILE": str(tmp_path / "turn")}
    command = [sys.executable, "-m", "workbench", "run", "digits_resnet", "--data", "digits", "--recipes", "fp32"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    store = wb.Store(tmp_path)
    while not store.keys("study") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and "What was finished is kept" in told
    (name,) = store.keys("study")
    assert wb.Study.open(name, store).record.results


VERBS = sorted(name for name in wb._HOMES if inspect.isfunction(getattr(wb, name)))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_answers_a_wrong_argument_with_a_sentence(
    verb: str, model, variant, engine, x, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stands where another thing is wanted: an answer, or an error of ours, never one from inside."""
    monkeypatch.chdir(tmp_path)  # "name" may be taken for a file or folder to write
    call = getattr(wb, verb)
    wanted = [item for item in inspect.signature(call).parameters.values() if item.default is item.empty]
    count = sum(item.kind is item.POSITIONAL_OR_KEYWORD for item in wanted)
    values = (5, "name", None, x, model, variant, engine, wb.datasets.digits(), [model], {"a": 1}, wb.Protocol())
    for first in values:
        for second in ("name", x, 5, None) if count > 1 else (None,):
            arguments = [first, second, "int8-max"][: max(count, 1)]
            try:
                call(*arguments)
            except (errors.WorkbenchError, ValueError, TypeError) as error:
                assert len(str(error)) > 20, (verb, arguments)
                if isinstance(error, TypeError):  # Python's own, of the call itself: too many, not a name
                    assert traceback.extract_tb(error.__traceback__)[-1].name == sys._getframe().f_code.co_name, (
                        verb,
                        error,
                    )
