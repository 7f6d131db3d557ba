"""A variant as a model repository: its files and configuration, and what cannot be deployed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

import workbench as wb
from workbench import codec
from workbench.errors import DataError, EngineError, StoreError
from workbench.handoff import triton_config
from workbench.handoff.batching import Batching
from workbench.records import BuildOptions, Failure, ShapeProfile, StudyRecord, TensorSpec

QUICK = wb.Protocol(batch=4, rounds=2, min_seconds=0.001, min_runs=5, warmup_seconds=0.0, warmup_runs=1)


def changed(study: wb.Study, variant: str, **parts: object) -> wb.Study:
    results = tuple(
        replace(item, **parts) if item.recipe.name == variant else item  # type: ignore[arg-type]
        for item in study.record.results
    )
    return wb.Study(replace(study.record, results=results))


def parsed(folder: Path, name: str):
    text_format = pytest.importorskip("google.protobuf.text_format")
    messages = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="pip install tritonclient[grpc]")
    return text_format.Parse((folder / name / "config.pbtxt").read_text(), messages.ModelConfig())


def test_an_onnx_file_is_served_by_tritons_own_onnx_runtime(study: wb.Study, tmp_path: Path) -> None:
    made = study.deploy("int8-max", tmp_path / "repository", at_most_seconds=10.0, instances=2)
    assert made.backend == "onnxruntime_onnx" and made.name == "net-int8-max"
    config = parsed(tmp_path / "repository", made.name)
    assert (config.name, config.backend, config.platform) == (made.name, "onnxruntime", "onnxruntime_onnx")
    assert config.max_batch_size == 4 and list(config.dynamic_batching.preferred_batch_size) == [4]
    assert config.dynamic_batching.max_queue_delay_microseconds == made.batching.delay_microseconds > 0
    assert [(item.name, list(item.dims)) for item in config.input] == [("x", [8])]
    assert [(item.name, list(item.dims)) for item in config.output] == [("logits", [3]), ("best", [1])]
    assert config.output[1].HasField("reshape") and not config.output[1].reshape.shape
    assert config.instance_group[0].count == 2
    assert [(one.batch_size, list(one.inputs["x"].dims)) for one in config.model_warmup] == [(1, [8]), (4, [8])]
    assert config.parameters["intra_op_thread_count"].string_value == "1"
    assert made.parsed and "ONNX Runtime" in made.notes[-1]
    assert any("more than 4 samples is refused" in note for note in made.notes)
    copied = tmp_path / "repository" / made.name / "1" / "model.onnx"
    assert copied.read_bytes() == Path(study["int8-max"].engine.path).read_bytes()


def test_the_reasons_of_the_numbers_are_comments_of_the_file(study: wb.Study, tmp_path: Path) -> None:
    made = study.deploy("fp32", tmp_path / "repository", name="mine")
    comments = (tmp_path / "repository" / "mine" / "config.pbtxt").read_text().splitlines()[:4]
    assert comments[0].startswith("# Variant 'fp32' of the study 'mine'")
    assert any("A call of 4 took" in line for line in comments) and any("at_most_seconds" in line for line in comments)
    assert made.batching.delay_microseconds == 0


def test_a_study_with_another_batch_adds_a_size(study: wb.Study, model, data, store, tmp_path: Path) -> None:
    protocol = replace(QUICK, batch=2)
    options = {"protocol": protocol, "store": store, "progress": None, "backend": "onnxruntime-cpu"}
    beside = wb.run(model, data, ["fp32"], **options)
    made = study.deploy("fp32", tmp_path / "repository", at_most_seconds=10.0, beside=beside)
    assert made.batching.largest == 4
    assert sum("A call of" in reason for reason in made.batching.reasons) == 2
    with pytest.raises(EngineError, match="has no variant 'int8-max'"):
        study.deploy("int8-max", tmp_path / "other", beside=[beside])
    unfinished = changed(beside, "fp32", measurement=None)
    with pytest.raises(EngineError, match="A study beside has not measured 'fp32'"):
        study.deploy("fp32", tmp_path / "other", beside=[unfinished])
    with pytest.raises(StoreError, match="beside holds a str"):
        study.deploy("fp32", tmp_path / "other", beside="mine")


def test_a_model_of_fixed_batch_is_served_as_it_is(store, tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2,8] x) => (float[2,8] y) {y = Relu(x)}'
    )
    fixed = wb.load(proto, name="fixed", store=store)
    options = {"store": store, "progress": None, "backend": "onnxruntime-cpu", "protocol": replace(QUICK, batch=2)}
    study = wb.run(fixed, wb.datasets.random(fixed, 4), ["fp32"], **options)
    made = study.deploy("fp32", tmp_path / "repository", at_most_seconds=10.0)
    config = parsed(tmp_path / "repository", made.name)
    assert made.batching is None and any("not gathered" in note for note in made.notes)
    assert (
        config.max_batch_size == 0 and not config.HasField("dynamic_batching") and list(config.input[0].dims) == [2, 8]
    )
    assert [one.batch_size for one in config.model_warmup] == [1]


def test_samples_on_another_axis_than_the_first_are_found_by_running(store, tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,S] x) => (float[S,N] y) {y = Transpose(x)}'
    turned = wb.load(onnx.parser.parse_model(text), name="turned", store=store)
    options = {"store": store, "progress": None, "backend": "onnxruntime-cpu", "protocol": QUICK}
    study = wb.run(turned, wb.datasets.random(turned, 4), ["fp32"], **options)
    made = study.deploy("fp32", tmp_path / "repository")
    assert made.batching is None and any("'y' does not count the samples" in note for note in made.notes)


def test_an_engine_that_refuses_other_batches_is_not_batched(store, tmp_path: Path) -> None:
    # The element of row 3 is written: smaller batches have none.
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y)
        <int64[1,4] row = {3, 3, 3, 3}, float[1,4] value = {1, 2, 3, 4}>
        { y = ScatterElements <axis = 0> (x, row, value) }"""
    stiff = wb.load(onnx.parser.parse_model(text), name="stiff", store=store)
    options = {"store": store, "progress": None, "backend": "onnxruntime-cpu", "protocol": QUICK}
    study = wb.run(stiff, wb.datasets.random(stiff, 4), ["fp32"], **options)
    made = study.deploy("fp32", tmp_path / "repository")
    assert made.batching is None and any("refused a batch of another size" in note for note in made.notes)


def test_weights_beside_the_file_are_copied_with_it(study: wb.Study, tmp_path: Path) -> None:
    proto = onnx.load(study["fp32"].engine.path)
    large = tmp_path / "large" / "large.onnx"
    large.parent.mkdir()
    onnx.save(proto, str(large), save_as_external_data=True, location="large.data", size_threshold=0)
    engine = replace(study["fp32"].engine, path=str(large), sha256="", folder=None)
    changed(study, "fp32", engine=engine).deploy("fp32", tmp_path / "repository", backend="python", name="m")
    place = tmp_path / "repository" / "m" / "1"
    assert {item.name for item in place.iterdir()} == {
        "model.onnx", "large.data", "model.py", "triton_tensors.py", "served.json",
    }  # fmt: skip
    onnx.load(str(place / "model.onnx"))


def test_a_plan_is_copied_and_named_with_its_smallest_batch(study: wb.Study, tmp_path: Path) -> None:
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"a plan")
    profile = {"x": ShapeProfile((2, 8), (4, 8), (4, 8))}
    engine = replace(
        study["fp32"].engine, backend="tensorrt", backend_version="10.13", device="NVIDIA H200", path=str(plan), sha256="",
        folder=None, options=BuildOptions(profiles=(profile,), extra={"plugins": ["/lib/libsnake.so"]}),
    )  # fmt: skip
    made = changed(study, "fp32", engine=engine).deploy("fp32", tmp_path / "repository")
    config = parsed(tmp_path / "repository", made.name)
    assert (config.backend, config.platform) == ("tensorrt", "tensorrt_plan")
    assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU
    assert (tmp_path / "repository" / made.name / "1" / "model.plan").read_bytes() == b"a plan"
    assert any("no fewer than 2 samples" in note for note in made.notes)
    assert any("TensorRT 10.13 and the device NVIDIA H200" in note for note in made.notes)
    assert any("plugins" in note and "/lib/libsnake.so" in note for note in made.notes)


@pytest.mark.parametrize(("fusion", "level"), [("off", 2), ("basic", -1)])
def test_the_level_of_fusion_is_that_of_the_study(fusion: str, level: int) -> None:
    served = triton_config.Served(
        "m", "onnxruntime_onnx", (TensorSpec("x", "float32", (None, 8)),), (TensorSpec("y", "float32", (None, 8)),),
        {"x": (4, 8)}, Batching(4, (4,), 0, ()), 1, True, fusion,
    )  # fmt: skip
    text = triton_config.text(served)
    assert f"optimization {{ graph {{ level: {level} }} }}" in text and "KIND_GPU" in text
    triton_config.check(text)


def test_names_and_types_of_all_kinds_survive_and_integers_are_warmed_up_with_zeros() -> None:
    messages = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="pip install tritonclient[grpc]")
    text_format = pytest.importorskip("google.protobuf.text_format")
    inputs = tuple(TensorSpec(f'"{dtype}"\n: ü', dtype, (None, None, 2)) for dtype in triton_config.TYPES)
    served = triton_config.Served(
        "m", "onnxruntime_onnx", inputs, inputs, {spec.name: (4, 3, 2) for spec in inputs}, Batching(4, (), 0, ()), 1,
        False, comments=("two\nlines",),
    )  # fmt: skip
    config = text_format.Parse(triton_config.text(served), messages.ModelConfig())
    assert [item.name for item in config.input] == [spec.name for spec in inputs]
    assert [list(item.dims) for item in config.input] == [[-1, 2]] * len(inputs)
    warm = config.model_warmup[0].inputs
    assert warm[inputs[8].name].zero_data and not warm[inputs[8].name].random_data  # int64
    assert warm[inputs[11].name].random_data  # float64


def test_types_that_the_server_lacks_are_refused() -> None:
    def served(platform: str, dtype: str) -> triton_config.Served:
        spec = (TensorSpec("x", dtype, (None, 8)),)
        return triton_config.Served("m", platform, spec, spec, {"x": (4, 8)}, None, 1, False)

    with pytest.raises(EngineError, match=r"input 'x' is float8_e4m3fn, a type that Triton does not have.*Cast it"):
        triton_config.text(served("tensorrt_plan", "float8_e4m3fn"))
    with pytest.raises(EngineError, match="bfloat16, which numpy lacks"):
        triton_config.text(served("python", "bfloat16"))
    assert "TYPE_BF16" in triton_config.text(served("tensorrt_plan", "bfloat16"))


def test_a_configuration_that_is_none_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="pip install tritonclient[grpc]")
    with pytest.raises(EngineError, match=r"not valid.*Report this as a bug"):
        triton_config.check("max_batch_size: many")


def test_without_tritonclient_the_configuration_is_not_parsed_and_that_is_said(
    study: wb.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(name: str):
        raise ImportError(name)

    monkeypatch.setattr(triton_config, "importlib", type("importlib", (), {"import_module": staticmethod(gone)}))
    made = study.deploy("fp32", tmp_path / "repository")
    assert not made.parsed and any("not parsed here" in note for note in made.notes)


def test_a_folder_that_exists_is_left_alone(study: wb.Study, tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="exists already, and is not written over"):
        study.deploy("fp32", tmp_path / "repository")
    assert [item.name for item in (tmp_path / "repository").iterdir()] == ["mine.txt"]


def test_where_nothing_can_be_written_nothing_is_left(study: wb.Study, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match="Cannot write"):
        study.deploy("fp32", tmp_path / "file" / "repository")
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"to": "seldon"}, "cannot be deployed to 'seldon'.*Known: triton"),
        ({"backend": "pytorch"}, "Triton has no backend 'pytorch'.*python"),
        ({"backend": "tensorrt_plan"}, "built for onnxruntime-cpu, which Triton serves with 'onnxruntime_onnx'"),
        ({"instances": 0}, "instances is 0"),
        ({"variant": "int8-maxx"}, "no variant 'int8-maxx'. Did you mean 'int8-max'"),
        ({"name": "../m"}, "is no name of a folder"),
        ({"at_most_seconds": 1e-9}, "No measured batch keeps to"),
    ],
)
def test_what_cannot_be_deployed_is_refused_before_anything_is_written(
    study: wb.Study, tmp_path: Path, arguments: dict, words: str
) -> None:
    with pytest.raises((EngineError, StoreError, DataError), match=words):
        study.deploy(**{"variant": "fp32", "folder": tmp_path / "repository", **arguments})
    assert not list(tmp_path.iterdir())


def test_a_failed_an_unmeasured_and_a_vanished_variant_are_refused(study: wb.Study, tmp_path: Path) -> None:
    failed = changed(study, "fp32", failure=Failure("fp32", "build", "BuildError", "No kernel."))
    with pytest.raises(EngineError, match="failed at the stage 'build': No kernel"):
        failed.deploy("fp32", tmp_path / "repository")
    with pytest.raises(EngineError, match="not built and measured to the end"):
        changed(study, "fp32", measurement=None).deploy("fp32", tmp_path / "repository")
    engine = replace(study["fp32"].engine, path=str(tmp_path / "gone.onnx"))
    with pytest.raises(EngineError, match=r"gone\.onnx.*is gone, or is not what was built"):
        changed(study, "fp32", engine=engine).deploy("fp32", tmp_path / "repository")
    elsewhere = wb.Study(codec.from_json(StudyRecord, codec.to_json(codec.portable(study.record))))
    with pytest.raises(EngineError, match="came from another machine"):
        elsewhere.deploy("fp32", tmp_path / "repository")


def test_an_engine_of_another_backend_is_copied_to_be_opened_by_the_workbench(
    model, data, store, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    options = {"store": store, "progress": None, "backend": "openvino", "protocol": QUICK}
    study = wb.run(model, data, ["fp32"], **options)
    made = study.deploy("fp32", tmp_path / "repository")
    place = tmp_path / "repository" / made.name / "1"
    settings = json.loads((place / "served.json").read_text())
    assert made.backend == "python" and settings["opened_with"] == "workbench"
    assert str(store.root) not in (place / "served.json").read_text()
    assert any("trt-workbench with openvino" in note for note in made.notes)
    assert (place / settings["engine"]["path"]).is_file() and (place / settings["engine"]["folder"]).is_dir()
    assert np.isfinite(study["fp32"].engine.build_seconds)
