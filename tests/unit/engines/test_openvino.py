from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import workbench as wb
from workbench import engines
from workbench.datasets import Dataset
from workbench.engines import onnxruntime
from workbench.engines import openvino as backend
from workbench.errors import BuildError, EngineError, RunError, UnsupportedOperator
from workbench.machine.store import Store
from workbench.records import BuildOptions, Engine, Model, Variant

absent = backend.missing("openvino")
needs_openvino = pytest.mark.skipif(absent is not None, reason=str(absent))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def model(store: Store) -> Model:
    return wb.load("digits_vit", store=store)


@pytest.fixture(scope="module")
def data(model: Model) -> Dataset:
    return wb.datasets.digits().bound_to(model)


@pytest.fixture(scope="module")
def feeds(data: Dataset) -> dict[str, np.ndarray]:
    return {name: array[:32] for name, array in data.evaluation.inputs.items()}


def variant_of(model: Model, recipe: str, store: Store, data: Dataset | None = None) -> Variant:
    table = None
    if data is not None and data.calibration is not None:
        table = wb.calibrate(model, data.calibration.take(range(64)), recipe, dialect="strong")
    return wb.transform(model, recipe, dialect=backend.dialect("openvino"), table=table, store=store)


def built(variant: Variant, store: Store, **options: object) -> Engine:
    return engines.build(variant, "openvino", BuildOptions(**options), store=store)  # type: ignore[arg-type]


def answers(variant: Variant, store: Store, feeds: dict[str, np.ndarray]) -> np.ndarray:
    with engines.open_runner(built(variant, store)) as runner:
        return runner.infer(feeds)["logits"]


def on_onnxruntime(path: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    with onnxruntime.open_file(path, "off", 1) as runner:
        return runner.infer(feeds)["logits"]


@needs_openvino
@pytest.mark.parametrize("recipe", ["fp32", "fp16", "int8-max", "int8-weights"])
def test_it_answers_like_onnx_runtime_on_the_same_file(
    model: Model, data: Dataset, store: Store, feeds: dict[str, np.ndarray], recipe: str
) -> None:
    variant = variant_of(model, recipe, store, data if recipe == "int8-max" else None)
    ours, theirs = answers(variant, store, feeds), on_onnxruntime(variant.path, feeds)
    # FP32: other sums. Lower types: a value on the edge between two steps may fall to either side.
    tolerance = 1e-4 if recipe == "fp32" else 2e-2
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()
    assert (ours.argmax(1) == theirs.argmax(1)).mean() >= 31 / 32


@needs_openvino
def test_bf16_is_computed_and_near_fp32(model: Model, store: Store, feeds: dict[str, np.ndarray]) -> None:
    engine = built(variant_of(model, "bf16", store), store)
    exact = on_onnxruntime(model.path, feeds)
    with engines.open_runner(engine) as runner:
        error = np.abs(runner.infer(feeds)["logits"] - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 3e-2  # 8 bits of significand; zero would mean that FP32 was computed


@needs_openvino
@pytest.mark.parametrize("boundary", ["compute", "end_to_end"])
def test_the_stopwatch_runs_and_answers_stay_right(
    model: Model, store: Store, feeds: dict[str, np.ndarray], boundary: str
) -> None:
    with engines.open_runner(built(variant_of(model, "fp32", store), store), threads=1) as runner:
        before = runner.infer(feeds)["logits"]
        watch = runner.stopwatch(feeds, boundary)  # type: ignore[arg-type]
        assert 0 < watch() < 60
        assert runner.conditions() == {}
        smaller = {name: array[:3] for name, array in feeds.items()}
        np.testing.assert_allclose(runner.infer(smaller)["logits"], before[:3], rtol=1e-3, atol=1e-4)


@needs_openvino
def test_outputs_are_the_callers_own(model: Model, store: Store, feeds: dict[str, np.ndarray]) -> None:
    with engines.open_runner(built(variant_of(model, "fp32", store), store)) as runner:
        first = runner.infer(feeds)["logits"]
        kept = first.copy()
        runner.infer({name: array[::-1].copy() for name, array in feeds.items()})
        assert (first == kept).all()


@needs_openvino
def test_what_is_ignored_or_not_computed_is_noted(model: Model, store: Store) -> None:
    fp16 = variant_of(model, "fp16", store)
    assert any("storage only" in note for note in built(fp16, store).notes)
    unfused = built(variant_of(model, "fp32-unfused", store), store, workspace_bytes=1)
    assert any("always fuses" in note for note in unfused.notes)
    assert any("'workspace_bytes'" in note for note in unfused.notes)
    assert any("TF32" in note for note in built(variant_of(model, "tf32", store), store).notes)


@needs_openvino
def test_a_cpu_without_bf16_is_noted(model: Model, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_given_type", lambda compiled: "f32")
    assert any("no BF16 arithmetic" in note for note in built(variant_of(model, "bf16", store), store).notes)


@needs_openvino
def test_unknown_operators_are_named(model: Model, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "odd.onnx"
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "yz"]
    nodes = [helper.make_node("Odd", ["x"], ["y"], domain="my.own"), helper.make_node("Det", ["x"], ["z"])]
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my.own", 1)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [value], outputs), opset_imports=imports), path)
    assert sorted(backend.lacks("openvino", path)) == ["Det", "my.own.Odd"]
    assert backend.lacks("openvino", Path(model.path)) == {}
    odd = replace(variant_of(model, "fp32", store), path=str(path))
    with pytest.raises(UnsupportedOperator, match="Det"):
        built(odd, store)


@needs_openvino
def test_a_damaged_file_is_a_build_error(model: Model, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"abc")
    with pytest.raises(BuildError, match="refuses the model"):
        built(replace(variant_of(model, "fp32", store), path=str(path)), store)
    with pytest.raises(BuildError, match="refuses the model"):
        backend.lacks("openvino", path)


@needs_openvino
def test_an_engine_that_is_gone_or_damaged_is_an_engine_error(model: Model, store: Store, tmp_path: Path) -> None:
    engine = built(variant_of(model, "fp32", store), store)
    with pytest.raises(EngineError, match="is gone"):
        engines.open_runner(replace(engine, path=str(tmp_path / "none.onnx")))
    with pytest.raises(EngineError, match="cannot be opened"):
        engines.open_runner(replace(engine, folder=str(tmp_path)))


@needs_openvino
def test_feeds_that_do_not_fit_and_a_closed_runner_are_refused(
    model: Model, store: Store, feeds: dict[str, np.ndarray]
) -> None:
    opened = engines.open_runner(built(variant_of(model, "fp32", store), store))
    with opened as runner, pytest.raises(RunError, match="takes the inputs"):
        runner.infer({"x": feeds["image"]})
    with pytest.raises(RunError, match="closed"):
        runner.infer(feeds)


@needs_openvino
@pytest.mark.parametrize(
    ("axes", "threads", "message"),
    [(("ab", "cd"), None, "Check the sizes of the dynamic axes"), (("ab", "ab"), 1, "calls these axes 'a'")],
)
def test_sizes_that_contradict_each_other_are_a_run_error(
    store: Store, tmp_path: Path, axes: tuple[str, str], threads: int | None, message: str
) -> None:
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, list(axis))
        for name, axis in zip("xy", axes, strict=True)
    ]
    result = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["e", "f"])
    graph = helper.make_graph([helper.make_node("Add", ["x", "y"], ["z"])], "g", values, [result])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    variant = wb.transform(wb.load(tmp_path / "m.onnx", store=store), "fp32", store=store)
    with engines.open_runner(built(variant, store, threads=threads)) as runner, pytest.raises(RunError, match=message):
        runner.infer({"x": np.ones((2, 3), np.float32), "y": np.ones((4, 2), np.float32)})


def test_without_the_library_the_remedy_is_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert "trt-workbench[openvino]" in str(backend.missing("openvino"))


@needs_openvino
def test_layers_tell_what_they_read_and_write(
    model: Model, store: Store, data: Dataset, feeds: dict[str, np.ndarray]
) -> None:
    found = backend.layer_times(built(variant_of(model, "int8-max", store, data), store), feeds, 2)
    products = [one for one in found if one.operator == "FullyConnected"]
    assert products
    for one in products:
        assert one.reads[0].dtype == "int8", "the products of this recipe are of codes"
        assert one.constants
        assert one.writes[0].shape
    written = {spec.name for one in found for spec in one.writes}
    assert any(spec.name in written for one in found for spec in one.reads), "layers are linked by tensors' names"


def test_importing_it_reports_to_nobody_and_leaves_the_environment_as_it_was() -> None:
    code = """
import multiprocessing, os, time
started = []
multiprocessing.Process.start = lambda process: started.append(process)
before = os.environ.get("CI")
from workbench.engines.openvino import _library
_library()
time.sleep(1)
assert os.environ.get("CI") == before
print(len(started))
"""
    environment = {key: value for key, value in os.environ.items() if key != "CI"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "0"
